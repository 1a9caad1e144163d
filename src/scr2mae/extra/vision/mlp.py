"""The MLP of the paper's MNIST experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from scr2mae.extra.vision.pixels import PixelNetwork, check_images

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskedMLP"]


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU())


class MaskedMLP(PixelNetwork):
    """Autoencoder of flattened images: pixels - ``n_hidden`` - ``n_latent`` - pixels.

    Parameters
    ----------
    n_hidden, n_latent
        Widths of the two hidden layers. The paper uses 16 (parameter-insufficient) and 512 (sufficient) for the
        first, and 16, 32, 64, 256 and 1024 for the second, whose activations are the embedding.
    image_size, n_channels
        Height and width in pixels, and number of channels.

    Notes
    -----
    Dong et al. (2025), appendix C.3: batch normalization and ReLU after each hidden layer, sigmoid at the output, mean
    squared error over masked pixels. Masked pixels are set to zero and each image has its own mask (both inferred).

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
        super().__init__(n_hidden=n_hidden, n_latent=n_latent, image_size=image_size, n_channels=n_channels)
        for name, value in (("n_hidden", n_hidden), ("n_latent", n_latent), ("image_size", image_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
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

    def _reconstruct(self, images: Tensor) -> Tensor:
        return self.decoder(self.embed(images)).view_as(images)
