"""One training plan for every modality, on Lightning: masks by step, fixed validation masks, resume."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scr2mae.masking import RatioSchedule

__all__ = ["VALIDATION_RATIOS", "MaskedTrainingPlan", "fit"]

logger = logging.getLogger(__name__)

VALIDATION_RATIOS = (0.1, 0.3, 0.5)
"""Validation hides these shares whatever the training scheme, so that curves compare across schemes."""

_VALIDATION_SEED = 20_250_921
_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


class _Loss(Protocol):
    loss: torch.Tensor


class MaskedModule(Protocol):
    """What a network must offer to be trained here."""

    def masked_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> _Loss:
        """Hide a share of a mini-batch, as a pure function of seed and step, and score it."""
        ...


class MaskedTrainingPlan(pl.LightningModule):
    """Draw a ratio and a mask for each step, minimise the loss over what is hidden.

    Parameters
    ----------
    module
        The network.
    ratio_schedule
        Called as ``(step, total_steps)``.
    seed
        Seed of the masks; they depend on it and on the step alone.
    lr, weight_decay, eps
        Of the optimiser.
    optimizer
        ``"Adam"`` (the paper's, weight decay inside the gradient) or ``"AdamW"``.
    validation_ratios
        Shares hidden in validation.

    Notes
    -----
    ``history`` is filled by the plan itself, so it exists without a logger: the loss and ratio of every step, and
    per epoch the mean training loss and the validation loss at each ratio and on average.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        ratio_schedule: RatioSchedule,
        seed: int = 0,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        eps: float = 1e-8,
        optimizer: str = "Adam",
        validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    ) -> None:
        super().__init__()
        if optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {list(_OPTIMIZERS)}, got {optimizer!r}.")
        if not lr > 0 or not weight_decay >= 0 or not eps > 0:
            raise ValueError(
                f"lr and eps must be positive and weight_decay >= 0, got lr={lr!r}, eps={eps!r}, weight_decay={weight_decay!r}."
            )
        self.module = module
        self.ratio_schedule, self.mask_seed = ratio_schedule, seed
        self.optimizer_name = optimizer
        self.optimizer_kwargs = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        self.validation_ratios = tuple(validation_ratios)
        self.rows: dict[str, list[tuple[int, float]]] = {}
        self._steps: list[tuple[int, float, torch.Tensor]] = []
        self._n_validated = 0

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """One frame a curve, indexed by step or epoch, with one column of the curve's name."""
        frames = {}
        for name, rows in self.rows.items():
            index = pd.Index([i for i, _ in rows], name="step" if name.endswith("_step") else "epoch")
            frames[name] = pd.DataFrame({name: [value for _, value in rows]}, index=index)
        return frames

    def _record(self, name: str, index: int, value: float) -> None:
        self.rows.setdefault(name, []).append((index, value))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss over what is hidden at this step."""
        step = self.global_step
        ratio = self.ratio_schedule(step, int(self.trainer.estimated_stepping_batches))
        module: Any = self.module
        loss = module.masked_loss(batch, ratio=ratio, seed=self.mask_seed, step=step).loss
        self._steps.append((step, ratio, loss.detach()))
        return loss

    def flush_steps(self) -> list[float]:
        """Move the steps' losses from the device to the history, in one transfer."""
        if not self._steps:
            return []
        losses = torch.stack([loss for *_, loss in self._steps]).float().cpu().tolist()
        for (step, ratio, _), loss in zip(self._steps, losses, strict=True):
            self._record("train_loss_step", step, loss)
            self._record("mask_ratio_step", step, ratio)
        self._steps.clear()
        return losses

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        first = self._epoch_start
        self.flush_steps()
        losses = [loss for step, loss in self.rows.get("train_loss_step", []) if step >= first]
        if losses:
            mean = math.fsum(losses) / len(losses)
            self._record("train_loss", self.current_epoch, mean)
            self.log("train_loss", mean, sync_dist=True)

    def on_train_epoch_start(self) -> None:
        """Remember where the epoch starts, also when it is resumed in its middle."""
        self._epoch_start = self.global_step - self.trainer.fit_loop.epoch_loop.batch_progress.current.completed

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score this batch under the same masks at every epoch and for every scheme."""
        module: Any = self.module
        for ratio in self.validation_ratios:
            out = module.masked_loss(batch, ratio=ratio, seed=_VALIDATION_SEED, step=batch_idx)
            self.log(
                f"validation_loss_{ratio:g}", out.loss, on_epoch=True, sync_dist=True, batch_size=out.n_obs_minibatch
            )

    def on_validation_epoch_end(self) -> None:
        """Record each validation curve and their mean."""
        metrics = self.trainer.callback_metrics
        curves = {f"validation_loss_{ratio:g}": 0.0 for ratio in self.validation_ratios}
        curves = {name: float(metrics[name]) for name in curves if name in metrics}
        if not curves:
            return
        mean = math.fsum(curves.values()) / len(curves)
        self.log("validation_loss", mean)
        for name, value in {"validation_loss": mean, **curves}.items():
            self._record(name, self.current_epoch, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser over the parameters that train."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return _OPTIMIZERS[self.optimizer_name](parameters, fused=fused, **self.optimizer_kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history with the weights."""
        self.flush_steps()
        checkpoint["scr2mae_history"] = {name: list(rows) for name, rows in self.rows.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        kept = checkpoint.get("scr2mae_history", {})
        self.rows = {name: [(int(i), float(v)) for i, v in rows] for name, rows in kept.items()}


class TrainingProgress(ProgressBar):
    """One bar for the whole run: cells seen, cells per second, time left, losses."""

    def __init__(self, n_obs_epoch: int) -> None:
        super().__init__()
        self.n_obs_epoch = n_obs_epoch
        self.bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Switch off on ranks other than the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        if self._enabled and trainer.is_global_zero:
            epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
            self.bar = tqdm(
                total=epochs and epochs * self.n_obs_epoch,
                initial=trainer.current_epoch * self.n_obs_epoch,
                unit="cells",
                unit_scale=True,
                desc="Training",
                dynamic_ncols=True,
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
        self.bar.set_postfix({"epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}", **shown}, refresh=False)
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

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar when training breaks off."""
        self._close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's start-up lines, which say nothing about the model, out of the log."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    loggers += [logging.getLogger("lightning.pytorch.utilities.rank_zero")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            # A query trains with its reference's normalisation frozen, on purpose.
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _early_stopping(early_stopping: bool, kwargs: dict[str, Any]) -> list[Callback]:
    """Take scvi-tools' ``early_stopping_*`` arguments out of the trainer's."""
    options = {
        name.removeprefix("early_stopping_"): kwargs.pop(name)
        for name in list(kwargs)
        if name.startswith("early_stopping_")
    }
    if not early_stopping:
        return []
    return [EarlyStopping(**{"monitor": "validation_loss", "patience": 45, "mode": "min", **options})]


def _checkpoint_path(resume: str | Path) -> Path:
    path = Path(resume)
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}; pass the .ckpt file, or the folder given as checkpoint_dir to the run to go on with."
        )
    return path


def fit(
    plan: MaskedTrainingPlan,
    datamodule: pl.LightningDataModule,
    *,
    max_epochs: int,
    n_obs_epoch: int,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    early_stopping: bool = False,
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_kwargs: Any,
) -> pl.Trainer:
    """Train a plan with Lightning.

    Parameters
    ----------
    plan
        What to train.
    datamodule
        Mini-batches for training and, if there are any, validation.
    max_epochs
        Epochs in all, those before ``resume`` counted in.
    n_obs_epoch
        Observations an epoch, for the progress bar.
    accelerator, devices
        As in :class:`lightning.pytorch.Trainer`.
    early_stopping
        Stop when ``validation_loss`` no longer falls; ``early_stopping_patience=`` and the like set the details.
    resume
        A checkpoint, or the ``checkpoint_dir`` of an earlier run, to go on from.
    checkpoint_dir
        Folder that receives ``last.ckpt`` after every epoch.
    trainer_kwargs
        Further arguments of :class:`lightning.pytorch.Trainer`.

    Returns
    -------
    The trainer, after training.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint to resume from.
    KeyboardInterrupt
        If training was interrupted; the plan's network keeps the weights it had.
    """
    callbacks = list(trainer_kwargs.pop("callbacks", None) or [])
    callbacks += _early_stopping(early_stopping, trainer_kwargs)
    if trainer_kwargs.setdefault("enable_progress_bar", True):
        callbacks.append(TrainingProgress(n_obs_epoch))
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", enable_version_counter=False))
        trainer_kwargs["enable_checkpointing"] = True
    checkpoint = None if resume is None else _checkpoint_path(resume)
    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
    }
    plan.module.train()
    on_interrupt = signal.getsignal(signal.SIGINT)
    with _quiet_lightning():
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            callbacks=callbacks,
            **{**defaults, **trainer_kwargs},
        )
        try:
            trainer.fit(plan, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            raise KeyboardInterrupt("Training was interrupted.") from error
        finally:
            plan.flush_steps()
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # Lightning's shutdown leaves Ctrl-C deaf
                signal.signal(signal.SIGINT, on_interrupt)
    return trainer
