"""RoBERTa of transformers with its tokenizer, and the folders that both are saved in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import safetensors.torch

from scr2mae._utils.files import as_path
from scr2mae._utils.model_folder import FolderFormat, read_folder, write_folder
from scr2mae._utils.untrusted import read_json, tensors_of
from scr2mae.extra.networks import DecayingNetwork, load_weights
from scr2mae.extra.text.tokenizer import BytePairTokenizer
from scr2mae.train.provenance import history_from_state, history_to_state

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from torch import Tensor, nn

    from scr2mae.train.provenance import History

__all__ = ["TextNetwork", "attention_mask", "hidden_states"]

_CONFIG, _CURRICULUM = "config.json", "curriculum.safetensors"
_FORMAT = FolderFormat(
    name="scr2mae.text",
    noun="text model",
    index="scr2mae.json",
    required=frozenset({"history"}),
    legacy_key="mask_ratio",
    weights="model.safetensors",
    files=(_CONFIG, "tokenizer.json", "tokenizer_config.json", _CURRICULUM),
)
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


def attention_mask(network: TextNetwork, tokens: Tensor) -> Tensor:
    """Return 0 for padding and 1 elsewhere, int64, shape of ``tokens``."""
    return (tokens != network.tokenizer.pad_id).long()


def hidden_states(network: TextNetwork, tokens: Tensor) -> Tensor:
    """Return the last hidden states of padded tokens (n_obs, length): shape (n_obs, length, hidden_size)."""
    encoder = network.network.roberta
    return encoder(tokens, attention_mask=attention_mask(network, tokens)).last_hidden_state


class TextNetwork(DecayingNetwork):
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

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the network and its tokenizer as ``transformers`` reads them, with the settings and curves of training.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a network in the folder may be replaced.
        """
        config = {**self.network.config.to_dict(), "architectures": [type(self.network).__name__]}
        tokenizer_config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            **_SPECIAL,
        }
        files = {
            _CONFIG: json.dumps(config, indent=1).encode(),
            "tokenizer.json": self.tokenizer.to_json().encode(),
            "tokenizer_config.json": json.dumps(tokenizer_config, indent=1).encode(),
        }
        if self.curriculum is not None:
            files[_CURRICULUM] = safetensors.torch.save(
                {name: t.cpu().contiguous() for name, t in self.curriculum.state_dict().items()}
            )
        state = {
            "class": type(self).__name__,
            **self._to_state(),
            "history": history_to_state(self.history_),
        }
        tensors = {name: t for name, t in self.network.state_dict().items() if name not in _TIED}
        runs = getattr(self, "runs_", None) or None
        write_folder(folder, _FORMAT, tensors, state, files=files, runs=runs, overwrite=overwrite)

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
        place = as_path(folder)
        tensors, state, files = read_folder(place, _FORMAT, follow_links=True)
        # Folders of the first version contain masked language models only, without a class.
        if (name := state.get("class", "RobertaR2MAE")) != cls.__name__:
            raise ValueError(f"{place} contains a {name}, not a {cls.__name__}.")
        if not (place / _CONFIG).is_file():
            raise FileNotFoundError(f"{place} lacks {_CONFIG}; restore the folder from a copy.")
        config = read_json(place / _CONFIG)
        tokenizer = BytePairTokenizer.load(place)
        if config["vocab_size"] != len(tokenizer):
            raise ValueError(
                f"The network in {place} has a vocabulary of {config['vocab_size']} and the tokenizer one of "
                f"{len(tokenizer)}: one of the two was replaced. Restore the folder from a copy."
            )
        network = cls._from_state(tokenizer, config, state)
        load_weights(network.network, tensors, place=place, tied=_TIED)
        if network.curriculum is not None:
            weights = files.get(_CURRICULUM) or (place / _CURRICULUM).read_bytes()
            load_weights(
                network.curriculum, tensors_of(weights, path=place / _CURRICULUM), place=place / _CURRICULUM
            )
        network.history_ = history_from_state(state["history"])
        return network.eval()

    def _to_state(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _from_state(cls, tokenizer: BytePairTokenizer, config: dict[str, Any], state: dict[str, Any]) -> Self:
        raise NotImplementedError
