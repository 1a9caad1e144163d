"""Mini-batches of anything with positions: orders by seed and epoch, shares of ranks, resume in mid-epoch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BatchLoader", "BatchSampler", "ExecutionLoader"]


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
        Whether a last batch that leaves a rank fewer than two is dropped (batch normalization needs two).
    rank, world_size
        This process's number, and how many there are.
    block
        Neighbors that stay together when the order is drawn, >= 1; 1 shuffles freely. For observations that are read
        from a disk.
    window
        With blocks: how many of a rank's mini-batches are drawn from blocks that are read together, >= 1.
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
        """Choose the epoch whose order comes next.

        Parameters
        ----------
        epoch
            Number of the epoch, >= 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.n_obs, self.batch_size * self.world_size)
        smallest = 2 if self.drop_single else 1
        return whole + (rest // self.world_size >= smallest)

    def _order(self) -> np.ndarray:
        """Positions in the order of this epoch, all ranks' together."""
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
        # Each rank draws its mini-batches of a while from blocks of its own, so that it reads no other.
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
    """Iterate over observations in mini-batches; a drop-in for a PyTorch data loader.

    Parameters
    ----------
    collate
        Returns the mini-batch of the observations at the given positions.
    indices
        Positions of the observations to visit.
    batch_size
        Observations a batch and rank.
    read
        Where observations are read from a disk: called with the positions of ``window`` mini-batches, in a thread of its
        own while earlier ones are used, it returns the ``collate`` to use for indices into those positions.
    window
        Mini-batches read together.
    sampler_kwargs
        Further arguments of :class:`BatchSampler`.

    Notes
    -----
    Lightning finds ``sampler.set_epoch``, and saves and restores ``state_dict``, so that a run killed in mid-epoch
    goes on with the batch that it had not seen.
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
        self.batch_sampler = None  # Lightning looks for it beside ``sampler``
        self._start = self._seen = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        wanted = islice((self.indices[where] for where in self.sampler), start, None)
        batches = map(self.collate, wanted) if self.read is None else self._read_ahead(wanted, start)
        for i, batch in enumerate(batches, start + 1):
            self._seen = i
            yield batch

    def _read_ahead(self, wanted: Iterator[np.ndarray], start: int) -> Iterator[Any]:
        """Read the next window in a thread while this one is used; windows begin where they would without a resume."""
        read: Any = self.read
        size = self.window - start % self.window
        with ThreadPoolExecutor(1, thread_name_prefix="scr2mae-read") as pool:
            window = list(islice(wanted, size))
            pending = pool.submit(read, np.concatenate(window)) if window else None
            while pending is not None:
                collate, current = pending.result(), window
                window = list(islice(wanted, self.window))
                pending = pool.submit(read, np.concatenate(window)) if window else None
                stops = np.cumsum([len(where) for where in current])
                for where, stop in zip(current, stops, strict=True):
                    yield collate(np.arange(stop - len(where), stop))

    def positions(self, number: int) -> np.ndarray:
        """Positions of the observations of a mini-batch of this epoch.

        Parameters
        ----------
        number
            Of the mini-batch, from 0.

        Returns
        -------
        Shape (n,), in the order of the mini-batch.
        """
        return self.indices[next(islice(self.sampler, number, None))]

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch has come."""
        return {"epoch": self.sampler.epoch, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken; a whole epoch seen means the next one starts afresh.

        Parameters
        ----------
        state
            As ``state_dict`` returned it.
        """
        self.sampler.set_epoch(state["epoch"])
        self._start = state["seen"] if state["seen"] < len(self) else 0


class ExecutionLoader:
    """Hand out several mini-batches at a time, each made when it is asked for.

    Parameters
    ----------
    loader
        Where they come from.
    size
        Mini-batches an execution; the last of an epoch may have fewer.
    """

    def __init__(self, loader: BatchLoader, size: int) -> None:
        self.loader, self.size = loader, size
        self.sampler, self.batch_sampler = loader.sampler, None

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[Iterator[Any]]:
        batches = iter(self.loader)
        for first in batches:
            # After a resume in mid-execution, its rest alone.
            yield chain([first], islice(batches, -self.n_seen % self.size))

    @property
    def n_seen(self) -> int:
        """Mini-batches of this epoch that were handed out."""
        return self.loader.state_dict()["seen"]

    def positions(self, number: int) -> np.ndarray:
        """Positions of the observations of a mini-batch of this epoch.

        Parameters
        ----------
        number
            Of the mini-batch, from 0.

        Returns
        -------
        Shape (n,), in the order of the mini-batch.
        """
        return self.loader.positions(number)

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch has come, in mini-batches."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state_dict`` was taken.

        Parameters
        ----------
        state
            As ``state_dict`` returned it.
        """
        self.loader.load_state_dict(state)
