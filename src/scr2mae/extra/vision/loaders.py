"""Mini-batches of images: decoded ahead by threads, augmented on the device."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch

from scr2mae._utils.batches import BatchLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from torch import Tensor

    from scr2mae.extra.vision.datasets import Images

__all__ = ["Augment", "FeatureArray", "ImageDataModule", "ImageLoader"]


class Augment(Protocol):
    """What is done to a mini-batch of training images, as a pure function of a key."""

    def __call__(self, tensors: dict[str, Tensor], *, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the mini-batch changed; ``key`` is seed, rank and step."""
        ...


class FeatureArray:
    """Embeddings with labels, as training takes them.

    Parameters
    ----------
    features
        Shape (n_obs, n_in).
    labels
        Shape (n_obs,) or (n_obs, n_attributes).
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(
                f"Embeddings must have shape (n_obs, n_in) and as many labels, got {features.shape} and {len(labels)}."
            )
        if not np.isfinite(features).all():
            raise ValueError("An embedding is not finite; did training diverge?")
        self.features = torch.from_numpy(features)
        self.labels = torch.from_numpy(np.asarray(labels).astype(np.int64))

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the embeddings at ``indices`` and their labels."""
        where = torch.from_numpy(np.asarray(indices))
        return {"features": self.features[where], "label": self.labels[where]}


class ImageLoader(BatchLoader):
    """Mini-batches made ahead by threads; decoding releases Python's lock, so they run side by side.

    Parameters
    ----------
    collate, indices, batch_size, sampler_kwargs
        As in the loader of every modality.
    n_workers
        Threads, each with a mini-batch at a time; 0 makes a mini-batch when it is asked for.
    """

    def __init__(
        self,
        collate: Callable[[np.ndarray], Any],
        indices: np.ndarray,
        *,
        batch_size: int,
        n_workers: int = 0,
        **sampler_kwargs: Any,
    ) -> None:
        if n_workers < 0:
            raise ValueError(f"n_workers must be >= 0, got {n_workers}.")
        super().__init__(collate, indices, batch_size=batch_size, **sampler_kwargs)
        self.n_workers = n_workers

    def __iter__(self) -> Iterator[Any]:
        if not self.n_workers:
            yield from super().__iter__()
            return
        start, self._start = self._start, 0
        coming: deque[tuple[int, Future[Any]]] = deque()
        with ThreadPoolExecutor(self.n_workers) as pool:
            try:
                for i, where in enumerate(self.sampler):
                    if i < start:
                        continue
                    coming.append((i, pool.submit(self.collate, self.indices[where])))
                    if len(coming) > self.n_workers:
                        yield self._next(coming)
                while coming:
                    yield self._next(coming)
            finally:
                for _, future in coming:
                    future.cancel()

    def _next(self, coming: deque[tuple[int, Future[Any]]]) -> Any:
        i, future = coming.popleft()
        self._seen = i + 1
        return future.result()


class ImageDataModule(pl.LightningDataModule):
    """Loaders of training and validation images, each rank its share.

    Parameters
    ----------
    images, validation
        What trains and what validates, if anything.
    batch_size
        Images a batch and rank.
    seed
        Seed of order and augmentation.
    augment
        What is done to training mini-batches, on the device.
    n_workers
        Threads that decode ahead.
    """

    def __init__(
        self,
        images: Images | FeatureArray,
        validation: Images | None,
        *,
        batch_size: int,
        seed: int = 0,
        augment: Augment | None = None,
        n_workers: int = 0,
    ) -> None:
        super().__init__()
        self.images, self.validation = images, validation
        self.batch_size, self.seed = batch_size, seed
        self.augment, self.n_workers = augment, n_workers

    def train_dataloader(self) -> ImageLoader:
        """Return shuffled mini-batches of the training images."""
        trainer = self.trainer
        return ImageLoader(
            self.images.batch,
            np.arange(len(self.images)),
            batch_size=self.batch_size,
            n_workers=self.n_workers,
            shuffle=True,
            seed=self.seed,
            drop_single=True,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        """Return the validation images in order; nothing where there are none."""
        if self.validation is None:
            return []
        return ImageLoader(
            self.validation.batch,
            np.arange(len(self.validation)),
            batch_size=self.batch_size,
            n_workers=self.n_workers,
        )

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augment training images, as a pure function of seed, rank and step."""
        trainer = self.trainer
        if self.augment is None or trainer is None or not trainer.training:
            return batch
        # Lightning counts a mini-batch as under way only after this hook.
        step = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return self.augment(batch, key=(self.seed, trainer.global_rank, step))
