"""Augmentation of mini-batches on the device: random crops, flips, erasing, mixup and cutmix.

Each function takes a NumPy generator for what is drawn of each image, so that a mini-batch is augmented the same on every
kind of device; only the noise that fills erased rectangles comes from the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scr2mae.extra.vision.common import step_generator

__all__ = [
    "FinetuneAugment",
    "PretrainAugment",
    "horizontal_flip",
    "mix",
    "random_erasing",
    "random_resized_crop",
]

_N_TRIES = 10


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
    first = ((height <= H) & (width <= W)).argmax(
        axis=0
    )  # the first try that fits; the first of all where none does
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
    """Cut a rectangle out of each image and scale it to a square, bicubically.

    Parameters
    ----------
    images
        In [0, 1], shape (n_obs, n_channels, height, width).
    rng
        Where randomness comes from.
    size
        Side of the square; None takes the height of the images.
    scale
        Range of the rectangle's share of the area.
    aspect
        Range of width over height.

    Returns
    -------
    Shape (n_obs, n_channels, size, size), in [0, 1].
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
    """Mirror each image left to right with chance ``p``."""
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
    """Replace a rectangle of some images by noise (Zhong et al. 2020).

    Parameters
    ----------
    images
        In [0, 1], shape (n_obs, n_channels, height, width).
    rng
        Where randomness comes from.
    p
        Chance of an image to be changed.
    scale, aspect
        Ranges of the rectangle's share of the area, and of its width over its height.

    Returns
    -------
    Shape as before; noise is normal about 0.5 with deviation 0.25, near that of pixels.
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
    """Mix each image and its class with those of another of the mini-batch.

    Parameters
    ----------
    images
        Shape (n_obs, n_channels, height, width).
    labels
        Classes, shape (n_obs,).
    rng
        Where randomness comes from.
    n_classes
        Number of classes.
    mixup, cutmix
        Parameters of the beta distribution of the share: of pixel values (Zhang et al. 2018), and of the area (Yun et
        al. 2019). One of the two is drawn for each mini-batch with equal chances; zero switches it off.
    smoothing
        Share of the labels' mass spread over all classes.

    Returns
    -------
    Images, and the mass of each class, shape (n_obs, n_classes), rows summing to one.
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
    """Random resized crops and flips, as MAE is pretrained with.

    Parameters
    ----------
    size
        Side of the crops; None keeps the images' own.
    scale
        Range of a crop's share of the area.
    flip
        Chance of a flip.
    """

    def __init__(
        self, *, size: int | None = None, scale: tuple[float, float] = (0.2, 1.0), flip: float = 0.5
    ) -> None:
        self.size, self.scale, self.flip = size, scale, flip

    def __call__(self, tensors: dict[str, Tensor], *, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return the mini-batch with augmented images, as a pure function of ``key``."""
        rng = step_generator(*key)
        images = random_resized_crop(tensors["image"], rng, size=self.size, scale=self.scale)
        return {**tensors, "image": horizontal_flip(images, rng, p=self.flip)}


class FinetuneAugment:
    """Random resized crops, flips, erasing, and mixup or cutmix, as MAE is fine-tuned with (but for RandAugment).

    Parameters
    ----------
    n_classes
        Number of classes.
    size
        Side of the crops; None keeps the images' own.
    scale
        Range of a crop's share of the area.
    flip, erasing
        Chances of a flip and of an erased rectangle.
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
        rng = step_generator(*key)
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
