"""An external shuffle of sparse rows: write them to buckets by a random key, then sort one bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

__all__ = ["RowShuffle"]


class RowShuffle:
    """Sort the rows of a matrix larger than memory by keys in [0, 1).

    Buckets are ranges of keys of equal length, one file each in ``folder``, so that uniform keys fill them about
    equally. The order of the rows depends on the keys only, not on the number of buckets.
    """

    def __init__(self, folder: Path, *, n_buckets: int, n_vars: int) -> None:
        self.n_buckets = n_buckets
        self.n_vars = n_vars
        self.n_obs = np.zeros(n_buckets, dtype=np.int64)
        self.nnz = np.zeros(n_buckets, dtype=np.int64)
        self._files = [folder / f"{bucket:06d}.rows" for bucket in range(n_buckets)]
        self._index_dtype = _index_dtype(n_vars)

    @staticmethod
    def bytes_needed(n_obs: int, nnz: int, n_vars: int) -> int:
        """Return the size of all buckets on disk: key, position and length per row, index and float32 per value."""
        return n_obs * 20 + nnz * (_index_dtype(n_vars).itemsize + 4)

    def add(self, rows: sp.csr_matrix, *, keys: np.ndarray, positions: np.ndarray) -> None:
        """Write rows to their buckets, with a number per row that identifies it later."""
        bucket = (keys * self.n_buckets).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        rows, keys, positions = rows[order], keys[order], positions[order]
        ends = np.searchsorted(bucket[order], np.arange(self.n_buckets), side="right")
        lengths = np.diff(rows.indptr).astype(np.int32)
        start = 0
        for number, stop in enumerate(ends):
            if stop > start:
                first, last = rows.indptr[start], rows.indptr[stop]
                with self._files[number].open("ab") as file:
                    file.write(np.array([stop - start, last - first], dtype=np.int64).tobytes())
                    file.write(keys[start:stop].astype(np.float64).tobytes())
                    file.write(positions[start:stop].astype(np.int64).tobytes())
                    file.write(lengths[start:stop].tobytes())
                    file.write(rows.indices[first:last].astype(self._index_dtype).tobytes())
                    file.write(rows.data[first:last].astype(np.float32).tobytes())
                self.n_obs[number] += stop - start
                self.nnz[number] += last - first
            start = stop

    def sorted_buckets(self) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
        """Yield the rows of one bucket after another in the order of their keys, with their numbers."""
        for number, path in enumerate(self._files):
            if self.n_obs[number]:
                bucket = self._read(number)
                path.unlink()
                yield bucket
                del bucket  # before the next one is read

    def _read(self, number: int) -> tuple[sp.csr_matrix, np.ndarray]:
        """Read the rows of a temporary file and put them in random order."""
        n_obs, nnz = int(self.n_obs[number]), int(self.nnz[number])
        keys, positions = np.empty(n_obs), np.empty(n_obs, dtype=np.int64)
        indptr = np.zeros(n_obs + 1, dtype=np.int64)
        indices, data = np.empty(nnz, dtype=np.int32), np.empty(nnz, dtype=np.float32)
        row = entry = 0
        with self._files[number].open("rb") as file:
            while row < n_obs:
                n_rows, n_entries = (int(n) for n in np.fromfile(file, np.int64, 2))
                rows, entries = slice(row, row + n_rows), slice(entry, entry + n_entries)
                keys[rows] = np.fromfile(file, np.float64, n_rows)
                positions[rows] = np.fromfile(file, np.int64, n_rows)
                indptr[row + 1 : row + n_rows + 1] = np.fromfile(file, np.int32, n_rows)
                indices[entries] = np.fromfile(file, self._index_dtype, n_entries)
                data[entries] = np.fromfile(file, np.float32, n_entries)
                row, entry = row + n_rows, entry + n_entries
        np.cumsum(indptr, out=indptr)
        matrix = sp.csr_matrix((data, indices, indptr), shape=(n_obs, self.n_vars))
        order = np.argsort(keys, kind="stable")
        return matrix[order], positions[order]


def _index_dtype(n_vars: int) -> np.dtype:
    return np.dtype(np.uint16 if n_vars <= np.iinfo(np.uint16).max + 1 else np.int32)
