"""Progress of a run: one line at its start, then a progress bar or, without a terminal, a log line per tenth."""

from __future__ import annotations

import logging
import time
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ProgressBar

from scr2mae._utils.progress import is_hidden, progress

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["TrainingProgress"]

logger = logging.getLogger(__name__)

_WARM_UP = 1.0  # seconds after the first mini-batch from which the speed is estimated
_LINES = 10


class TrainingProgress(ProgressBar):
    """Log device, data and epochs, then show observations per second, time left and losses.

    On a terminal and in a notebook with widgets this is a bar; elsewhere the first line has the expected
    time, and a line follows per tenth of the run. ``unit`` is the name of the observations, in the plural. A
    data module may describe its data in ``facts``, a phrase, and ``hint``, a sentence or None.
    """

    def __init__(self, n_obs_epoch: int, *, unit: str = "cells") -> None:
        super().__init__()
        self.n_obs_epoch, self.unit = n_obs_epoch, unit
        self.bar: Any = None
        self._enabled = True
        self._lines: _Lines | None = None
        self._ended: int | None = None  # the epoch whose losses are not shown yet

    def disable(self) -> None:
        """Switch off on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the first line and open the bar."""
        if not self._enabled or not trainer.is_global_zero or is_hidden():
            return
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self.bar = progress(
            after=0.0,
            total=epochs and epochs * self.n_obs_epoch,
            initial=trainer.current_epoch * self.n_obs_epoch,
            unit=self.unit,
            unit_scale=True,
            desc=f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            # Everything including the losses fits the 80 columns of a terminal.
            bar_format="{desc}{percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}",
        )
        start = f"Training on {_place(trainer)}: {self._facts(trainer)}"
        hint = getattr(getattr(trainer, "datamodule", None), "hint", None)
        if self.bar.disable:
            self._lines = _Lines(start, hint, trainer.current_epoch, epochs)
            return
        self.bar.clear()
        logger.info("%s.", start)
        if hint:
            logger.info("%s", hint)
        self.bar.refresh()

    def _facts(self, trainer: pl.Trainer) -> str:
        """Describe data and length of the run."""
        datamodule = getattr(trainer, "datamodule", None)
        size = getattr(datamodule, "batch_size", None)
        batches = f" in mini-batches of {size}" if size else ""
        facts = getattr(datamodule, "facts", "")
        n_epochs = trainer.max_epochs
        epochs = "1 epoch" if n_epochs == 1 else f"{'unlimited' if n_epochs is None else n_epochs} epochs"
        said = f"{self.n_obs_epoch:,} {self.unit}, {epochs}{batches}"
        return f"{said}; {facts}" if facts else said

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance within an epoch."""
        if self.bar is None:
            return
        within = min((batch_idx + 1) / max(1, trainer.num_training_batches), 1.0)
        done = trainer.current_epoch + within
        self.bar.update(done * self.n_obs_epoch - self.bar.n)
        if self._lines is not None and within < 1:
            self._lines.advance(done, self.n_obs_epoch, self.unit, _losses(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the losses of the previous epoch, which Lightning averages after its end."""
        self._show_losses(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance to the end of the epoch."""
        if self.bar is None:
            return
        self._ended = trainer.current_epoch + 1
        self.bar.set_description(f"Epoch {self._ended}/{trainer.max_epochs}", refresh=False)
        self.bar.n = self._ended * self.n_obs_epoch
        self.bar.refresh()

    def _show_losses(self, trainer: pl.Trainer) -> None:
        """Show the losses of the epoch that has ended, once."""
        if self.bar is None or self._ended is None:
            return
        self.bar.set_postfix(_losses(trainer))
        if self._lines is not None:
            self._lines.advance(self._ended, self.n_obs_epoch, self.unit, _losses(trainer))
        self._ended = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last losses and close the bar."""
        self._show_losses(trainer)
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar if training is interrupted."""
        self.on_train_end(trainer, pl_module)


class _Lines:
    """Lines of a log in place of a bar; positions are in epochs."""

    def __init__(self, start: str, hint: str | None, first: float, epochs: int | None) -> None:
        self.start: str | None = start
        self.hint, self.first, self.epochs = hint, first, epochs
        self.n_logged = 0
        # The time before the first position is longer: memory is reserved and code compiled.
        self.warm: tuple[float, float] | None = None
        self.began = time.monotonic()

    def advance(self, done: float, n_obs_epoch: int, unit: str, losses: dict[str, str]) -> None:
        """Log what is due at a position."""
        now = time.monotonic()
        is_first, is_last = self.warm is None, done == self.epochs
        if self.warm is None:
            self.warm = (done, now)
            if not is_last:
                return  # it says nothing about the speed of the rest
        since, at = (self.first, self.began) if is_first else self.warm
        speed = (done - since) / max(now - at, 1e-9)  # epochs per second
        if self.start is not None:
            if now - at < _WARM_UP and not is_last:
                return
            time_left = "" if self.epochs is None else f"; about {_time((self.epochs - done) / speed)}"
            logger.info("%s%s.", self.start, time_left)
            if self.hint:
                logger.info("%s", self.hint)
            self.start = None
        if self.epochs is None:
            return
        n_due = int(_LINES * (done - self.first) / max(self.epochs - self.first, 1e-9) + 1e-9)
        if n_due <= self.n_logged:
            return
        self.n_logged = n_due
        shown = "".join(f", {name} {value}" for name, value in losses.items())
        left = "done" if done >= self.epochs else f"{_time((self.epochs - done) / speed)} left"
        logger.info(
            "%d %%, epoch %d of %d%s, %s %s per second, %s.",
            *(round(100 * done / self.epochs), ceil(done - 1e-9), self.epochs),
            *(shown, f"{speed * n_obs_epoch:,.0f}", unit, left),
        )


def _losses(trainer: pl.Trainer) -> dict[str, str]:
    """Return the losses of the last epoch."""
    metrics = trainer.callback_metrics
    names = {"loss": "train_loss", "val": "validation_loss"}
    return {short: f"{float(metrics[name]):.4f}" for short, name in names.items() if name in metrics}


def _place(trainer: pl.Trainer) -> str:
    """Name device and precision."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"the CPU, {threads} thread{'s' if threads > 1 else ''}"
    else:
        name = device.type
    processes = f"{trainer.world_size} processes with " if trainer.world_size > 1 else ""
    return f"{processes}{name} ({trainer.precision})"


def _time(seconds: float) -> str:
    """Return a duration in one unit that people use."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
