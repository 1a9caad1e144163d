"""Masking ratios and mask draws, shared by counts, bases, patches and tokens.

Ratios and masks are pure functions of ``(seed, step)``: all data-parallel ranks draw the same ones,
and a resumed run continues the sequence without saving the state of a generator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from scr2mae._utils.splitmix import hash_integers, random_words, shift_right

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

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

_RATIO_STREAM, _MASK_STREAM, _INTEGER_STREAM = 1, 2, 3

Device: TypeAlias = "torch.device | str | None"


@runtime_checkable
class RatioSchedule(Protocol):
    """Fraction of items to mask at a training step, a pure function of the step."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio at ``step`` (0-based) of a run of ``total_steps``, in [0, 1]."""
        ...


def _uniform(seed: int, step: int) -> float:
    """Draw from U[0, 1) for a seed and a step."""
    return (hash_integers(seed, _RATIO_STREAM, step) >> 11) * 2.0**-53


def _check_shares(name: str, *values: float) -> None:
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}: it is the fraction of masked items.")


def _check_range(low: float, high: float) -> None:
    _check_shares("low", low)
    _check_shares("high", high)
    if low > high:
        raise ValueError(f"A ratio range must be (low, high) with low <= high, got ({low!r}, {high!r}).")


def _progress(step: int, total_steps: int, rate: float | None = None) -> float:
    """Return the completed share of the run, or of a fall by ``rate`` per step: 0 at the first step, at most 1."""
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}.")
    span = total_steps - 1 if rate is None else 1 / rate
    return min(step / span, 1.0) if span > 0 else 0.0


@dataclass(frozen=True)
class FixedRatio:
    """The same ratio at every step: a plain masked autoencoder.

    Parameters
    ----------
    ratio
        Fraction of masked items, in [0, 1].
    """

    ratio: float = 0.25

    def __post_init__(self) -> None:
        _check_shares("mask_ratio", self.ratio)

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
        Random seed for the sequence of ratios.

    Examples
    --------
    >>> from scr2mae.masking import UniformRatio
    >>> ratio = UniformRatio(0.1, 0.5, seed=0)
    >>> 0.1 <= ratio(3, 100) <= 0.5
    True
    >>> ratio(3, 100) == UniformRatio(0.1, 0.5, seed=0)(3, 100)  # depends on seed and step only
    True
    """

    low: float = 0.1
    high: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        return self.low + (self.high - self.low) * _uniform(self.seed, step)


@dataclass(frozen=True)
class MDLMRatio:
    """A ratio drawn from U(0, 1), as masked diffusion language models train.

    Parameters
    ----------
    seed
        Random seed for the sequence of ratios.
    """

    seed: int = 0

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        return _uniform(self.seed, step)


@dataclass(frozen=True)
class DecayRatio:
    """Dynamic masking: a ratio that falls linearly.

    Parameters
    ----------
    high, low
        Ratios at the first step and at the end of the fall.
    rate
        Share of the fall per step, > 0 (paper: 1/300000, 1/150000). If None, the fall takes the whole run.

    Examples
    --------
    >>> from scr2mae.masking import DecayRatio
    >>> [round(DecayRatio(0.5, 0.1)(step, 5), 2) for step in range(5)]
    [0.5, 0.4, 0.3, 0.2, 0.1]
    """

    high: float = 0.5
    low: float = 0.1
    rate: float | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if not (self.rate is None or self.rate > 0):
            raise ValueError(f"rate must be a share of the fall above 0 or None, got {self.rate!r}.")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio at ``step``."""
        return self.high + (self.low - self.high) * _progress(step, total_steps, self.rate)


