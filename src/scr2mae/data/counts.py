"""Raw counts of an AnnData: where they are, whether they are counts, and as CSR without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import zarr
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from scr2mae._utils.compat import layer_names
from scr2mae._utils.untrusted import check_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

__all__ = ["as_csr", "check_counts", "check_genes", "get_counts", "take_rows"]

_BLOCK = 1 << 24


def get_counts(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or a layer as it is stored.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If there is no ``X``, or no cell.
    """
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
    """Return a matrix, dense, sparse or on disk, as float32 CSR; shares memory where it can.

    Raises
    ------
    TypeError
        If the container is of another kind.
    """
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


def take_rows(matrix: sparse.csr_matrix, where: np.ndarray | slice) -> sparse.csr_matrix:
    """Take rows of a CSR matrix; what it costs depends on these rows alone.

    Parameters
    ----------
    matrix
        Shape (n_obs, n_vars).
    where
        Positions of rows, shape (n,), or a slice.

    Returns
    -------
    Those rows in that order.

    Notes
    -----
    Where offsets have 64 bits and columns 32, as in a matrix that was written in pieces or is very large, SciPy converts all
    columns of the matrix at each call.
    """
    if matrix.indices.dtype == matrix.indptr.dtype:
        return matrix[where]
    rows = np.arange(*where.indices(matrix.shape[0])) if isinstance(where, slice) else np.asarray(where)
    starts = matrix.indptr[rows]
    lengths = matrix.indptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    n_values = int(ends[-1]) if len(ends) else 0
    positions = np.arange(n_values) + np.repeat(starts - (ends - lengths), lengths)
    indptr = np.concatenate([[0], ends]).astype(matrix.indices.dtype if n_values < 1 << 31 else np.int64)
    return sparse.csr_matrix(
        (matrix.data[positions], matrix.indices[positions], indptr), shape=(len(rows), matrix.shape[1])
    )


def check_genes(adata: AnnData) -> None:
    """Refuse gene names that cannot be matched by name, and a single gene.

    Raises
    ------
    ValueError
        If a name occurs twice or there are fewer than two genes.
    """
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()[:5].tolist()
        raise ValueError(
            f"Gene names must be unique, but {repeated} occur more than once; "
            "call adata.var_names_make_unique() or merge them first."
        )
    if adata.n_vars < 2:
        raise ValueError(f"Expected at least two genes, one to hide and one to see; got {adata.n_vars}.")


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(values), _BLOCK):
        yield start, values[start : start + _BLOCK]


def _first_bad(values: np.ndarray, *, integers: bool) -> tuple[int, str] | None:
    """Position in ``values`` of the first entry that is no count, and what is wrong with it."""
    for start, block in _blocks(values):
        with np.errstate(invalid="ignore"):
            bad = ~np.isfinite(block) | (block < 0)
            if integers:
                bad |= block != np.floor(block)
        if bad.any():
            where = int(bad.argmax())
            value = block[where]
            kind = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
            return start + where, kind
    return None


def check_counts(
    counts: sparse.csr_matrix,
    adata: AnnData,
    layer: str | None,
    *,
    integers: bool = True,
    rows: np.ndarray | None = None,
) -> None:
    """Refuse anything but non-negative, finite and (by default) whole numbers.

    Parameters
    ----------
    counts
        Shape (n_obs, n_vars).
    adata
        Where they come from: names cells and genes in the message.
    layer
        Which layer they are; None for ``X``.
    integers
        Whether to refuse fractions.
    rows
        The cells of ``adata`` that they are, shape (n_obs,); None for all, in their order.

    Raises
    ------
    ValueError
        With the first offending cell and gene, and where raw counts usually are.
    """
    found = _first_bad(counts.data, integers=integers)
    if found is None:
        return
    position, kind = found
    row = int(np.searchsorted(counts.indptr, position, side="right")) - 1
    cell, gene = (
        adata.obs_names[row if rows is None else rows[row]],
        adata.var_names[counts.indices[position]],
    )
    place = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    look = [f"layers[{name!r}]" for name in layer_names(adata) if name != layer]
    look += ["adata.raw"] if adata.raw is not None else []
    hint = f"here there are {', '.join(look)}" if look else "this AnnData has neither layers nor raw"
    note = ""
    if kind == "fractional":
        note = " It looks normalized or log-transformed; pass check_counts=False for estimated counts (soupX, CellBender)."
    raise ValueError(
        f"Expected raw counts in {place}, got {counts.data[position]:g} ({kind}) at cell {cell!r}, gene {gene!r}. "
        f"Raw counts are usually in adata.layers['counts'] (layer='counts') or adata.raw; {hint}.{note}"
    )
