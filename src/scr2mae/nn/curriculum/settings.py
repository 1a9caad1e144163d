"""Settings of a curriculum, and the schedule of its gradient: frozen, then easy, then hard."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from numbers import Integral
from typing import TYPE_CHECKING, Any

from scr2mae.masking import DiscreteRatio, FixedRatio, UniformRatio, as_ratio_schedule
from scr2mae.nn.curriculum.weights import CurriculumWeights

if TYPE_CHECKING:
    from scr2mae.masking import RatioSchedule

__all__ = ["Curriculum", "GradientSchedule"]


def _steps(value: float, total_steps: int) -> float:
    """Convert a fraction of the run (a float in [0, 1]) or a number of steps (an int) to steps."""
    return value * total_steps if isinstance(value, float) else float(value)


@dataclass(frozen=True)
class GradientSchedule:
    """Scale of the weight network's gradient at each step: 0 while frozen, then 1, then a linear fall to ``final``.

    Times are steps (int) or fractions of the run (float). Adam divides a gradient by its running size, so the scale
    acts through its sign, and through its size only while it changes.

    Parameters
    ----------
    frozen
        End of the phase in which the network does not learn.
    start, end
        Beginning and end of the fall.
    final
        Last scale: -1 turns from easy to hard, +1 favors easy elements throughout (the paper's k = 0).

    Notes
    -----
    The defaults are the paper's 5,000 and 30,000 to 120,000 steps as shares of its 243,000 steps on HLCA; the steps
    themselves, and the times for DNA, are those of ``schemes("hlca")``, ``schemes("sea_ad")`` and ``schemes("dna")``.
    """

    frozen: int | float = 0.02
    start: int | float = 0.12
    end: int | float = 0.5
    final: float = -1.0

    def __post_init__(self) -> None:
        for name in ("frozen", "start", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isfinite(value):
                raise ValueError(
                    f"{name} must be a finite number of steps or a fraction of the run, got {value!r}."
                )
            if not isinstance(value, Integral):
                object.__setattr__(self, name, value := float(value))
            if value < 0:
                raise ValueError(
                    f"{name} must be >= 0, a number of steps or a fraction of the run; got {value!r}."
                )
            if isinstance(value, float) and value > 1:
                raise ValueError(
                    f"{name} as a fraction of the run must be <= 1, got {value!r}; pass steps as an int."
                )
        if not -1 <= self.final <= 1:
            raise ValueError(f"final must be between -1 and 1, got {self.final!r}.")
        if isinstance(self.start, float) == isinstance(self.end, float) and self.start > self.end:
            raise ValueError(f"start must come before end, got start={self.start!r}, end={self.end!r}.")

    def is_frozen(self, step: int, total_steps: int) -> bool:
        """Return whether the network does not learn yet.

        Parameters
        ----------
        step, total_steps
            Step, and number of steps in the whole run.
        """
        return step < _steps(self.frozen, total_steps)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the scale at ``step``; ValueError if the fall would end before it starts."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}.")
        start, end = (_steps(value, total_steps) for value in (self.start, self.end))
        if start > end:
            raise ValueError(
                f"In a run of {total_steps} steps the fall would start at {start:g} and end at {end:g}."
            )
        if self.is_frozen(step, total_steps):
            return 0.0
        share = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
        return 1.0 + (self.final - 1.0) * share


TIMES = {
    "single_cell": GradientSchedule(),
    "text": GradientSchedule(),
    "hlca": GradientSchedule(frozen=5_000, start=30_000, end=120_000),
    "sea_ad": GradientSchedule(frozen=5_000, start=30_000, end=120_000),
    # 5,000 of 30,000 steps, then a fall "throughout its training".
    "dna": GradientSchedule(frozen=1 / 6, start=0.0, end=1.0),
}
"""The paper's schedules by domain (appendix C.7 and C.8); the one for text is inferred."""


@dataclass(frozen=True)
class Curriculum:
    """Settings of a curriculum.

    Parameters
    ----------
    n_ratios
        Number of columns L, >= 2. With a range of ratios each column is one ratio; with a fixed ratio the same column is
        always used and the others absorb the row constraint (inferred).
    schedule
        Scale of the gradient.
    n_iter
        Sinkhorn iterations.
    rank
        Width of each feature's representation before the row-wise projection.
    per_cell
        Whether each cell has a matrix of its own. Memory and time then grow with the size of the mini-batch: at 400
        cells, 5000 genes, ten ratios and the paper's widths, a step takes 1.1 times as long as a plain one with one
        matrix per mini-batch, and 45 times with one per cell, which takes 3 GB.
    """

    n_ratios: int = 10
    schedule: GradientSchedule = field(default_factory=GradientSchedule)
    n_iter: int = 5
    rank: int = 2
    per_cell: bool = False

    def __post_init__(self) -> None:
        if self.n_ratios < 2:
            raise ValueError(
                f"n_ratios must be at least 2, got {self.n_ratios}: with one column balancing makes every weight one."
            )
        if self.rank < 1 or self.n_iter < 1:
            raise ValueError(
                f"rank and n_iter must be at least 1, got rank={self.rank}, n_iter={self.n_iter}."
            )

    @classmethod
    def from_dict(cls, state: dict[str, Any] | None) -> Curriculum | None:
        """Return the settings that :func:`dataclasses.asdict` has converted; None for None.

        Parameters
        ----------
        state
            Settings by name, or None.
        """
        return None if state is None else cls(**{**state, "schedule": GradientSchedule(**state["schedule"])})

    def for_cells(self, n_vars: int) -> CurriculumWeights:
        """Return the weight network for cells, which maps log counts ``(n_obs, n_vars)`` to weights of mean one.

        Parameters
        ----------
        n_vars
            Number of genes.
        """
        return CurriculumWeights(
            n_vars,
            self.n_ratios,
            n_features=n_vars,
            rank=self.rank,
            per_cell=self.per_cell,
            n_iter=self.n_iter,
        )

    def ratio_schedule(self, mask_ratio: Any, *, seed: int = 0) -> RatioSchedule:
        """Convert the ``mask_ratio`` argument of a model to a schedule with a column of weights for each ratio.

        Parameters
        ----------
        mask_ratio
            A float (always the same column), a pair (``n_ratios`` evenly spaced values, one per column), or a
            :class:`~scr2mae.masking.DiscreteRatio` of ``n_ratios`` values.
        seed
            Random seed for the sequence of ratios.

        Returns
        -------
        The schedule.

        Raises
        ------
        ValueError
            If a schedule has ratios without a column.
        """
        schedule = as_ratio_schedule(mask_ratio, seed=seed)
        if isinstance(schedule, UniformRatio):
            step = (schedule.high - schedule.low) / (self.n_ratios - 1)
            return DiscreteRatio(
                tuple(schedule.low + i * step for i in range(self.n_ratios)), seed=schedule.seed
            )
        if isinstance(schedule, FixedRatio):
            return schedule
        if isinstance(schedule, DiscreteRatio) and len(schedule.values) == self.n_ratios:
            return schedule
        raise ValueError(
            f"A curriculum needs a fixed ratio, a range, or DiscreteRatio with n_ratios={self.n_ratios} values, one for each "
            f"column of weights; got {mask_ratio!r}."
        )

    @classmethod
    def named(cls, curriculum: str | Curriculum | None, *, domain: str = "single_cell") -> Curriculum | None:
        """Convert the ``curriculum`` argument of a model to settings; None for no curriculum.

        Parameters
        ----------
        curriculum
            ``"cl"`` (from easy to hard), ``"cl_k0"`` (easy throughout), settings, or None.
        domain
            A domain or atlas of :func:`scr2mae.schemes`, which has times of its own.

        Returns
        -------
        The settings, or None.

        Raises
        ------
        ValueError
            If the name is unknown.
        """
        if curriculum is None or isinstance(curriculum, cls):
            return curriculum
        if curriculum == "cl":
            return cls(schedule=TIMES[domain])
        if curriculum == "cl_k0":
            return cls(schedule=replace(TIMES[domain], final=1.0))
        raise ValueError(
            f"curriculum must be 'cl', 'cl_k0', Curriculum settings or None, got {curriculum!r}."
        )
