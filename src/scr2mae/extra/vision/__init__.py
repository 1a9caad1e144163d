"""Images: the MLP, U-Net and ViT-MAE of the paper, with a masking ratio redrawn for every mini-batch.

Pillow and transformers, which ``scr2mae[vision]`` installs, are loaded on first use; MLP, U-Net and arrays need neither.
"""

from typing import TYPE_CHECKING

from scr2mae._utils.lazy import lazy_names

if TYPE_CHECKING:
    from scr2mae.extra.vision.augment import Augment, FinetuneAugment, PretrainAugment
    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import ImageArray, ImageFolder, Images
    from scr2mae.extra.vision.formats import CelebA, image_splits, open_images, read_idx, read_mnist
    from scr2mae.extra.vision.heads import AttributeHead, LinearHead
    from scr2mae.extra.vision.inference import VALIDATION_RATIOS, embed, predict_proba, score
    from scr2mae.extra.vision.mlp import MaskedMLP
    from scr2mae.extra.vision.pretrained import from_pretrained
    from scr2mae.extra.vision.recipes import RECIPES, Recipe
    from scr2mae.extra.vision.training import finetune, fit_head, pretrain
    from scr2mae.extra.vision.unet import MaskedUNet
    from scr2mae.extra.vision.vit import R2ViTMAE
    from scr2mae.extra.vision.vit_sizes import VIT_PRESETS, vit_config

_FILES = {
    "augment": ("Augment", "FinetuneAugment", "PretrainAugment"),
    "classifier": ("ViTMAEClassifier",),
    "datasets": ("ImageArray", "ImageFolder", "Images"),
    "formats": ("CelebA", "image_splits", "open_images", "read_idx", "read_mnist"),
    "heads": ("AttributeHead", "LinearHead"),
    "inference": ("VALIDATION_RATIOS", "embed", "predict_proba", "score"),
    "mlp": ("MaskedMLP",),
    "pretrained": ("from_pretrained",),
    "recipes": ("RECIPES", "Recipe"),
    "training": ("finetune", "fit_head", "pretrain"),
    "unet": ("MaskedUNet",),
    "vit": ("R2ViTMAE",),
    "vit_sizes": ("VIT_PRESETS", "vit_config"),
}
_OBJECTS = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "RECIPES",
    "VALIDATION_RATIOS",
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
    "PretrainAugment",
    "R2ViTMAE",
    "Recipe",
    "ViTMAEClassifier",
    "embed",
    "finetune",
    "fit_head",
    "from_pretrained",
    "image_splits",
    "open_images",
    "predict_proba",
    "pretrain",
    "read_idx",
    "read_mnist",
    "score",
    "vit_config",
]

__getattr__, __dir__ = lazy_names(__name__, objects=_OBJECTS)
