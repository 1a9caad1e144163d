"""Run a plan with Lightning: callbacks, checkpoints, resuming, interruption."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.model_helpers import is_overridden

from scr2mae._utils.compat import single_thread_after_fork
from scr2mae._utils.files import as_path
from scr2mae._utils.progress import log_level, log_lines_shown
from scr2mae.train.callbacks import RunningWeightAverage, SubnormalCleaner
from scr2mae.train.checkpoints import (
    AtomicCheckpointIO,
    ResumeState,
    StepCheckpoint,
    find_checkpoint,
    run_settings,
)
from scr2mae.train.distributed import RankAverages, data_parallel_options
from scr2mae.train.executions import choose_steps, in_executions, replaced
from scr2mae.train.guard import StepGuard
from scr2mae.train.progress import TrainingProgress
from scr2mae.train.provenance import fingerprint, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from scr2mae.train.plan import MaskedTrainingPlan

__all__ = ["fit", "interruptible"]

_DEFAULTS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": 1,
}
_QUIET = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_NEED_LOGGER = (DeviceStatsMonitor, LearningRateMonitor)

_IRRELEVANT_WARNINGS = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    # A query trains with the normalization of its reference frozen.
    r".*module\(s\) in eval mode.*",
    ".*LeafSpec.*is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*smaller than the logging interval.*",
    # A checkpoint has everything that a run needs; the callback that wrote it adds nothing.
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*dirpath has changed from.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
    ".*Total length of `list` across ranks is zero.*",
    # From PyTorch, for the curriculum's weights, which are an input of the compiled loss.
    r".*\.grad attribute of a Tensor that is not a leaf Tensor.*",
)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's messages and warnings that do not concern the model."""
    with log_level(logging.WARNING, *_QUIET), warnings.catch_warnings():
        for message in _IRRELEVANT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C; Lightning exits instead, and then ignores a second one."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt("Training was interrupted.") from error
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by Lightning's shutdown
            signal.signal(signal.SIGINT, on_interrupt)


@contextmanager
def _without_none(datamodule: Any) -> Iterator[None]:
    """Accept None from ``val_dataloader`` for no validation, as data modules of ``scvi.dataloaders`` return it."""
    if not is_overridden("val_dataloader", datamodule, pl.LightningDataModule):
        yield
        return
    own = datamodule.val_dataloader

    def val_dataloader() -> Any:
        loaders = own()
        return [] if loaders is None else loaders

    with replaced(datamodule, "val_dataloader", val_dataloader):
        yield


def _given_callbacks(kwargs: dict[str, Any], *, checkpoint_dir: str | Path | None) -> list[Callback]:
    """Remove the caller's callbacks from the trainer's arguments; raise for those that lack what they need."""
    given = kwargs.pop("callbacks", None) or []
    callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
    if wrong := [each for each in callbacks if not isinstance(each, Callback)]:
        raise TypeError(f"callbacks takes Lightning callbacks, got {wrong[0]!r}.")
    checkpoints = [each for each in callbacks if isinstance(each, ModelCheckpoint)]
    has_place = kwargs.get("default_root_dir") is not None or bool(kwargs.get("logger"))
    if not has_place and any(each.dirpath is None for each in checkpoints):
        raise ValueError(
            "ModelCheckpoint needs a folder, ModelCheckpoint(dirpath=...); or pass checkpoint_dir=."
        )
    asked = kwargs.get("enable_checkpointing") and checkpoint_dir is None
    if asked and not checkpoints and not has_place:
        raise ValueError(
            "enable_checkpointing=True needs a folder; pass checkpoint_dir= for a checkpoint after every epoch, or "
            "callbacks=[ModelCheckpoint(dirpath=...)]."
        )
    if checkpoints:
        kwargs["enable_checkpointing"] = True
    if any(getattr(each, "load_best_on_end", False) for each in checkpoints):
        raise ValueError(
            "SaveCheckpoint(load_best_on_end=True) reads scvi-tools' files, which are pickles; leave it out and load the "
            "best model by load(callback.best_model_path)."
        )
    for each in callbacks:
        if str(getattr(each, "monitor", "")).startswith(("elbo", "reconstruction_loss", "kl_")):
            raise ValueError(
                f"{type(each).__name__}(monitor={each.monitor!r}) names a metric of scVI; there are 'train_loss' and "
                "'validation_loss'."
            )
    if not kwargs.get("logger"):
        for each in callbacks:
            if isinstance(each, _NEED_LOGGER):
                raise ValueError(
                    f"{type(each).__name__} writes to a logger; pass one, such as "
                    "logger=lightning.pytorch.loggers.CSVLogger('logs')."
                )
    return callbacks


