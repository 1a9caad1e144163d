"""What the networks for images share: hiding pixels and scoring them, random numbers of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scr2mae.masking import draw_mask

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_images",
    "hide_pixels",
    "masked_mse",
    "step_generator",
]


def check_images(images: Tensor, *, n_channels: int, divisor: int = 1, size: int | None = None) -> None:
    """Refuse what a network cannot take.

    Raises
    ------
    ValueError
        If the tensor is no stack of images, or channels, height or width do not fit.
    """
    _check_stack(images)
    if images.shape[1] != n_channels:
        raise ValueError(
            f"The network takes images of {n_channels} channel(s), got {images.shape[1]}; "
            "build it with n_channels= of the data, or convert the images."
        )
    height, width = images.shape[2:]
    if size is not None and (height, width) != (size, size):
        raise ValueError(
            f"The network takes images of {size} x {size} pixels, got {height} x {width}; resize them."
        )
    if height % divisor or width % divisor:
        raise ValueError(
            f"Height and width must be divisible by {divisor}, got {height} x {width}; resize or pad the images."
        )


def _check_stack(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(
            f"Images must have shape (n_obs, n_channels, height, width), got {tuple(images.shape)}."
        )


def hide_pixels(images: Tensor, ratio: float, *, seed: int, step: int) -> Tensor:
    """Draw the pixels to hide of each image: boolean, shape (n_obs, 1, height, width), all channels together."""
    _check_stack(images)
    n_obs, _, height, width = images.shape
    mask = draw_mask(height * width, ratio, seed=seed, step=step, n_obs=n_obs, device=images.device)
    return mask.view(n_obs, 1, height, width)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden pixels; their number does not change its size."""
    n_channels = target.shape[1]
    return ((prediction.float() - target.float()).square() * mask).sum() / (mask.sum() * n_channels)


def step_generator(*key: int) -> np.random.Generator:
    """Make the generator of a step: a pure function of the integers given."""
    return np.random.default_rng([part % 2**63 for part in key])
