"""RoBERTa of transformers with its tokenizer, and the folders that both are saved in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor, nn

from scr2mae._utils.files import RUN_FILE, exchange, run_document
from scr2mae._utils.untrusted import load_tensors, read_json
from scr2mae.extra.text.tokenizer import BytePairTokenizer
from scr2mae.extra.training import decay_groups
from scr2mae.train.provenance import history_from_state, history_to_state

if TYPE_CHECKING:
    from typing import Self

    from scr2mae.train.provenance import History

__all__ = ["TextNetwork"]

_SCHEMA_VERSION = 1
_STATE, _WEIGHTS, _CURRICULUM = "scr2mae.json", "model.safetensors", "curriculum.safetensors"
# The output layer shares these with the embeddings; safetensors stores each once.
_TIED = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
_SPECIAL = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


class TextNetwork(nn.Module):
    """A RoBERTa of transformers, ``network``, with its ``tokenizer``; saved in a folder that transformers reads."""

    tokenizer: BytePairTokenizer
    network: Any
    curriculum: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.curriculum = None
        self.history_: History = {}

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest sequence that the network has positions for."""
        return int(self.network.config.max_position_embeddings) - int(self.network.config.pad_token_id) - 1

    def attention_mask(self, tokens: Tensor) -> Tensor:
        """Return 0 for padding and 1 elsewhere, int64.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n_obs, length)``.
        """
        return (tokens != self.tokenizer.pad_id).long()

    def states(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states of the encoder, shape ``(n_obs, length, hidden_size)``.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n_obs, length)``, padded.
        """
        return self.network.roberta(tokens, attention_mask=self.attention_mask(tokens)).last_hidden_state

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return two groups for an optimizer: matrices decay; biases and normalization do not.

        Parameters
        ----------
        weight_decay
            Weight decay of the matrices.
        """
        return decay_groups(self, weight_decay)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the network and its tokenizer as ``transformers`` reads them, with the settings and curves of training.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a network in the folder may be replaced.

        Raises
        ------
        FileExistsError
            If the folder is not empty, and ``overwrite`` is False or it holds something else.
        """
        _write(Path(folder), self._files(), overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a network that :meth:`save_pretrained` saved, in evaluation mode; nothing is unpickled.

        Parameters
        ----------
        folder
            The folder.

        Returns
        -------
        The network, on the CPU.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If a file is damaged or of another class, or tokenizer and network do not fit.
        """
        place = Path(folder)
        state, config = (_read_object(place, name) for name in (_STATE, "config.json"))
        version = state.get("schema_version")
        if not isinstance(version, int) or version > _SCHEMA_VERSION:
            raise ValueError(
                f"{place} has schema version {version!r}, this scr2mae reads up to {_SCHEMA_VERSION}."
            )
        # Folders of the first version hold masked language models alone.
        if (name := state.get("class", "RobertaR2MAE")) != cls.__name__:
            raise ValueError(f"{place} holds a {name}, not a {cls.__name__}.")
        tokenizer = BytePairTokenizer.load(place)
        if config["vocab_size"] != len(tokenizer):
            raise ValueError(
                f"The network in {place} has a vocabulary of {config['vocab_size']} and the tokenizer one of "
                f"{len(tokenizer)}: one of the two was replaced. Restore the folder from a copy."
            )
        network = cls._from_state(tokenizer, config, state)
        _load_weights(network.network, place / _WEIGHTS, absent=_TIED)
        if network.curriculum is not None:
            _load_weights(network.curriculum, place / _CURRICULUM, absent=set())
        network.history_ = history_from_state(state["history"])
        return network.eval()

    def _files(self) -> dict[str, bytes]:
        """Return the content of each file of the folder."""
        config = {**self.network.config.to_dict(), "architectures": [type(self.network).__name__]}
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            **_SPECIAL,
        }
        state = {
            "schema_version": _SCHEMA_VERSION,
            "class": type(self).__name__,
            **self._to_state(),
            "history": history_to_state(self.history_),
        }
        files = {
            _WEIGHTS: _tensors(self.network),
            "config.json": _json(config),
            "tokenizer.json": self.tokenizer.to_json().encode(),
            "tokenizer_config.json": _json(tokenizer_config),
            _STATE: _json(state),
        }
        if self.curriculum is not None:
            files[_CURRICULUM] = _tensors(self.curriculum)
        if runs := getattr(self, "runs_", []):
            files[RUN_FILE] = run_document(runs)
        return files

    def _to_state(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _from_state(cls, tokenizer: BytePairTokenizer, config: dict[str, Any], state: dict[str, Any]) -> Self:
        raise NotImplementedError


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _tensors(module: nn.Module) -> bytes:
    tensors = {name: t.cpu().contiguous() for name, t in module.state_dict().items() if name not in _TIED}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def _write(folder: Path, files: dict[str, bytes], *, overwrite: bool) -> None:
    """Write the files to a new folder beside the one wanted, then rename it."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; a model is saved as a folder. Choose another path.")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not (overwrite and (folder / _STATE).is_file()):
        raise FileExistsError(
            f"{folder} is not empty; choose another folder, or pass overwrite=True to replace a model of this package."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        part.mkdir()
        for name, content in files.items():
            (part / name).write_bytes(content)
        if not (folder.is_dir() and exchange(part, folder)):  # swapped, the part is the old model
            if folder.is_dir():
                folder.rename(old)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.is_dir():
            shutil.rmtree(old, ignore_errors=True)


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


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a text model: it lacks {name}.")
    document = read_json(folder / name, may_be_nan=("history",))
    if not isinstance(document, dict):
        raise ValueError(f"{folder / name} is damaged: it holds no object. Restore the folder from a copy.")
    return document
