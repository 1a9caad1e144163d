"""Counts that stay on disk: rows are read when they are needed, many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import zarr
from anndata.abc import CSRDataset
from scipy import sparse

from scr2mae._utils.untrusted import check_sparse
from scr2mae.data.counts import check_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

__all__ = ["BackedCounts", "is_streamable"]

_SMALLEST_BLOCK, _LARGEST_BLOCK = 64, 1024
_NON_ZEROS_A_READ = 1 << 21


def is_streamable(matrix: Any) -> bool:
    """Whether rows can be read from where the matrix is: CSR or dense, HDF5 or zarr."""
    return isinstance(matrix, (CSRDataset, h5py.Dataset, zarr.Array))


class BackedCounts:
    """Counts on disk that are indexed by row like a CSR matrix, and checked as they are read.

    Parameters
    ----------
    matrix
        CSR or dense, in an HDF5 file or a zarr store; shape (n_obs, n_query_vars).
    adata
        Where it comes from: names cells and genes in messages.
    layer
        Which layer it is; None for ``X``.
    integers
        Whether fractions are refused.
    position
        For each gene of the reference its column in ``matrix``, or -1; None where they are the same.
    """

    def __init__(
        self,
        matrix: Any,
        adata: AnnData,
        layer: str | None,
        *,
        integers: bool,
        position: np.ndarray | None = None,
    ) -> None:
        self._adata, self._layer, self._integers = adata, layer, integers
        n_obs, n_query_vars = matrix.shape
        self.position = position
        self.shape = (n_obs, n_query_vars if position is None else len(position))
        self._n_query_vars = n_query_vars
        self._indptr: np.ndarray | None = None
        if isinstance(matrix, CSRDataset):
            group = matrix.group
            self._data, self._indices = group["data"], group["indices"]
            self._indptr = np.asarray(group["indptr"][:], dtype=np.int64)
            if len(self._indptr) != n_obs + 1 or self._indptr[0] != 0 or (np.diff(self._indptr) < 0).any():
                raise ValueError(
                    f"The counts on disk are damaged: their indptr does not rise from 0 over {n_obs} rows."
                )
            self.nnz = int(self._indptr[-1])
        else:
            self._data, self._indices = matrix, None
            self.nnz = n_obs * n_query_vars
        self._column = None if position is None else _columns_of(position, n_query_vars)

    @property
    def _rows_a_chunk(self) -> float | None:
        """Rows that one chunk of the store holds, about; None where it is in one piece."""
        chunks = getattr(self._data, "chunks", None)
        if chunks is None:
            return None
        return float(chunks[0] if self._indptr is None else chunks[0] * self.shape[0] / max(self.nnz, 1))

    @property
    def block(self) -> int:
        """Rows that are best read together: about as many as one chunk of the store holds, 64 to 1024."""
        rows = self._rows_a_chunk or self.shape[0]
        return int(min(max(rows, _SMALLEST_BLOCK), _LARGEST_BLOCK))

    def _read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start`` to ``stop`` with the columns of the file."""
        shape = (stop - start, self._n_query_vars)
        if self._indptr is None or self._indices is None:
            return sparse.csr_matrix(np.asarray(self._data[start:stop], dtype=np.float32))
        first, last = int(self._indptr[start]), int(self._indptr[stop])
        data = np.asarray(self._data[first:last], dtype=np.float32)
        indices = np.asarray(self._indices[first:last])
        counts = sparse.csr_matrix((data, indices, self._indptr[start : stop + 1] - first), shape=shape)
        check_sparse(counts)
        return counts

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read consecutive rows, in the reference's columns.

        Raises
        ------
        ValueError
            If an entry is no count.
        """
        return self._checked(self._read(start, stop), np.arange(start, stop))

    def _checked(self, counts: sparse.csr_matrix, where: np.ndarray) -> sparse.csr_matrix:
        """Refuse what is no count in the rows ``where``, and bring the columns in the reference's order."""
        check_counts(counts, self._adata, self._layer, integers=self._integers, rows=where)
        if self._column is None:
            return counts
        column = self._column[counts.indices]
        kept = column >= 0
        ends = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
        return sparse.csr_matrix((counts.data[kept], column[kept], ends), shape=(len(where), self.shape[1]))

    @property
    def _rows_a_read(self) -> int:
        return max(1, int(_NON_ZEROS_A_READ * self.shape[0] / max(self.nnz, 1)))

    def _runs(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Cut increasing positions where a whole chunk can be left out, and where a read would grow too large."""
        # Rows between two others cost less to read and drop than their chunk costs to be read twice.
        gap = 1 + (self._rows_a_chunk or 0)
        for near in np.split(wanted, np.flatnonzero(np.diff(wanted) > gap) + 1):
            while len(near):
                n = int(np.searchsorted(near, near[0] + self._rows_a_read))
                yield near[:n]
                near = near[n:]

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """Read all rows once, in order, as many at a time as fit in some 16 MB."""
        n_rows = self._rows_a_read
        for start in range(0, self.shape[0], n_rows):
            yield self.rows(start, min(start + n_rows, self.shape[0]))

    def __getitem__(self, where: np.ndarray | slice) -> sparse.csr_matrix:
        """Rows in the order asked for; neighbors are read together, and so are those with less than a chunk between them."""
        if isinstance(where, slice):
            start, stop, step = where.indices(self.shape[0])
            if step == 1:
                return self.rows(start, max(start, stop))
            where = np.arange(start, stop, step)
        wanted, back = np.unique(where, return_inverse=True)
        if not len(wanted):
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        runs = []
        for run in self._runs(wanted):
            counts = self._read(int(run[0]), int(run[-1]) + 1)
            runs.append(self._checked(counts if len(run) == counts.shape[0] else counts[run - run[0]], run))
        read = runs[0] if len(runs) == 1 else sparse.vstack(runs, format="csr")
        return read if np.array_equal(back, np.arange(len(wanted))) else read[back]

    def mean(self, axis: int = 0) -> np.ndarray:
        """Mean count of each gene; shape (1, n_vars)."""
        if axis != 0:
            raise ValueError(f"Counts on disk are averaged over cells, axis=0; got axis={axis}.")
        total = np.zeros((1, self.shape[1]))
        for block in self.blocks():
            total += np.asarray(block.sum(axis=0, dtype=np.float64))
        return total / max(self.shape[0], 1)


def _columns_of(position: np.ndarray, n_query_vars: int) -> np.ndarray:
    """For each column of the file its gene in the reference, or -1."""
    column = np.full(n_query_vars, -1, dtype=np.int32)
    present = np.flatnonzero(position >= 0)
    column[position[present]] = present
    return column
