"""Fit a probe to all donors, and score the same procedure on donors held out."""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import softmax

from scr2mae.data.columns import as_keys, key_name
from scr2mae.metrics import group_means
from scr2mae.probe.calibration import Calibration, Method, cross_calibrate, fit_calibration, reliability
from scr2mae.probe.designs import covariate_features, design_table, level_folds
from scr2mae.probe.features import Embedder, fitted_features, surprises_by_donor
from scr2mae.probe.folds import make_folds
from scr2mae.probe.inputs import Kind, Target, checked_obs, read_names, read_target
from scr2mae.probe.kept import UNKNOWN, Probe
from scr2mae.probe.linear import HeldOut, fit_map, hold_out, log_odds
from scr2mae.probe.rejection import fit_rejection
from scr2mae.probe.scorecard import score_table, unit_table
from scr2mae.probe.scores import check_interval

logger = logging.getLogger(__name__)
Float = NDArray[np.float64]


def fit_probe(
    adata: AnnData,
    *,
    use_rep: str = "X_r2mae",
    target: str,
    kind: Kind,
    donor_key: str | Sequence[str],
    sample_key: str | Sequence[str] | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    model: Embedder | None = None,
    calibration: Method | None = "sigmoid",
    reject: float | None = None,
    scale: bool = False,
    design_keys: Sequence[str] = (),
    holdout_key: str | Sequence[str] | None = None,
    cv: int = 5,
    n_bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe to all donors, to be kept and applied to new ones.

    Parameters
    ----------
    adata
        Cells with the embedding, or with raw counts if ``model`` is given.
    use_rep
        Representation: a key of ``obsm``, "X" or a layer. With a model, an embedding that is not stored is computed.
    target
        Column of ``adata.obs`` to predict. Cells without a label are left out.
    kind
        "classification" or "regression".
    donor_key
        Column of ``adata.obs`` with donor IDs, or several that together name a donor, such as
        ``["study", "donor"]``; folds hold out whole donors.
    sample_key
        Column of ``adata.obs`` with sample IDs, the unit of donor-level scores if donors have several samples.
    cell_level
        Targets that belong to the cell rather than to its donor.
    model
        Trained model whose embedding this is. The probe keeps its fingerprint, refuses embeddings of other models, and
        can predict counts.
    calibration
        "sigmoid" or "isotonic" curves fitted to predictions for held-out donors; None for the probabilities of the
        logistic model.
    reject
        Share of cells of a known kind that may be called unknown, such as 0.05; cells farther from the reference are
        rejected. With a model, cells are also rejected if they and their neighbors among the donor's cells have counts
        the model does not expect. None rejects no cell.
    scale
        Whether to divide each feature by its standard deviation over the cells.
    design_keys
        Columns that may confound the target, such as batch, sex and study: they are compared with it over donors, with a
        warning if one determines it, and a probe of these columns alone is scored beside that of the embedding.
    holdout_key
        Column, such as batch or study, whose levels are held out one at a time for another row of scores.
    cv
        Number of folds of donors, for scores, calibration and rejection; each chooses its penalty across its
        own donors.
    n_bootstrap
        Number of bootstrap resamples of donors for the intervals of the scores; 0 leaves them NaN. Calibration errors and
        the rate of unknown cells have none.
    confidence
        Coverage of these intervals.
    seed
        Random seed of the bootstrap.

    Returns
    -------
    The fitted probe, with its scores on donors held out in ``scores``.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If there are fewer than three donors, a class has a single donor, the labels do not suit the kind, or the
        features are not finite or not those of the model.

    Notes
    -----
    Scores are nested: penalty and calibration of a prediction come from donors other than its own. The penalty
    scales the logits, and folds may choose different ones; their logits are brought to a common scale before curves are
    fitted to them.

    Examples
    --------
    >>> import scr2mae
    >>> from scr2mae.probe import fit_probe
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=12, n_cells_per_donor=20, n_genes=50, disease_effect=2.0)
    >>> adata.layers["log"] = adata.X.log1p()
    >>> new = adata[adata.obs["donor"] == "donor00"].copy()
    >>> known = adata[adata.obs["donor"] != "donor00"].copy()
    >>> probe = fit_probe(known, use_rep="log", target="disease", kind="classification", donor_key="donor")
    >>> call = probe.predict_donors(new).iloc[0]
    >>> bool(call["prediction"] == new.obs["disease"].iloc[0])
    True
    """
    _check_settings(reject, n_bootstrap, confidence)
    obs = checked_obs(adata, donor_key)
    described = read_target(
        obs, target, kind, donor_key=donor_key, sample_key=sample_key, cell_level=cell_level
    )
    check_donors(described)
    if reject is not None and kind == "classification" and UNKNOWN in described.y:
        raise ValueError(
            f"{UNKNOWN!r} is a class of {target!r} and what rejected cells are called; make these labels missing (NaN), or "
            "rename the class."
        )
    X_all, features = fitted_features(adata, use_rep, model)
    X = X_all[described.rows]
    classify = kind == "classification"
    classes, codes = np.unique(described.y, return_inverse=True) if classify else (None, None)
    options: dict[str, Any] = {"kind": kind, "classes": classes, "scaled": scale}
    folds = make_folds(cv, X, codes, described.donors)
    linear = fit_map(X, described.y, described.donors, **options)
    held_out = hold_out(X, described.y, described.donors, folds, like=linear, **options)
    if not held_out.maps:
        raise ValueError(
            f"No fold leaves two donors and two values of {target!r} to fit to; add donors to score the probe."
        )
    curves, predicted, before = _calibrate(held_out, codes, calibration)
    truth = described.y if codes is None else codes
    settings: dict[str, Any] = {"n_bootstrap": n_bootstrap, "confidence": confidence, "seed": seed}
    score: Any = partial(score_table, target=described, truth=truth, **settings)
    tables = [score("embedding", predicted=predicted, raw=before)]
    design = None
    if covariates := as_keys(design_keys, "design_keys"):
        keys: dict[str, Any] = {"donor_key": donor_key, "sample_key": sample_key}
        design = design_table(adata, target=target, kind=kind, columns=covariates, **keys)
        Z = covariate_features(adata.obs.iloc[described.rows], covariates)
        alone = hold_out(Z, described.y, described.donors, folds, **options)
        tables.append(score("covariates", predicted=_plain(alone, classify)))
    if holdout_key is not None:
        levels = read_names(adata.obs.iloc[described.rows], holdout_key)
        apart = level_folds(levels, described.donors)
        other = hold_out(X, described.y, described.donors, apart, like=linear, **options)
        name = f"embedding, {key_name(holdout_key)} held out"
        tables.append(score(name, predicted=_plain(other, classify)))
    donors = np.unique(described.donors)
    rejection = None
    if reject is not None:
        known = adata[described.rows]
        found = None if model is None else surprises_by_donor(model, known, X, described.donors)
        groups = np.zeros(len(truth), dtype=np.intp) if codes is None else codes
        rejection, share = fit_rejection(X, groups, described.donors, folds, rate=reject, found=found)
        row = {"method": "embedding", "level": "cell", "unit": "donor", "metric": "unknown_rate"}
        tables.append(pd.DataFrame([row | {"value": share, "n_units": len(donors), "note": ""}]))
    return Probe(
        target=target,
        kind=kind,
        features=features,
        donor_key=donor_key if isinstance(donor_key, str) else tuple(as_keys(donor_key, "donor_key")),
        donors=tuple(donors.tolist()),
        is_cell_level=target in as_keys(cell_level, "cell_level"),
        linear=linear,
        fold_maps=held_out.maps,
        classes=classes,
        value_range=None if classify else (float(described.y.min()), float(described.y.max())),
        calibration=curves,
        rejection=rejection,
        scores=pd.concat(tables, ignore_index=True),
        held_out=unit_table(described, predicted, classes),
        reliability=None if codes is None else _reliability(described, codes, predicted, before),
        design=design,
        model=model,
    )


def _check_settings(reject: float | None, n_bootstrap: int, confidence: float) -> None:
    if not isinstance(reject, (Real, type(None))):
        raise TypeError(f"reject is a rate between 0 and 1 or None, got {reject!r}.")
    check_interval(n_bootstrap, confidence)


def check_donors(target: Target) -> None:
    """Raise unless there are three donors, and two of each class."""
    if (n_donors := len(np.unique(target.donors))) < 3:
        raise ValueError(
            f"Fitting a probe needs three donors with a {target.name!r}, two to fit and one to score, got {n_donors}."
        )
    if target.kind == "classification":
        n_of = pd.Series(target.donors).groupby(target.y).nunique()
        if len(single := n_of[n_of < 2]):
            raise ValueError(
                f"Each class needs two donors, so that one can be held out; {single.index.tolist()} of {target.name!r} "
                "have one. Add donors, or merge or drop these classes."
            )


def _calibrate(
    held_out: HeldOut, codes: NDArray[np.intp] | None, method: Method | None
) -> tuple[Calibration | None, Float, Float | None]:
    """Return the curves, and held-out predictions after and before calibration."""
    if codes is None:
        return None, held_out.outputs, None
    tested = held_out.fold >= 0
    before = np.asarray(softmax(held_out.plain, axis=1))
    if method is None:
        return None, before, None
    curves = fit_calibration(log_odds(held_out.outputs[tested]), codes[tested], method)
    if len(held_out.maps) < 2:
        logger.warning("Only one fold could be fitted, so that the calibration cannot be scored.")
        return curves, before, None
    return curves, cross_calibrate(held_out, codes, method), before


def _plain(found: HeldOut, classify: bool) -> Float:
    """Return held-out probabilities without calibration, or numbers."""
    return np.asarray(softmax(found.outputs, axis=1)) if classify else found.outputs


def _reliability(
    target: Target, codes: NDArray[np.intp], predicted: Float, before: Float | None
) -> pd.DataFrame:
    """Return the reliability of cells and units, before and after calibration."""
    kept = ~np.isnan(predicted[:, 0])
    versions: Iterable[tuple[str, Float | None]] = (("before", before), ("after", predicted))
    tables = []
    for name, values in versions:
        if values is None:
            continue
        tables.append(reliability(codes[kept], values[kept]).assign(level="cell", calibration=name))
        if target.unit is not None:
            units = target.units[kept]
            first = np.unique(units, return_index=True)[1]
            means = group_means(values[kept], units)[1]
            tables.append(reliability(codes[kept][first], means).assign(level="donor", calibration=name))
    return pd.concat(tables, ignore_index=True)
