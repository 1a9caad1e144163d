"""Files of counts, opened together and read block by block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae._utils.untrusted import is_indptr
from scr2mae.data.formats import is_tenx
from scr2mae.data.preprocess import read_block
from scr2mae.data.store import check_by_cell, has_matrix, has_raw, open_group, open_matrix, read_frame

__all__ = ["Source", "open_sources"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One file of counts, left on disk; ``label`` is a short name that is unique among the files."""

    path: Path
    label: str
    group: Any
    element: Any  # counts as stored: an array, or the group of a sparse matrix
    n_obs: int
    var: pd.DataFrame

    def read_obs(self) -> pd.DataFrame:
        """Read ``obs``, which is not kept: names of cells take more memory than a block of counts."""
        obs = read_frame(self.group, "obs", path=self.path)
        return obs.set_axis(obs.index.astype(str))

    def blocks(self, max_nnz: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield start and counts of blocks of whole cells with at most ``max_nnz`` values, or a single larger cell."""
        counts = open_matrix(self.element)
        for start, stop in self._bounds(max_nnz):
            yield start, read_block(counts, start, stop)

    def _bounds(self, max_nnz: int) -> Iterator[tuple[int, int]]:
        """Yield the first and the last row of parts with at most ``max_nnz`` non-zeros."""
        if hasattr(self.element, "dtype"):
            step = max(1, max_nnz // len(self.var))
            yield from ((start, min(start + step, self.n_obs)) for start in range(0, self.n_obs, step))
            return
        indptr = self.element["indptr"][...]
        start = 0
        while start < self.n_obs:
            stop = int(np.searchsorted(indptr, indptr[start] + max_nnz, side="right")) - 1
            yield start, (stop := max(stop, start + 1))
            start = stop


@contextmanager
def open_sources(paths: Sequence[Path], *, layer: str | None) -> Iterator[list[Source]]:
    """Open ``.h5ad`` files or ``.zarr`` folders; counts are in the layer, else in ``raw`` if there is one, else in ``X``."""
    if not paths:
        raise ValueError("Expected at least one file to prepare, got none.")
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise ValueError(f"{path} is given twice; pass each file once.")
    with ExitStack() as stack:
        labels = _labels(resolved)
        yield [_open(path, label, layer, stack) for path, label in zip(paths, labels, strict=True)]


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are unique, without suffixes if possible."""
    for depth in range(1, max(len(path.parts) for path in paths)):
        tails = ["/".join(path.parts[-depth:]) for path in paths]
        for labels in ([os.path.splitext(tail)[0] for tail in tails], tails):
            if len(set(labels)) == len(paths):
                return labels
    return [str(path) for path in paths]


def _open(path: Path, label: str, layer: str | None, stack: ExitStack) -> Source:
    """Open a file or store, find its counts, and check them."""
    group = open_group(path)
    if isinstance(group, h5py.Group):  # of a file; folders need no closing
        stack.callback(group.file.close)
    element, genes = _find_counts(group, path, layer)
    var = read_frame(group, genes, path=path)
    var.index = var.index.astype(str)
    n_obs = len(read_frame(group, "obs", path=path))
    _check_shape(element, path, n_obs, len(var))
    if not var.index.is_unique:
        repeated = var.index[var.index.duplicated()].unique()[:5].tolist()
        raise ValueError(
            f"Gene names must be unique, but {repeated} occur more than once in {path}; "
            "call adata.var_names_make_unique() and write it again."
        )
    return Source(path=path, label=label, group=group, element=element, n_obs=n_obs, var=var)


def _find_counts(group: Any, path: Path, layer: str | None) -> tuple[Any, str]:
    """Return the stored matrix of counts and the name of the table of its genes."""
    if is_tenx(group) and layer is None:
        return group, "var"
    if layer is not None:
        layers = sorted(group["layers"]) if "layers" in group else []
        if layer not in layers:
            raise KeyError(f"No {layer!r} in the layers of {path}; choose one of {layers} or layer=None.")
        return group["layers"][layer], "var"
    if has_raw(group):
        logger.info("Taking the counts of %s from raw.", path)
        return group["raw/X"], "raw/var"
    if not has_matrix(group):
        raise ValueError(f"{path} has no matrix in X and no raw; name the layer with the counts.")
    return group["X"], "var"


def _check_shape(element: Any, path: Path, n_obs: int, n_vars: int) -> None:
    """Raise unless the counts are cells by genes and whole."""
    matrix = open_matrix(element)
    check_by_cell(matrix, f"The matrix of counts in {path}")
    if tuple(matrix.shape) != (n_obs, n_vars) or not n_obs or not n_vars:
        raise ValueError(
            f"Expected counts of {n_obs} cells x {n_vars} genes in {path}, both at least 1, got {tuple(matrix.shape)}."
        )
    if not hasattr(element, "dtype") and not is_indptr(element["indptr"][...], n_obs):
        raise ValueError(
            f"The counts of {path} are damaged: their indptr does not rise from 0 over {n_obs} cells."
        )
