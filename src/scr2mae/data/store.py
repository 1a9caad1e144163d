"""Open AnnData on disk: tables are read, counts stay on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import pandas as pd
import zarr
from anndata import AnnData, read_h5ad
from anndata.io import read_elem, sparse_dataset

from scr2mae._utils.files import as_path
from scr2mae._utils.untrusted import UnsafeFileError, check_store
from scr2mae.data.formats import hdf5_kind, is_tenx, is_zarr_folder, not_anndata
from scr2mae.data.panels import MEASURED_COLUMN
from scr2mae.data.tenx import TenX, tenx_group, tenx_table

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Sequence

__all__ = [
    "check_by_cell",
    "has_matrix",
    "has_raw",
    "open_group",
    "open_matrix",
    "open_store",
    "read_file",
    "read_frame",
]

logger = logging.getLogger(__name__)


def open_group(path: str | os.PathLike[str]) -> Any:
    """Open an ``.h5ad`` file or a ``.zarr`` folder for reading, after validation of its content.

    For a MuData, return the modality "rna"; for a Cell Ranger file, the group of the counts.
    """
    path = as_path(path)
    if not path.exists():
        raise FileNotFoundError(f"No file or folder {path}; expected an .h5ad file or a .zarr folder.")
    if advice := not_anndata(path):
        raise ValueError(advice)
    if path.is_dir():
        group = _open_folder(path)
    elif h5py.is_hdf5(path):
        group = h5py.File(path, mode="r")
    else:
        raise ValueError(f"{path} is not an HDF5 file; expected an AnnData, an .h5ad file or a .zarr folder.")
    try:
        kind = hdf5_kind(group) if isinstance(group, h5py.File) else "anndata"
        if kind == "10x":
            _check_content(group, path, expected=())
            return tenx_group(group, path)
        _check_content(group, path)
        if kind == "h5mu":
            return group["mod/rna"]
    except BaseException:
        if isinstance(group, h5py.File):
            group.close()
        raise
    return group


def _check_content(group: Any, path: Path, expected: Collection[str] = ("obs", "var")) -> None:
    """Raise if a store is damaged or unsafe, or is not a whole AnnData."""
    try:
        check_store(group, path=path)
    except (MemoryError, UnsafeFileError):
        raise
    except Exception as error:  # the kind depends on what is damaged
        raise ValueError(f"{path} is damaged: {error}.") from error
    missing = [name for name in expected if name not in group]
    if missing:
        raise ValueError(
            f"{path} is not a whole AnnData: it has no {' and no '.join(missing)}; "
            "expected what write_h5ad, write_zarr or scr2mae prepare has written."
        )


def _open_folder(path: Path) -> Any:
    if not is_zarr_folder(path):
        raise ValueError(
            f"{path} is a folder without a zarr group; expected an AnnData written by write_zarr."
        )
    try:
        return zarr.open_group(str(path), mode="r")
    except (ValueError, TypeError, KeyError, LookupError, RecursionError) as error:
        raise ValueError(f"The zarr group {path} is damaged: {error}.") from error


def read_frame(group: Any, name: str, *, path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read ``obs`` or ``var``; ``path`` is named in errors."""
    frame = tenx_table(group, name) if is_tenx(group) else read_elem(group[name])
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{name} of {path} is a {type(frame).__name__}, not a table; is it an AnnData?")
    return frame


def open_matrix(element: Any) -> Any:
    """Return ``group["X"]`` or a layer as an object that is sliced by row, without reading it."""
    if hasattr(element, "dtype"):
        return element
    return TenX(element) if is_tenx(element) else sparse_dataset(element)


def check_by_cell(matrix: Any, what: str) -> None:
    """Raise if a matrix on disk is stored by gene (CSC), in which single rows cannot be read."""
    if getattr(matrix, "format", None) == "csc":
        raise ValueError(
            f"{what} is stored by gene (CSC), so cells cannot be read a few at a time; store it by cell once: "
            "adata = anndata.read_h5ad(path); adata.X = adata.X.tocsr(); adata.write_h5ad(new_path)."
        )


