"""Mini-batches of cells: counts stay sparse until a batch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from scr2mae._batches import BatchLoader, BatchSampler

if TYPE_CHECKING:
    from scr2mae.data.cells import Cells
    from scr2mae.data.splits import Split

__all__ = ["BatchSampler", "CellDataModule", "CellLoader"]


class CellLoader(BatchLoader):
    """Iterate over cells in dense mini-batches; a drop-in for a PyTorch data loader.

    Parameters
    ----------
    cells
        Where batches come from.
    indices
        Positions of the cells to visit; None for all.
    batch_size
        Cells a batch.
    sampler_kwargs
        Further arguments of :class:`BatchSampler`.

    Notes
    -----
    Lightning finds ``sampler.set_epoch``, and saves and restores ``state_dict``, so that a run killed in mid-epoch
    goes on with the batch that it had not seen.
    """

    def __init__(
        self, cells: Cells, indices: np.ndarray | None = None, *, batch_size: int = 128, **sampler_kwargs: Any
    ) -> None:
        self.cells = cells
        every = np.arange(cells.n_obs) if indices is None else indices
        super().__init__(self.batch, every, batch_size=batch_size, **sampler_kwargs)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the cells at ``indices`` as one dense mini-batch."""
        tensors = {key: torch.from_numpy(array) for key, array in self.cells.batch(indices).items()}
        if self.cells.measured is not None:
            tensors["measured"] = torch.from_numpy(self.cells.measured)
        return tensors


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
    """

    def __init__(self, cells: Cells, split: Split, *, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.cells, self.split = cells, split
        self.batch_size, self.seed = batch_size, seed

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
        )

    def val_dataloader(self) -> CellLoader | list[CellLoader]:
        """Return the validation cells in order; nothing where there are none."""
        if not len(self.split.validation):
            return []
        return CellLoader(self.cells, self.split.validation, batch_size=max(self.batch_size, 2))
