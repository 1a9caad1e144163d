"""Row access to counts on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import zarr
from anndata.abc import CSRDataset
from scipy import sparse

from scr2mae._utils.memory import fits
from scr2mae._utils.untrusted import check_sparse, is_indptr
from scr2mae.data.counts import check_counts, get_counts
from scr2mae.data.genes import select_genes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

__all__ = ["BackedCounts", "is_streamable", "stays_on_disk"]

_PLACES = ("auto", "device", "memory", "disk")
_BYTES_PER_VALUE = 8  # a float32 count and the int32 index of its gene
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 1024
_VALUES_PER_READ = 1 << 21
_ROWS_PER_WINDOW = 8192


def is_streamable(matrix: Any) -> bool:
    """Return whether a matrix is on disk and can be read by row: CSR or dense, HDF5 or zarr."""
    return isinstance(matrix, (CSRDataset, h5py.Dataset, zarr.Array))


def stays_on_disk(adata: AnnData, layer: str | None, counts_on: str) -> bool:
    """Return whether mini-batches are read from disk; ``"auto"`` loads counts that fit in half of the free memory."""
    if counts_on not in _PLACES:
        raise ValueError(f"counts_on must be one of {list(_PLACES)}, got {counts_on!r}.")
    stored = get_counts(adata, layer)
    if not is_streamable(stored):
        if counts_on == "disk":
            raise ValueError(
                "counts_on='disk', but the counts are in memory or stored by columns; open the file with "
                "scr2mae.data.open_store(path), or anndata.read_h5ad(path, backed='r'), its X as CSR or dense."
            )
        return False
    if counts_on != "auto":
        return counts_on == "disk"
    n_values = stored.group["data"].shape[0] if isinstance(stored, CSRDataset) else np.prod(stored.shape)
    n_bytes = int(n_values) * _BYTES_PER_VALUE
    return not fits(n_bytes, f"Counts of {adata.n_obs} cells", yes="they are loaded", no="they stay on disk")


class BackedCounts:
    """Counts on disk, indexed by row like a CSR matrix and validated on reading.

    Parameters
    ----------
    matrix
        CSR or dense, in an HDF5 file or a zarr store; shape (n_obs, n_query_vars).
    adata
        AnnData of the matrix, which names cells and genes in errors.
    layer
        Layer of the matrix; None for ``X``.
    integers
        Whether to raise on fractional counts.
    gene_indices
        Column in ``matrix`` of each reference gene, -1 if absent; None if the genes are the same.
    check
        Further check of counts in the reference's order and their rows, which raises.
    is_query
        Whether these are new data for a model; errors then say which matrix to copy where.
    """

    def __init__(
        self,
        matrix: Any,
        adata: AnnData,
        layer: str | None,
        *,
        integers: bool,
        gene_indices: np.ndarray | None = None,
        check: Callable[[sparse.csr_matrix, np.ndarray], None] | None = None,
        is_query: bool = False,
    ) -> None:
        self._check = check
        self._adata, self._layer, self._integers, self._is_query = adata, layer, integers, is_query
        self._gene_indices = gene_indices
        n_obs, self._n_query_vars = matrix.shape
        self.shape = (n_obs, self._n_query_vars if gene_indices is None else len(gene_indices))
        self._indptr: np.ndarray | None = None
        if isinstance(matrix, CSRDataset):
            group = matrix.group
            self._data, self._indices = group["data"], group["indices"]
            self._indptr = np.asarray(group["indptr"][:], dtype=np.int64)
            if not is_indptr(self._indptr, n_obs):
                raise ValueError(
                    f"The counts on disk are damaged: their indptr does not rise from 0 over {n_obs} rows."
                )
            self.nnz = int(self._indptr[-1])
        else:
            self._data, self._indices = matrix, None
            self.nnz = n_obs * self._n_query_vars

    @property
    def _rows_per_chunk(self) -> float | None:
        """Approximate number of rows per chunk of the store; None if it is not chunked."""
        chunks = getattr(self._data, "chunks", None)
        if chunks is None:
            return None
        return float(chunks[0] if self._indptr is None else chunks[0] * self.shape[0] / max(self.nnz, 1))

    @property
    def _rows_per_read(self) -> int:
        return max(1, int(_VALUES_PER_READ * self.shape[0] / max(self.nnz, 1)))

    def reading_plan(self, n_obs: int, batch_size: int) -> dict[str, int]:
        """Return how many mini-batches to read together, and how many neighboring rows to keep together in a shuffle.

        Neighbors fill about one chunk of the store; rows that are all read together are shuffled freely.
        """
        window = max(1, round(_ROWS_PER_WINDOW / batch_size))
        block = min(max(self._rows_per_chunk or self.shape[0], _SMALLEST_BLOCK), _LARGEST_BLOCK)
        return {"window": window, "block": 1 if n_obs <= window * batch_size else int(block)}

    def __getitem__(self, indices: np.ndarray | slice) -> sparse.csr_matrix:
        """Return rows in the given order; rows less than a chunk apart are read together."""
        if isinstance(indices, slice):
            start, stop, step = indices.indices(self.shape[0])
            if step == 1:
                return self._rows(start, max(start, stop))
            indices = np.arange(start, stop, step)
        wanted, inverse = np.unique(indices, return_inverse=True)
        if not len(wanted):
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        runs = []
        for run in self._runs(wanted):
            counts = self._read(int(run[0]), int(run[-1]) + 1)
            runs.append(self._finish(counts if len(run) == counts.shape[0] else counts[run - run[0]], run))
        read = runs[0] if len(runs) == 1 else sparse.vstack(runs, format="csr")
        return read if np.array_equal(inverse, np.arange(len(wanted))) else read[inverse]

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """Read all rows once, in order, about 16 MB at a time."""
        for start in range(0, self.shape[0], self._rows_per_read):
            yield self._rows(start, min(start + self._rows_per_read, self.shape[0]))

    def mean(self, axis: int = 0) -> np.ndarray:
        """Return the mean count per gene; shape (1, n_vars)."""
        if axis != 0:
            raise ValueError(f"Counts on disk are averaged over cells, axis=0; got axis={axis}.")
        total = np.zeros((1, self.shape[1]))
        for block in self.blocks():
            total += np.asarray(block.sum(axis=0, dtype=np.float64))
        return total / max(self.shape[0], 1)

    def _runs(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Split increasing row indices where a whole chunk can be skipped or a read would grow too large."""
        # Reading and dropping the rows in between costs less than reading their chunk twice.
        gap = 1 + (self._rows_per_chunk or 0)
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1):
            while len(run):
                n = int(np.searchsorted(run, run[0] + self._rows_per_read))
                yield run[:n]
                run = run[n:]

    def _rows(self, start: int, stop: int) -> sparse.csr_matrix:
        return self._finish(self._read(start, stop), np.arange(start, stop))

    def _read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read consecutive rows with the columns of the file."""
        if self._indptr is None or self._indices is None:
            return sparse.csr_matrix(np.asarray(self._data[start:stop], dtype=np.float32))
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        data = np.asarray(self._data[first:last], dtype=np.float32)
        indices = np.asarray(self._indices[first:last])
        indptr = self._indptr[start : stop + 1] - first
        counts = sparse.csr_matrix((data, indices, indptr), shape=(stop - start, self._n_query_vars))
        check_sparse(counts)
        return counts

    def _finish(self, counts: sparse.csr_matrix, rows: np.ndarray) -> sparse.csr_matrix:
        """Validate the counts of the given rows and put their columns in the reference's order."""
        options = {"integers": self._integers, "is_query": self._is_query}
        check_counts(counts, self._adata, self._layer, rows=rows, **options)
        counts = counts if self._gene_indices is None else select_genes(counts, self._gene_indices)
        if self._check is not None:
            self._check(counts, rows)
        return counts
