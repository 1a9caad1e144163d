"""Images: the MLP, U-Net and ViT-MAE of the paper, with a masking ratio redrawn for every mini-batch.

Pillow and transformers, which ``scr2mae[vision]`` installs, are loaded when they are first used; MLP, U-Net and arrays
need neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scr2mae.extra.vision.augment import FinetuneAugment, PretrainAugment
    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import ImageArray, ImageFolder, Images
    from scr2mae.extra.vision.embedding import embed, predict_proba
    from scr2mae.extra.vision.formats import CelebA, image_splits, open_images, read_idx, read_mnist
    from scr2mae.extra.vision.heads import AttributeHead, LinearHead
    from scr2mae.extra.vision.loaders import Augment
    from scr2mae.extra.vision.mlp import MaskedMLP
    from scr2mae.extra.vision.recipes import RECIPES, PerEpoch, Recipe
    from scr2mae.extra.vision.saving import load, save
    from scr2mae.extra.vision.training import finetune, fit_head, pretrain
    from scr2mae.extra.vision.unet import MaskedUNet
    from scr2mae.extra.vision.vit import R2ViTMAE
    from scr2mae.extra.vision.vit_sizes import VIT_PRESETS, vit_config

_FILES = {
    "augment": ("FinetuneAugment", "PretrainAugment"),
    "classifier": ("ViTMAEClassifier",),
    "datasets": ("ImageArray", "ImageFolder", "Images"),
    "loaders": ("Augment",),
    "formats": ("CelebA", "image_splits", "open_images", "read_idx", "read_mnist"),
    "heads": ("AttributeHead", "LinearHead"),
    "mlp": ("MaskedMLP",),
    "recipes": ("RECIPES", "PerEpoch", "Recipe"),
    "saving": ("load", "save"),
    "embedding": ("embed", "predict_proba"),
    "training": ("finetune", "fit_head", "pretrain"),
    "unet": ("MaskedUNet",),
    "vit": ("R2ViTMAE",),
    "vit_sizes": ("VIT_PRESETS", "vit_config"),
}
_OBJECTS = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "RECIPES",
    "VIT_PRESETS",
    "AttributeHead",
    "Augment",
    "CelebA",
    "FinetuneAugment",
    "ImageArray",
    "ImageFolder",
    "Images",
    "LinearHead",
    "MaskedMLP",
    "MaskedUNet",
    "PerEpoch",
    "PretrainAugment",
    "R2ViTMAE",
    "Recipe",
    "ViTMAEClassifier",
    "embed",
    "finetune",
    "fit_head",
    "image_splits",
    "load",
    "open_images",
    "predict_proba",
    "pretrain",
    "read_idx",
    "read_mnist",
    "save",
    "vit_config",
]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        return getattr(import_module(f"scr2mae.extra.vision.{_OBJECTS[name]}"), name)
    raise AttributeError(f"module 'scr2mae.extra.vision' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted(__all__)