def _early_stopping(early_stopping: bool, kwargs: dict[str, Any]) -> list[Callback]:
    """Remove scvi-tools' ``early_stopping_*`` from the trainer's arguments and return the callback for them."""
    options = {
        name.removeprefix("early_stopping_"): kwargs.pop(name)
        for name in list(kwargs)
        if name.startswith("early_stopping_")
    }
    if unknown := sorted(set(options) - set(signature(EarlyStopping).parameters)):
        names = [f"early_stopping_{name}" for name in unknown]
        raise TypeError(
            f"{names} are not known; Lightning's EarlyStopping has patience, min_delta, monitor and mode."
        )
    if not early_stopping:
        return []
    return [EarlyStopping(**{"monitor": "validation_loss", "patience": 45, "mode": "min", **options})]


def _checkpoints(
    folder: str | Path | None, every_n_steps: int | None, kwargs: dict[str, Any]
) -> list[Callback]:
    """Return the callbacks that write ``last.ckpt``, and make the trainer write checkpoints atomically."""
    if every_n_steps is not None and (folder is None or every_n_steps < 1):
        raise ValueError(
            f"checkpoint_every_n_steps must be at least 1 and needs checkpoint_dir, got {every_n_steps!r} and {folder!r}."
        )
    plugins = kwargs.pop("plugins", None) or []
    plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    kwargs["plugins"] = plugins
    if folder is None:
        return []
    kwargs["enable_checkpointing"] = True
    callbacks: list[Callback] = [
        ModelCheckpoint(as_path(folder), filename="last", enable_version_counter=False)
    ]
    return callbacks if every_n_steps is None else [*callbacks, StepCheckpoint(folder, every_n_steps)]


