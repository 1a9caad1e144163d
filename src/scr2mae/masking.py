"""Masking ratios and mask draws, shared by counts, bases, patches and tokens.

A ratio and a mask are pure functions of ``(seed, step)``: every data-parallel rank draws the same,
a resumed run continues the same sequence, and no hidden generator can go stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DecayRatio",
    "DiscreteRatio",
    "FixedRatio",
    "MDLMRatio",
    "RatioSchedule",
    "UniformDecayRatio",
    "UniformRatio",
    "as_ratio_schedule",
    "draw_integers",
    "draw_mask",
]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_RATIO_STREAM, _MASK_STREAM, _INTEGER_STREAM = 1, 2, 3


@runtime_checkable
class RatioSchedule(Protocol):
    """The share of items to hide at a training step, a pure function of the step."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio at ``step`` (0-based) of a run of ``total_steps``, in [0, 1]."""
        ...


def _mix(word: int) -> int:
    """Finalize a 64-bit word (SplitMix64: Steele, Lea & Flood, OOPSLA 2014)."""
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def _key(*parts: int) -> int:
    """Hash integers, in order, to one 64-bit word."""
    word = 0
    for part in parts:
        word = _mix((word + _GOLDEN + part) & _WORD)
    return word


def _uniform(seed: int, step: int) -> float:
    """Draw from U[0, 1) for a seed and a step."""
    return (_key(seed, _RATIO_STREAM, step) >> 11) * 2.0**-53


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}: it is the share of items to hide.")


def _check_pair(low: float, high: float) -> None:
    _check_share("low", low)
    _check_share("high", high)
    if low > high:
        raise ValueError(f"A ratio range must be (low, high) with low <= high, got ({low!r}, {high!r}).")


def _progress(step: int, total_steps: int) -> float:
    """Share of the run that is over: 0 at the first step, 1 at the last and beyond."""
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}.")
    return min(step / (total_steps - 1), 1.0) if total_steps > 1 else 0.0


@dataclass(frozen=True)
class FixedRatio:
    """The same ratio at every step: a plain masked autoencoder.

    Parameters
    ----------
    ratio
        Share hidden, in [0, 1].
    """

    ratio: float = 0.25

    def __post_init__(self) -> None:
        _check_share("mask_ratio", self.ratio)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio."""
        return self.ratio


@dataclass(frozen=True)
class UniformRatio:
    """R²MAE: a ratio drawn from U(low, high) for every mini-batch (Dong et al. 2025, section 4).

    Parameters
    ----------
    low, high
        Ends of the range, ``0 <= low <= high <= 1``.
    seed
        Seed of the sequence of ratios.

    Examples
    --------
    >>> from scr2mae.masking import UniformRatio
    >>> ratio = UniformRatio(0.1, 0.5, seed=0)
    >>> 0.1 <= ratio(3, 100) <= 0.5
    True
    >>> ratio(3, 100) == UniformRatio(0.1, 0.5, seed=0)(3, 100)  # of seed and step alone
    True
    """

    low: float = 0.1
    high: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_pair(self.low, self.high)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        return self.low + (self.high - self.low) * _uniform(self.seed, step)


@dataclass(frozen=True)
class MDLMRatio:
    """A ratio drawn from U(0, 1), as masked diffusion language models train.

    Parameters
    ----------
    seed
        Seed of the sequence of ratios.
    """

    seed: int = 0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        return _uniform(self.seed, step)


@dataclass(frozen=True)
class DecayRatio:
    """Dynamic masking: a ratio that falls linearly over the run.

    Parameters
    ----------
    high, low
        Ratio at the first and at the last step.

    Examples
    --------
    >>> from scr2mae.masking import DecayRatio
    >>> [round(DecayRatio(0.5, 0.1)(step, 5), 2) for step in range(5)]
    [0.5, 0.4, 0.3, 0.2, 0.1]
    """

    high: float = 0.5
    low: float = 0.1

    def __post_init__(self) -> None:
        _check_pair(self.low, self.high)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio at ``step``."""
        return self.high + (self.low - self.high) * _progress(step, total_steps)


