"""Callbacks: average of the weights, subnormal numbers, curves of the curriculum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging

from scr2mae.masking import DiscreteRatio
from scr2mae.nn.curriculum import balance_errors

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["CurriculumLog", "RunningWeightAverage", "SubnormalCleaner", "expression_deciles"]

_MAX_INTERVAL = 8  # reading and writing all weights at each step would cost a tenth of it on a CPU
_UPDATES_PER_MEMORY = 4


class RunningWeightAverage(WeightAveraging):
    """Exponential average of the weights, over a window that is a fixed fraction of the steps so far.

    Averaging reduces the noise from each mini-batch's ratio and mask. Validation scores the average, and it
    remains after training.

    Parameters
    ----------
    share
        Window of the average, as a fraction of the optimizer steps, in (0, 1].

    Raises
    ------
    ValueError
        If the fraction is out of range.

    Notes
    -----
    Step t, from 1, moves the average by ``min(1, 1 / (share * t))`` of its distance to the weights, so early on
    it equals the current weights, regardless of run length. Later only every eighth step is averaged, with eight times
    the weight. Statistics of batch normalization are averaged in the same way.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(
                f"The fraction of the run whose weights are averaged must be in (0, 1], got {share!r}."
            )
        super().__init__(multi_avg_fn=self._average)
        self.share = share
        self._weight = 1.0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to average the weights after this step."""
        if step_idx is None:
            return False
        memory = self.share * (step_idx + 1)
        interval = max(1, min(_MAX_INTERVAL, int(memory / _UPDATES_PER_MEMORY)))
        self._weight = min(1.0, interval / memory)
        return step_idx % interval == 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the average to the network, even if the resumed run had no steps left."""
        if self._average_model is not None and int(self._average_model.n_averaged):
            self._copy_average_to_current(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Copy the average to the network if a run is interrupted, as at its end."""
        self.on_fit_end(trainer, pl_module)

    @torch.no_grad()
    def _average(self, averages: Any, current: Any, n_averaged: torch.Tensor) -> None:
        # All tensors of a list have the same type.
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, self._weight)
        else:
            torch._foreach_copy_(averages, current)


class SubnormalCleaner(Callback):
    """Set subnormal weights and moments of the optimizer to zero at the end of each epoch, on a CPU.

    Weights without a gradient, such as those of genes that no cell expresses, decay until they are subnormal, which makes
    arithmetic many times slower. Their size, below 1.2e-38, is far below any rounding error.
    """

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clean the weights, their average and the optimizer's state."""
        averages: list[Any] = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        tensors = [p for module in (pl_module, *averages) if module is not None for p in module.parameters()]
        for optimizer in trainer.optimizers:
            tensors += [each for state in optimizer.state.values() for each in state.values()]
        for tensor in tensors:
            if torch.is_tensor(tensor) and tensor.is_floating_point() and tensor.device.type == "cpu":
                info = torch.finfo(tensor.dtype)
                largest = info.tiny * (1 - info.eps)
                torch.ops.aten.hardshrink.out(tensor, largest, out=tensor)  # in place, in one pass


def expression_deciles(mean: np.ndarray) -> np.ndarray:
    """Return the decile of each gene by mean count, 0 (lowest) to 9, ties in order of position; shape (n_vars,)."""
    ranks = np.argsort(np.argsort(mean, kind="stable"), kind="stable")
    return ranks * 10 // max(len(mean), 1)


class CurriculumLog(Callback):
    """Record, at the end of each epoch, the weights that the curriculum gave to the last mini-batch.

    Curves: ``curriculum_multiplier``, the scale of the gradient; ``curriculum_row_error`` and
    ``curriculum_column_error``, the largest relative deviations from equal mass; and the mean weight of each
    decile of genes by expression, 1 (lowest) to 10, at the smallest and at the largest ratio:
    ``curriculum_weight_<ratio>_decile_<k>``. A gene's weights average to one over ratios, so each ratio is
    recorded separately. ``deciles`` (n_vars,) are 0 to 9; None omits the expression curves.
    """

    def __init__(self, deciles: np.ndarray | None) -> None:
        self.deciles = deciles

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record at the last mini-batch of an epoch."""
        if not trainer.is_last_batch:
            return
        with torch.no_grad():
            weights = pl_module.module.curriculum_weights(pl_module.context.batch)
        weights = weights if weights.dim() == 2 else weights.mean(dim=0)
        epoch = trainer.current_epoch
        row_error, column_error = balance_errors(weights)
        pl_module.record("curriculum_multiplier", epoch, pl_module.last_grad_scale)
        pl_module.record("curriculum_row_error", epoch, row_error)
        pl_module.record("curriculum_column_error", epoch, column_error)
        if self.deciles is None:
            return
        schedule = pl_module.ratio_schedule
        if isinstance(schedule, DiscreteRatio):
            columns = {f"{schedule.values[i]:g}": i for i in (0, len(schedule.values) - 1)}
        else:
            columns = {"selected": 0}
        for name, column in columns.items():
            by_gene = weights[:, column].cpu().numpy()
            for decile in np.unique(self.deciles):
                mean = float(by_gene[self.deciles == decile].mean())
                pl_module.record(f"curriculum_weight_{name}_decile_{decile + 1}", epoch, mean)
