"""Load a network for images, whatever its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scr2mae._utils.files import as_path
from scr2mae._utils.model_folder import read_index
from scr2mae._utils.untrusted import read_json
from scr2mae.extra.vision.classifier import ViTMAEClassifier
from scr2mae.extra.vision.heads import AttributeHead, LinearHead
from scr2mae.extra.vision.mlp import MaskedMLP
from scr2mae.extra.vision.saving import VISION_FORMAT
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
    config = as_path(folder) / "config.json"
    document = read_json(config) if config.is_file() else None
    if isinstance(document, dict) and document.get("model_type") == "vit_mae":
        return R2ViTMAE.from_pretrained(folder)
    if (name := read_index(folder, VISION_FORMAT, follow_links=True)["scr2mae_network"]) not in _CLASSES:
        raise ValueError(f"{folder} contains the network {name!r}; expected one of {list(_CLASSES)}.")
    return _CLASSES[name].from_pretrained(folder)