@dataclass(frozen=True)
class UniformDecayRatio:
    """R²MAE + Dynamic: U(low, 2 m - low) where m is the ratio of :class:`DecayRatio`.

    The mean follows the Dynamic schedule. This reading of the paper's combination is inferred.

    Parameters
    ----------
    low, high
        Ends of the Dynamic schedule; ``2 high - low <= 1``.
    seed
        Seed of the sequence of ratios.
    """

    low: float = 0.1
    high: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_pair(self.low, self.high)
        if 2 * self.high - self.low > 1 + 1e-12:
            raise ValueError(
                f"U(low, 2 m - low) leaves [0, 1] for low={self.low}, high={self.high}: "
                f"choose 2 * high - low <= 1 (here {2 * self.high - self.low:.3g})."
            )

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        mean = DecayRatio(self.high, self.low)(step, total_steps)
        return self.low + 2 * (mean - self.low) * _uniform(self.seed, step)


@dataclass(frozen=True)
class DiscreteRatio:
    """A ratio drawn with equal chances from a few values, one curriculum column for each.

    Parameters
    ----------
    values
        The ratios, strictly increasing, in [0, 1].
    seed
        Seed of the sequence of ratios.
    """

    values: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if not self.values:
            raise ValueError("DiscreteRatio needs at least one value, got none.")
        for value in self.values:
            _check_share("values", value)
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"values must increase strictly, got {self.values}.")

    def index(self, step: int) -> int:
        """Return the position in ``values`` of the ratio drawn for ``step``.

        Parameters
        ----------
        step
            Optimizer step, >= 0.
        """
        return int(_uniform(self.seed, step) * len(self.values))

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        return self.values[self.index(step)]


def as_ratio_schedule(mask_ratio: float | Sequence[float] | RatioSchedule, *, seed: int = 0) -> RatioSchedule:
    """Turn the ``mask_ratio`` argument of a model into a schedule.

    Parameters
    ----------
    mask_ratio
        A float (fixed), a pair ``(low, high)`` (R²MAE), or a schedule, returned as it is.
    seed
        Seed given to a schedule made from a pair.

    Returns
    -------
    A callable ``(step, total_steps) -> ratio``.

    Raises
    ------
    ValueError
        If a ratio lies outside [0, 1] or a pair is in the wrong order.
    TypeError
        If the argument is none of the three.

    Examples
    --------
    >>> from scr2mae.masking import as_ratio_schedule
    >>> as_ratio_schedule(0.25)
    FixedRatio(ratio=0.25)
    >>> as_ratio_schedule((0.1, 0.5), seed=3)
    UniformRatio(low=0.1, high=0.5, seed=3)
    """
    if isinstance(mask_ratio, (int, float)) and not isinstance(mask_ratio, bool):
        return FixedRatio(float(mask_ratio))
    if isinstance(mask_ratio, (tuple, list)):
        if len(mask_ratio) != 2:
            raise ValueError(f"mask_ratio as a range must be a pair (low, high), got {mask_ratio!r}.")
        return UniformRatio(float(mask_ratio[0]), float(mask_ratio[1]), seed=seed)
    if callable(mask_ratio):
        return mask_ratio
    raise TypeError(
        f"mask_ratio must be a float, a pair (low, high) or a schedule called as (step, total_steps), "
        f"got {type(mask_ratio).__name__}."
    )


