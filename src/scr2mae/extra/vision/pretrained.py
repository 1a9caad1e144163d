"""Load a network for images, whatever its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scr2mae.extra.vision.classifier import ViTMAEClassifier
from scr2mae.extra.vision.heads import AttributeHead, LinearHead
from scr2mae.extra.vision.mlp import MaskedMLP
from scr2mae.extra.vision.saving import read_config
from scr2mae.extra.vision.unet import MaskedUNet
from scr2mae.extra.vision.vit import R2ViTMAE

__all__ = ["from_pretrained"]

_CLASSES: dict[Any, Any] = {
    cls.__name__: cls for cls in (MaskedMLP, MaskedUNet, ViTMAEClassifier, LinearHead, AttributeHead)
}


def from_pretrained(folder: str | Path) -> Any:
    """Load a network of any class of this package, or any ViT-MAE of transformers, in evaluation mode.

    Parameters
    ----------
    folder
        Folder that ``save_pretrained`` wrote.

    Returns
    -------
    The network.

    Raises
    ------
    FileNotFoundError
        If there is no network in the folder.
    ValueError
        If it is damaged, of an unknown class, or from a newer version.
    """
    document = read_config(Path(folder))
    if document.get("model_type") == "vit_mae":
        return R2ViTMAE.from_pretrained(folder)
    if (name := document.get("scr2mae_network")) not in _CLASSES:
        raise ValueError(
            f"{folder} holds no network for images: config.json names {name!r}, expected one of {list(_CLASSES)}."
        )
    return _CLASSES[name].from_pretrained(folder)
