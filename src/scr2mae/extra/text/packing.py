"""Text packed into blocks of equal length, in memory or on disk."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scr2mae._utils.files import as_path
from scr2mae.extra.text.tokenizer import BytePairTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

__all__ = ["TokenBlocks", "pack"]

_TOKENS, _ABOUT = "tokens.bin", "blocks.json"
_AT_A_TIME = 1000


class TokenBlocks:
    """Blocks of tokens and the tokenizer that made them.

    Parameters
    ----------
    tokens
        Token ids, shape ``(n_blocks, length)``, in memory or memory-mapped.
    tokenizer
        Tokenizer that made them.

    Raises
    ------
    ValueError
        If there is no block.
    """

    def __init__(self, tokens: np.ndarray, tokenizer: BytePairTokenizer) -> None:
        if tokens.ndim != 2 or not tokens.size:
            raise ValueError(
                f"Tokens must have shape (n_blocks, length) with at least one of each, got {tokens.shape}: "
                "the corpus is empty, or shorter than one block."
            )
        self.tokens, self.tokenizer = tokens, tokenizer

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        """Number of tokens per block."""
        return int(self.tokens.shape[1])

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all blocks."""
        return int(self.tokens.size)

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the blocks at the given positions, int64, shape ``(n, length)``.

        Parameters
        ----------
        indices
            Positions of the blocks, shape ``(n,)``.
        """
        return torch.from_numpy(np.asarray(self.tokens[indices], dtype=np.int64))

    def __repr__(self) -> str:
        return f"TokenBlocks({len(self)} blocks of {self.length} tokens, vocabulary of {len(self.tokenizer)})"

    @classmethod
    def load(cls, dir_path: str | Path) -> TokenBlocks:
        """Memory-map the blocks that :func:`pack` wrote to a folder.

        Parameters
        ----------
        dir_path
            The folder.

        Returns
        -------
        The blocks.

        Raises
        ------
        FileNotFoundError
            If the folder contains no blocks.
        ValueError
            If it is damaged, or its tokenizer was replaced.
        """
        folder = as_path(dir_path)
        if not (folder / _ABOUT).is_file():
            raise FileNotFoundError(f"{folder} contains no packed text; write some with pack(..., out=...).")
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            shape, dtype = (int(about["n_blocks"]), int(about["length"])), np.dtype(about["dtype"])
            made_by = about["tokenizer_sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / _ABOUT} is damaged: {error}. Pack the text again.") from error
        size = (folder / _TOKENS).stat().st_size
        if size != shape[0] * shape[1] * dtype.itemsize:
            raise ValueError(f"{folder / _TOKENS} has {size} bytes, not those of {shape} tokens; pack again.")
        tokenizer = BytePairTokenizer.load(folder)
        if tokenizer.sha256 != made_by:
            raise ValueError(f"The tokenizer in {folder} is not the one that packed the text; pack again.")
        return cls(np.memmap(folder / _TOKENS, dtype=dtype, mode="r", shape=shape), tokenizer)


def _blocks(documents: Iterable[str], tokenizer: BytePairTokenizer, length: int) -> Iterator[np.ndarray]:
    """Yield arrays of whole blocks, shape (n, length); tokens that do not fill the last block are left out."""
    inner, rest = length - 2, np.empty(0, dtype=np.int64)
    remaining = iter(documents)
    while batch := list(islice(remaining, _AT_A_TIME)):
        ids = [[*tokens, tokenizer.end_id] for tokens in tokenizer.encode(batch) if tokens]
        rest = np.concatenate([rest, *(np.asarray(tokens, dtype=np.int64) for tokens in ids)])
        whole = len(rest) // inner * inner
        blocks = np.empty((whole // inner, length), dtype=np.int64)
        blocks[:, 0], blocks[:, -1] = tokenizer.start_id, tokenizer.end_id
        blocks[:, 1:-1] = rest[:whole].reshape(-1, inner)
        rest = rest[whole:]
        yield blocks


def pack(
    documents: Iterable[str],
    tokenizer: BytePairTokenizer,
    *,
    length: int = 128,
    max_blocks: int | None = None,
    out: str | Path | None = None,
) -> TokenBlocks:
    """Join documents end to end and cut them into blocks of equal length, with no padding.

    Parameters
    ----------
    documents
        Pieces of text; read once, in order, so a stream of any length works.
    tokenizer
        Tokenizer to use.
    length
        Number of tokens per block, >= 4, special tokens included.
    max_blocks
        Maximum number of blocks; None for all.
    out
        Folder to write to as the text arrives, so that it need not fit in memory; None keeps blocks in memory.

    Returns
    -------
    The blocks: a start token, ``length - 2`` tokens of text with an end token after each document, an end token. Tokens
    that do not fill the last block are left out.

    Raises
    ------
    ValueError
        If the text does not fill one block, or ``length`` or ``max_blocks`` is too small.
    FileExistsError
        If the folder is not empty.

    Notes
    -----
    Blocks run across documents, as in RoBERTa's pretraining (inferred for Dong et al. 2025, who give a length of 128).
    """
    if length < 4:
        raise ValueError(f"length must be at least 4, two tokens of text and two ends, got {length}.")
    if max_blocks is not None and max_blocks < 1:
        raise ValueError(f"max_blocks must be at least 1, got {max_blocks}.")
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    pieces = _at_most(_blocks(documents, tokenizer, length), max_blocks)
    if out is None:
        arrays = [piece.astype(dtype) for piece in pieces]
        return TokenBlocks(np.concatenate([np.empty((0, length), dtype=dtype), *arrays]), tokenizer)
    return _write(pieces, tokenizer, length=length, dtype=dtype, folder=as_path(out))


def _at_most(pieces: Iterator[np.ndarray], max_blocks: int | None) -> Iterator[np.ndarray]:
    n_blocks = 0
    for piece in pieces:
        kept = piece if max_blocks is None else piece[: max_blocks - n_blocks]
        n_blocks += len(kept)
        yield kept
        if n_blocks == max_blocks:
            return


def _write(
    pieces: Iterator[np.ndarray], tokenizer: BytePairTokenizer, *, length: int, dtype: Any, folder: Path
) -> TokenBlocks:
    """Append blocks to a file and write the description last, so that a partial file is never read as a whole one."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another folder for the packed text.")
    folder.mkdir(parents=True, exist_ok=True)
    n_blocks = 0
    with (folder / _TOKENS).open("wb") as file:
        for piece in pieces:
            file.write(piece.astype(dtype).tobytes())
            n_blocks += len(piece)
    if not n_blocks:
        (folder / _TOKENS).unlink()
        raise ValueError(f"The corpus is empty, or shorter than one block of {length} tokens.")
    tokenizer.save(folder / "tokenizer.json")
    about = {
        "n_blocks": n_blocks,
        "length": length,
        "dtype": dtype.str,
        "tokenizer_sha256": tokenizer.sha256,
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return TokenBlocks.load(folder)
