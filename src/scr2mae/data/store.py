"""AnnData opened from disk: the table of cells in memory, counts where they are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from anndata.io import read_elem

from scr2mae._ondisk import on_disk, open_group, read_frame

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["open_store"]

logger = logging.getLogger(__name__)


def open_store(path: str | os.PathLike[str], *, obsm_keys: Sequence[str] = ()) -> AnnData:
    """Open cells on disk without reading their counts.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder, such as :func:`scr2mae.datasets.prepare` writes.
    obsm_keys
        Arrays of ``obsm`` to read into memory; none by default, since they may be large.

    Returns
    -------
    AnnData with ``X`` and the layers on disk, ``obs``, ``var`` and ``uns`` in memory, and neither ``raw`` nor
    pairwise arrays. ``X`` is a ``anndata.abc.CSRDataset``, or the array of h5py or zarr where the counts are
    stored dense. ``adata[rows]`` reads those rows alone; an h5ad file stays open as long as the object lives.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    KeyError
        If an array of ``obsm`` is absent.
    ModuleNotFoundError
        If a ``.zarr`` folder is given and zarr is not installed.
    ValueError
        If it is not an AnnData, has no ``X`` and no layer, or stores ``X`` by gene (CSC), in which rows cannot
        be read without reading all.
    """
    path = Path(path)
    group = open_group(path)
    obs, var = (read_frame(group, name, path=path) for name in ("obs", "var"))
    X = on_disk(group["X"]) if "X" in group and not _is_null(group["X"]) else None
    if X is not None and getattr(X, "format", None) == "csc":
        raise ValueError(
            f"X of {path} is stored by gene (CSC), so cells cannot be read a few at a time; store it by cell once: "
            "adata = anndata.read_h5ad(path); adata.X = adata.X.tocsr(); adata.write_h5ad(new_path)."
        )
    layers = _layers(group, path)
    if X is None and not layers:
        raise ValueError(f"{path} has no matrix of counts: neither X nor a layer.")
    available = sorted(group["obsm"]) if "obsm" in group else []
    if absent := [key for key in obsm_keys if key not in available]:
        raise KeyError(f"No {absent[0]!r} in obsm of {path}; choose from {available}.")
    return AnnData(
        X=X,
        obs=obs,
        var=var,
        uns=read_elem(group["uns"]) if "uns" in group else {},
        obsm={key: read_elem(group["obsm"][key]) for key in obsm_keys},
        layers=layers,
    )


def _is_null(element: Any) -> bool:
    return element.attrs.get("encoding-type") == "null"


def _layers(group: Any, path: Path) -> dict[str, Any]:
    """Layers that can be read by row."""
    names = sorted(group["layers"]) if "layers" in group else []
    layers = {name: on_disk(group["layers"][name]) for name in names}
    by_gene = [name for name, matrix in layers.items() if getattr(matrix, "format", None) == "csc"]
    if by_gene:
        logger.warning("Layers %s of %s are stored by gene (CSC) and left out.", by_gene, path)
    return {name: matrix for name, matrix in layers.items() if name not in by_gene}
