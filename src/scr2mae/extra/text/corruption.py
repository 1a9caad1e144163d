"""Masking of tokens, with the replacements of BERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scr2mae.masking import draw_integers, draw_mask

if TYPE_CHECKING:
    from scr2mae.extra.text.tokenizer import BytePairTokenizer

__all__ = ["Corruption", "corrupt"]

_FATE_STREAM, _WORD_STREAM = 0, 1


@dataclass(frozen=True)
class Corruption:
    """A mini-batch with some of its tokens masked."""

    tokens: Tensor  # input of the network, (n_obs, length)
    positions: Tensor  # masked positions in the flattened mini-batch, increasing, (n_masked,)
    targets: Tensor  # original tokens at these positions, (n_masked,)


def corrupt(
    tokens: Tensor, ratio: float, *, tokenizer: BytePairTokenizer, seed: int, step: int
) -> Corruption:
    """Mask a fraction of the tokens of a mini-batch, as a pure function of seed and step.

    80 % of the masked tokens become the mask token, 10 % a random token and 10 % stay; all of them are scored.

    Parameters
    ----------
    tokens
        int64, shape ``(n_obs, length)``.
    ratio
        Share to mask, in [0, 1].
    tokenizer
        Tokenizer, whose special tokens are never masked and never drawn.
    seed, step
        Seed and step of the draws, which depend neither on the device nor on the rank.

    Returns
    -------
    The corrupted mini-batch: ``tokens``, network input of shape ``(n_obs, length)``; ``positions`` of masked tokens in the
    flattened mini-batch and their ``targets``, shape ``(n_masked,)``. Of n ordinary tokens, ``round(ratio * n)`` are masked,
    at least 1 and at most n - 1; shares differ by sequence (inferred; the paper states only one ratio per mini-batch).

    Raises
    ------
    ValueError
        If fewer than two tokens are ordinary.

    Notes
    -----
    The corruption 80/10/10 is BERT's (Devlin et al. 2019); that the paper keeps it is inferred.
    """
    flat = tokens.reshape(-1)
    device = flat.device
    special = torch.tensor(tokenizer.special_ids, device=device)
    ordinary = torch.isin(flat, special, invert=True).nonzero().squeeze(1)
    mask = draw_mask(len(ordinary), ratio, seed=seed, step=step, device=device)
    positions = ordinary[mask]
    n_masked = len(positions)
    fate = draw_integers(n_masked, 10, seed=seed, step=step, stream=_FATE_STREAM, device=device)
    # Ordinary tokens are numbered past the special ones below them.
    words = draw_integers(
        n_masked, len(tokenizer) - len(special), seed=seed, step=step, stream=_WORD_STREAM, device=device
    )
    for special_id in sorted(tokenizer.special_ids):
        words = words + (words >= special_id)
    targets = flat[positions]
    seen = torch.where(fate < 8, tokenizer.mask_id, torch.where(fate == 8, words, targets))
    return Corruption(flat.index_copy(0, positions, seen).view_as(tokens), positions, targets)