def fit(
    plan: MaskedTrainingPlan,
    datamodule: pl.LightningDataModule,
    *,
    max_epochs: int,
    n_obs_epoch: int,
    unit: str = "cells",
    obs_names: Sequence[str] | None = None,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    early_stopping: bool = False,
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every_n_steps: int | None = None,
    steps_per_execution: int | None = 1,
    about: Mapping[str, Any] | None = None,
    model: Any = None,
    **trainer_kwargs: Any,
) -> pl.Trainer:
    """Train a plan with Lightning.

    Parameters
    ----------
    plan
        Training plan; its network is trained in place.
    datamodule
        Mini-batches for training and, optionally, validation.
    max_epochs
        Total number of epochs, including those before ``resume``.
    n_obs_epoch
        Observations per epoch, for the progress bar.
    unit
        Name of the observations, in the plural.
    obs_names
        Name of each observation by position, for messages; None for positions alone.
    accelerator, devices
        As in :class:`lightning.pytorch.Trainer`; with ``"auto"`` under torchrun, as many devices as it has started
        processes. Several devices train in parallel, each on its part of every mini-batch.
    early_stopping
        Stop when ``validation_loss`` stops improving; other ``early_stopping_*`` are passed to ``EarlyStopping``.
    resume
        Checkpoint, or ``checkpoint_dir`` of an earlier run, to continue. The result is that of an uninterrupted run.
    checkpoint_dir
        Folder for ``last.ckpt``, written after every epoch.
    checkpoint_every_n_steps
        Number of optimizer steps after which ``last.ckpt`` is also replaced, for long epochs.
    steps_per_execution
        Mini-batches per Lightning iteration. More than one saves a small network most of the overhead of Lightning's
        loop, with the same result; checkpoints are then written, and callbacks called, after the last of them. None
        uses 16, or 1 if something requires single mini-batches.
    about
        Seed, data, arguments and split for the record of the run in ``module.runs_``; by default the settings
        checked on resume.
    model
        Model of the network, for callbacks of scvi-tools that read ``trainer._model``.
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
        If the checkpoint is damaged, of another model or run (data, split, seed, masking, optimizer, batch size, number
        of processes), or beyond ``max_epochs``; if torchrun has started another number of processes; if mini-batches
        cannot be executed together.
    scr2mae.train.NonFiniteError
        If twenty steps in a row had a non-finite loss or gradient; the network keeps its last finite weights.
    KeyboardInterrupt
        If training was interrupted; the network keeps the weights it had.
    """
    single_thread_after_fork()
    given = _given_callbacks(trainer_kwargs, checkpoint_dir=checkpoint_dir)
    # Before every callback that reads the running statistics.
    callbacks = [StepGuard(obs_names, unit=unit), RankAverages(), SubnormalCleaner(), *given]
    callbacks += _early_stopping(early_stopping, trainer_kwargs)
    if plan.averaging is not None:
        callbacks.append(RunningWeightAverage(plan.averaging))
    if trainer_kwargs.setdefault("enable_progress_bar", True):
        callbacks.append(TrainingProgress(n_obs_epoch, unit=unit))
    resumable = ResumeState()
    callbacks += [resumable, *_checkpoints(checkpoint_dir, checkpoint_every_n_steps, trainer_kwargs)]
    has_curriculum = plan.gradient_schedule is not None
    parallel = data_parallel_options(
        devices=devices,
        accelerator=accelerator,
        given=trainer_kwargs,
        # While the curriculum's network is frozen, its parameters have no gradient to exchange.
        find_unused_parameters=has_curriculum,
    )
    if has_curriculum:
        # Parameters that are frozen when the processes are joined would never be exchanged.
        plan.module.curriculum.requires_grad_(True)
    plan.module.train()
    run: dict[str, Any] = {}
    try:
        with timed(run), _quiet_lightning(), _without_none(datamodule):
            trainer = pl.Trainer(
                max_epochs=max_epochs,
                accelerator=accelerator,
                callbacks=callbacks,
                **{**_DEFAULTS, **trainer_kwargs, **parallel},
            )
            trainer._model = model  # type: ignore[attr-defined]
            settings = run_settings(plan, datamodule, n_processes=trainer.world_size)
            resumable.settings = settings
            run |= {
                "seed": plan.mask_seed,
                "data": {"cells": settings.get("cells")},
                "arguments": settings,
                "split": settings.get("split"),
                **(about or {}),
            }
            checkpoint, kept = None, None
            if resume is not None:
                checkpoint, kept = find_checkpoint(resume, plan, settings, max_epochs=max_epochs)
            plan.steps_per_execution = choose_steps(
                steps_per_execution,
                trainer,
                callbacks=given,
                checkpoint_every=checkpoint_every_n_steps,
                kept=kept,
            )
            try:
                with interruptible(), in_executions(datamodule, plan.steps_per_execution), log_lines_shown():
                    trainer.fit(plan, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
            finally:
                plan.flush_steps()
                del trainer._model  # type: ignore[attr-defined]
                run |= _outcome(trainer, plan)
    finally:
        if plan.rows:
            module: Any = plan.module
            module.runs_ = [*getattr(module, "runs_", ()), fingerprint(run)]
    return trainer


def _outcome(trainer: pl.Trainer, plan: MaskedTrainingPlan) -> dict[str, Any]:
    """Return where a run was computed and how far it got."""
    return {
        "device": trainer.strategy.root_device.type,
        "n_processes": trainer.world_size,
        "precision": str(trainer.precision),
        "epochs": len(plan.rows.get("train_loss", ())),
        "steps": trainer.global_step,
        "skipped_steps": int(sum(n for _, n in plan.rows.get("skipped_steps", ()))),
    }
