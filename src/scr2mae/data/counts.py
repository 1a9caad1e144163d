"""Locate and validate raw counts, and convert them to CSR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import zarr
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from scr2mae._utils.untrusted import check_sparse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "as_csr",
    "check_counts",
    "check_genes",
    "find_invalid_count",
    "get_counts",
    "layer_names",
    "take_rows",
]

_BLOCK = 1 << 24


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; anndata 0.13 counts ``X`` among them, under None."""
    return [name for name in adata.layers if name is not None]


def get_counts(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or a layer as it is stored."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"Expected cells and genes, got an empty AnnData ({adata.n_obs} x {adata.n_vars}).")
    if layer is not None:
        if layer not in adata.layers:
            raise KeyError(f"No {layer!r} in adata.layers; choose one of {layer_names(adata)} or layer=None.")
        return adata.layers[layer]
    if adata.X is None:
        raise ValueError(f"adata.X is None; name the layer of raw counts, one of {layer_names(adata)}.")
    return adata.X


def as_csr(matrix: Any) -> sparse.csr_matrix:
    """Return a dense, sparse or backed matrix as float32 CSR; shares memory if possible."""
    if isinstance(matrix, (CSRDataset, CSCDataset)):
        matrix = matrix.to_memory()
    if sparse.issparse(matrix):
        check_sparse(matrix)
        return sparse.csr_matrix(matrix, dtype=np.float32)
    if isinstance(matrix, (np.ndarray, h5py.Dataset, zarr.Array)):
        n_rows = max(1, _BLOCK // matrix.shape[1])
        blocks = [
            sparse.csr_matrix(np.asarray(matrix[i : i + n_rows], dtype=np.float32))
            for i in range(0, matrix.shape[0], n_rows)
        ]
        return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")
    raise TypeError(
        f"Expected counts as a NumPy array, a SciPy sparse matrix or a backed one, got {type(matrix).__name__}."
    )


def take_rows(matrix: sparse.csr_matrix, indices: np.ndarray | slice) -> sparse.csr_matrix:
    """Return the given rows of a CSR matrix, at a cost that depends on these rows only.

    If ``indptr`` is int64 and ``indices`` int32, as in a very large matrix or one written in pieces, SciPy would convert
    all column indices at each call.
    """
    if matrix.indices.dtype == matrix.indptr.dtype:
        return matrix[indices]
    rows = np.arange(matrix.shape[0])[indices] if isinstance(indices, slice) else np.asarray(indices)
    starts = matrix.indptr[rows]
    lengths = matrix.indptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    n_values = int(ends[-1]) if len(ends) else 0
    entries = np.arange(n_values) + np.repeat(starts - (ends - lengths), lengths)
    indptr = np.concatenate([[0], ends]).astype(matrix.indices.dtype if n_values < 1 << 31 else np.int64)
    return sparse.csr_matrix(
        (matrix.data[entries], matrix.indices[entries], indptr), shape=(len(rows), matrix.shape[1])
    )


def check_genes(adata: AnnData) -> None:
    """Raise unless there are at least two genes and their names are unique."""
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()[:5].tolist()
        raise ValueError(
            f"Gene names must be unique, but {repeated} occur more than once; "
            "call adata.var_names_make_unique() or merge them first."
        )
    if adata.n_vars < 2:
        raise ValueError(f"Expected at least two genes, one to mask and one to keep; got {adata.n_vars}.")


class InvalidCount(NamedTuple):
    """An entry of a matrix that is not a raw count."""

    row: int
    column: int
    value: float
    reason: str


def find_invalid_count(counts: sparse.csr_matrix, *, integers: bool = True) -> InvalidCount | None:
    """Return the first stored entry that is negative, not finite or, with ``integers``, fractional."""
    for start in range(0, len(counts.data), _BLOCK):
        block = counts.data[start : start + _BLOCK]
        with np.errstate(invalid="ignore"):
            invalid = ~np.isfinite(block) | (block < 0)
            if integers:
                invalid |= block != np.floor(block)
        if invalid.any():
            entry = start + int(invalid.argmax())
            value = counts.data[entry]
            reason = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
            row = int(np.searchsorted(counts.indptr, entry, side="right")) - 1
            return InvalidCount(row, int(counts.indices[entry]), value, reason)
    return None


def check_counts(
    counts: sparse.csr_matrix,
    adata: AnnData,
    layer: str | None,
    *,
    integers: bool = True,
    rows: np.ndarray | None = None,
) -> None:
    """Raise unless all counts are non-negative, finite and (by default) integers.

    The error names the cell, the gene and where raw counts usually are; ``rows`` are the cells of ``adata`` that the rows
    of ``counts`` belong to, by default all.
    """
    found = find_invalid_count(counts, integers=integers)
    if found is None:
        return
    cell = adata.obs_names[found.row if rows is None else rows[found.row]]
    gene = adata.var_names[found.column]
    place = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    look = [f"layers[{name!r}]" for name in layer_names(adata) if name != layer]
    look += ["adata.raw"] if adata.raw is not None else []
    hint = f"here there are {', '.join(look)}" if look else "this AnnData has neither layers nor raw"
    note = ""
    if found.reason == "fractional":
        note = " It looks normalized or log-transformed; pass check_counts=False for estimated counts (soupX, CellBender)."
    raise ValueError(
        f"Expected raw counts in {place}, got {found.value:g} ({found.reason}) at cell {cell!r}, gene {gene!r}. "
        f"Raw counts are usually in adata.layers['counts'] (layer='counts') or adata.raw; {hint}.{note}"
    )
