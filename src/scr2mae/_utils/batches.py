"""Loaders of mini-batches: order by seed and epoch, sharding across ranks, prefetching, resuming within an epoch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

__all__ = ["BatchLoader", "BatchSampler", "ExecutionLoader"]


class BatchSampler:
    """Indices of the observations of each mini-batch, a pure function of ``(seed, epoch)``.

    Every data-parallel rank draws the same order and takes its share of each global batch, so that all ranks make the
    same number of steps.

    Parameters
    ----------
    n_obs
        Number of observations.
    batch_size
        Observations per batch and rank.
    shuffle
        Whether to draw a new order for each epoch.
    seed
        Seed of the orders.
    drop_single
        Whether to drop a last batch that leaves a rank fewer than two observations (batch normalization needs two).
    rank, world_size
        Rank of this process, and number of processes.
    block
        Number of neighbors that are shuffled together, >= 1, for observations that are read from a disk.
    window
        With blocks: number of a rank's mini-batches drawn from blocks that are read together, >= 1.
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
        block: int = 1,
        window: int = 1,
    ) -> None:
        try:
            batch_size = index(batch_size)
        except TypeError:
            raise TypeError(f"batch_size must be an integer, got {batch_size!r}.") from None
        if batch_size < 1 or (drop_single and batch_size < 2):
            raise ValueError(
                f"batch_size must be at least {2 if drop_single else 1}, got {batch_size}: "
                "batch normalization needs two cells."
            )
        self.n_obs, self.batch_size = n_obs, batch_size
        self.shuffle, self.seed, self.drop_single = shuffle, seed, drop_single
        self.rank, self.world_size = rank, world_size
        self.block, self.window = block, window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is used next.

        Parameters
        ----------
        epoch
            Index of the epoch, >= 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.n_obs, self.batch_size * self.world_size)
        smallest = 2 if self.drop_single else 1
        return whole + (rest // self.world_size >= smallest)

    def _order(self) -> np.ndarray:
        """Return the order of this epoch, before it is divided among ranks."""
        if not self.shuffle:
            return np.arange(self.n_obs)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.block == 1:
            return rng.permutation(self.n_obs)
        starts = rng.permutation(-(-self.n_obs // self.block)) * self.block
        order = (starts[:, None] + np.arange(self.block)).ravel()
        order = order[order < self.n_obs]
        share = self.window * self.batch_size
        n_whole = self.n_obs // (share * self.world_size) * self.world_size
        whole, rest = order[: n_whole * share], order[n_whole * share :]
        # Each rank draws a window of mini-batches from its own blocks, so that it reads no others.
        shares = rng.permuted(whole.reshape(n_whole, share), axis=1)
        shares = shares.reshape(-1, self.world_size, self.window, self.batch_size).swapaxes(1, 2)
        return np.concatenate([shares.ravel(), rng.permutation(rest)])

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self._order()
        stride = self.batch_size * self.world_size
        for i in range(len(self)):
            together = order[i * stride : (i + 1) * stride]
            share = len(together) // self.world_size
            yield together[self.rank * share : (self.rank + 1) * share]


class BatchLoader:
    """Iterate over the observations at ``indices`` in mini-batches; a drop-in replacement for a PyTorch data loader.

    ``collate`` returns the mini-batch of the observations at given indices. For observations on a disk,
    ``read`` is called with the indices of ``window`` mini-batches, in a thread while earlier ones are used,
    and returns a collate function indexed within that window. Lightning calls ``sampler.set_epoch``, and
    saves and restores ``state_dict``, so that a run that was killed within an epoch resumes with the next
    mini-batch.
    """

    def __init__(
        self,
        collate: Callable[[np.ndarray], Any],
        indices: np.ndarray,
        *,
        batch_size: int,
        read: Callable[[np.ndarray], Callable[[np.ndarray], Any]] | None = None,
        window: int = 1,
        **sampler_kwargs: Any,
    ) -> None:
        self.collate, self.indices = collate, np.asarray(indices)
        self.read, self.window = read, window
        self.sampler = BatchSampler(len(self.indices), batch_size, window=window, **sampler_kwargs)
        self.batch_sampler = None  # Lightning reads it as well as ``sampler``
        self._start = self._seen = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        wanted = islice((self.indices[chosen] for chosen in self.sampler), start, None)
        batches = map(self.collate, wanted) if self.read is None else self._read_ahead(wanted, start)
        for i, batch in enumerate(batches, start + 1):
            self._seen = i
            yield batch

    def _read_ahead(self, wanted: Iterator[np.ndarray], start: int) -> Iterator[Any]:
        """Read the next window in a thread while this one is used; resuming does not move windows."""
        read: Any = self.read
        with ThreadPoolExecutor(1, thread_name_prefix="scr2mae-read") as pool:

            def submit(size: int) -> tuple[list[np.ndarray], Future[Any]] | None:
                window = list(islice(wanted, size))
                return (window, pool.submit(read, np.concatenate(window))) if window else None

            coming = submit(self.window - start % self.window)
            while coming is not None:
                window, pending = coming
                collate = pending.result()
                coming = submit(self.window)
                stops = np.cumsum([len(indices) for indices in window])
                for indices, stop in zip(window, stops, strict=True):
                    yield collate(np.arange(stop - len(indices), stop))

    def positions(self, number: int) -> np.ndarray:
        """Return the indices of the observations of a mini-batch of this epoch.

        Parameters
        ----------
        number
            Number of the mini-batch, from 0.
        """
        return self.indices[next(islice(self.sampler, number, None))]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its mini-batches yielded so far."""
        return {"epoch": self.sampler.epoch, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last mini-batch of a state; after a complete epoch, start a new one.

        Parameters
        ----------
        state
            From :meth:`state_dict`.
        """
        self.sampler.set_epoch(state["epoch"])
        self._start = state["seen"] if state["seen"] < len(self) else 0


class ExecutionLoader:
    """Yield iterators over ``size`` mini-batches of a loader, each made on demand; the last of an epoch may have fewer."""

    def __init__(self, loader: BatchLoader, size: int) -> None:
        self.loader, self.size = loader, size
        self.sampler, self.batch_sampler = loader.sampler, None
        self.positions = loader.positions
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[Iterator[Any]]:
        batches = iter(self.loader)
        for first in batches:
            # A run that resumes within an iteration first completes it.
            yield chain([first], islice(batches, -self.n_seen % self.size))

    @property
    def n_seen(self) -> int:
        """Number of mini-batches of this epoch that were yielded."""
        return self.loader.state_dict()["seen"]
