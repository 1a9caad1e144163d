"""Folders of networks, and the weights of published models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scr2mae._utils.model_folder import FolderFormat, read_folder
from scr2mae.extra.dna.config import GPNMSAConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["FORMAT", "read_network", "rename_songlab"]

FORMAT = FolderFormat("scr2mae.dna", "DNA model", required=frozenset({"config"}), weights="model.safetensors")

_SONGLAB_LAYER = re.compile(r"model\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_SONGLAB_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "output_norm",
}
_SONGLAB_HEAD = {
    "cls.predictions.transform.dense": "head_dense",
    "cls.predictions.transform.LayerNorm": "head_norm",
    "cls.predictions.decoder": "head_decoder",
}
_SONGLAB_POSITIONS = "model.encoder.embed_positions.weight"  # a table of sines, computed here
_SONGLAB_BIAS = "cls.predictions.bias"  # tied to the decoder's


def read_network(folder: str | Path) -> tuple[dict[str, Tensor], GPNMSAConfig, tuple[str, ...] | None]:
    """Read the weights, configuration and names of the species of a network."""
    try:
        weights, document, _ = read_folder(folder, FORMAT, follow_links=True)
    except ValueError as error:
        if "does not describe" not in str(error):
            raise
        raise ValueError(
            f"{error} For a published GPN-MSA model, use GPNMSAForMaskedLM.from_songlab_state_dict."
        ) from error
    try:
        config = GPNMSAConfig.from_dict(document["config"])
    except TypeError as error:
        raise ValueError(
            f"The configuration in {folder} is damaged: {error!r}. Restore the folder from a copy."
        ) from error
    species = document.get("species")
    return weights, config, None if species is None else tuple(species)


def rename_songlab(state_dict: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Return the weights of a published model under the names used here; raise a ValueError if a name is unknown."""
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        if name in (_SONGLAB_POSITIONS, _SONGLAB_BIAS):
            continue
        prefix, _, kind = name.rpartition(".")
        match = _SONGLAB_LAYER.fullmatch(name)
        if match and match[2] in _SONGLAB_PARTS and int(match[1]) < n_layers:
            state[f"layers.{match[1]}.{_SONGLAB_PARTS[match[2]]}.{match[3]}"] = tensor
        elif prefix in _SONGLAB_HEAD:
            state[f"{_SONGLAB_HEAD[prefix]}.{kind}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"Not the weights of a GPN-MSA model of {n_layers} layers: unknown names {sorted(unknown)[:4]}."
        )
    if _SONGLAB_BIAS in state_dict:
        # Files of tied weights contain one of the two.
        state.setdefault("head_decoder.bias", state_dict[_SONGLAB_BIAS])
    return state
