"""Embeddings of cells in two dimensions."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from scr2mae.pl.axes import MARKERS, OKABE_ITO, despine, frameless_legend

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

logger = logging.getLogger(__name__)

_MISSING = "#BBBBBB"
_COLUMNS, _WIDTH, _HEIGHT = 3, 6.5, 4.5  # of panels


@overload
def embedding(
    adata: AnnData,
    basis: str = ...,
    *,
    color: str | None = ...,
    n_neighbors: int = ...,
    seed: int = ...,
    ax: Axes | None = ...,
) -> Axes: ...
@overload
def embedding(
    adata: AnnData,
    basis: str = ...,
    *,
    color: Sequence[str | None],
    n_neighbors: int = ...,
    seed: int = ...,
    ax: None = ...,
) -> list[Axes]: ...
def embedding(
    adata: AnnData,
    basis: str = "X_r2mae",
    *,
    color: str | Sequence[str | None] | None = None,
    n_neighbors: int = 15,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Draw the UMAP of an embedding.

    Parameters
    ----------
    adata
        Cells; the UMAP is stored in it.
    basis
        Key of ``adata.obsm``, shape ``(n_obs, n_latent)``. An embedding with two columns is drawn without UMAP.
    color
        Column of ``adata.obs``; numbers get a color bar, other values a legend. None draws all cells alike. A list
        draws one panel per entry.
    n_neighbors
        Number of neighbors per cell, at least 2 and at most all other cells.
    seed
        Random seed for the UMAP.
    ax
        Axes to draw on, for a single ``color``.

    Returns
    -------
    The Axes; a list of them if ``color`` is a list.

    Raises
    ------
    KeyError
        If the embedding or a column is missing.
    ValueError
        If the embedding is not finite, there are fewer than four cells, or ``ax`` is given for a list.

    Notes
    -----
    Scanpy's neighbors and UMAP are computed on a copy; ``adata.obsm["X_umap"]`` and ``adata.obsp`` are not modified.
    The UMAP is stored in ``adata.obsm[f"{basis}_umap"]`` and reused until the embedding or a setting changes, detected
    by a checksum in ``adata.uns["scr2mae"]``. Nothing is written to a view; to draw a subset at its positions among
    all cells, pass ``basis=f"{basis}_umap"``.
    """
    if basis not in adata.obsm:
        raise KeyError(f"No {basis!r} in adata.obsm; choose one of {list(adata.obsm)}.")
    is_single = color is None or isinstance(color, str)
    colors: list[Any] = [color] if is_single else list(color or [None])
    if absent := [name for name in colors if name is not None and name not in adata.obs]:
        raise KeyError(f"No {absent[0]!r} in adata.obs; choose one of {list(adata.obs)}.")
    if ax is not None and not is_single:
        raise ValueError(
            f"ax takes one panel, but color has {len(colors)}; leave out ax, or call embedding once per column."
        )
    values = np.asarray(adata.obsm[basis])
    if values.shape[1] == 2:
        points, title = values, "UMAP" if basis.endswith("umap") else basis
    else:
        points, title = _stored_umap(adata, basis, values, n_neighbors=n_neighbors, seed=seed), "UMAP"
    axes = _panels(len(colors)) if ax is None else [ax]
    for panel, name in zip(axes, colors, strict=True):
        _draw(panel, points, None if name is None else adata.obs[name])
        panel.set(xlabel=f"{title} 1", ylabel=f"{title} 2", xticks=[], yticks=[])
        despine(panel)
    return axes[0] if is_single else axes


def _panels(n: int) -> list[Axes]:
    """Return the Axes of a new figure with this number of panels."""
    import matplotlib.pyplot as plt

    n_columns = min(n, _COLUMNS)
    n_rows = -(-n // n_columns)
    size = (n_columns * _WIDTH, n_rows * _HEIGHT)
    _, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for unused in axes.flat[n:]:
        unused.remove()
    return list(axes.flat[:n])


def _draw(ax: Axes, points: np.ndarray, column: pd.Series | None) -> None:
    """Draw the cells in the colors of a column."""
    size = float(np.clip(20_000 / max(len(points), 1), 1, 24))
    style: dict[str, Any] = {"s": size, "rasterized": len(points) > 5_000}
    if column is None:
        _dots(ax, points, color=OKABE_ITO[0], **style)
    elif is_numeric_dtype(column) and not is_bool_dtype(column):
        _scatter_numbers(ax, points, column, style)
    else:
        _scatter_categories(ax, points, column, style)


def _stored_umap(
    adata: AnnData, basis: str, values: np.ndarray, *, n_neighbors: int, seed: int
) -> np.ndarray:
    """Return the UMAP stored in ``adata`` if it belongs to these values, else compute and store it."""
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
    """Return the UMAP, shape ``(n_obs, 2)``."""
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
    return ax.scatter(*points.T, **{"linewidths": 0, **style})


def _scatter_numbers(ax: Axes, points: np.ndarray, column: pd.Series, style: dict[str, Any]) -> None:
    shown = column.to_numpy(dtype=float, na_value=np.nan)
    known = np.isfinite(shown)
    if not known.all():
        _dots(ax, points[~known], color=_MISSING, **style)
    dots = _dots(ax, points[known], c=shown[known], cmap="viridis", **style)
    ax.figure.colorbar(dots, ax=ax, label=str(column.name))


def _scatter_categories(ax: Axes, points: np.ndarray, column: pd.Series, style: dict[str, Any]) -> None:
    """Draw each category in its own color and, with more than eight, marker; the rarest on top."""
    column = column.astype("category").cat.remove_unused_categories()
    codes, names = column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]
    if len(names) > len(OKABE_ITO) * len(MARKERS):
        logger.warning("%r has %d categories; some share color and marker.", column.name, len(names))
    handles = {}
    if (codes < 0).any():
        handles[len(names)] = _dots(ax, points[codes < 0], color=_MISSING, label="missing", **style)
    for code in np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable"):
        cycle, i = divmod(int(code), len(OKABE_ITO))
        handles[int(code)] = _dots(
            ax,
            points[codes == code],
            color=OKABE_ITO[i],
            marker=MARKERS[cycle % len(MARKERS)],
            # An outline helps to tell small markers of the same color apart.
            linewidths=0.1 * style["s"] ** 0.5 if cycle else 0,
            edgecolors="black",
            label=names[code],
            **style,
        )
    frameless_legend(
        ax,
        handles=[handles[code] for code in sorted(handles)],
        outside=True,
        title=str(column.name),
        markerscale=float(np.sqrt(36 / style["s"])),
        ncols=1 + len(handles) // 21,
    )
