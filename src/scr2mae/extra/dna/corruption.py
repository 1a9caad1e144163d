"""Masking and corruption of bases; all draws are pure functions of seed and step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scr2mae.extra.dna.alphabet import BASE_TOKENS, BASES, MASK_ID
from scr2mae.masking import draw_integers, draw_mask

__all__ = ["IGNORED", "corrupt", "draw_base_mask", "flip_labels"]

IGNORED = -100
"""Label of a position that is not scored."""

_FATE, _REPLACEMENT, _FLIP, _FLIPPED = 1, 2, 3, 4  # streams
_RESOLUTION = 1 << 24


def draw_base_mask(
    tokens: Tensor, ratio: float, *, seed: int, step: int, attention_mask: Tensor | None = None
) -> Tensor:
    """Mask ``round(ratio * n)`` of the n known bases of a mini-batch; boolean of shape (n_obs, n_positions)."""
    known = (tokens >= BASE_TOKENS.start) & (tokens < BASE_TOKENS.stop)
    if attention_mask is not None:
        known &= attention_mask.bool()
    n = int(known.sum())
    if n < 2:
        raise ValueError(
            f"Only {n} of {tokens.numel()} positions in a mini-batch have a known base; leave such windows out."
        )
    mask = torch.zeros_like(known)
    mask[known] = draw_mask(n, ratio, seed=seed, step=step, device=tokens.device)
    return mask


def corrupt(tokens: Tensor, mask: Tensor, *, seed: int, step: int) -> Tensor:
    """Replace 80 % of the masked bases by the mask token and 10 % by a random base; return a copy."""
    draw = partial(draw_integers, int(mask.sum()), seed=seed, step=step, device=tokens.device)
    fate = draw(10, stream=_FATE)
    random = BASE_TOKENS.start + draw(len(BASES), stream=_REPLACEMENT).to(tokens.dtype)
    replaced = torch.where(fate < 8, MASK_ID, torch.where(fate == 8, random, tokens[mask]))
    corrupted = tokens.clone()
    corrupted[mask] = replaced.to(tokens.dtype)
    return corrupted


def flip_labels(labels: Tensor, probability: Tensor, *, seed: int, step: int) -> Tensor:
    """Replace labels (n,) by a random base, possibly the same, with the given probabilities (n,)."""
    draw = partial(draw_integers, len(labels), seed=seed, step=step, device=labels.device)
    u = draw(_RESOLUTION, stream=_FLIP).float() / _RESOLUTION
    random = BASE_TOKENS.start + draw(len(BASES), stream=_FLIPPED)
    return torch.where(u < probability, random.to(labels.dtype), labels)
