"""What a curriculum does in training: weights by expression, multiplier, mass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from scr2mae.masking import DiscreteRatio
from scr2mae.nn.curriculum import balance_errors

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["CurriculumLog", "expression_deciles"]


def expression_deciles(mean: np.ndarray) -> np.ndarray:
    """Decile of each gene by mean expression, 0 (lowest) to 9; shape (n_vars,).

    Parameters
    ----------
    mean
        Mean count of each gene, shape (n_vars,).

    Returns
    -------
    Whole numbers; ties in order of position.
    """
    ranks = np.argsort(np.argsort(mean, kind="stable"), kind="stable")
    return ranks * 10 // max(len(mean), 1)


class CurriculumLog(Callback):
    """Record, at the end of each epoch, what the curriculum made of its last mini-batch.

    Curves: ``curriculum_multiplier``; ``curriculum_row_error`` and ``curriculum_column_error``, the largest relative
    deviations from equal mass; and the mean weight of each decile of genes by expression, 1 (lowest) to 10, at the
    smallest and at the largest ratio: ``curriculum_weight_<ratio>_decile_<k>``. Averaged over all ratios a gene's
    weights are one, so each column is shown by itself.

    Parameters
    ----------
    deciles
        Decile of each gene, 0 to 9, shape (n_vars,). None leaves the curves by expression out.
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
