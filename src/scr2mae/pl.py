"""Figures, one function each: every one draws on the Axes it is given and returns them.

Without ``ax`` a new pyplot figure is made, which notebooks show by themselves. With ``ax`` pyplot is not touched.
Settings of matplotlib are never changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

    from scr2mae.model import R2MAEModel
    from scr2mae.train.history import History

__all__ = [
    "OKABE_ITO",
    "benchmark_reconstruction",
    "benchmark_scores",
    "embedding",
    "reconstruction",
    "training_curves",
]

logger = logging.getLogger(__name__)

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Eight colours that people with any colour vision tell apart (Okabe & Ito, 2008), the palest last."""

_MARKERS = ("o", "^", "s", "P", "X", "D")
_THIN_STYLES = (
    (OKABE_ITO[1], "--"),
    (OKABE_ITO[2], "-."),
    (OKABE_ITO[4], ":"),
    (OKABE_ITO[5], (0, (5, 1, 1, 1))),
)
_MISSING = "#BBBBBB"
_RATIO_CURVE = "validation_loss_"


def _axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the Axes given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _frameless_legend(ax: Axes, **kwargs: Any) -> None:
    ax.legend(frameon=False, fontsize="small", **kwargs)


def _despine(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def training_curves(model_or_history: R2MAEModel | History, *, ax: Axes | None = None) -> Axes:
    """Draw the loss of each epoch: in training, in validation, and in validation at each masking ratio.

    Parameters
    ----------
    model_or_history
        A trained model, or its ``history``.
    ax
        Where to draw.

    Returns
    -------
    The Axes. The loss is the mean negative log-likelihood of a hidden count, in nats. Validation hides the same
    genes at every epoch and for every scheme; its heavy curve is the mean of the thin ones.

    Raises
    ------
    ValueError
        If the model is not trained.
    """
    history = model_or_history if isinstance(model_or_history, Mapping) else model_or_history.history
    if not history or "train_loss" not in history:
        raise ValueError(
            f"Expected a history with the curve 'train_loss', got {sorted(history or {})}; call model.train() first."
        )
    ax = _axes(ax, width=5.5, height=3.6)
    # A line through a single epoch cannot be seen.
    marker = "o" if len(history["train_loss"]) < 10 else None

    def draw(name: str, label: str, **style: Any) -> None:
        ax.plot(history[name].index, history[name][name], label=label, marker=marker, markersize=4, **style)

    draw("train_loss", "Training", color=OKABE_ITO[0], linewidth=1.8)
    if "validation_loss" in history:
        draw("validation_loss", "Validation, mean", color=OKABE_ITO[3], linewidth=1.8)
    ratios = {
        float(name.removeprefix(_RATIO_CURVE)): name for name in history if name.startswith(_RATIO_CURVE)
    }
    for i, (ratio, name) in enumerate(sorted(ratios.items())):
        color, dash = _THIN_STYLES[i % len(_THIN_STYLES)]
        draw(name, f"Validation, {ratio:.0%} hidden", color=color, linestyle=dash, linewidth=1)
    ax.set(xlabel="Epoch", ylabel="Loss (nats per hidden count)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _despine(ax)
    _frameless_legend(ax)
    return ax


def reconstruction(
    models_or_frames: R2MAEModel | pd.DataFrame | Mapping[str, R2MAEModel | pd.DataFrame],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how well hidden genes are predicted against the share of genes hidden.

    Parameters
    ----------
    models_or_frames
        A model, or what its ``get_masked_reconstruction`` returned; several of either by name. A model is scored
        on its validation cells, or on all of its cells where it has none.
    ax
        Where to draw.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        If there is nothing to draw or a frame lacks the column ``pearson``.
    """
    named = models_or_frames if isinstance(models_or_frames, Mapping) else {None: models_or_frames}
    frames = {
        name: value if isinstance(value, pd.DataFrame) else _validation_reconstruction(value)
        for name, value in named.items()
    }
    if not frames:
        raise ValueError("Expected at least one model or frame to draw, got none.")
    for frame in frames.values():
        if "pearson" not in frame:
            raise ValueError(
                f"Expected a frame of get_masked_reconstruction with the column 'pearson', got {list(frame)}."
            )
    ax = _axes(ax, width=5.0, height=3.6)
    for i, (name, frame) in enumerate(frames.items()):
        curve = frame["pearson"].sort_index()
        color, marker = OKABE_ITO[i % len(OKABE_ITO)], _MARKERS[i % len(_MARKERS)]
        ax.plot(100 * curve.index.to_numpy(), curve, label=name, color=color, marker=marker, markersize=5)
    ax.set(xlabel="Genes hidden (%)", ylabel="Pearson correlation over hidden genes")
    _despine(ax)
    if len(frames) > 1 or None not in frames:
        _frameless_legend(ax)
    return ax


def _validation_reconstruction(model: R2MAEModel) -> pd.DataFrame:
    held_out = model.validation_indices
    return model.get_masked_reconstruction(
        indices=held_out if held_out is not None and len(held_out) else None
    )


def benchmark_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the scores of each method, a row each, best rank on top.

    Parameters
    ----------
    table
        What :meth:`scr2mae.benchmark.Benchmark.table` returned: methods by (task, metric, level), then "Score", "Rank".
    ax
        Where to draw.

    Returns
    -------
    The Axes. A diamond is the Score, a bar its standard deviation over training seeds.

    Raises
    ------
    ValueError
        If the table has no rank or no method.
    """
    if not len(table) or "Rank" not in table.columns.get_level_values(0):
        raise ValueError(
            f"Expected a table of scr2mae.benchmark with methods and the column 'Rank', got {list(table.columns)}."
        )
    table = table.sort_values(("Rank", "", ""), kind="stable")
    ax = _axes(ax, width=7.0, height=1.5 + 0.3 * len(table))
    rows = np.arange(len(table))
    columns = [column for column in table.columns.tolist() if column[1]]
    for i, column in enumerate(columns):
        color, marker = OKABE_ITO[i % len(OKABE_ITO)], _MARKERS[i % (len(_MARKERS) - 1)]
        label = f"{column[0]}: {column[1].replace('_', ' ')}, {column[2]}"
        ax.scatter(table[column], rows, color=color, marker=marker, s=22, label=label)
    score, spread = table[("Score", "", "")], table[("Score sd", "", "")].fillna(0)
    ax.errorbar(score, rows, xerr=spread, fmt="D", color="black", markersize=6, capsize=2, label="Score")
    names = [f"{name} ({rank:.2f})" for name, rank in zip(table.index, table[("Rank", "", "")], strict=True)]
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(axis="y", linewidth=0.4)
    ax.set_axisbelow(True)
    ax.set(xlabel="Score on held-out donors", ylabel="Method (mean rank)")
    _despine(ax)
    _frameless_legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def benchmark_reconstruction(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how far each method's reconstruction is from the best at each share of genes hidden.

    Parameters
    ----------
    table
        What :meth:`scr2mae.benchmark.Benchmark.reconstruction` returned: methods by ratio.
    ax
        Where to draw.

    Returns
    -------
    The Axes. The correlations themselves fall by far more with the ratio than methods differ.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not table.size:
        raise ValueError("Expected a table with a row for each method that reconstructs, got an empty one.")
    gaps = table - table.max(axis=0)
    ax = _axes(ax, width=7.0, height=max(3.6, 1.5 + 0.3 * len(table)))
    percent = 100 * gaps.columns.to_numpy(dtype=float)
    for i, (name, curve) in enumerate(gaps.iterrows()):
        style: dict[str, Any] = {
            "color": OKABE_ITO[i % len(OKABE_ITO)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        dash = "-" if i < len(OKABE_ITO) else "--"
        ax.plot(percent, curve, label=name, linestyle=dash, markersize=4, **style)
    ax.set(xlabel="Genes hidden (%)", ylabel="Pearson correlation minus the best")
    _despine(ax)
    _frameless_legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def embedding(
    adata: AnnData,
    basis: str = "X_r2mae",
    *,
    color: str | None = None,
    n_neighbors: int = 15,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw cells in two dimensions: the UMAP of an embedding.

    Parameters
    ----------
    adata
        Cells. See the notes for what is written to it.
    basis
        Key of ``adata.obsm``, shape ``(n_obs, n_latent)``. Two columns are drawn as they are, without UMAP.
    color
        Column of ``adata.obs``; numbers get a colour bar, anything else a legend. None draws all cells alike.
    n_neighbors
        Neighbours of a cell, at least 2; where there are fewer cells, all of them.
    seed
        Seed of the UMAP.
    ax
        Where to draw.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        If there is no such embedding or column.
    ValueError
        If the embedding is not finite or there are fewer than four cells.

    Notes
    -----
    Scanpy's neighbours and UMAP are computed on a copy; neither ``adata.obsm["X_umap"]`` nor ``adata.obsp`` is
    touched. Written are ``adata.obsm[f"{basis}_umap"]``, so that a second figure costs nothing, and a checksum in
    ``adata.uns["scr2mae"]``, by which they are computed anew once the embedding or a setting has changed. Nothing
    is written to a view; to draw a subset where it lies among all cells, pass ``basis=f"{basis}_umap"``.
    """
    if basis not in adata.obsm:
        raise KeyError(f"No {basis!r} in adata.obsm; choose one of {list(adata.obsm)}.")
    if color is not None and color not in adata.obs:
        raise KeyError(f"No {color!r} in adata.obs; choose one of {list(adata.obs)}.")
    values = np.asarray(adata.obsm[basis])
    if values.shape[1] == 2:
        points, title = values, "UMAP" if basis.endswith("umap") else basis
    else:
        points, title = _stored_umap(adata, basis, values, n_neighbors=n_neighbors, seed=seed), "UMAP"
    ax = _axes(ax, width=6.5, height=4.5)
    size = float(np.clip(20_000 / max(len(points), 1), 1, 24))
    style: dict[str, Any] = {"s": size, "rasterized": len(points) > 5_000}
    if color is None:
        _dots(ax, points, color=OKABE_ITO[0], **style)
    elif pd.api.types.is_numeric_dtype(adata.obs[color]) and not pd.api.types.is_bool_dtype(adata.obs[color]):
        _scatter_numbers(ax, points, adata.obs[color], style)
    else:
        _scatter_categories(ax, points, adata.obs[color], style)
    ax.set(xlabel=f"{title} 1", ylabel=f"{title} 2", xticks=[], yticks=[])
    _despine(ax)
    return ax


def _stored_umap(
    adata: AnnData, basis: str, values: np.ndarray, *, n_neighbors: int, seed: int
) -> np.ndarray:
    """Return the UMAP kept in ``adata`` if it is that of these values, else compute and keep it."""
    key = f"{basis}_umap"
    settings = f"{values.shape} {values.dtype} n_neighbors={n_neighbors} seed={seed}"
    checksum = hashlib.sha256(settings.encode() + np.ascontiguousarray(values).tobytes()).hexdigest()
    if key in adata.obsm and adata.uns.get("scr2mae", {}).get(key) == checksum:
        return np.asarray(adata.obsm[key])
    points = _umap(values, n_neighbors=n_neighbors, seed=seed)
    if not adata.is_view:
        adata.obsm[key] = points
        adata.uns.setdefault("scr2mae", {})[key] = checksum
        logger.info("Wrote the UMAP of %s to adata.obsm[%r].", basis, key)
    return points


def _umap(values: np.ndarray, *, n_neighbors: int, seed: int) -> np.ndarray:
    """Lay cells out in two dimensions; shape ``(n_obs, 2)``."""
    if len(values) < 4:
        raise ValueError(f"UMAP needs at least four cells, got {len(values)}.")
    if n_neighbors < 2:
        raise ValueError(f"n_neighbors must be at least 2, got {n_neighbors}.")
    if not np.isfinite(values).all():
        raise ValueError("The embedding holds NaN or infinite values; embed those cells again or drop them.")
    import scanpy as sc
    from anndata import AnnData

    work = AnnData(np.ascontiguousarray(values, dtype=np.float32))
    sc.pp.neighbors(work, n_neighbors=min(n_neighbors, len(values) - 1), use_rep="X", random_state=seed)
    sc.tl.umap(work, random_state=seed)
    return np.asarray(work.obsm["X_umap"], dtype=np.float32)


def _dots(ax: Axes, points: np.ndarray, **style: Any) -> PathCollection:
    return ax.scatter(points[:, 0], points[:, 1], **{"linewidths": 0, **style})


def _scatter_numbers(ax: Axes, points: np.ndarray, column: pd.Series, style: dict[str, Any]) -> None:
    shown = column.to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(shown)
    if not known.all():
        _dots(ax, points[~known], color=_MISSING, **style)
    dots = _dots(ax, points[known], c=shown[known], cmap="viridis", **style)
    ax.figure.colorbar(dots, ax=ax, label=str(column.name))


def _scatter_categories(ax: Axes, points: np.ndarray, column: pd.Series, style: dict[str, Any]) -> None:
    """Draw each category in a colour and, past eight of them, a marker of its own; the rarest on top."""
    column = column.astype("category").cat.remove_unused_categories()
    codes, names = column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]
    if len(names) > len(OKABE_ITO) * len(_MARKERS):
        logger.warning("%r has %d categories; some share colour and marker.", column.name, len(names))
    handles = {}
    if (codes < 0).any():
        handles[len(names)] = _dots(ax, points[codes < 0], color=_MISSING, label="missing", **style)
    for code in np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable"):
        turn, i = divmod(int(code), len(OKABE_ITO))
        handles[int(code)] = _dots(
            ax,
            points[codes == code],
            color=OKABE_ITO[i],
            marker=_MARKERS[turn % len(_MARKERS)],
            # An outline keeps small marks of one colour apart where the shapes alone would not.
            linewidths=0.1 * style["s"] ** 0.5 if turn else 0,
            edgecolors="black",
            label=names[code],
            **style,
        )
    _frameless_legend(
        ax,
        handles=[handles[code] for code in sorted(handles)],
        title=str(column.name),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        markerscale=float(np.sqrt(36 / style["s"])),
        ncols=1 + len(handles) // 21,
    )
