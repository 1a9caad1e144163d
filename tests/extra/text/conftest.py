"""A small language of twelve words, a tokenizer for it, and networks that train in a second."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scr2mae.extra import text

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
QUICK = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 8, "accumulate_grad_batches": 1}
RUN = {"accelerator": "cpu", "enable_progress_bar": False, "length": 24}
WORDS = ["the", "a", "small", "large", "gray", "white", "cat", "dog", "sees", "hears", "wants", "likes"]


def _documents(n: int = 300, *, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) + "." for _ in range(n)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Three hundred sentences of three to eleven words."""
    return _documents()


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> text.BytePairTokenizer:
    return text.BytePairTokenizer.train(documents, vocab_size=300)


@pytest.fixture(scope="session")
def blocks(documents: list[str], tokenizer: text.BytePairTokenizer) -> text.TokenBlocks:
    """The sentences in blocks of 16 tokens."""
    return text.pack(documents, tokenizer, length=16)


@pytest.fixture(scope="session")
def build(tokenizer: text.BytePairTokenizer) -> Callable[..., text.RobertaR2MAE]:
    """Return ``build(**options)``: a network of one layer, 16 wide."""

    def make(**options: Any) -> text.RobertaR2MAE:
        return text.RobertaR2MAE(options.pop("tokenizer", tokenizer), size="tiny", **{**SMALL, **options})

    return make


@pytest.fixture(scope="session")
def pretrain(build: Callable[..., text.RobertaR2MAE], blocks: text.TokenBlocks) -> Callable[..., Any]:
    """Return ``pretrain(model=None, **options)``: two epochs over the sentences."""

    def train(model: text.RobertaR2MAE | None = None, **options: Any) -> text.RobertaR2MAE:
        model = build() if model is None else model
        text.pretrain(model, options.pop("blocks", blocks), **{"max_epochs": 2, **QUICK, **options})
        return model

    return train


def labeled(n: int, *, seed: int = 0, pairs: bool = False) -> text.LabeledText:
    """Sentences about a cat (1) or a dog (0); as pairs: whether both are about the same."""
    rng = np.random.default_rng(seed)
    animals = rng.integers(2, size=(2, n))
    adjectives = rng.choice(["small", "large", "gray", "white"], size=(2, n))
    first, second = (
        [f"the {a} {('dog', 'cat')[k]}" for a, k in zip(adjectives[side], animals[side], strict=True)]
        for side in (0, 1)
    )
    if pairs:
        return text.LabeledText(first, second, (animals[0] == animals[1]).astype(int), ("0", "1"))
    return text.LabeledText(first, None, animals[0], ("0", "1"))