def _signed(word: int) -> int:
    """Reinterpret an unsigned 64-bit word as torch's signed int64."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(words: torch.Tensor, n_bits: int) -> torch.Tensor:
    """Shift int64 words right without copying the sign bit."""
    return (words >> n_bits) & ((1 << (64 - n_bits)) - 1)


def _random_words(n: int, key: int, device: torch.device | str | None) -> torch.Tensor:
    """Return n pseudo-random int64 words of shape (n,), the same on every kind of device."""
    words = torch.arange(1, n + 1, device=device) * _signed(_GOLDEN) + _signed(key)
    words = (words ^ _shift_right(words, 30)) * _signed(_MIX_1)
    words = (words ^ _shift_right(words, 27)) * _signed(_MIX_2)
    return words ^ _shift_right(words, 31)


def draw_mask(
    n: int,
    ratio: float,
    *,
    seed: int,
    step: int,
    n_obs: int | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Hide a random subset of n items, as a pure function of seed and step.

    Parameters
    ----------
    n
        Number of items (genes, positions, patches), >= 2.
    ratio
        Share to hide, in [0, 1].
    seed, step
        What the draw depends on, besides ``n`` and ``ratio``: not the device, nor the rank.
    n_obs
        Draw a subset for each of so many observations; None draws one for all.
    device
        Where the mask is made.

    Returns
    -------
    Boolean tensor of shape ``(n,)``, or ``(n_obs, n)`` with ``n_obs``, True where an item is hidden, with exactly
    ``round(ratio * n)`` true entries an observation, clamped to ``[1, n - 1]``.

    Raises
    ------
    ValueError
        If ``n < 2``, ``n_obs < 0`` or the ratio lies outside [0, 1].

    Notes
    -----
    Items are ranked by SplitMix64 words keyed by ``(seed, step)``; the smallest are hidden, so
    the masks of one step are nested in the ratio. The first observation's mask is the one drawn without ``n_obs``.

    Examples
    --------
    >>> from scr2mae.masking import draw_mask
    >>> light, heavy = (draw_mask(100, ratio, seed=0, step=7) for ratio in (0.2, 0.5))
    >>> int(light.sum()), int(heavy.sum())
    (20, 50)
    >>> bool((heavy | ~light).all())  # nested
    True
    """
    if n < 2:
        raise ValueError(f"A mask needs at least two items, one to hide and one to see; got n={n}.")
    if n_obs is not None and n_obs < 0:
        raise ValueError(f"n_obs must be >= 0, got {n_obs}.")
    _check_share("ratio", ratio)
    n_hidden = min(max(round(ratio * n), 1), n - 1)
    n_masks = 1 if n_obs is None else n_obs
    words = _random_words(n_masks * n, _key(seed, _MASK_STREAM, step), device).view(n_masks, n)
    # The words of a draw differ from one another, so that a threshold hides exactly n_hidden of them.
    largest_hidden = words.topk(n_hidden, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    mask = words <= largest_hidden
    return mask[0] if n_obs is None else mask


def draw_integers(
    n: int, high: int, *, seed: int, step: int, stream: int = 0, device: torch.device | str | None = None
) -> torch.Tensor:
    """Draw n integers below ``high`` with equal chances, as a pure function of seed and step.

    For what becomes of hidden items: which are replaced by a mask symbol, and by what others are replaced.

    Parameters
    ----------
    n
        How many.
    high
        Draws lie in ``[0, high)``; ``1 <= high <= 2**32``.
    seed, step
        What the draw depends on, besides ``high`` and ``stream``: not the device, nor the rank.
    stream
        Draws of different streams are independent of one another, and all are of :func:`draw_mask`.
    device
        Where the integers are made.

    Returns
    -------
    int64, shape ``(n,)``; the first k of them are the draw of ``n=k``.

    Raises
    ------
    ValueError
        If ``high`` is out of range or ``n`` is negative.
    """
    if n < 0 or not 1 <= high <= 1 << 32:
        raise ValueError(f"Integers are drawn n >= 0 times below high in [1, 2**32], got n={n}, high={high}.")
    words = _random_words(n, _key(seed, _INTEGER_STREAM, step, stream), device)
    return _shift_right(words, 1) % high
