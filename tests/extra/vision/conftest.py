"""Small images with classes that a network can tell apart."""

from typing import Any

import numpy as np
import pytest
import torch

from scr2mae.extra import vision

QUICK: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}


def make_images(
    n_obs: int = 48, size: int = 16, n_channels: int = 3, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a stripe: across for class 0, down for class 1, both for class 2; uint8, channels last."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n_obs)
    images = rng.uniform(0, 0.4, size=(n_obs, size, size, n_channels))
    start, stop = size // 4, size // 2
    images[labels != 1, start:stop] += 0.5
    images[labels != 0, :, start:stop] += 0.1
    return (255 * images).clip(0, 255).astype(np.uint8), labels


@pytest.fixture
def images() -> vision.ImageArray:
    """48 RGB images of 16 x 16 pixels in three classes."""
    return vision.ImageArray(*make_images())


@pytest.fixture
def gray() -> vision.ImageArray:
    """48 gray images of 16 x 16 pixels in three classes."""
    return vision.ImageArray(*make_images(n_channels=1))


def make_mlp() -> vision.MaskedMLP:
    torch.manual_seed(0)
    return vision.MaskedMLP(n_hidden=32, n_latent=8, image_size=16, n_channels=3)


def make_unet() -> vision.MaskedUNet:
    torch.manual_seed(0)
    return vision.MaskedUNet(base_channels=4)


def make_vit(**overrides: Any) -> vision.R2ViTMAE:
    torch.manual_seed(0)
    return vision.R2ViTMAE(vision.vit_config(image_size=16, patch_size=4, **{**TINY, **overrides}))
