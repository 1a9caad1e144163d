"""Folders with a network: safetensors and JSON, no pickle; a ViT-MAE in the format of transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from scr2mae._utils.files import RUN_FILE
from scr2mae._utils.files import run_document as document_of
from scr2mae._utils.optional import require
from scr2mae._utils.untrusted import load_tensors, read_json
from scr2mae.extra.vision.mlp import MaskedMLP
from scr2mae.extra.vision.unet import MaskedUNet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load", "save"]

_SCHEMA_VERSION = 1
_METADATA, _WEIGHTS = "config.json", "model.safetensors"
_LARGEST_CONFIG = 1 << 24
_PIXEL_NETWORKS: dict[str, Any] = {"MaskedMLP": MaskedMLP, "MaskedUNet": MaskedUNet}


def save(network: nn.Module, folder: str | Path, *, about: dict[str, Any] | None = None) -> None:
    """Write a network into a folder.

    Parameters
    ----------
    network
        A network of this package for images; a :class:`R2ViTMAE` becomes a checkpoint of transformers.
    folder
        Made if need be; files of an earlier network in it are replaced.
    about
        What else is worth keeping, such as names of classes; JSON. Not kept with a :class:`R2ViTMAE`.

    Raises
    ------
    TypeError
        If the network is none of this package's.
    """
    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.vit import R2ViTMAE

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(network, R2ViTMAE):
        network.save_pretrained(place)
        _write_runs(network, place)
        return
    name = type(network).__name__
    if name not in _PIXEL_NETWORKS and not isinstance(network, ViTMAEClassifier):
        raise TypeError(f"Only networks of scr2mae.extra.vision are saved here, got {name}.")
    module: Any = network
    document = {"scr2mae_network": name, "schema_version": _SCHEMA_VERSION, "init_params": module.init_params}
    if isinstance(network, ViTMAEClassifier):
        document["vit"] = network.config.to_dict()
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    part = place / f".{_WEIGHTS}.{os.getpid()}.part"
    try:
        safetensors.torch.save_file(tensors, part)
        part.replace(place / _WEIGHTS)
    finally:
        part.unlink(missing_ok=True)
    (place / _METADATA).write_text(json.dumps({**document, "about": about or {}}, indent=1), encoding="utf-8")
    _write_runs(network, place)


def _write_runs(network: Any, place: Path) -> None:
    """Write the records of a network's runs; where there are none, those of an earlier network go."""
    if runs := getattr(network, "runs_", []):
        (place / RUN_FILE).write_bytes(document_of(runs))
    else:
        (place / RUN_FILE).unlink(missing_ok=True)


def load(folder: str | Path) -> Any:
    """Read a network from a folder, in evaluation mode.

    Parameters
    ----------
    folder
        Written by :func:`save`, or any ViT-MAE of transformers.

    Returns
    -------
    The network. ``network.about`` holds what was kept with it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or no network in it.
    ValueError
        If it is damaged, foreign, or from a newer version.
    """
    place = Path(folder)
    path = place / _METADATA
    if not path.is_file():
        raise FileNotFoundError(f"No network in {place}: it has no {_METADATA}.")
    document = read_json(path, largest=_LARGEST_CONFIG)
    if not isinstance(document, dict):
        raise ValueError(f"{path} describes no network for images of this package.")
    if document.get("model_type") == "vit_mae":
        from scr2mae.extra.vision.vit import R2ViTMAE

        return R2ViTMAE.from_pretrained(place)
    version = document.get("schema_version")
    if not isinstance(version, int) or version > _SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}; this version of scr2mae reads up to {_SCHEMA_VERSION}."
        )
    network = _build(document, path)
    try:
        network.load_state_dict(load_tensors(place / _WEIGHTS))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"The weights in {place} are missing, damaged or of another network: {error}."
        ) from error
    network.about = document.get("about", {})
    return network.eval()


def _build(document: dict[str, Any], path: Path) -> Any:
    name = document.get("scr2mae_network")
    try:
        if name == "ViTMAEClassifier":
            from scr2mae.extra.vision.classifier import ViTMAEClassifier

            config = require("transformers", extra="vision").ViTMAEConfig.from_dict(document["vit"])
            return ViTMAEClassifier(config, **document["init_params"])
        return _PIXEL_NETWORKS[str(name)](**document["init_params"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} describes no network for images of this package: {error!r}.") from error
