"""One progress bar for a whole run."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from scr2mae._utils.progress import progress

__all__ = ["TrainingProgress"]


class TrainingProgress(ProgressBar):
    """One bar for the whole run: observations seen, observations per second, time left, losses.

    Quiet unless standard error is a terminal, or this is a notebook.

    Parameters
    ----------
    n_obs_epoch
        Observations an epoch.
    unit
        What they are.
    """

    def __init__(self, n_obs_epoch: int, *, unit: str = "cells") -> None:
        super().__init__()
        self.n_obs_epoch, self.unit = n_obs_epoch, unit
        self.bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Switch off on ranks other than the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        if self._enabled and trainer.is_global_zero:
            epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
            self.bar = progress(
                after=0.0,
                total=epochs and epochs * self.n_obs_epoch,
                initial=trainer.current_epoch * self.n_obs_epoch,
                unit=self.unit,
                unit_scale=True,
                desc=f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                # Everything, the losses too, on the 80 columns of a terminal.
                bar_format="{desc}{percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the bar and show the losses."""
        if self.bar is None:
            return
        metrics = trainer.callback_metrics
        shown = {
            short: f"{float(metrics[name]):.4f}"
            for short, name in (("loss", "train_loss"), ("val", "validation_loss"))
            if name in metrics
        }
        self.bar.set_description(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.n = (trainer.current_epoch + 1) * self.n_obs_epoch
        self.bar.refresh()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar within an epoch."""
        if self.bar is not None:
            done = min((batch_idx + 1) / max(1, trainer.num_training_batches), 1.0)
            self.bar.update((trainer.current_epoch + done) * self.n_obs_epoch - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar when training breaks off."""
        self._close()
