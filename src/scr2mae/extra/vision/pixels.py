"""Networks that mask pixels: masks, loss, and the base class of the MLP and the U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scr2mae.extra.networks import BatchLoss
from scr2mae.extra.vision.saving import SavedNetwork
from scr2mae.masking import draw_mask

__all__ = ["PixelNetwork", "check_images", "draw_pixel_mask", "masked_mse"]


def check_images(images: Tensor, *, n_channels: int, divisor: int = 1, size: int | None = None) -> None:
    """Raise ValueError unless images have shape (n_obs, n_channels, height, width) and sides that fit."""
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


def draw_pixel_mask(images: Tensor, ratio: float, *, seed: int, step: int) -> Tensor:
    """Draw a mask for each image, the same in all channels: boolean, shape (n_obs, 1, height, width)."""
    _check_stack(images)
    n_obs, _, height, width = images.shape
    mask = draw_mask(height * width, ratio, seed=seed, step=step, n_obs=n_obs, device=images.device)
    return mask.view(n_obs, 1, height, width)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error over the masked pixels."""
    n_channels = target.shape[1]
    return ((prediction.float() - target.float()).square() * mask).sum() / (mask.sum() * n_channels)


class PixelNetwork(SavedNetwork):
    """Autoencoder that sets masked pixels to zero; subclasses define ``embed`` and ``_reconstruct``."""

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reconstruct images, with the masked pixels set to zero.

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        mask
            Boolean, shape (n_obs, 1, height, width), True where a pixel is masked; None masks none.

        Returns
        -------
        In [0, 1], same shape as ``images``.
        """
        return self._reconstruct(images if mask is None else images.masked_fill(mask, 0.0))

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the mean squared error over the masked pixels of a mini-batch.

        Parameters
        ----------
        tensors
            A mini-batch; ``tensors["image"]`` in [0, 1], shape (n_obs, n_channels, height, width).
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`; each image has its own mask.
        """
        images = tensors["image"]
        mask = draw_pixel_mask(images, ratio, seed=seed, step=step)
        return BatchLoss(masked_mse(self(images, mask), images, mask), len(images))

    @torch.no_grad()
    def reconstruction_error(self, images: Tensor) -> Tensor:
        """Return the mean squared error of each uncorrupted image, shape (n_obs,).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        return (self(images) - images).square().flatten(1).mean(dim=1)

    def _reconstruct(self, images: Tensor) -> Tensor:
        raise NotImplementedError
