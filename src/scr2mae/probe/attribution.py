"""Genes that drive a probe: attributions through the encoder, averaged by donor, and how stable their ranks are."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from scr2mae.data.containers import check_anndata
from scr2mae.metrics import macro_auroc, spearman
from scr2mae.probe.inputs import cap_cells, read_target
from scr2mae.probe.kept import Probe
from scr2mae.probe.linear import LinearMap

Float = NDArray[np.float64]
_COLUMNS = ("class", "gene", "rank", "attribution", "t", "expression", "rank_sd", "stability")


def gene_attribution(
    probe: Probe,
    adata: AnnData,
    *,
    donor_key: str | Sequence[str] | None = None,
    model: Any = None,
    n_steps: int = 16,
    max_cells_per_donor: int | None = 100,
    n_top: int = 50,
    key_added: str | None = "probe_genes",
    seed: int = 0,
) -> pd.DataFrame:
    """Rank genes by how much they make a probe tell one class from the others, through the encoder.

    Parameters
    ----------
    probe
        Probe of a model's embedding.
    adata
        Raw counts of labeled cells, such as those of the fit.
    donor_key
        Column with donors; by default that of the fit.
    model
        The model of the probe; by default the one that is attached.
    n_steps
        Number of points of the integration.
    max_cells_per_donor
        Number of cells to draw per donor; None for all.
    n_top
        Number of genes that count as the top for ``stability``.
    key_added
        Write the table to ``adata.uns``; None does not.
    seed
        Random seed for the draw of cells.

    Returns
    -------
    Genes of each class, the strongest first; with two classes only the second, and "" as the class in regression.

    - ``attribution``: mean over the donors of the class minus that over other donors, in units of the logit; for a number, the change
      for one standard deviation of it over donors. Positive if the gene moves the probe toward the truth.
    - ``t``: the same in units of its standard error over donors
    - ``expression``: the same contrast of the mean ``log1p`` counts; its sign tells whether the gene is higher in the class
    - ``rank_sd``, ``stability``: over the probes fitted without the donors of a fold, the spread of the rank, and the share in which
      the gene is among the ``n_top``

    Raises
    ------
    ValueError
        If there is no model, or it is not the one of the probe.
    KeyError
        If a column is missing.

    Notes
    -----
    Attributions describe what this probe uses. They are neither causal nor a test of differential expression: correlated genes
    share or take one another's weight. Test genes on pseudobulk counts per donor, for example with edgeR or DESeq2.
    """
    check_anndata(adata)
    embedder = _model_of(probe, model)
    target = read_target(adata.obs, probe.target, probe.kind, donor_key=donor_key or probe.donor_key)
    chosen = np.arange(len(target.rows))
    if max_cells_per_donor is not None:
        names = adata.obs_names[target.rows]
        chosen = cap_cells(chosen, [target.donors], names, limit=max_cells_per_donor, seed=seed)
    units, first, codes = np.unique(target.units[chosen], return_index=True, return_inverse=True)
    y = target.y[chosen][first]
    maps = (probe.linear, *probe.fold_maps)
    directions = np.stack([_directions(each) for each in maps])  # (n_maps, n_features, n_classes)
    flat = directions.transpose(1, 0, 2).reshape(directions.shape[1], -1)
    found = embedder.get_gene_attributions(flat, codes, adata, indices=target.rows[chosen], n_steps=n_steps)
    values = found.attributions.reshape(len(units), len(maps), -1, found.attributions.shape[-1])
    labels = (
        [""] if probe.classes is None else probe.classes[1:] if len(probe.classes) == 2 else probe.classes
    )
    tables = [
        _class_table(values[:, :, c], found.expression, _weights(y, label, probe), str(label), n_top)
        for c, label in enumerate(labels)
    ]
    table = pd.concat(tables, ignore_index=True)
    genes = np.asarray(embedder.spec.var_names).astype(str)
    table["gene"] = genes[table["gene"]]
    if key_added is not None:
        adata.uns[key_added] = table.copy()
    return table


def _model_of(probe: Probe, model: Any) -> Any:
    """Return the model that embeds the counts; raise unless it is that of the probe."""
    model = model if model is not None else probe.model
    if model is None:
        raise ValueError("Counts are embedded for this; pass model=, the model of the probe's embedding.")
    probe.features.check_model(model)
    return model


def _directions(each: LinearMap) -> Float:
    """Return the direction of each output that is explained, shape ``(n_features, n_classes)``."""
    coef = each.coef
    if coef.shape[1] == 1:
        return coef
    if coef.shape[1] == 2:
        return coef[:, 1:] - coef[:, :1]
    return coef - coef.mean(axis=1, keepdims=True)


def _weights(y: NDArray[Any], label: Any, probe: Probe) -> tuple[Float, NDArray[np.bool_] | None]:
    """Return the weight of each unit in the contrast, and which units are inside the class."""
    if probe.classes is None:
        centered = y.astype(np.float64) - y.astype(np.float64).mean()
        return centered / (np.square(centered).sum() / centered.std()), None
    inside = y == label
    if not inside.any() or inside.all():
        raise ValueError(f"Wanted labeled donors with and without {label!r} in adata, to compare them.")
    return np.where(inside, 1 / max(inside.sum(), 1), -1 / max((~inside).sum(), 1)), inside


def _class_table(
    values: Float, expression: Float, weights: tuple[Float, NDArray[np.bool_] | None], label: str, n_top: int
) -> pd.DataFrame:
    """Contrast the attributions of one class, shape ``(n_units, n_maps, n_vars)``, over units."""
    weight, inside = weights
    contrast = np.einsum("u,umg->mg", weight, values)
    ranks = np.argsort(np.argsort(-contrast, axis=1, kind="stable"), axis=1) + 1
    groups = [np.ones(len(weight), dtype=bool)] if inside is None else [inside, ~inside]
    residual = values[:, 0].copy()
    for group in groups:
        residual[group] -= residual[group].mean(axis=0)
    if inside is None:
        standard = weight / np.linalg.norm(weight)
        residual -= np.outer(standard, standard @ values[:, 0])
    variance = sum(
        np.square(residual[group] * weight[group, None]).sum(axis=0) * group.sum() / max(group.sum() - 1, 1)
        for group in groups
    )
    error = np.sqrt(np.asarray(variance))
    t = np.divide(contrast[0], error, out=np.zeros_like(error), where=error > 0)
    folds = ranks[1:] if len(ranks) > 1 else ranks
    table = pd.DataFrame(
        {
            "class": label,
            "gene": np.arange(len(t)),
            "rank": ranks[0],
            "attribution": contrast[0],
            "t": t,
            "expression": weight @ expression,
            "rank_sd": folds.std(axis=0),
            "stability": (folds <= n_top).mean(axis=0),
        },
        columns=list(_COLUMNS),
    )
    return table.sort_values("rank", ignore_index=True)


def rank_stability(tables: Sequence[pd.DataFrame], *, n_top: int = 50) -> pd.Series:
    """Compare the ranks of genes between probes, such as those of several training seeds or splits of donors.

    Parameters
    ----------
    tables
        Two or more tables of :func:`gene_attribution` with the same genes and classes.
    n_top
        Number of genes at the top to compare.

    Returns
    -------
    Means over pairs of tables: ``spearman``, the correlation of attributions, and ``overlap``, the share of the top genes of
    one that are among those of the other.

    Raises
    ------
    ValueError
        If there are fewer than two tables or their genes differ.
    """
    if len(tables) < 2:
        raise ValueError(f"Wanted two tables or more, got {len(tables)}.")
    indexed = [table.set_index(["class", "gene"]).sort_index() for table in tables]
    if any(not table.index.equals(indexed[0].index) for table in indexed):
        raise ValueError(
            "The tables have different genes or classes; make them with models of the same genes."
        )
    pairs = list(combinations(indexed, 2))
    correlations = [spearman(a["attribution"], b["attribution"]) for a, b in pairs]
    overlaps = [
        ((a["rank"] <= n_top) & (b["rank"] <= n_top)).sum() / (a["rank"] <= n_top).sum() for a, b in pairs
    ]
    return pd.Series({"spearman": np.mean(correlations), "overlap": np.mean(overlaps)})


def score_without_genes(
    probe: Probe,
    adata: AnnData,
    genes: Sequence[str],
    *,
    n_genes: Sequence[int] = (0, 10, 20, 50, 100),
    model: Any = None,
    n_random: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Leave out the top genes and score the probe on the others; genes left out are masked, as in a panel.

    Parameters
    ----------
    probe
        Probe of a model's embedding.
    adata
        Raw counts of labeled cells, ideally of donors outside the fit.
    genes
        Genes, the strongest first, such as ``table["gene"]``.
    n_genes
        Numbers of top genes to leave out.
    model
        The model of the probe; by default the one that is attached.
    n_random
        Number of random draws of as many genes, for comparison.
    seed
        Random seed of these draws.

    Returns
    -------
    One row per number: ``top`` and ``random``, the score by cell (macro AUROC, or Spearman's correlation) without these genes.

    Raises
    ------
    ValueError
        If there is no model, or it is not the one of the probe.
    """
    check_anndata(adata)
    embedder = _model_of(probe, model)
    labeled = adata[adata.obs[probe.target].notna().to_numpy()]
    names = np.asarray(labeled.var_names.astype(str))
    rng = np.random.default_rng(seed)

    def score(left_out: Sequence[str]) -> float:
        query = labeled[:, ~np.isin(names, left_out)].copy()
        truth = query.obs[probe.target]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Few shared genes", UserWarning)  # as asked for
            X = np.asarray(embedder.get_latent_representation(query), dtype=np.float64)
        outputs = probe.linear(X)
        if probe.classes is None:
            return spearman(truth.to_numpy(dtype=float), outputs[:, 0])
        if len(probe.classes) == 2:
            outputs = outputs - outputs[:, ::-1]
        return macro_auroc(truth.astype(str).to_numpy(dtype=str), outputs, classes=probe.classes)

    rows = []
    for n in n_genes:
        draws = [score(rng.choice(names, n, replace=False).tolist()) for _ in range(n_random if n else 0)]
        top = score(list(genes[:n]))
        rows.append({"n_genes": n, "top": top, "random": np.mean(draws) if draws else top})
    return pd.DataFrame(rows).set_index("n_genes")
