"""Counts on the training device: mini-batches are made dense where they are used."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from scvi import REGISTRY_KEYS

if TYPE_CHECKING:
    from scr2mae.data.cells import Cells

__all__ = ["DeviceCells", "to_device"]

logger = logging.getLogger(__name__)

_SHARE_OF_FREE_MEMORY = 0.5
_NUMBERS = {
    torch.uint8: 255,
    torch.int16: 32_767,
    torch.int32: 2_147_483_647,
}


def _smallest(values: np.ndarray) -> torch.dtype:
    """Return the smallest type of torch that holds these non-negative numbers exactly."""
    largest = float(values.max(initial=0))
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        return torch.float32
    return next((dtype for dtype, most in _NUMBERS.items() if largest <= most), torch.float32)


class DeviceCells:
    """Cells whose counts are a CSR matrix on a device.

    Genes and counts are held in the smallest integers that fit them: three to four bytes a non-zero count.

    Parameters
    ----------
    cells
        Cells in memory.
    device
        Where to.

    Attributes
    ----------
    nbytes
        What they take there.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        counts: Any = cells.counts
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        self.n_obs, self.n_vars = counts.shape
        self._n_values = np.diff(counts.indptr)
        self._starts = torch.from_numpy(counts.indptr.astype(np.int64)).to(device)
        self._columns = torch.from_numpy(counts.indices).to(_smallest(counts.indices)).to(device)
        self._values = torch.from_numpy(counts.data).to(_smallest(counts.data)).to(device)
        everything = slice(None)
        self._covariates = {
            key: torch.from_numpy(np.ascontiguousarray(array)).to(device)
            for key, array in cells.covariates(everything).items()
        }
        self._measured = None if cells.measured is None else torch.from_numpy(cells.measured).to(device)
        self.device = device
        held = [self._starts, self._columns, self._values, *self._covariates.values()]
        self.nbytes = sum(t.numel() * t.element_size() for t in held)

    @staticmethod
    def estimate(cells: Cells) -> int:
        """Bytes that the cells will take, looking at no more than the range of their counts."""
        counts: Any = cells.counts
        of_columns = _smallest(np.array([counts.shape[1] - 1])).itemsize
        return counts.nnz * (of_columns + _smallest(counts.data).itemsize) + 8 * (counts.shape[0] + 1)

    def batch(self, where: np.ndarray) -> dict[str, torch.Tensor]:
        """Dense mini-batch of the cells at some positions, on the device, under scvi-tools' keys; waits for nothing there."""
        where = np.asarray(where)
        rows = torch.from_numpy(where).to(self.device, non_blocking=True)
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        ends = lengths.cumsum(0)
        # Told by the host how many there are, the device need not be asked.
        n_values = int(self._n_values[where].sum())
        row = torch.repeat_interleave(
            torch.arange(len(rows), device=self.device), lengths, output_size=n_values
        )
        at = torch.arange(len(row), device=self.device) + (starts - ends + lengths)[row]
        dense = torch.zeros(len(rows), self.n_vars, device=self.device)
        dense[row, self._columns[at].long()] = self._values[at].float()
        tensors = {REGISTRY_KEYS.X_KEY: dense}
        tensors |= {key: values[rows] for key, values in self._covariates.items()}
        if self._measured is not None:
            tensors["measured"] = self._measured
        return tensors


def to_device(cells: Cells, device: torch.device, *, required: bool = False) -> DeviceCells | None:
    """Copy cells to a device if they take no more than half of its free memory.

    Parameters
    ----------
    cells
        Cells in memory.
    device
        Where to.
    required
        Try even if the estimate says that they do not fit.

    Returns
    -------
    The copy, or None where the counts have to stay in the host's memory.
    """
    needed, free = DeviceCells.estimate(cells), _free_memory(device)
    fits = required or needed <= _SHARE_OF_FREE_MEMORY * free
    logger.info(
        "Counts of %d cells take %.2f GB on %s, of which %.2f GB are free: they %s.",
        cells.n_obs, needed / 1e9, device, free / 1e9, "move there" if fits else "stay in the host's memory",
    )  # fmt: skip
    if not fits:
        return None
    try:
        return DeviceCells(cells, device)
    except torch.OutOfMemoryError:
        warnings.warn(
            f"{device} ran out of memory for the counts ({needed / 1e9:.2f} GB); they stay in the host's memory, "
            "from where each mini-batch is copied. Pass counts_on='memory' to say so from the start.",
            UserWarning,
            stacklevel=2,
        )
        return None


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
