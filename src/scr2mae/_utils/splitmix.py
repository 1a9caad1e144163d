"""Counter-based random words (SplitMix64: Steele, Lea & Flood, OOPSLA 2014), the same on all devices."""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def hash_integers(*parts: int) -> int:
    """Hash integers, in order, to one 64-bit word."""
    word = 0
    for part in parts:
        word = _mix((word + _GOLDEN + part) & _WORD)
    return word


def _signed(word: int) -> int:
    """Reinterpret an unsigned 64-bit word as torch's signed int64."""
    return word - (1 << 64) if word >> 63 else word


def shift_right(words: torch.Tensor, n_bits: int) -> torch.Tensor:
    """Shift int64 words right without copying the sign bit."""
    return (words >> n_bits) & ((1 << (64 - n_bits)) - 1)


def random_words(n: int, key: int, device: torch.device | str | None) -> torch.Tensor:
    """Return pseudo-random int64 words, all different, of shape (n,)."""
    words = torch.arange(1, n + 1, device=device) * _signed(_GOLDEN) + _signed(key)
    words = (words ^ shift_right(words, 30)) * _signed(_MIX_1)
    words = (words ^ shift_right(words, 27)) * _signed(_MIX_2)
    return words ^ shift_right(words, 31)
