"""Recognize file formats by content, and say how to convert those that cannot be read."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any, Literal

import h5py

__all__ = ["Kind", "hdf5_kind", "is_tenx", "is_zarr_folder", "not_anndata"]

Kind = Literal["anndata", "10x", "h5mu", "loom", "h5seurat"]

_TENX = {"barcodes", "data", "indices", "indptr"}
_HDF5_ADVICE = {
    "loom": "a loom file; convert it once: anndata.read_loom({path!r}).write_h5ad('counts.h5ad')",
    "h5seurat": "an h5Seurat file; convert it once in R: SeuratDisk::Convert({path!r}, dest = 'h5ad')",
    "h5mu": "a MuData without a modality 'rna'; write one: mudata.read({path!r}).mod[NAME].write_h5ad('counts.h5ad')",
}
_MARKET = "a folder in Matrix Market format, as Cell Ranger writes it; convert it once: scanpy.read_10x_mtx({path!r})"
_TABLE = "a text table; convert it once: anndata.read_csv({{path!r}}, delimiter={separator!r}).write_h5ad('counts.h5ad'), with .T in between if genes are rows"
_PICKLE = (
    "a pickle, which may run code when it is read; read it only if you trust it, and write it by write_h5ad"
)
_NUMPY = "an archive of NumPy; convert it once: anndata.AnnData(scipy.sparse.load_npz({path!r})).write_h5ad('counts.h5ad'), with names of cells and genes"
_RDS = "an R object; convert it once in R: anndataR::write_h5ad(readRDS({path!r}), 'counts.h5ad')"
_LONGEST_LINE = 1 << 24
_WRITE = ".write_h5ad('counts.h5ad')"


def is_zarr_folder(path: Path) -> bool:
    """Return whether a folder is a zarr group, of format 2 or 3."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def is_tenx(group: Any) -> bool:
    """Return whether a group of an HDF5 file has the counts of Cell Ranger."""
    return isinstance(group, h5py.Group) and set(group) >= _TENX


def hdf5_kind(file: Any) -> Kind | None:
    """Return the format of an open HDF5 file; None if it is unknown."""
    # Links may lead to other files, which are not opened.
    keys = {key for key in file if isinstance(file.get(key, getlink=True), h5py.HardLink)}
    if "mod" in keys and isinstance(file["mod"], h5py.Group):
        return "h5mu"
    if {"row_attrs", "col_attrs", "matrix"} <= keys:
        return "loom"
    if {"assays", "cell.names"} <= keys:
        return "h5seurat"
    if {"obs", "var"} <= keys:
        return "anndata"
    return "10x" if any(is_tenx(file[key]) for key in keys) else None


def not_anndata(path: Path) -> str | None:
    """Return what a path holds in place of an AnnData, with the line that converts it; None if it is unknown.

    Formats that are read directly are not named: AnnData, Cell Ranger's HDF5, and MuData with a modality "rna".
    """
    advice = _in_folder(path) if path.is_dir() else _in_file(path)
    return None if advice is None else f"{path} is {advice.format(path=str(path))}."


def _in_folder(path: Path) -> str | None:
    if any((path / name).is_file() for name in ("matrix.mtx", "matrix.mtx.gz")):
        return _MARKET + _WRITE
    if (path / "__tiledb_group.tdb").exists() or (path / "__group").is_dir():
        return "a TileDB-SOMA experiment; convert it once: tiledbsoma.io.to_anndata(...)" + _WRITE
    return None


def _in_file(path: Path) -> str | None:
    """Return what a file holds and how to convert it, from its first bytes; None if unknown."""
    if h5py.is_hdf5(path):
        try:
            with h5py.File(path, mode="r") as file:
                kind = hdf5_kind(file)
                readable = kind == "h5mu" and "rna" in file["mod"]
        except OSError:  # damaged, which its reader says
            return None
        return None if readable else _HDF5_ADVICE.get(str(kind))
    with path.open("rb") as opened:
        head = opened.read(512)
    if head[:2] == b"PK":
        return _in_archive(path)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as unpacked:
                inner = unpacked.read(512)
                table = _table(unpacked)
        except (OSError, EOFError):
            return None
        if inner[:4] == b"\x89HDF":
            return "a compressed HDF5 file; unpack it first: gunzip {path!r}"
        return _by_head(inner) or table
    with path.open("rb") as opened:
        return _by_head(head) or _table(opened)


def _in_archive(path: Path) -> str | None:
    """Return what a zip archive holds and how to convert it; None if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if any(name.rpartition("/")[2] in ("zarr.json", ".zgroup", ".zattrs") for name in names):
        return "a zipped zarr store; unpack it first: python -m zipfile -e {path!r} counts.zarr"
    if names and all(name.endswith(".npy") for name in names):
        return _NUMPY
    if any(name.startswith("xl/") for name in names):
        return (
            "an Excel file; convert it once: anndata.AnnData(pandas.read_excel({path!r}, index_col=0))"
            + _WRITE
        )
    return "a zip archive; unpack it first: python -m zipfile -e {path!r} folder"


def _by_head(head: bytes) -> str | None:
    """Return what a file holds by its first 512 bytes; None if unknown."""
    if head[:14] == b"%%MatrixMarket":
        return "a matrix in Matrix Market format, without names of cells and genes; pass their folder to scanpy.read_10x_mtx"
    if head[:5] in (b"RDX2\n", b"RDX3\n", b"RDA2\n", b"RDA3\n") or head[:2] == b"X\n":
        return _RDS
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return _PICKLE
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first: tar -xf {path!r}"
    return None


def _table(file: Any) -> str | None:
    """Return what to do with a table: its first two lines have the same number of fields, and the second ends in a number."""
    file.seek(0)
    try:
        header, row = (file.readline(_LONGEST_LINE).decode("utf-8").rstrip("\r\n") for _ in range(2))
    except UnicodeDecodeError:
        return None
    for separator in (",", "\t", ";"):
        fields = row.split(separator)
        if len(fields) > 1 and header.count(separator) + 1 in (len(fields), len(fields) - 1):
            is_number = fields[-1].strip().replace(".", "", 1).isdigit()
            return _TABLE.format(separator=separator) if is_number else None
    return None
