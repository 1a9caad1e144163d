"""Mini-batches of any data set with a length: prefetched by threads and sharded across ranks, augmented on the device."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch

from scr2mae._utils.batches import BatchLoader
from scr2mae._utils.compat import single_thread_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from torch import Tensor, nn

__all__ = ["BatchDataModule", "Batches", "ThreadedLoader", "map_batches", "masked_losses"]


class Batches(Protocol):
    """Interface of data sets for training and inference."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def batch(self, indices: np.ndarray) -> Any:
        """Return the mini-batch of the given items."""
        ...


class ThreadedLoader(BatchLoader):
    """Prefetch ``n_workers`` mini-batches in threads; decoding releases the GIL, so they run in parallel."""

    def __init__(self, data: Batches, *, batch_size: int, n_workers: int = 0, **sampler_kwargs: Any) -> None:
        if n_workers < 0:
            raise ValueError(f"n_workers must be >= 0, got {n_workers}.")
        super().__init__(data.batch, np.arange(len(data)), batch_size=batch_size, **sampler_kwargs)
        self.n_workers = n_workers

    def __iter__(self) -> Iterator[Any]:
        if not self.n_workers:
            yield from super().__iter__()
            return
        start, self._start = self._start, 0
        pending: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self.n_workers) as pool:
            try:
                self._seen = start
                for indices in islice(self.sampler, start, None):
                    pending.append(pool.submit(self.collate, self.indices[indices]))
                    if len(pending) > self.n_workers:
                        yield self._next(pending)
                while pending:
                    yield self._next(pending)
            finally:
                for future in pending:
                    future.cancel()

    def _next(self, pending: deque[Future[Any]]) -> Any:
        self._seen += 1
        return pending.popleft().result()


class BatchDataModule(pl.LightningDataModule):
    """Shuffled mini-batches of the training data, sharded across ranks, and validation data in order.

    ``augment`` changes training mini-batches on the device, as a pure function of seed, rank and step. With
    ``shard_validation`` each rank validates a part of the data, otherwise all of them.
    """

    def __init__(
        self,
        train: Batches,
        validation: Batches | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        augment: Callable[..., dict[str, Tensor]] | None = None,
        n_workers: int = 0,
        drop_single: bool = False,
        shard_validation: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.n_workers, self.drop_single, self.shard_validation = n_workers, drop_single, shard_validation

    def _shard(self) -> dict[str, int]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}

    def train_dataloader(self) -> ThreadedLoader:
        """Return shuffled mini-batches of the training data."""
        return ThreadedLoader(
            self.train,
            batch_size=self.batch_size,
            n_workers=self.n_workers,
            shuffle=True,
            seed=self.seed,
            drop_single=self.drop_single,
            **self._shard(),
        )

    def val_dataloader(self) -> ThreadedLoader | list[ThreadedLoader]:
        """Return the validation data in order, or an empty list."""
        if self.validation is None:
            return []
        shard = self._shard() if self.shard_validation else {}
        return ThreadedLoader(self.validation, batch_size=self.batch_size, n_workers=self.n_workers, **shard)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment training mini-batches."""
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training:
            return batch
        # Lightning counts a mini-batch only after this hook.
        step = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return self.augment(batch, key=(self.seed, trainer.global_rank, step))


@contextmanager
def _evaluating(network: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Switch to evaluation mode without gradients and yield the device; restore the mode afterwards."""
    single_thread_after_fork()
    if device is not None:
        network.to(device)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield next(network.parameters()).device
    finally:
        network.train(was_training)


def map_batches(
    network: nn.Module,
    data: Batches,
    function: Callable[[Any], Tensor],
    *,
    batch_size: int,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> np.ndarray:
    """Concatenate ``function(batch)`` over mini-batches: float32, shape (n_items, ...)."""
    if not len(data):
        raise ValueError("There are no items; expected at least one.")
    loader = ThreadedLoader(data, batch_size=batch_size, n_workers=n_workers)
    with _evaluating(network, device) as place:
        return np.concatenate([function(_to(batch, place)).float().cpu().numpy() for batch in loader])


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return batch.to(device)


def masked_losses(
    network: nn.Module,
    data: Batches,
    ratio: float,
    *,
    batch_size: int,
    seed: int,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> list[Any]:
    """Return ``network.training_loss`` of every mini-batch at a masking ratio, without dropout or gradients."""
    module: Any = network
    loader = ThreadedLoader(data, batch_size=batch_size, n_workers=n_workers)
    with _evaluating(network, device) as place:
        return [
            module.training_loss(_to(batch, place), ratio=ratio, seed=seed, step=step)
            for step, batch in enumerate(loader)
        ]
