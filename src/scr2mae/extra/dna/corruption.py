"""What becomes of hidden bases: all draws are pure functions of seed and step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from scr2mae.extra.dna.alphabet import BASES, MASK_ID, VOCABULARY
from scr2mae.masking import draw_integers, draw_mask

__all__ = ["IGNORED", "corrupt", "draw_base_mask", "flip_labels"]

IGNORED = -100
"""Label of what is not scored."""

_FIRST_BASE, _N_BASES = VOCABULARY.index(BASES[0]), len(BASES)
_FATE, _REPLACEMENT, _FLIP, _FLIPPED = 1, 2, 3, 4  # streams
_RESOLUTION = 1 << 24


def draw_base_mask(
    tokens: Tensor, ratio: float, *, seed: int, step: int, attention_mask: Tensor | None = None
) -> Tensor:
    """Hide a share of the bases of a mini-batch.

    Parameters
    ----------
    tokens
        Human column, shape (n_obs, n_positions). Gaps and unknown bases are not hidden.
    ratio, seed, step
        As in :func:`scr2mae.masking.draw_mask`.
    attention_mask
        False where a window is padded.

    Returns
    -------
    Boolean of the shape of ``tokens``, with ``round(ratio * n)`` of all n bases true.

    Raises
    ------
    ValueError
        If there are fewer than two bases.
    """
    known = (tokens >= _FIRST_BASE) & (tokens < _FIRST_BASE + _N_BASES)
    if attention_mask is not None:
        known &= attention_mask.bool()
    n = int(known.sum())
    if n < 2:
        raise ValueError(
            f"Of {tokens.numel()} positions in a mini-batch only {n} have a known base; leave such windows out."
        )
    mask = torch.zeros_like(known)
    mask[known] = draw_mask(n, ratio, seed=seed, step=step, device=tokens.device)
    return mask


def corrupt(tokens: Tensor, mask: Tensor, *, seed: int, step: int) -> Tensor:
    """Replace hidden bases: 80 % by the mask symbol, 10 % by a random base, 10 % not at all.

    Parameters
    ----------
    tokens
        Human column, shape (n_obs, n_positions).
    mask
        Boolean of the same shape, True where hidden.
    seed, step
        What the draws depend on.

    Returns
    -------
    New tokens of the same shape.
    """
    n = int(mask.sum())
    draw = partial(draw_integers, n, seed=seed, step=step, device=tokens.device)
    fate = draw(10, stream=_FATE)
    random = _FIRST_BASE + draw(_N_BASES, stream=_REPLACEMENT).to(tokens.dtype)
    hidden = torch.where(fate < 8, MASK_ID, torch.where(fate == 8, random, tokens[mask]))
    corrupted = tokens.clone()
    corrupted[mask] = hidden.to(tokens.dtype)
    return corrupted


def flip_labels(labels: Tensor, probability: Tensor, *, seed: int, step: int) -> Tensor:
    """Replace labels by a random base, which may be the same, with the given probabilities.

    Parameters
    ----------
    labels
        Tokens, shape (n,).
    probability
        Shape (n,), in [0, 1].
    seed, step
        What the draws depend on.

    Returns
    -------
    Tokens of shape (n,).
    """
    draw = partial(draw_integers, len(labels), seed=seed, step=step, device=labels.device)
    u = draw(_RESOLUTION, stream=_FLIP).float() / _RESOLUTION
    random = _FIRST_BASE + draw(_N_BASES, stream=_FLIPPED)
    return torch.where(u < probability, random.to(labels.dtype), labels)
