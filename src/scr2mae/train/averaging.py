"""The average of the weights over the last part of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import WeightAveraging

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["RunningWeightAverage"]

_MOST_STEPS_APART = 8  # reading and writing all weights at each step would cost a tenth of it on a CPU
_UPDATES_A_MEMORY = 4


class RunningWeightAverage(WeightAveraging):
    """Exponential average of the weights whose memory is a share of the steps so far.

    Each mini-batch's ratio and genes pull the weights their own way; the average is what they have in common. It is what
    validation scores and what remains after training.

    Parameters
    ----------
    share
        Memory of the average, as a share of the optimizer steps, in (0, 1].

    Raises
    ------
    ValueError
        If the share is out of range.

    Notes
    -----
    Step t, from 1, moves the average by ``min(1, 1 / (share * t))`` of its distance to the weights: the last weights at first,
    whatever the length of the run. Later only every eighth step is taken, with eight times the weight. Statistics of batch
    normalization are averaged alike.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(
                f"The share of the run whose weights are averaged must be in (0, 1], got {share!r}."
            )
        super().__init__(multi_avg_fn=self._average)
        self.share = share
        self._weight = 1.0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the weights after this step enter the average."""
        if step_idx is None:
            return False
        memory = self.share * (step_idx + 1)
        apart = max(1, min(_MOST_STEPS_APART, int(memory / _UPDATES_A_MEMORY)))
        self._weight = min(1.0, apart / memory)
        return step_idx % apart == 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average behind also where a checkpoint had nothing left to train."""
        self._leave_average(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the average behind when a run breaks off, as at its end."""
        self._leave_average(pl_module)

    def _leave_average(self, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None and int(self._average_model.n_averaged):
            self._copy_average_to_current(pl_module)

    @torch.no_grad()
    def _average(self, averages: Any, current: Any, n_averaged: torch.Tensor) -> None:
        # Lists of one kind of number each.
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, self._weight)
        else:
            torch._foreach_copy_(averages, current)
