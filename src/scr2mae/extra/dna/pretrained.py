"""Folders of weights: safetensors and JSON; names of the published models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from scr2mae._utils.files import RUN_FILE, write_durably
from scr2mae._utils.files import run_document as document_of
from scr2mae._utils.untrusted import load_tensors, read_json
from scr2mae.extra.dna.config import GPNMSAConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

__all__ = ["load_into", "read", "rename_songlab", "write"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LARGEST_CONFIG = 1 << 24
_FORMAT, _SCHEMA_VERSION = "scr2mae.dna", 1

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
_SONGLAB_POSITIONS = "model.encoder.embed_positions.weight"  # a table of sines, made anew here
_SONGLAB_BIAS = "cls.predictions.bias"  # the decoder's, tied


def write(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: GPNMSAConfig,
    *,
    species: tuple[str, ...] | None,
    overwrite: bool,
    runs: Sequence[dict[str, Any]] = (),
) -> None:
    """Write weights, configuration, the names of the species and, where there are any, the records of its runs.

    Raises
    ------
    FileExistsError
        If the folder is not empty and ``overwrite`` is False.
    NotADirectoryError
        If the path is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a model is saved as a folder. Choose another path.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{folder} exists and is not empty; choose another folder or pass overwrite=True."
        )
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "format": _FORMAT, "schema_version": _SCHEMA_VERSION, "config": config.to_dict(), "species": species,
    }  # fmt: skip
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    contents = {
        folder / _WEIGHTS: safetensors.torch.save(tensors),
        folder / _CONFIG: json.dumps(document, indent=1).encode(),
    }
    if runs:
        contents[folder / RUN_FILE] = document_of(runs)
    write_durably(contents)
    if not runs:  # those of an earlier network
        (folder / RUN_FILE).unlink(missing_ok=True)


def read(folder: str | Path) -> tuple[dict[str, Tensor], GPNMSAConfig, tuple[str, ...] | None]:
    """Read weights, configuration and the names of the species.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is damaged, foreign or of a newer version.
    """
    folder = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no folder of a DNA model: it has no {name}.")
    document = read_json(folder / _CONFIG, largest=_LARGEST_CONFIG)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / _CONFIG} does not describe a DNA model of this package; for a published GPN-MSA model use "
            "GPNMSAForMaskedLM.from_songlab_state_dict."
        )
    version = document.get("schema_version")
    if not isinstance(version, int) or version > _SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema version {version!r}, this version reads up to {_SCHEMA_VERSION}; upgrade scr2mae."
        )
    state, species = load_tensors(folder / _WEIGHTS), document.get("species")
    try:
        config = GPNMSAConfig.from_dict(document["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / _CONFIG} is damaged: {error!r}. Restore the folder from a copy."
        ) from error
    return state, config, None if species is None else tuple(species)


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, place: str) -> None:
    """Load weights; the curriculum's may be absent where they come from another kind of training.

    Raises
    ------
    ValueError
        If names or shapes differ.
    """
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [
        f"{name}: {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"The weights in {place} do not fit the configuration: missing {missing[:3]}, unexpected {unexpected[:3]}, "
            f"of another shape {shapes[:3]} ({len(missing)}, {len(unexpected)} and {len(shapes)} in all)."
        )
    model.load_state_dict(dict(state))


def rename_songlab(state_dict: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Give the weights of a published model the names that they have here.

    Raises
    ------
    ValueError
        If a name is unknown, or a layer is one too many.
    """
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
        # Files of tied weights hold one of the two.
        state.setdefault("head_decoder.bias", state_dict[_SONGLAB_BIAS])
    return state
