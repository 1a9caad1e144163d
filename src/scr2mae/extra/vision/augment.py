"""Augmentation of mini-batches on the device: random crops, flips, erasing, mixup and cutmix.

Each function draws from a NumPy generator, so that a mini-batch is augmented in the same way on every kind of device;
only the noise that fills erased rectangles is drawn on the device.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Augment",
    "FinetuneAugment",
    "PretrainAugment",
    "horizontal_flip",
    "mix",
    "random_erasing",
    "random_resized_crop",
]

_N_TRIES = 10


class Augment(Protocol):
    """Augmentation of a mini-batch of training images, as a pure function of a key."""

    def __call__(self, tensors: dict[str, Tensor], *, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the augmented mini-batch; ``key`` is seed, rank and step."""
        ...


def _generator(key: tuple[int, ...]) -> np.random.Generator:
    """Return the generator of a key of integers."""
    return np.random.default_rng([part % 2**63 for part in key])


def _boxes(
    rng: np.random.Generator,
    n: int,
    shape: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """Draw rectangles of random area and aspect inside an image: top, left, height, width in pixels, shape (n, 4)."""
    H, W = shape
    area = H * W * rng.uniform(*scale, size=(_N_TRIES, n))
    log_aspect = rng.uniform(np.log(aspect[0]), np.log(aspect[1]), size=(_N_TRIES, n))
    height, width = np.sqrt(area / np.exp(log_aspect)), np.sqrt(area * np.exp(log_aspect))
    # The first try that fits, or the first of all where none does.
    first = ((height <= H) & (width <= W)).argmax(axis=0)
    height, width = (np.take_along_axis(each, first[None], axis=0)[0] for each in (height, width))
    height, width = np.minimum(height, H), np.minimum(width, W)
    top, left = rng.uniform(size=n) * (H - height), rng.uniform(size=n) * (W - width)
    return np.stack([top, left, height, width], axis=1)


def random_resized_crop(
    images: Tensor,
    rng: np.random.Generator,
    *,
    size: int | None = None,
    scale: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Crop a random rectangle of each image and resize it bicubically: shape (n_obs, n_channels, size, size), in [0, 1].

    ``scale`` is the range of the rectangle's share of the area, ``aspect`` the range of width over height.
    """
    n, c, H, W = images.shape
    size = H if size is None else size
    box = torch.from_numpy(_boxes(rng, n, (H, W), scale, aspect)).to(images)
    top, left, height, width = box.unbind(dim=1)
    theta = images.new_zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width / W, height / H
    theta[:, 0, 2], theta[:, 1, 2] = (2 * left + width) / W - 1, (2 * top + height) / H - 1
    grid = F.affine_grid(theta, [n, c, size, size], align_corners=False)
    cut = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return cut.clamp(0, 1)


def horizontal_flip(images: Tensor, rng: np.random.Generator, *, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability ``p``."""
    flipped = torch.from_numpy(rng.uniform(size=len(images)) < p).to(images.device)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _inside(box: np.ndarray, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Mark the pixels whose centers lie in a rectangle of each image; boolean, shape (n, 1, height, width)."""
    top, left, height, width = (torch.from_numpy(each).to(device)[:, None] for each in box.T)
    y, x = (torch.arange(side, device=device) + 0.5 for side in shape)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def random_erasing(
    images: Tensor,
    rng: np.random.Generator,
    *,
    p: float = 0.25,
    scale: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 10 / 3),
) -> Tensor:
    """Replace a rectangle by noise, normal with mean 0.5 and deviation 0.25, with probability ``p`` (Zhong et al. 2020).

    ``scale`` and ``aspect`` as in :func:`random_resized_crop`.
    """
    n, _, H, W = images.shape
    box = _boxes(rng, n, (H, W), scale, aspect)
    erased = torch.from_numpy(rng.uniform(size=n) < p).to(images.device)[:, None, None, None]
    generator = torch.Generator(images.device).manual_seed(int(rng.integers(2**63)))
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return torch.where(erased & _inside(box, (H, W), images.device), 0.5 + 0.25 * noise, images)


def mix(
    images: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    n_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Mix each image and its class with those of another image of the mini-batch.

    ``mixup`` and ``cutmix`` are parameters of beta distributions: of the share of pixel values (Zhang et al. 2018) and of
    the area (Yun et al. 2019). One of the two is drawn for each mini-batch with equal probability; zero switches it off.
    ``smoothing`` is the share of the labels' mass spread over all classes.

    Returns images and the mass of each class, shape (n_obs, n_classes), with rows summing to one.
    """
    targets = F.one_hot(labels, n_classes).to(images) * (1 - smoothing) + smoothing / n_classes
    alphas = [(alpha, kind) for alpha, kind in ((mixup, "mixup"), (cutmix, "cutmix")) if alpha > 0]
    if not alphas:
        return images, targets
    alpha, kind = alphas[rng.integers(len(alphas))]
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if kind == "mixup":
        images = share * images + (1 - share) * images[other]
    else:
        H, W = images.shape[2:]
        height, width = H * np.sqrt(1 - share), W * np.sqrt(1 - share)
        box = np.array([[rng.uniform() * (H - height), rng.uniform() * (W - width), height, width]])
        inside = _inside(box, (H, W), images.device)
        images = torch.where(inside, images[other], images)
        share = 1.0 - float(inside.float().mean())
    return images, share * targets + (1 - share) * targets[other]


class PretrainAugment:
    """Random resized crops and flips, as in the pretraining of MAE.

    Parameters
    ----------
    size
        Side of the crops in pixels; None keeps that of the images.
    scale
        Range of a crop's share of the area.
    flip
        Probability of a flip.
    """

    def __init__(
        self, *, size: int | None = None, scale: tuple[float, float] = (0.2, 1.0), flip: float = 0.5
    ) -> None:
        self.size, self.scale, self.flip = size, scale, flip

    def __call__(self, tensors: dict[str, Tensor], *, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the mini-batch with augmented images, as a pure function of ``key``."""
        rng = _generator(key)
        images = random_resized_crop(tensors["image"], rng, size=self.size, scale=self.scale)
        return {**tensors, "image": horizontal_flip(images, rng, p=self.flip)}


class FinetuneAugment:
    """Random resized crops, flips, erasing, and mixup or cutmix, as in the finetuning of MAE except for RandAugment.

    Parameters
    ----------
    n_classes
        Number of classes.
    size
        Side of the crops in pixels; None keeps that of the images.
    scale
        Range of a crop's share of the area.
    flip, erasing
        Probabilities of a flip and of an erased rectangle.
    mixup, cutmix, smoothing
        Parameters of the beta distributions of mixup and cutmix, and the share of label mass spread over all classes.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        erasing: float = 0.25,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
    ) -> None:
        self.n_classes, self.size, self.scale, self.flip = n_classes, size, scale, flip
        self.erasing, self.mixup, self.cutmix, self.smoothing = erasing, mixup, cutmix, smoothing

    def __call__(self, tensors: dict[str, Tensor], *, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the mini-batch with augmented images and mixed labels, as a pure function of ``key``."""
        rng = _generator(key)
        images = random_resized_crop(tensors["image"], rng, size=self.size, scale=self.scale)
        images = horizontal_flip(images, rng, p=self.flip)
        images = random_erasing(images, rng, p=self.erasing)
        images, labels = mix(
            images,
            tensors["label"],
            rng,
            n_classes=self.n_classes,
            mixup=self.mixup,
            cutmix=self.cutmix,
            smoothing=self.smoothing,
        )
        return {**tensors, "image": images, "label": labels}
