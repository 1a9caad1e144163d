"""Learn byte-level byte-pair encoding from a corpus, and encode text with it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae._utils.files import as_path
from scr2mae._utils.optional import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SPECIAL_TOKENS", "BytePairTokenizer"]

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Tokens for the start, padding, the end (also used as separator), unknown text and the mask."""

_N_BYTES = 256


class BytePairTokenizer:
    """Byte-level byte-pair encoding as in RoBERTa; decoding restores any encoded text.

    Parameters
    ----------
    tokenizer
        A ``tokenizers.Tokenizer`` with :data:`SPECIAL_TOKENS`, such as that of a released RoBERTa.

    Raises
    ------
    ValueError
        If the tokenizer lacks a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        if missing := [token for token, i in ids.items() if i is None]:
            raise ValueError(
                f"The tokenizer has no {missing}; RoBERTa needs all of {list(SPECIAL_TOKENS)}. "
                "Train one with BytePairTokenizer.train."
            )
        # Treat the characters "<mask>" in a corpus as ordinary text.
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.start_id, self.pad_id, self.end_id, self.unknown_id, self.mask_id = ids.values()

    @classmethod
    def train(
        cls, documents: Iterable[str], *, vocab_size: int = 50_265, min_frequency: int = 2
    ) -> BytePairTokenizer:
        """Train a tokenizer on text.

        Parameters
        ----------
        documents
            Texts to learn from. They are read only once, so a generator works.
        vocab_size
            Maximum size of the vocabulary, including special tokens and the 256 bytes. The vocabulary is
            smaller if the text has few pairs.
        min_frequency
            Minimum number of times that a pair must occur to be merged.

        Returns
        -------
        The tokenizer, which depends only on the text.

        Raises
        ------
        ValueError
            If there is no text, or ``vocab_size`` leaves no room for the bytes.
        """
        smallest = _N_BYTES + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size must be at least {smallest} to hold bytes and special tokens, got {vocab_size}."
            )
        library = require("tokenizers", extra="text")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        n_characters = 0

        def counted() -> Iterable[str]:
            nonlocal n_characters
            for document in documents:
                n_characters += len(document)
                yield document

        tokenizer.train_from_iterator(counted(), trainer)
        if not n_characters:
            raise ValueError("The corpus is empty; pass text from which to learn a tokenizer.")
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> BytePairTokenizer:
        """Load a tokenizer from a ``tokenizer.json`` file.

        Parameters
        ----------
        path
            The file, or a folder that contains it.

        Returns
        -------
        The tokenizer.

        Raises
        ------
        FileNotFoundError
            If the file is missing.
        ValueError
            If the file is damaged or lacks a special token.
        """
        path = as_path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"No tokenizer at {file}; pass a tokenizer.json or a folder with one.")
        library = require("tokenizers", extra="text")
        try:
            tokenizer = library.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{file} is not a tokenizer.json, or is damaged: {error}") from error
        return cls(tokenizer)

    @classmethod
    def from_hub(cls, name: str = "FacebookAI/roberta-base") -> BytePairTokenizer:
        """Download the tokenizer of a model on the Hugging Face hub.

        Parameters
        ----------
        name
            Name of the model; by default RoBERTa-base, whose vocabulary of 50,265 tokens the paper uses.

        Returns
        -------
        The tokenizer.

        Raises
        ------
        ValueError
            If the tokenizer cannot be downloaded or lacks a special token.
        """
        library = require("tokenizers", extra="text")
        try:
            tokenizer = library.Tokenizer.from_pretrained(name)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(
                f"No tokenizer of {name!r} on the hub: {error}. Download its tokenizer.json and use load()."
            ) from error
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Save as a ``tokenizer.json`` file, which ``transformers`` and ``tokenizers`` can read.

        Parameters
        ----------
        path
            File to write.
        """
        as_path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return the content of the file that :meth:`save` writes."""
        return str(self.tokenizer.to_str())

    @property
    def sha256(self) -> str:
        """Hash of the tokenizer, which identifies it in packed text and networks."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Token ids of :data:`SPECIAL_TOKENS`, in the same order."""
        return self.start_id, self.pad_id, self.end_id, self.unknown_id, self.mask_id

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts without adding special tokens.

        Parameters
        ----------
        texts
            Texts to encode, with any Unicode characters.

        Returns
        -------
        The token ids of each text.
        """
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens into text, including special tokens.

        Parameters
        ----------
        tokens
            Token ids.

        Returns
        -------
        The text.
        """
        return str(self.tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False))
