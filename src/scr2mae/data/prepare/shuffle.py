"""An external shuffle of sparse rows: spill to buckets by a random key, then sort one bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

__all__ = ["RowShuffle", "random_keys"]


def random_keys(n_obs: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the sort key of the next rows, uniform in [0, 1).

    A stream: drawing 3 and then 5 gives the same as drawing 8, so that the order which the keys define does not
    depend on how rows come in blocks.
    """
    return rng.random(n_obs)


class RowShuffle:
    """Sort the rows of a matrix that does not fit into memory by keys that come with them.

    Buckets are ranges of keys of equal length, a file each, so with uniform keys they are about equally full, and
    the order of rows depends on the keys alone, not on the number of buckets.

    Parameters
    ----------
    folder
        Where to spill; must exist.
    n_buckets
        How many files, >= 1; one is in memory at a time.
    n_vars
        Columns of the matrix.
    """

    def __init__(self, folder: Path, *, n_buckets: int, n_vars: int) -> None:
        self.n_buckets = n_buckets
        self.n_vars = n_vars
        self.n_obs = np.zeros(n_buckets, dtype=np.int64)
        self.nnz = np.zeros(n_buckets, dtype=np.int64)
        self._files = [folder / f"{bucket:06d}.rows" for bucket in range(n_buckets)]
        index_dtype = np.uint16 if n_vars <= np.iinfo(np.uint16).max + 1 else np.int32
        self._entry = (np.dtype(index_dtype), np.dtype(np.float32))

    @staticmethod
    def bytes_needed(n_obs: int, nnz: int, n_vars: int) -> int:
        """Return the size on disk of what is spilled, in bytes."""
        return n_obs * 20 + nnz * (6 if n_vars <= np.iinfo(np.uint16).max + 1 else 8)

    def add(self, rows: sp.csr_matrix, *, keys: np.ndarray, positions: np.ndarray) -> None:
        """Spill rows.

        Parameters
        ----------
        rows
            Shape (n_rows, n_vars).
        keys
            In [0, 1), shape (n_rows,).
        positions
            Numbers to know the rows by, shape (n_rows,).
        """
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
                    file.write(rows.indices[first:last].astype(self._entry[0]).tobytes())
                    file.write(rows.data[first:last].astype(self._entry[1]).tobytes())
                self.n_obs[number] += stop - start
                self.nnz[number] += last - first
            start = stop

    def sorted_buckets(self) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
        """Read the buckets back one by one, each file removed once read.

        Yields
        ------
        Rows in the order of their keys (CSR, float32), and their positions.
        """
        for number, path in enumerate(self._files):
            if self.n_obs[number]:
                bucket = self._read(number)
                path.unlink()
                yield bucket
                del bucket  # before the next one is read

    def _read(self, number: int) -> tuple[sp.csr_matrix, np.ndarray]:
        n_obs, nnz = int(self.n_obs[number]), int(self.nnz[number])
        keys, positions = np.empty(n_obs), np.empty(n_obs, dtype=np.int64)
        indptr = np.zeros(n_obs + 1, dtype=np.int64)
        indices, data = np.empty(nnz, dtype=np.int32), np.empty(nnz, dtype=np.float32)
        row = entry = 0
        with self._files[number].open("rb") as file:
            while row < n_obs:
                n_rows, n_entries = (int(n) for n in np.fromfile(file, np.int64, 2))
                here, there = slice(row, row + n_rows), slice(entry, entry + n_entries)
                keys[here] = np.fromfile(file, np.float64, n_rows)
                positions[here] = np.fromfile(file, np.int64, n_rows)
                indptr[row + 1 : row + n_rows + 1] = np.fromfile(file, np.int32, n_rows)
                indices[there] = np.fromfile(file, self._entry[0], n_entries)
                data[there] = np.fromfile(file, self._entry[1], n_entries)
                row, entry = row + n_rows, entry + n_entries
        np.cumsum(indptr, out=indptr)
        rows = sp.csr_matrix((data, indices, indptr), shape=(n_obs, self.n_vars))
        order = np.argsort(keys, kind="stable")
        return rows[order], positions[order]
