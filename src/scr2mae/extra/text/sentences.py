"""Labeled sentences or sentence pairs, raw and tokenized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scr2mae.extra.text.tokenizer import BytePairTokenizer

__all__ = ["LabeledText", "Sentences"]


@dataclass(frozen=True)
class LabeledText:
    """Sentences, or pairs of them, with a class each.

    Attributes
    ----------
    first
        Sentences.
    second
        Second sentence of each pair, or None.
    labels
        Class of each, as an integer, shape ``(n_obs,)``.
    classes
        Names of the classes.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels))
        n_obs = len(self.first)
        if not n_obs:
            raise ValueError("There is no labeled text: the table is empty.")
        if self.labels.shape != (n_obs,) or (self.second is not None and len(self.second) != n_obs):
            second = "" if self.second is None else f" and {len(self.second)} second sentences"
            raise ValueError(
                f"{n_obs} sentences need as many labels and, in pairs, second sentences; "
                f"got labels of shape {self.labels.shape}{second}."
            )
        wrong = (self.labels < 0) | (self.labels >= len(self.classes))
        if self.labels.dtype.kind not in "iu" or wrong.any():
            bad = np.unique(self.labels if self.labels.dtype.kind not in "iu" else self.labels[wrong])[:5]
            raise ValueError(
                f"Labels must be integers from 0 to {len(self.classes) - 1}, one for each of {list(self.classes)}; "
                f"got {bad.tolist()}. GLUE's test sets are unlabeled: score on its validation sets."
            )

    def __len__(self) -> int:
        return len(self.first)


class Sentences:
    """Tokens of sentences or pairs, padded to the longest of a mini-batch, with labels where there are any."""

    def __init__(self, text: LabeledText | Sequence[str], network: Any, *, length: int) -> None:
        if not 5 <= length <= network.max_length:
            raise ValueError(
                f"length must lie between 5 and {network.max_length}, the positions that the network has, got {length}."
            )
        labeled = text if isinstance(text, LabeledText) else None
        first = list(text) if labeled is None else labeled.first  # type: ignore[arg-type]
        second = None if labeled is None else labeled.second
        self.tokenizer: BytePairTokenizer = network.tokenizer
        self.labels = None if labeled is None else labeled.labels
        encoded = [self.tokenizer.encode(first), *([] if second is None else [self.tokenizer.encode(second)])]
        self.tokens = [self.join(*sentences, length=length) for sentences in zip(*encoded, strict=True)]

    def join(self, first: list[int], second: list[int] | None = None, *, length: int) -> np.ndarray:
        """Return ``<s> a </s>`` or ``<s> a </s></s> b </s>``; the longer of the two is cut first."""
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        if second is None:
            return np.array([start, *first[: length - 2], end], dtype=np.int64)
        room = length - 4
        n_first = max(min(len(first), room - min(len(second), room // 2)), 0)
        n_second = min(len(second), room - n_first)
        return np.array([start, *first[:n_first], end, end, *second[:n_second], end], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return ``"tokens"``, int64, shape (n, length), and ``"labels"``, shape (n,), if present."""
        rows = [torch.from_numpy(self.tokens[i]) for i in indices]
        pad_id = self.tokenizer.pad_id
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
        labels = {} if self.labels is None else {"labels": torch.from_numpy(self.labels[indices])}
        return {"tokens": tokens, **labels}
