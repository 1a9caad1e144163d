"""Mini-batches of anything with positions: orders by seed and epoch, shares of ranks, resume in mid-epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BatchLoader", "BatchSampler"]


class BatchSampler:
    """Positions of each mini-batch, a pure function of ``(seed, epoch)``.

    Every data-parallel rank draws the same order and takes its share of each global batch, so all ranks make
    the same number of steps.

    Parameters
    ----------
    n_obs
        Number of observations.
    batch_size
        Observations a batch and rank.
    shuffle
        Whether to draw a new order each epoch; else they come in their order.
    seed
        Seed of the orders.
    drop_single
        Whether a last batch that leaves a rank fewer than two is dropped (batch normalisation needs two).
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


class BatchLoader:
    """Iterate over observations in mini-batches; a drop-in for a PyTorch data loader.

    Parameters
    ----------
    take
        Makes a mini-batch of the observations at some positions.
    indices
        Positions of the observations to visit.
    batch_size
        Observations a batch and rank.
    sampler_kwargs
        Further arguments of :class:`BatchSampler`.

    Notes
    -----
    Lightning finds ``sampler.set_epoch``, and saves and restores ``state_dict``, so that a run killed in mid-epoch
    goes on with the batch that it had not seen.
    """

    def __init__(
        self,
        take: Callable[[np.ndarray], Any],
        indices: np.ndarray,
        *,
        batch_size: int,
        **sampler_kwargs: Any,
    ) -> None:
        self.take, self.indices = take, np.asarray(indices)
        self.sampler = BatchSampler(len(self.indices), batch_size, **sampler_kwargs)
        self.batch_sampler = None  # Lightning looks for it beside ``sampler``
        self._start = self._seen = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        for i, where in enumerate(self.sampler):
            if i < start:
                continue
            self._seen = i + 1
            yield self.take(self.indices[where])

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch has come."""
        return {"epoch": self.sampler.epoch, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken; a whole epoch seen means the next one starts afresh."""
        self.sampler.set_epoch(state["epoch"])
        self._start = state["seen"] if state["seen"] < len(self) else 0
