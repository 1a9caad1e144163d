"""AnnData on disk: the table of cells in memory, counts where they are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from scr2mae._utils.untrusted import UnsafeFileError, check_store

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["import_zarr", "on_disk", "open_group", "open_store", "read_frame"]

logger = logging.getLogger(__name__)


def import_zarr() -> Any:
    """Import zarr, which anndata brings since 0.12.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed, with what to install.
    """
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A .zarr folder needs zarr, which is not installed: pip install 'anndata>=0.12' brings it. "
            ".h5ad files do without."
        ) from error
    return zarr


def open_group(path: str | os.PathLike[str]) -> Any:
    """Open an AnnData on disk for reading, after a look at what it says that it holds.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder; told apart by what they are, not by name.

    Returns
    -------
    :class:`h5py.File` or :class:`zarr.Group`.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    MemoryError
        If all but its counts takes more memory than is free.
    ValueError
        If it is something else or not whole, refers to other files, or would run code when it is read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No file or folder {path}; expected an .h5ad file or a .zarr folder.")
    if path.is_dir():
        group = _open_folder(path)
    elif h5py.is_hdf5(path):
        group = h5py.File(path, mode="r")
    else:
        raise ValueError(f"{path} is no HDF5 file; expected an AnnData, an .h5ad file or a .zarr folder.")
    try:
        _check_content(group, path)
    except BaseException:
        if isinstance(group, h5py.File):
            group.close()
        raise
    return group


def _check_content(group: Any, path: Path) -> None:
    try:
        check_store(group, path=path)
    except (MemoryError, UnsafeFileError):
        raise
    except Exception as error:  # which one is a matter of where the reader stumbles
        raise ValueError(f"{path} is damaged: {error}.") from error
    missing = [name for name in ("obs", "var") if name not in group]
    if missing:
        raise ValueError(
            f"{path} is not a whole AnnData: it has no {' and no '.join(missing)}; "
            "expected what write_h5ad, write_zarr or scr2mae prepare has written."
        )


def _open_folder(path: Path) -> Any:
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise ValueError(
            f"{path} is a folder without a zarr group; expected an AnnData written by write_zarr."
        )
    zarr = import_zarr()
    try:
        return zarr.open_group(str(path), mode="r")
    except (ValueError, TypeError, KeyError, LookupError, RecursionError) as error:
        raise ValueError(f"The zarr group {path} is damaged: {error}.") from error


def read_frame(group: Any, name: str, *, path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read ``obs`` or ``var``.

    Raises
    ------
    ValueError
        If it is no table.
    """
    frame = read_elem(group[name])
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} of {path} is no table but {type(frame).__name__}; is it an AnnData?")
    return frame


def on_disk(element: Any) -> Any:
    """Return a matrix without reading it.

    Parameters
    ----------
    element
        What ``group["X"]`` or ``group["layers/counts"]`` gives.

    Returns
    -------
    A sparse dataset of anndata where the matrix is sparse, else the array of h5py or zarr. All are sliced by row.
    """
    return element if hasattr(element, "dtype") else sparse_dataset(element)


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
