"""Settings of a curriculum, and what they make of a model's arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scr2mae.masking import DiscreteRatio, FixedRatio, UniformRatio, as_ratio_schedule
from scr2mae.nn.curriculum.schedule import GradientSchedule
from scr2mae.nn.curriculum.weights import CurriculumWeights

if TYPE_CHECKING:
    from scr2mae.masking import RatioSchedule

__all__ = ["Curriculum"]


@dataclass(frozen=True)
class Curriculum:
    """Settings of a curriculum.

    Parameters
    ----------
    n_ratios
        Columns L, >= 2. With a range of ratios each column is one ratio; with a fixed ratio the same column is always
        taken and the others absorb the row constraint (inferred).
    schedule
        Gradient multiplier.
    n_iter
        Sinkhorn iterations.
    rank
        Width of each feature's representation before the row-wise projection.
    per_cell
        Whether each cell has a matrix of its own. Memory and time then grow by the size of the mini-batch: at 400
        cells, 5000 genes, ten ratios and the paper's widths a step takes 1.1 times a plain one with one matrix a
        mini-batch, and 45 times with one a cell, which holds 3 GB.
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
    def from_dict(cls, described: dict[str, Any] | None) -> Curriculum | None:
        """Undo :func:`dataclasses.asdict`; None stays None.

        Parameters
        ----------
        described
            Settings by name, or None.

        Returns
        -------
        The settings, or None.
        """
        if described is None:
            return None
        return cls(**{**described, "schedule": GradientSchedule(**described["schedule"])})

    def for_cells(self, n_vars: int) -> CurriculumWeights:
        """Build the weight network for cells of ``n_vars`` genes.

        Parameters
        ----------
        n_vars
            Number of genes.

        Returns
        -------
        A network that maps log counts, shape ``(n_obs, n_vars)``, to weights of mean one.
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
        """Turn the ``mask_ratio`` argument of a model with a curriculum into a schedule.

        Parameters
        ----------
        mask_ratio
            A float (always the same column), a pair (``n_ratios`` values evenly over it, a column each), or a
            :class:`~scr2mae.masking.DiscreteRatio` of ``n_ratios`` values.
        seed
            Seed of the sequence of ratios.

        Returns
        -------
        A schedule whose every ratio has a column of weights.

        Raises
        ------
        ValueError
            If a schedule has no column for each of its ratios.
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
    def named(cls, curriculum: str | Curriculum | None) -> Curriculum | None:
        """Turn the ``curriculum`` argument of a model into settings.

        Parameters
        ----------
        curriculum
            ``"cl"`` (from easy to hard), ``"cl_k0"`` (easy throughout), settings, or None.

        Returns
        -------
        The settings; None without a curriculum.

        Raises
        ------
        ValueError
            If the name is unknown.
        """
        if curriculum is None or isinstance(curriculum, cls):
            return curriculum
        if curriculum == "cl":
            return cls()
        if curriculum == "cl_k0":
            return cls(schedule=GradientSchedule(final=1.0))
        raise ValueError(
            f"curriculum must be 'cl', 'cl_k0', Curriculum settings or None, got {curriculum!r}."
        )
