"""The gradient that reaches the weight network: frozen, then easy, then hard."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

__all__ = ["GradientSchedule", "scale_gradient"]


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: float) -> Tensor:
        ctx.multiplier = multiplier
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.multiplier, None


def scale_gradient(x: Tensor, multiplier: float) -> Tensor:
    """Return ``x`` itself, whose gradient is multiplied on the way back.

    Parameters
    ----------
    x
        Any shape.
    multiplier
        Factor of the gradient; a negative one turns learning into unlearning.
    """
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
            if isinstance(value, bool) or not isfinite(value):
                raise ValueError(
                    f"{name} must be a finite number of steps or a share of the run, got {value!r}."
                )
            if not isinstance(value, Integral):
                object.__setattr__(self, name, value := float(value))
            if value < 0:
                raise ValueError(
                    f"{name} must be >= 0, a number of steps or a share of the run; got {value!r}."
                )
            if isinstance(value, float) and value > 1:
                raise ValueError(
                    f"{name} as a share of the run must be <= 1, got {value!r}; pass steps as an int."
                )
        if not -1 <= self.final <= 1:
            raise ValueError(f"final must be between -1 and 1, got {self.final!r}.")
        if isinstance(self.start, float) == isinstance(self.end, float) and self.start > self.end:
            raise ValueError(f"start must come before end, got start={self.start!r}, end={self.end!r}.")

    def is_frozen(self, step: int, total_steps: int) -> bool:
        """Whether the network does not learn yet.

        Parameters
        ----------
        step, total_steps
            Optimizer step, and the number of them in the whole run.

        Returns
        -------
        True in the first steps of a run.
        """
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
        start, end = (_steps(value, total_steps) for value in (self.start, self.end))
        if start > end:
            raise ValueError(
                f"In a run of {total_steps} steps the fall would start at {start:g} and end at {end:g}."
            )
        if self.is_frozen(step, total_steps):
            return 0.0
        share = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
        return 1.0 + (self.final - 1.0) * share
