"""Counts on the training device, where mini-batches are made dense."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.memory import fits

if TYPE_CHECKING:
    from scr2mae.data.cells import Cells

__all__ = ["DeviceCells", "to_device"]


def _smallest_dtype(values: np.ndarray) -> torch.dtype:
    """Return the smallest PyTorch type that holds these non-negative numbers exactly."""
    largest = float(values.max(initial=0))
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        return torch.float32
    integers = (torch.uint8, torch.int16, torch.int32)
    return next((dtype for dtype in integers if largest <= torch.iinfo(dtype).max), torch.float32)


class DeviceCells:
    """Cells whose counts are a CSR matrix on a device, three to four bytes per non-zero count.

    Genes and counts are stored as the smallest integers that hold them; ``nbytes`` is what the cells take.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        counts: Any = cells.counts
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        self.n_obs, self.n_vars = counts.shape
        self._n_values = np.diff(counts.indptr)
        self._starts = torch.from_numpy(counts.indptr.astype(np.int64)).to(device)
        self._columns = torch.from_numpy(counts.indices).to(_smallest_dtype(counts.indices)).to(device)
        self._values = torch.from_numpy(counts.data).to(_smallest_dtype(counts.data)).to(device)
        self._covariates, self._measured = (
            {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
            for arrays in (cells.covariates(slice(None)), cells.measured_genes(slice(None)))
        )
        self.device = device
        held = [self._starts, self._columns, self._values, *self._covariates.values()]
        self.nbytes = sum(t.numel() * t.element_size() for t in held)

    @staticmethod
    def estimate(cells: Cells) -> int:
        """Return the bytes that the counts will take, from their number and range."""
        counts: Any = cells.counts
        column_bytes = _smallest_dtype(np.array([counts.shape[1] - 1])).itemsize
        return counts.nnz * (column_bytes + _smallest_dtype(counts.data).itemsize) + 8 * (counts.shape[0] + 1)

    def collate(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the given cells as a dense mini-batch under scvi-tools' keys, without synchronizing the device."""
        indices = np.asarray(indices)
        rows = torch.from_numpy(indices).to(self.device, non_blocking=True)
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        ends = lengths.cumsum(0)
        # The host knows the number of values; asking the device for it would synchronize.
        n_values = int(self._n_values[indices].sum())
        row = torch.repeat_interleave(
            torch.arange(len(rows), device=self.device), lengths, output_size=n_values
        )
        entries = torch.arange(len(row), device=self.device) + (starts - ends + lengths)[row]
        dense = torch.zeros(len(rows), self.n_vars, device=self.device)
        dense[row, self._columns[entries].long()] = self._values[entries].float()
        tensors = {REGISTRY_KEYS.X_KEY: dense}
        tensors |= {key: values[rows] for key, values in self._covariates.items()}
        if "panel" in self._measured:
            return {**tensors, **self._measured, "panel": self._measured["panel"][rows]}
        return tensors | self._measured


def to_device(cells: Cells, device: torch.device, *, required: bool = False) -> DeviceCells | None:
    """Copy cells to a device, by default if they take at most half of its free memory; return None if they do not fit."""
    needed = DeviceCells.estimate(cells)
    yes, no = f"they move to {device}", "they stay in the host's memory"
    if not required and not fits(needed, f"Counts of {cells.n_obs} cells", yes=yes, no=no, device=device):
        return None
    try:
        return DeviceCells(cells, device)
    except torch.OutOfMemoryError:
        warnings.warn(
            f"{device} ran out of memory for the counts ({needed / 1e9:.2f} GB); they stay in the host's memory, "
            "from where each mini-batch is copied. Pass counts_on='memory' to choose that from the start.",
            stacklevel=2,
        )
        return None
