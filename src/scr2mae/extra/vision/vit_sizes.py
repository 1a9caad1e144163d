"""Sizes of a ViT-MAE."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scr2mae._utils.optional import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import ViTMAEConfig

__all__ = ["VIT_PRESETS", "check_config", "sides", "vit_config"]

VIT_PRESETS: Mapping[str, dict[str, int]] = MappingProxyType(
    {
        "base": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "decoder_hidden_size": 512,
            "decoder_num_hidden_layers": 8,
            "decoder_num_attention_heads": 16,
            "decoder_intermediate_size": 2048,
        },
        "tiny": {
            "hidden_size": 192,
            "num_hidden_layers": 12,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "decoder_hidden_size": 128,
            "decoder_num_hidden_layers": 4,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 512,
        },
    }
)
"""Sizes by name: ViT-base with the decoder of MAE, and ViT-tiny with one of a quarter of its width (inferred)."""


def vit_config(
    preset: str = "base",
    *,
    image_size: int = 224,
    patch_size: int = 16,
    n_channels: int = 3,
    **overrides: Any,
) -> ViTMAEConfig:
    """Create a configuration of ViT-MAE with the original's epsilon and loss.

    Parameters
    ----------
    preset
        A name in :data:`VIT_PRESETS`.
    image_size, patch_size
        Sides in pixels; the first must be divisible by the second.
    n_channels
        Number of channels of the images.
    overrides
        Other values for ``hidden_size``, ``decoder_num_hidden_layers`` and so on.

    Returns
    -------
    A configuration for :class:`R2ViTMAE`, or for ``ViTMAEForPreTraining`` of transformers.

    Raises
    ------
    ValueError
        If the preset is unknown or sizes do not fit one another.

    Notes
    -----
    Layer normalization has epsilon 1e-6 (transformers' default is 1e-12), and targets are normalized patch by patch, as
    in the pretraining of He et al. (2022).
    """
    transformers = require("transformers", extra="vision")
    if preset not in VIT_PRESETS:
        raise ValueError(f"preset must be one of {list(VIT_PRESETS)}, got {preset!r}.")
    options = {"layer_norm_eps": 1e-6, "norm_pix_loss": True, **VIT_PRESETS[preset], **overrides}
    config = transformers.ViTMAEConfig(
        image_size=image_size, patch_size=patch_size, num_channels=n_channels, **options
    )
    check_config(config)
    return config


def check_config(config: ViTMAEConfig) -> None:
    """Raise ValueError if patches do not tile the image, heads do not divide widths, or there is only one patch."""
    image, patch = sides(config)
    if patch < 1 or image % patch:
        raise ValueError(
            f"image_size must be divisible by patch_size, got {image} and {patch}; "
            f"for images of {image} pixels {[p for p in range(2, image) if not image % p][:8]} would do."
        )
    if image == patch:
        raise ValueError(f"An image of {image} pixels is a single patch of {patch}; there must be several.")
    widths = (
        ("hidden_size", config.hidden_size, config.num_attention_heads),
        ("decoder_hidden_size", config.decoder_hidden_size, config.decoder_num_attention_heads),
    )
    for name, width, n_heads in widths:
        if width % n_heads or width % 4:
            raise ValueError(f"{name} must be divisible by 4 and by its {n_heads} heads, got {width}.")


def sides(config: ViTMAEConfig) -> tuple[int, int]:
    """Return the sides of image and patch in pixels; raise ValueError unless both are square."""
    image, patch = config.image_size, config.patch_size
    if not (isinstance(image, int) and isinstance(patch, int)):
        raise ValueError(
            f"Images and patches must be square, each given by one side; got {image} and {patch}."
        )
    return image, patch
