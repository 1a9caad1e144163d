"""Embeddings, class probabilities and held-out losses of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scr2mae.extra.batches import map_batches, masked_losses
from scr2mae.extra.text.classifier import check_classes
from scr2mae.extra.text.saving import attention_mask, hidden_states
from scr2mae.extra.text.sentences import LabeledText, Sentences

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from scr2mae.extra.text.classifier import RobertaClassifier
    from scr2mae.extra.text.network import RobertaR2MAE
    from scr2mae.extra.text.packing import TokenBlocks

__all__ = ["check_blocks", "embed", "predict_proba", "score"]

_SCORE_SEED = 20_250_922


def embed(
    network: RobertaR2MAE | RobertaClassifier,
    text: Sequence[str] | LabeledText,
    *,
    length: int = 128,
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Embed sentences or pairs: the mean of the last hidden states over their tokens; nothing is masked.

    Parameters
    ----------
    network
        A network, pretrained or finetuned.
    text
        Sentences, or labeled text, whose labels are ignored.
    length
        Maximum number of tokens; longer sentences are cut.
    batch_size
        Number of sentences per batch.
    device
        Device to compute on; None leaves the network where it is.

    Returns
    -------
    float32, shape ``(n_obs, hidden_size)``.
    """

    def pooled(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        kept = attention_mask(network, batch["tokens"])[..., None]
        return (hidden_states(network, batch["tokens"]) * kept).sum(dim=1) / kept.sum(dim=1)

    sentences = Sentences(text, network, length=length)
    return map_batches(network, sentences, pooled, batch_size=batch_size, device=device)


def predict_proba(
    classifier: RobertaClassifier,
    text: Sequence[str] | LabeledText,
    *,
    length: int = 128,
    batch_size: int = 128,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Return the probability of each class, float32, shape ``(n_obs, n_classes)``.

    Parameters
    ----------
    classifier
        A finetuned classifier.
    text, length, batch_size, device
        As in :func:`embed`.
    """
    if isinstance(text, LabeledText):
        check_classes(classifier, text)
    return map_batches(
        classifier,
        Sentences(text, classifier, length=length),
        lambda batch: classifier(batch["tokens"]).softmax(dim=1),
        batch_size=batch_size,
        device=device,
    )


def score(
    network: RobertaR2MAE,
    blocks: TokenBlocks,
    *,
    ratios: Sequence[float] = (0.05, 0.15, 0.3, 0.4, 0.6, 0.8, 0.95),
    batch_size: int = 64,
    seed: int = _SCORE_SEED,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Score how well masked tokens are predicted, at several masking ratios.

    Parameters
    ----------
    network
        A pretrained network.
    blocks
        Held-out text, packed with the network's tokenizer.
    ratios
        Shares to mask, in [0, 1].
    batch_size
        Number of blocks per batch.
    seed
        Seed of the masks: the same masks for every network, given the same blocks, seed and batch size.
    device
        Device to compute on; None leaves the network where it is.

    Returns
    -------
    One row per ratio: ``ratio``, ``loss`` (mean negative log-likelihood of masked tokens, nats), ``accuracy`` (share
    predicted correctly) and ``n_tokens`` scored. The corruption is that of training (:func:`corrupt`).

    Raises
    ------
    ValueError
        If the text was packed with another tokenizer, or a ratio lies outside [0, 1].
    """
    check_blocks(network, blocks, "blocks")
    options: Any = {"batch_size": batch_size, "seed": seed, "device": device}
    rows = []
    for ratio in ratios:
        losses = masked_losses(network, blocks, ratio, **options)
        n_tokens = sum(each.n_scored for each in losses)
        loss = sum(float(each.loss) * each.n_scored for each in losses) / n_tokens
        rows.append((ratio, loss, sum(int(each.n_correct) for each in losses) / n_tokens, n_tokens))
    return pd.DataFrame(rows, columns=["ratio", "loss", "accuracy", "n_tokens"])


def check_blocks(network: RobertaR2MAE, blocks: TokenBlocks, name: str) -> None:
    """Raise ValueError if the blocks are too long or were packed with another tokenizer."""
    if blocks.tokenizer.sha256 != network.tokenizer.sha256:
        raise ValueError(
            f"{name} was packed with a tokenizer of {len(blocks.tokenizer)} tokens that is not the network's, of "
            f"{len(network.tokenizer)}; pack the text with network.tokenizer."
        )
    if blocks.length > network.max_length:
        raise ValueError(
            f"{name} has blocks of {blocks.length} tokens and the network positions for {network.max_length}; "
            f"pack the text with length={network.max_length} or less."
        )
