"""Learned weights on the loss, balanced by Sinkhorn, with a gradient that turns from easy to hard.

A positive matrix of features by masking ratios multiplies the element-wise loss. Sinkhorn balancing gives every feature
and every ratio the same mass, so weights move emphasis and never scale. The network that makes the matrix first lowers
the weighted loss, which favours what is easy; then its gradient turns round and favours what is hard.
Shared by cells (one matrix a mini-batch) and DNA (one row a masked token). Dong et al. 2025, appendices A.3, C.7, C.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae.masking import DiscreteRatio, FixedRatio, UniformRatio, as_ratio_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scr2mae.masking import RatioSchedule

__all__ = [
    "Curriculum",
    "CurriculumWeights",
    "GradientSchedule",
    "balance_errors",
    "scale_gradient",
    "sinkhorn",
]


def sinkhorn(weights: Tensor, *, n_iter: int = 5, valid: Tensor | None = None) -> Tensor:
    """Balance a positive matrix so that rows sum to its width and columns to its height.

    Parameters
    ----------
    weights
        Positive, shape ``(..., n_features, n_ratios)``.
    n_iter
        Alternating normalisations, >= 1; columns come last and hold exactly, rows as nearly as it has converged.
    valid
        Boolean, shape ``(..., n_features)``: False rows are padding. They come out as zero and do not count as height.

    Returns
    -------
    Balanced weights of the same shape, mean one over valid rows. Differentiable.

    Raises
    ------
    ValueError
        If an entry is not positive, ``n_iter < 1`` or no row is valid.

    Notes
    -----
    Sinkhorn-Knopp scaling in the log domain, as in appendix A.3 of Dong et al. (2025).
    """
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}.")
    if weights.dim() < 2:
        raise ValueError(f"weights must have shape (..., n_features, n_ratios), got {tuple(weights.shape)}.")
    kept = weights if valid is None else weights[valid]
    if not bool((kept > 0).all()):
        raise ValueError(f"weights must be positive, got a smallest entry of {float(kept.min()):g}.")
    if valid is not None and not bool(valid.any(dim=-1).all()):
        raise ValueError("valid has no true entry in some matrix; there is nothing to balance.")
    return _balance(weights, n_iter=n_iter, valid=valid)


def _balance(weights: Tensor, *, n_iter: int, valid: Tensor | None) -> Tensor:
    """Balance without looking at the values, which would make a GPU wait."""
    n_features, n_ratios = weights.shape[-2:]
    if valid is None:
        log_w = weights.log()
        for _ in range(n_iter):
            log_w = log_w - log_w.logsumexp(dim=-1, keepdim=True) + log(n_ratios)
            log_w = log_w - log_w.logsumexp(dim=-2, keepdim=True) + log(n_features)
        return log_w.exp()
    padding = ~valid[..., None]
    log_height = valid.sum(dim=-1).to(weights.dtype).log()[..., None, None]
    log_w = weights.masked_fill(padding, 1.0).log()
    for _ in range(n_iter):
        log_w = log_w - log_w.logsumexp(dim=-1, keepdim=True) + log(n_ratios)
        # The lowest finite number, not minus infinity: its differences, and their gradients, stay defined.
        log_w = log_w.masked_fill(padding, torch.finfo(log_w.dtype).min / 2)
        log_w = log_w - log_w.logsumexp(dim=-2, keepdim=True) + log_height
        log_w = log_w.masked_fill(padding, 0.0)
    return log_w.exp().masked_fill(padding, 0.0)


@torch.no_grad()
def _column_factors(
    log_w: Tensor, valid: Tensor | None, *, tolerance: float = 2e-5, n_iter: int = 40
) -> Tensor:
    """Log factors of the columns that balance a matrix, by damped Newton steps; shape (..., 1, n_ratios).

    With rows normalised exactly only the column factors ``v`` are unknown, and they minimise the convex function
    ``mean_g logsumexp_l(log_w + v) - mean(v)``. Where weights have become nearly binary alternating normalisations need
    thousands of rounds, these a dozen.
    """
    log_w = log_w.double()
    n_ratios = log_w.shape[-1]
    share = torch.full(log_w.shape[:-1], 1.0, dtype=log_w.dtype, device=log_w.device)
    share = share if valid is None else share * valid
    share = share / share.sum(dim=-1, keepdim=True)  # (..., n_features), each row's part of the mean
    v = torch.zeros_like(log_w[..., 0, :])  # (..., n_ratios)
    ones = torch.ones(n_ratios, n_ratios, dtype=log_w.dtype, device=log_w.device) / n_ratios
    steps = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.01], dtype=log_w.dtype, device=log_w.device)
    for _ in range(n_iter):
        p = (log_w + v[..., None, :]).softmax(dim=-1)
        mass = (p * share[..., None]).sum(dim=-2)
        error = mass - 1 / n_ratios
        if bool(error.abs().max() * n_ratios < tolerance):
            break
        curvature = torch.diag_embed(mass + 1e-12) - p.mT @ (p * share[..., None]) + ones
        direction = torch.linalg.solve(curvature, error).clamp(-20, 20)
        trial = v - steps.view(-1, *[1] * v.dim()) * direction  # (n_steps, ..., n_ratios)
        value = ((log_w + trial[..., None, :]).logsumexp(dim=-1) * share).sum(dim=-1) - trial.mean(dim=-1)
        best = value.argmin(dim=0)
        v = trial.gather(0, best[None, ..., None].expand(1, *v.shape))[0]
    return v[..., None, :]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: float) -> Tensor:
        ctx.multiplier = multiplier
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.multiplier, None


def scale_gradient(x: Tensor, multiplier: float) -> Tensor:
    """Return ``x`` itself, whose gradient is multiplied on the way back."""
    return _ScaleGradient.apply(x, multiplier)


def _steps(value: float, total_steps: int) -> float:
    """Turn a share of the run (a float in [0, 1]) or a number of steps (an int) into steps."""
    return value * total_steps if isinstance(value, float) else float(value)


@dataclass(frozen=True)
class GradientSchedule:
    """What the gradient of the weight network is multiplied by at each step.

    Frozen at first, then +1, then falling linearly to ``final``. Times are steps (int) or shares of the run (float).
    Adam divides a gradient by its running size, so the multiplier acts through its sign, and through its size only
    while it changes.

    Parameters
    ----------
    frozen
        End of the phase in which the network does not learn.
    start, end
        Where the fall begins and ends.
    final
        The last multiplier: -1 turns from easy to hard, +1 keeps to easy (the paper's k = 0).

    Notes
    -----
    The paper's steps, 5,000 and 30,000 to 120,000, are the default shares .02, .12 and .5 of its 243,000 steps on HLCA.
    """

    frozen: int | float = 0.02
    start: int | float = 0.12
    end: int | float = 0.5
    final: float = -1.0

    def __post_init__(self) -> None:
        for name in ("frozen", "start", "end"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(
                    f"{name} must be >= 0, a number of steps or a share of the run; got {value!r}."
                )
            if isinstance(value, float) and value > 1:
                raise ValueError(
                    f"{name} as a share of the run must be <= 1, got {value!r}; pass steps as an int."
                )
        if isinstance(self.start, float) == isinstance(self.end, float) and self.start > self.end:
            raise ValueError(f"start must come before end, got start={self.start!r}, end={self.end!r}.")

    def is_frozen(self, step: int, total_steps: int) -> bool:
        """Whether the network does not learn yet."""
        return step < _steps(self.frozen, total_steps)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the multiplier at ``step``; 0 while frozen.

        Raises
        ------
        ValueError
            If the step is negative, or the fall would end before it starts.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}.")
        if self.is_frozen(step, total_steps):
            return 0.0
        start, end = (_steps(value, total_steps) for value in (self.start, self.end))
        if start > end:
            raise ValueError(
                f"In a run of {total_steps} steps the fall would start at {start:g} and end at {end:g}."
            )
        share = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
        return 1.0 + (self.final - 1.0) * share


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
        cells, 5000 genes and ten ratios one matrix a mini-batch takes 0.2 MB and one a cell 80 MB, a few times over.
    """

    n_ratios: int = 10
    schedule: GradientSchedule = GradientSchedule()
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
        """Undo :func:`dataclasses.asdict`; None stays None."""
        if described is None:
            return None
        return cls(**{**described, "schedule": GradientSchedule(**described["schedule"])})

    def for_cells(self, n_vars: int) -> CurriculumWeights:
        """Build the weight network for cells of ``n_vars`` genes."""
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


class CurriculumWeights(nn.Module):
    """Network that makes balanced loss weights from what is to be predicted.

    Cells: ``n_features`` is the number of genes; ``log1p`` of the uncorrupted counts goes through two hidden layers,
    which are averaged over the mini-batch (inferred) unless ``per_cell``, and becomes one ``(n_genes, n_ratios)`` matrix.
    Tokens: ``n_features`` is None; each masked token's state, detached from the backbone (inferred), becomes one row.

    Parameters
    ----------
    n_in
        Width of the input: genes, or the token state.
    n_ratios
        Columns L, >= 2.
    n_features
        Rows of the matrix made from one input; None where each input is itself a row.
    hidden
        Widths of the hidden layers: (128, 256) for cells, (128, 128) for tokens in the paper.
    rank
        Width of each row before the row-wise projection (cells only).
    per_cell
        One matrix a cell instead of one a mini-batch.
    offset
        Added after the sigmoid, > 0: 1e-9 for cells, 0.5 for tokens in the paper.
    n_iter
        Sinkhorn iterations.

    Raises
    ------
    ValueError
        If ``n_ratios < 2`` or the offset is not positive.
    """

    def __init__(
        self,
        n_in: int,
        n_ratios: int,
        *,
        n_features: int | None = None,
        hidden: Sequence[int] = (128, 256),
        rank: int = 2,
        per_cell: bool = False,
        offset: float = 1e-9,
        n_iter: int = 5,
    ) -> None:
        super().__init__()
        if n_ratios < 2:
            raise ValueError(
                f"n_ratios must be at least 2, got {n_ratios}: with one column every weight is one."
            )
        if not offset > 0:
            raise ValueError(f"offset must be positive, got {offset!r}: Sinkhorn needs positive weights.")
        self.n_ratios, self.n_features, self.rank = n_ratios, n_features, rank
        self.per_cell, self.offset, self.n_iter = per_cell, offset, n_iter
        widths = [n_in, *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        if n_features is None:
            self.to_rows: nn.Module | None = None
            self.to_ratios = nn.Linear(widths[-1], n_ratios)
        else:
            self.to_rows = nn.Linear(widths[-1], n_features * rank)
            self.to_ratios = nn.Linear(rank, n_ratios)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Make balanced weights.

        Parameters
        ----------
        x
            Cells: ``log1p`` counts, shape ``(n_obs, n_in)``. Tokens: states, shape ``(..., n_tokens, n_in)``.
        valid
            Tokens: False for padding, shape ``(..., n_tokens)``. Cells: False for genes that are not measured, shape
            ``(n_features,)``.

        Returns
        -------
        float32, mean one over valid rows: ``(n_features, n_ratios)``, or with a leading ``n_obs`` if ``per_cell``;
        tokens: ``(..., n_tokens, n_ratios)``.
        """
        h = self.hidden(x)
        if self.n_features is not None and self.to_rows is not None:
            h = h if self.per_cell else h.mean(dim=0)
            h = self.to_rows(h).unflatten(-1, (self.n_features, self.rank))  # (..., n_features, rank)
            valid = valid if valid is None or not self.per_cell else valid.expand(h.shape[:-1])
        positive = torch.sigmoid(self.to_ratios(h).float()) + self.offset
        # Balancing forgets the columns' first scale: starting at the fixed point makes the few differentiable rounds
        # exact in value, and their gradient a truncation of the exact one.
        factors = _column_factors(positive.log(), valid).exp().to(positive.dtype)
        return _balance(positive * factors, n_iter=self.n_iter, valid=valid)


def balance_errors(weights: Tensor) -> tuple[float, float]:
    """Largest relative deviation of a row sum and of a column sum from what Sinkhorn asks for.

    Parameters
    ----------
    weights
        Shape ``(n_features, n_ratios)``.

    Returns
    -------
    Row error and column error.
    """
    n_features, n_ratios = weights.shape
    rows = (weights.sum(dim=1) / n_ratios - 1).abs().max()
    columns = (weights.sum(dim=0) / n_features - 1).abs().max()
    return float(rows), float(columns)
