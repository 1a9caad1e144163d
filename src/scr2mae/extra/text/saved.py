"""Folders of text models: what ``transformers`` reads, and beside it what a run needs to go on."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from scr2mae._utils.files import RUN_FILE, exchange
from scr2mae._utils.files import run_document as document
from scr2mae._utils.optional import require
from scr2mae._utils.untrusted import load_tensors, read_json
from scr2mae.extra.text.tokenizer import BytePairTokenizer
from scr2mae.masking import schedule_from_state, schedule_to_state
from scr2mae.nn.curriculum import Curriculum
from scr2mae.train.provenance import history_from_state, history_to_state

if TYPE_CHECKING:
    from scr2mae.extra.text.model import RobertaR2MAE

__all__ = ["load", "save"]

SCHEMA_VERSION = 1
_ABOUT, _WEIGHTS, _CURRICULUM = "scr2mae.json", "model.safetensors", "curriculum.safetensors"
# The output layer shares these with the embeddings; safetensors stores each once.
_TIED = ("lm_head.decoder.weight", "lm_head.decoder.bias")


def save(model: RobertaR2MAE, dir_path: str | Path, *, overwrite: bool = False) -> None:
    """Write a folder beside the one wanted, and put it in its place when it is whole."""
    folder = Path(dir_path)
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; a model is saved as a folder. Choose another path.")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not (overwrite and (folder / _ABOUT).is_file()):
        raise FileExistsError(
            f"{folder} is not empty; choose another folder, or pass overwrite=True to replace a model of this package."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        part.mkdir()
        _write(model, part)
        if not (folder.is_dir() and exchange(part, folder)):  # swapped, the part is the old model
            if folder.is_dir():
                folder.rename(old)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _write(model: RobertaR2MAE, folder: Path) -> None:
    network = model.network
    weights = {name: t.cpu().contiguous() for name, t in network.state_dict().items() if name not in _TIED}
    safetensors.torch.save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    config = {**network.config.to_dict(), "architectures": [type(network).__name__]}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    model.tokenizer.save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(model), indent=1))
    if model.curriculum is not None:
        arrays = {name: t.cpu().contiguous() for name, t in model.curriculum.state_dict().items()}
        safetensors.torch.save_file(arrays, folder / _CURRICULUM)
    mask_ratio = schedule_to_state(model.mask_ratio)
    if mask_ratio is None:
        warnings.warn(
            f"mask_ratio={model.mask_ratio!r} is no schedule of scr2mae.masking and is not saved; "
            "set model.mask_ratio after loading to train on.",
            UserWarning,
            stacklevel=4,
        )
    settings = model.curriculum_settings
    about = {
        "schema_version": SCHEMA_VERSION,
        "size": model.size,
        "seed": model.seed,
        "mask_ratio": mask_ratio,
        "curriculum": None if settings is None else asdict(settings),
        "history": history_to_state(model.history_),
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    if runs := getattr(model, "runs_", []):
        (folder / RUN_FILE).write_bytes(document(runs))


def _tokenizer_config(model: RobertaR2MAE) -> dict[str, Any]:
    """Tell ``transformers.AutoTokenizer`` what the special tokens are for."""
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    special = {f"{name}_token": token for name, token in {**names, "mask": "<mask>"}.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_length,
        **special,
    }


def load(cls: type[RobertaR2MAE], dir_path: str | Path) -> RobertaR2MAE:
    """Build a model of what :func:`save` wrote."""
    folder = Path(dir_path)
    about, config = (_read_json(folder, name) for name in (_ABOUT, "config.json"))
    version = about.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema version {version!r}, this scr2mae reads up to {SCHEMA_VERSION}."
        )
    tokenizer = BytePairTokenizer.load(folder)
    if config["vocab_size"] != len(tokenizer):
        raise ValueError(
            f"The network in {folder} has a vocabulary of {config['vocab_size']} and the tokenizer one of "
            f"{len(tokenizer)}: one of the two was replaced. Restore the folder from a copy."
        )
    known = set(require("transformers", extra="text").RobertaConfig().to_dict()) - {
        *("architectures", "dtype", "model_type", "transformers_version", "_name_or_path"),
    }
    model = cls(
        tokenizer,
        size=about["size"],
        mask_ratio=0.15 if about["mask_ratio"] is None else schedule_from_state(about["mask_ratio"]),
        curriculum=Curriculum.from_dict(about["curriculum"]),
        seed=about["seed"],
        **{name: value for name, value in config.items() if name in known},
    )
    _load_weights(model.network, folder / _WEIGHTS, absent=set(_TIED))
    if model.curriculum is not None:
        _load_weights(model.curriculum, folder / _CURRICULUM, absent=set())
    model.history_ = history_from_state(about["history"])
    return model.eval()


def _load_weights(module: Any, path: Path, *, absent: set[str]) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} lacks {path.name}; restore the folder from a copy.")
    try:
        result = module.load_state_dict(load_tensors(path), strict=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The weights in {path} are damaged or of another network: {error}") from error
    wrong = (set(result.missing_keys) - absent) | set(result.unexpected_keys)
    if wrong:
        raise ValueError(f"The weights in {path} are of another network: {sorted(wrong)[:5]} do not fit.")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is no folder of a text model: it lacks {name}.")
    document = read_json(folder / name, may_be_nan=("history",))
    if not isinstance(document, dict):
        raise ValueError(f"{folder / name} is damaged: it describes nothing. Restore the folder from a copy.")
    return document
