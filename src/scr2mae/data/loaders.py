"""Mini-batches of cells: counts stay sparse until a batch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.data.cells import Cells
    from scr2mae.data.splits import Split

__all__ = ["BatchSampler", "CellDataModule", "CellLoader"]


class BatchSampler:
    """Positions of each mini-batch, a pure function of ``(seed, epoch)``.

    Every data-parallel rank draws the same order and takes its share of each global batch, so all ranks make
    the same number of steps.

    Parameters
    ----------
    n_obs
        Number of cells.
    batch_size
        Cells a batch and rank.
    shuffle
        Whether to draw a new order each epoch; else cells come in their order.
    seed
        Seed of the orders.
    drop_single
        Whether a last batch that leaves a rank fewer than two cells is dropped (batch normalisation needs two).
    rank, world_size
        This process's number, and how many there are.
    """

    def __init__(
        self,
        n_obs: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_single: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or (drop_single and batch_size < 2):
            raise ValueError(
                f"batch_size must be at least {2 if drop_single else 1}, got {batch_size}: "
                "batch normalisation needs two cells."
            )
        self.n_obs, self.batch_size = n_obs, batch_size
        self.shuffle, self.seed, self.drop_single = shuffle, seed, drop_single
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.n_obs, self.batch_size * self.world_size)
        smallest = 2 if self.drop_single else 1
        return whole + (rest // self.world_size >= smallest)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.arange(self.n_obs)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_obs)
        stride = self.batch_size * self.world_size
        for i in range(len(self)):
            together = order[i * stride : (i + 1) * stride]
            share = len(together) // self.world_size
            yield together[self.rank * share : (self.rank + 1) * share]


class CellLoader:
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
        self.indices = np.arange(cells.n_obs) if indices is None else np.asarray(indices)
        self.sampler = BatchSampler(len(self.indices), batch_size, **sampler_kwargs)
        self.batch_sampler = None  # Lightning looks for it beside ``sampler``
        self._start = self._seen = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        start, self._start = self._start, 0
        for i, where in enumerate(self.sampler):
            if i < start:
                continue
            self._seen = i + 1
            yield self.batch(self.indices[where])

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the cells at ``indices`` as one dense mini-batch."""
        tensors = {key: torch.from_numpy(array) for key, array in self.cells.batch(indices).items()}
        if self.cells.measured is not None:
            tensors["measured"] = torch.from_numpy(self.cells.measured)
        return tensors

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch has come."""
        return {"epoch": self.sampler.epoch, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken; a whole epoch seen means the next one starts afresh."""
        self.sampler.set_epoch(state["epoch"])
        self._start = state["seen"] if state["seen"] < len(self) else 0


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
