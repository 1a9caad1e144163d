"""Learning-rate schedule: warm-up, then constant, linear or cosine decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LearningRateSchedule"]

_DECAYS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LearningRateSchedule:
    """Multiplier for the learning rate at each optimizer step.

    It rises linearly to 1 during the warm-up, then stays at 1 or falls to ``final`` at the end of the run.

    Parameters
    ----------
    decay
        ``"constant"``, ``"linear"`` or ``"cosine"``.
    warmup
        Length of the warm-up: steps (int) or a fraction of the run (float).
    final
        Multiplier at the end of a decay, >= 0.
    """

    decay: str = "constant"
    warmup: int | float = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in _DECAYS:
            raise ValueError(f"decay must be one of {list(_DECAYS)}, got {self.decay!r}.")
        if not self.warmup >= 0 or (isinstance(self.warmup, float) and self.warmup > 1):
            raise ValueError(
                f"warmup must be steps (int >= 0) or a fraction of the run (float up to 1), got {self.warmup!r}."
            )
        if not self.final >= 0:
            raise ValueError(f"final must be >= 0, got {self.final!r}.")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the multiplier at ``step`` of ``total_steps``; positive from the first step on."""
        warmup = self.warmup * total_steps if isinstance(self.warmup, float) else self.warmup
        if step < warmup:
            return min((step + 1) / warmup, 1.0)
        if self.decay == "constant":
            return 1.0
        share = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        shape = 1.0 - share if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
        return self.final + (1.0 - self.final) * shape
