"""The U-Net of the paper's CelebA experiments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scr2mae.extra.vision.pixels import PixelNetwork, check_images

__all__ = ["MaskedUNet"]

_N_LEVELS = 4


def _block(n_in: int, n_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        # A bias would vanish in the normalization that follows.
        layers += [
            nn.Conv2d(n, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class MaskedUNet(PixelNetwork):
    """Convolutional autoencoder with skip connections: four levels down, a bottleneck, four levels up.

    Parameters
    ----------
    base_channels
        Number of channels of the first level, doubled at each further level; 8, 16 or 32 in the paper.
    n_channels
        Number of channels of the images.

    Notes
    -----
    Dong et al. (2025), appendix C.4. Inferred: 2 x 2 max pooling, transposed convolutions, a sigmoid at the output,
    masked pixels set to zero in all channels, and a separate mask for each image.
    """

    def __init__(self, *, base_channels: int = 16, n_channels: int = 3) -> None:
        super().__init__(base_channels=base_channels, n_channels=n_channels)
        if base_channels < 1 or n_channels < 1:
            raise ValueError(
                f"base_channels and n_channels must be at least 1, got {base_channels} and {n_channels}."
            )
        self.n_channels = n_channels
        widths = [base_channels * 2**level for level in range(_N_LEVELS + 1)]
        self.n_latent = widths[-1]
        self.down = nn.ModuleList(
            _block(n_in, n_out) for n_in, n_out in zip([n_channels, *widths], widths[:-1], strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = _block(widths[-2], widths[-1])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(n_in, n_out, 2, stride=2) for n_in, n_out in pairs)
        self.up = nn.ModuleList(_block(2 * n_out, n_out) for _, n_out in pairs)
        self.output = nn.Sequential(nn.Conv2d(base_channels, n_channels, 1), nn.Sigmoid())

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck, shape (n_obs, n_latent, height / 16, width / 16), and the skip connections.

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        check_images(images, n_channels=self.n_channels, divisor=2**_N_LEVELS)
        skips = []
        h = images
        for block in self.down:
            h = block(h)
            skips.append(h)
            h = self.pool(h)
        return self.bottleneck(h), skips

    def embed(self, images: Tensor) -> Tensor:
        """Return the bottleneck averaged over positions, shape (n_obs, n_latent).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        return self.encode(images)[0].mean(dim=(2, 3))

    def _reconstruct(self, images: Tensor) -> Tensor:
        h, skips = self.encode(images)
        for upsample, block, skip in zip(self.upsample, self.up, reversed(skips), strict=True):
            h = block(torch.cat([upsample(h), skip], dim=1))
        return self.output(h)