def read_file(path: Path, *, backed: Literal["r"] | None = None) -> AnnData:
    """Read a file after validation of its content; ``backed="r"`` leaves the counts of an ``.h5ad`` file on disk.

    Files of Cell Ranger and the modality "rna" of a MuData are read into memory.
    """
    if advice := not_anndata(path):
        raise ValueError(advice)
    try:
        with h5py.File(path) as file:
            kind = hdf5_kind(file)
            is_left = backed is not None and kind == "anndata"
            check_store(file, path=path, left_on_disk=("X", "raw/X") if is_left else ())
            if kind == "h5mu":
                return read_elem(file["mod/rna"])
            if kind == "10x":
                group = tenx_group(file, path)
                return AnnData(TenX(group)[:], obs=tenx_table(group, "obs"), var=tenx_table(group, "var"))
        return read_h5ad(path, backed=backed)
    except (MemoryError, UnsafeFileError):
        raise
    except Exception as error:
        # Where the reader fails decides which exception a damaged or foreign file raises.
        raise ValueError(
            f"{path} is damaged or not an AnnData file ({error}); expected one written by write_h5ad."
        ) from error


def _kind_of(path: Path) -> str | None:
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, mode="r") as file:
        return hdf5_kind(file)


def open_store(
    path: str | os.PathLike[str], *, obsm_keys: Sequence[str] = (), use_raw: bool = False
) -> AnnData:
    """Open cells on disk without reading their counts.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder, such as :func:`scr2mae.datasets.prepare` writes.
    obsm_keys
        Arrays of ``obsm`` to read into memory; none by default, since they may be large.
    use_raw
        Whether to attach ``raw``, with its matrix on disk.

    Returns
    -------
    AnnData with ``X`` and the layers on disk; ``obs``, ``var``, ``uns`` and the table of genes measured by each study
    in memory; and no pairwise arrays. ``X`` is an ``anndata.abc.CSRDataset``, or an array of h5py or zarr if counts are
    stored dense. ``adata[rows]`` reads only those rows; an h5ad file stays open as long as the object exists.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    KeyError
        If an array of ``obsm`` is absent.
    ValueError
        If it is not an AnnData, has no ``X`` and no layer and no embedding is read, or stores ``X`` by gene (CSC), so
        that rows cannot be read without reading all.
    """
    path = as_path(path)
    if path.is_file() and _kind_of(path) in ("10x", "h5mu"):
        return read_file(path)
    group = open_group(path)
    obs, var = (read_frame(group, name, path=path) for name in ("obs", "var"))
    X = open_matrix(group["X"]) if has_matrix(group) else None
    check_by_cell(X, f"X of {path}")
    layers = _open_layers(group, path)
    if X is None and not layers and not obsm_keys:
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
        varm={key: read_elem(group["varm"][key]) for key in group.get("varm", {}) if key == MEASURED_COLUMN},
        layers=layers,
        raw=_open_raw(group, path) if use_raw else None,
    )


def _open_raw(group: Any, path: Path) -> dict[str, Any]:
    if not has_raw(group):
        raise ValueError(f"{path} has no raw; name the layer with the counts, or leave out use_raw.")
    X = open_matrix(group["raw/X"])
    check_by_cell(X, f"raw.X of {path}")
    return {"X": X, "var": read_frame(group["raw"], "var", path=path)}


def has_raw(group: Any) -> bool:
    """Return whether an AnnData on disk has ``raw`` with a matrix; some writers store an empty one."""
    return "raw" in group and not _is_null(group["raw"]) and "X" in group["raw"]


def has_matrix(group: Any) -> bool:
    """Return whether an AnnData on disk has ``X``."""
    return "X" in group and not _is_null(group["X"])


def _is_null(element: Any) -> bool:
    return element.attrs.get("encoding-type") == "null"


def _open_layers(group: Any, path: Path) -> dict[str, Any]:
    """Return the layers that can be read by row; warn about the others."""
    names = sorted(group["layers"]) if "layers" in group else []
    layers = {name: open_matrix(group["layers"][name]) for name in names}
    by_gene = [name for name, matrix in layers.items() if getattr(matrix, "format", None) == "csc"]
    if by_gene:
        logger.warning("Layers %s of %s are stored by gene (CSC) and left out.", by_gene, path)
    return {name: matrix for name, matrix in layers.items() if name not in by_gene}
