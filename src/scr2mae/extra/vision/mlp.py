"""The MLP of the paper's MNIST experiments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scr2mae.extra.training import BatchLoss
from scr2mae.extra.vision.common import check_images, hide_pixels, masked_mse

__all__ = ["MaskedMLP"]


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU())


class MaskedMLP(nn.Module):
    """Autoencoder of flattened images: pixels - ``n_hidden`` - ``n_latent`` - pixels.

    Parameters
    ----------
    n_hidden, n_latent
        Widths of the two hidden layers. The paper takes 16 (parameter-insufficient) and 512 (sufficient) for the
        first, and 16, 32, 64, 256 and 1024 for the second, whose activations are the embedding.
    image_size, n_channels
        Height and width in pixels, and channels.

    Notes
    -----
    Dong et al. (2025), appendix C.3: batch normalization and ReLU after each hidden layer, sigmoid at the output, mean
    squared error over hidden pixels. Hidden pixels are set to zero and each image has a mask of its own (both inferred).

    Examples
    --------
    >>> import torch
    >>> from scr2mae.extra.vision import MaskedMLP
    >>> network = MaskedMLP(n_hidden=16, n_latent=8)
    >>> network.embed(torch.rand(4, 1, 28, 28)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self, *, n_hidden: int = 512, n_latent: int = 64, image_size: int = 28, n_channels: int = 1
    ) -> None:
        super().__init__()
        for name, value in (("n_hidden", n_hidden), ("n_latent", n_latent), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self.init_params = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "image_size": image_size,
            "n_channels": n_channels,
        }
        self.image_size, self.n_channels, self.n_latent = image_size, n_channels, n_latent
        n_pixels = n_channels * image_size**2
        self.encoder = nn.Sequential(_block(n_pixels, n_hidden), _block(n_hidden, n_latent))
        self.decoder = nn.Sequential(nn.Linear(n_latent, n_pixels), nn.Sigmoid())

    def embed(self, images: Tensor) -> Tensor:
        """Return the activations of the second hidden layer, shape (n_obs, n_latent).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        check_images(images, n_channels=self.n_channels, size=self.image_size)
        return self.encoder(images.flatten(1))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reconstruct images, shape as theirs, with the pixels in ``mask`` (n_obs, 1, height, width) set to zero.

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        mask
            Boolean, shape (n_obs, 1, height, width), True where a pixel is hidden; None hides none.

        Returns
        -------
        In [0, 1], same shape.
        """
        seen = images if mask is None else images.masked_fill(mask, 0.0)
        return self.decoder(self.embed(seen)).view_as(images)

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Hide a share of the pixels of each image and score them.

        Parameters
        ----------
        tensors
            A mini-batch; ``tensors["image"]`` in [0, 1], shape (n_obs, n_channels, height, width).
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`.

        Returns
        -------
        Mean squared error over the hidden pixels.
        """
        images = tensors["image"]
        mask = hide_pixels(images, ratio, seed=seed, step=step)
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
