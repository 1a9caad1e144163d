"""Mini-batches of cells: counts stay sparse until a batch is needed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from scr2mae._utils.batches import BatchLoader, BatchSampler
from scr2mae.data.backed import BackedCounts
from scr2mae.data.device import DeviceCells, to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from scr2mae.data.cells import Cells
    from scr2mae.data.splits import Split

__all__ = ["BatchSampler", "CellDataModule", "CellLoader", "dense_tensors", "sparse_tensors"]

CELLS_A_READ = 8192
"""Cells that are read from a disk together, rounded to whole mini-batches."""


def dense_tensors(cells: Cells, where: np.ndarray) -> dict[str, torch.Tensor]:
    """Make one dense mini-batch of cells.

    Parameters
    ----------
    cells
        Where from.
    where
        Their positions, shape (n,).

    Returns
    -------
    Tensors under scvi-tools' keys; ``measured`` where genes are absent.
    """
    return _as_tensors(cells, cells.batch(where))


def sparse_tensors(cells: Cells, where: np.ndarray) -> dict[str, torch.Tensor]:
    """Make one mini-batch of cells that holds the non-zeros of their counts alone.

    Parameters
    ----------
    cells
        Where from.
    where
        Their positions, shape (n,).

    Returns
    -------
    As :func:`dense_tensors`, with ``columns``, ``starts`` and ``values`` of a :class:`scr2mae.nn.layers.SparseRows` in place of
    the counts.
    """
    counts = cells.rows(where)
    counts.sum_duplicates()
    arrays = {"columns": counts.indices, "starts": counts.indptr[:-1], "values": counts.data}
    return _as_tensors(cells, {**arrays, **cells.covariates(where)})


def _as_tensors(cells: Cells, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    if cells.measured is not None:
        tensors["measured"] = torch.from_numpy(cells.measured)
    return tensors


class CellLoader(BatchLoader):
    """Iterate over cells in mini-batches; a drop-in for a PyTorch data loader.

    Parameters
    ----------
    cells
        Where batches come from.
    indices
        Positions of the cells to visit; None for all.
    batch_size
        Cells a batch.
    on_device
        A copy of the cells on the training device, which batches are then made from.
    make
        Makes a mini-batch of cells and positions: :func:`dense_tensors` or :func:`sparse_tensors`.
    sampler_kwargs
        Further arguments of :class:`BatchSampler`.

    Notes
    -----
    Lightning finds ``sampler.set_epoch``, and saves and restores ``state_dict``, so that a run killed in mid-epoch
    goes on with the batch that it had not seen. Counts on disk are read some 8,192 cells at a time, one read ahead, and
    shuffled by blocks of neighbors; fewer cells than that are shuffled as in memory.
    """

    def __init__(
        self,
        cells: Cells,
        indices: np.ndarray | None = None,
        *,
        batch_size: int = 128,
        on_device: DeviceCells | None = None,
        make: Callable[[Cells, np.ndarray], dict[str, torch.Tensor]] = dense_tensors,
        **sampler_kwargs: Any,
    ) -> None:
        self.cells, self.on_device, self.make = cells, on_device, make
        every = np.arange(cells.n_obs) if indices is None else indices
        if cells.on_disk:
            sampler_kwargs = {"read": self._read, **_reading(cells, len(every), batch_size), **sampler_kwargs}
        super().__init__(self.batch, every, batch_size=batch_size, **sampler_kwargs)

    def _read(self, indices: np.ndarray) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
        return partial(self.make, self.cells.take(indices))

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the cells at ``indices`` as one mini-batch.

        Parameters
        ----------
        indices
            Positions of the cells, shape (n,).

        Returns
        -------
        Tensors under scvi-tools' keys.
        """
        if self.on_device is not None:
            return self.on_device.batch(indices)
        return self.make(self.cells, indices)


def _reading(cells: Cells, n_obs: int, batch_size: int) -> dict[str, int]:
    """How many neighbors stay together, and how many mini-batches are read together."""
    window = max(1, round(CELLS_A_READ / batch_size))
    block = cells.counts.block if isinstance(cells.counts, BackedCounts) else 1
    return {"window": window, "block": 1 if n_obs <= window * batch_size else block}


class CellDataModule(pl.LightningDataModule):
    """Training and validation loaders of a split, each rank its share.

    Parameters
    ----------
    cells
        The data.
    split
        Who trains and who validates.
    batch_size
        Cells a batch and rank.
    seed
        Seed of the order of training cells.
    counts_on
        Where the counts are while the network trains: ``"device"``, ``"memory"``, or ``"auto"`` for the device where
        that is not the CPU and they fit. What is on a disk stays there.
    loader_kwargs
        Further arguments of :class:`CellLoader`.
    """

    def __init__(
        self,
        cells: Cells,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        counts_on: str = "memory",
        **loader_kwargs: Any,
    ) -> None:
        super().__init__()
        self.cells, self.split = cells, split
        self.batch_size, self.seed = batch_size, seed
        self.counts_on, self.loader_kwargs = counts_on, loader_kwargs
        self._on_device: DeviceCells | None = None
        self._is_placed = False

    def _source(self) -> DeviceCells | None:
        """Return the counts on the device, if that is where they are to be."""
        if not self._is_placed:
            self._is_placed = True
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            wanted = self.counts_on == "device" or (self.counts_on == "auto" and device.type == "cuda")
            if wanted and not self.cells.on_disk:
                self._on_device = to_device(self.cells, device, required=self.counts_on == "device")
        return self._on_device

    def teardown(self, stage: str) -> None:
        """Give the device's memory back."""
        self._on_device, self._is_placed = None, False

    def train_dataloader(self) -> CellLoader:
        """Return shuffled mini-batches of the training cells."""
        trainer = self.trainer
        return CellLoader(
            self.cells,
            self.split.train,
            batch_size=self.batch_size,
            shuffle=True,
            seed=self.seed,
            drop_single=True,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            on_device=self._source(),
            **self.loader_kwargs,
        )

    def val_dataloader(self) -> CellLoader | list[CellLoader]:
        """Return the validation cells in order; nothing where there are none."""
        if not len(self.split.validation):
            return []
        return CellLoader(
            self.cells,
            self.split.validation,
            batch_size=max(self.batch_size, 2),
            on_device=self._source(),
        )