@dataclass(frozen=True)
class UniformDecayRatio:
    """R²MAE + Dynamic: U(low, 2 m - low), where the mean m is the ratio of :class:`DecayRatio` (inferred).

    Parameters
    ----------
    low, high, rate
        As in :class:`DecayRatio`; ``2 high - low <= 1``.
    seed
        Random seed for the sequence of ratios.
    """

    low: float = 0.1
    high: float = 0.5
    seed: int = 0
    rate: float | None = None

    def __post_init__(self) -> None:
        DecayRatio(self.high, self.low, self.rate)  # checks them
        if 2 * self.high - self.low > 1 + 1e-12:
            raise ValueError(f"U(low, 2 m - low) leaves [0, 1]; choose 2 * high - low <= 1, got {self}.")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio drawn for ``step``."""
        mean = DecayRatio(self.high, self.low, self.rate)(step, total_steps)
        return self.low + 2 * (mean - self.low) * _uniform(self.seed, step)


@dataclass(frozen=True)
class DiscreteRatio:
    """A ratio drawn with equal probability from a few values, each with its own curriculum weights.

    Parameters
    ----------
    values
        The ratios, strictly increasing, in [0, 1].
    seed
        Random seed for the sequence of ratios.
    """

    values: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if not self.values:
            raise ValueError("DiscreteRatio needs at least one value, got none.")
        _check_shares("values", *self.values)
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"values must increase strictly, got {self.values}.")

    def index(self, step: int) -> int:
        """Return the index in ``values`` of the ratio drawn for ``step``.

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
        A float (fixed), a pair ``(low, high)`` (R²MAE), or a schedule, which is returned unchanged.
    seed
        Random seed for a schedule made from a pair.

    Returns
    -------
    A callable ``(step, total_steps) -> ratio``.

    Raises
    ------
    ValueError
        If a ratio lies outside [0, 1] or a pair is in the wrong order.
    TypeError
        If the argument is not one of these.

    Examples
    --------
    >>> from scr2mae.masking import as_ratio_schedule
    >>> as_ratio_schedule(0.25)
    FixedRatio(ratio=0.25)
    >>> as_ratio_schedule((0.1, 0.5), seed=3)
    UniformRatio(low=0.1, high=0.5, seed=3)
    """
    if isinstance(mask_ratio, Real) and not isinstance(mask_ratio, bool):
        return FixedRatio(float(mask_ratio))
    if isinstance(mask_ratio, (tuple, list)):
        if len(mask_ratio) != 2:
            raise ValueError(f"mask_ratio as a range must be a pair (low, high), got {mask_ratio!r}.")
        return UniformRatio(float(mask_ratio[0]), float(mask_ratio[1]), seed=seed)
    if callable(mask_ratio):
        return mask_ratio
    raise TypeError(f"mask_ratio must be a float, a pair (low, high) or a schedule, got {mask_ratio!r}.")


def schedule_to_state(mask_ratio: Any) -> Any:
    """Return the JSON form of a ``mask_ratio`` argument; None for a schedule that is not defined in this module."""
    if isinstance(mask_ratio, (int, float)):
        return float(mask_ratio)
    if isinstance(mask_ratio, (tuple, list)):
        return [float(value) for value in mask_ratio]
    if is_dataclass(mask_ratio) and type(mask_ratio).__name__ in __all__:
        return {"schedule": type(mask_ratio).__name__, **asdict(mask_ratio)}  # type: ignore[arg-type]
    return None


def schedule_from_state(state: Any) -> Any:
    """Return the ``mask_ratio`` argument with the JSON form ``state``, the inverse of :func:`schedule_to_state`."""
    if isinstance(state, list):
        return tuple(state)
    if not isinstance(state, dict):
        return state
    options = dict(state)
    name = options.pop("schedule", None)
    if name not in __all__ or not str(name).endswith("Ratio"):
        raise ValueError(
            f"Unknown masking schedule {name!r} in a model folder; was it made by a newer version?"
        )
    return globals()[name](**options)


def draw_mask(
    n: int, ratio: float, *, seed: int, step: int, n_obs: int | None = None, device: Device = None
) -> torch.Tensor:
    """Mask a random subset of n items, as a pure function of seed and step.

    Parameters
    ----------
    n
        Number of items (genes, positions, patches), >= 2.
    ratio
        Fraction of items to mask, in [0, 1].
    seed, step
        Determine the draw, together with ``n`` and ``ratio``; device and rank do not change it.
    n_obs
        Draw one subset per observation, for this number of observations; None draws one for all.
    device
        Device of the mask.

    Returns
    -------
    Boolean tensor of shape ``(n,)``, or ``(n_obs, n)`` with ``n_obs``; True for masked items, of which there are
    exactly ``round(ratio * n)`` per observation, clamped to ``[1, n - 1]``.

    Raises
    ------
    ValueError
        If ``n < 2``, ``n_obs < 0`` or the ratio lies outside [0, 1].

    Notes
    -----
    Items are ranked by SplitMix64 words keyed by ``(seed, step)``, and the smallest are masked. The masks of one
    step are therefore nested in the ratio. The first observation's mask is the one drawn without ``n_obs``.

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
        raise ValueError(f"A mask needs at least two items, one masked and one visible; got n={n}.")
    if n_obs is not None and n_obs < 0:
        raise ValueError(f"n_obs must be >= 0, got {n_obs}.")
    _check_shares("ratio", ratio)
    n_masked = min(max(round(ratio * n), 1), n - 1)
    n_masks = 1 if n_obs is None else n_obs
    words = mask_words(n_masks * n, seed=seed, step=step, device=device).view(n_masks, n)
    # All words of a draw differ, so the threshold masks exactly n_masked items.
    threshold = words.topk(n_masked, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    mask = words <= threshold
    return mask[0] if n_obs is None else mask


def mask_words(n: int, *, seed: int, step: int, device: Device = None) -> torch.Tensor:
    """Return the words by which :func:`draw_mask` ranks n items, int64, shape (n,), all different."""
    return random_words(n, hash_integers(seed, _MASK_STREAM, step), device)


def draw_integers(
    n: int, high: int, *, seed: int, step: int, stream: int = 0, device: Device = None
) -> torch.Tensor:
    """Draw n integers below ``high`` with equal probability, as a pure function of seed and step.

    They decide, for example, which masked tokens become the mask symbol and which a random token.

    Parameters
    ----------
    n
        Number of integers; the first k are the draw of ``n=k``.
    high
        Upper bound, excluded; ``1 <= high <= 2**32``.
    seed, step
        Determine the draw, together with ``high`` and ``stream``; device and rank do not change it.
    stream
        Draws of different streams are independent of each other and of :func:`draw_mask`.
    device
        Device of the integers.

    Returns
    -------
    int64, shape ``(n,)``.

    Raises
    ------
    ValueError
        If ``high`` is out of range or ``n`` is negative.
    """
    if n < 0 or not 1 <= high <= 1 << 32:
        raise ValueError(f"Integers are drawn n >= 0 times below high in [1, 2**32], got n={n}, high={high}.")
    words = random_words(n, hash_integers(seed, _INTEGER_STREAM, step, stream), device)
    return shift_right(words, 1) % high
