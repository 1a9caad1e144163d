"""Run a plan with Lightning: callbacks, checkpoints, resume, interruption."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from scr2mae.train.averaging import RunningWeightAverage
from scr2mae.train.progress import TrainingProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.train.plan import MaskedTrainingPlan

__all__ = ["fit"]


_SAYS_NOTHING = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    # A query trains with its reference's normalisation frozen, on purpose.
    r".*module\(s\) in eval mode.*",
    ".*LeafSpec.*is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*smaller than the logging interval.*",
    # A checkpoint holds all that a run needs; the callback that wrote it holds no more.
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*dirpath has changed from.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
)


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
            for message in _SAYS_NOTHING:
                warnings.filterwarnings("ignore", message=message)
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


def _read_checkpoint(resume: str | Path, plan: MaskedTrainingPlan, max_epochs: int) -> Path:
    """Find a checkpoint and check that it belongs to this plan and leaves something to do."""
    path = Path(resume)
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}; pass the .ckpt file, or the folder given as checkpoint_dir to the run to go on with."
        )
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tuple(t.shape) for name, t in kept["state_dict"].items()}
        done = int(kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        kept["scr2mae_history"]
    except Exception as error:
        raise ValueError(
            f"{path} is no checkpoint of this package, or is damaged: {str(error)[:200]}"
        ) from error
    if shapes != {name: tuple(t.shape) for name, t in plan.state_dict().items()}:
        raise ValueError(
            f"{path} is the checkpoint of a model of another shape; build the model as it was built then."
        )
    if done >= max_epochs:
        raise ValueError(
            f"{path} has {done} epochs behind it; max_epochs counts them in and must be larger, got {max_epochs}."
        )
    return path


def _several_devices(
    devices: int | list[int] | str, accelerator: str, trainer_kwargs: dict[str, Any]
) -> bool:
    """Whether training runs in several processes."""
    if trainer_kwargs.get("num_nodes", 1) > 1:
        return True
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices in ("auto", "-1", -1):
        return accelerator in ("auto", "gpu", "cuda") and torch.cuda.device_count() > 1
    return len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices > 1


def fit(
    plan: MaskedTrainingPlan,
    datamodule: pl.LightningDataModule,
    *,
    max_epochs: int,
    n_obs_epoch: int,
    unit: str = "cells",
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
    unit
        What the progress bar calls them.
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
    ValueError
        If the checkpoint is damaged, of another model, or already at ``max_epochs``.
    KeyboardInterrupt
        If training was interrupted; the plan's network keeps the weights it had.
    """
    callbacks = list(trainer_kwargs.pop("callbacks", None) or [])
    callbacks += _early_stopping(early_stopping, trainer_kwargs)
    if plan.averaging is not None:
        callbacks.append(RunningWeightAverage(plan.averaging))
    if trainer_kwargs.setdefault("enable_progress_bar", True):
        callbacks.append(TrainingProgress(n_obs_epoch, unit=unit))
    if checkpoint_dir is not None:
        callbacks.append(ModelCheckpoint(checkpoint_dir, filename="last", enable_version_counter=False))
        trainer_kwargs["enable_checkpointing"] = True
    checkpoint = None if resume is None else _read_checkpoint(resume, plan, max_epochs)
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
    }
    if plan.gradient_schedule is not None and _several_devices(devices, accelerator, trainer_kwargs):
        # While its network is frozen, some parameters have no gradient to exchange.
        defaults["strategy"] = "ddp_find_unused_parameters_true"
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
