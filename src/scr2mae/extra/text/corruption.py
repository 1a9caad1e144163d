"""Which tokens of a mini-batch are hidden, and what stands in their place."""

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
    """A mini-batch with some of its tokens hidden.

    Attributes
    ----------
    tokens
        What the network sees, shape ``(n_obs, length)``.
    positions
        Where tokens are hidden, in the flattened mini-batch, increasing, shape ``(n_hidden,)``.
    targets
        What was there, shape ``(n_hidden,)``.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor


def corrupt(
    tokens: Tensor, ratio: float, *, tokenizer: BytePairTokenizer, seed: int, step: int
) -> Corruption:
    """Hide a share of the tokens of a mini-batch, as a pure function of seed and step.

    Of the hidden tokens 80 % become the mask token, 10 % a random token and 10 % stay; all of them are scored.

    Parameters
    ----------
    tokens
        int64, shape ``(n_obs, length)``.
    ratio
        Share to hide, in [0, 1].
    tokenizer
        Says which tokens are special: those are never hidden and never put in.
    seed, step
        What the draws depend on, besides the ratio and the number of tokens: not the device, nor the rank.

    Returns
    -------
    The corrupted mini-batch. Exactly ``round(ratio * n)`` of its n ordinary tokens are hidden, clamped to ``[1, n - 1]``;
    sequences differ in their share (inferred; all that the paper states is a ratio a mini-batch).

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
    hidden = draw_mask(len(ordinary), ratio, seed=seed, step=step, device=device)
    positions = ordinary[hidden]
    n_hidden = len(positions)
    fate = draw_integers(n_hidden, 10, seed=seed, step=step, stream=_FATE_STREAM, device=device)
    # Ordinary tokens are numbered past the special ones that stand below them.
    words = draw_integers(
        n_hidden, len(tokenizer) - len(special), seed=seed, step=step, stream=_WORD_STREAM, device=device
    )
    for special_id in sorted(tokenizer.special_ids):
        words = words + (words >= special_id)
    targets = flat[positions]
    seen = torch.where(fate < 8, tokenizer.mask_id, torch.where(fate == 8, words, targets))
    return Corruption(flat.index_copy(0, positions, seen).view_as(tokens), positions, targets)
