"""Several mini-batches in one call of Lightning's loop, whose cost a small network would otherwise feel."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from scr2mae._utils.batches import BatchLoader, ExecutionLoader
from scr2mae.train.curriculum_log import CurriculumLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

__all__ = ["choose_steps", "in_executions"]

logger = logging.getLogger(__name__)

_STEPS = 16
_STEERS = (StochasticWeightAveraging, GradientAccumulationScheduler)
_MOVE_BATCHES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_NEUTRAL = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "max_steps": -1,
    "min_steps": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,  # 1 is each mini-batch
    "scaler": None,
}


def choose_steps(
    wanted: int | None,
    trainer: pl.Trainer,
    *,
    callbacks: Sequence[Callback],
    checkpoint_every: int | None = None,
    kept: int | None = None,
) -> int:
    """Choose how many mini-batches are executed together.

    Parameters
    ----------
    wanted
        The caller's choice; None for sixteen, or fewer where ``checkpoint_every`` is less, or one where something may look at
        single mini-batches: a callback, a logger.
    trainer
        Of the run.
    callbacks
        The caller's.
    checkpoint_every
        Steps between two checkpoints, if they are written by the step.
    kept
        What the run that is resumed had, which goes on so.

    Returns
    -------
    At least 1.

    Raises
    ------
    ValueError
        If the choice is out of range, is not that of the run to go on with, or if the trainer has to see single mini-batches.
    """
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, Integral) or wanted < 1):
        raise ValueError(f"steps_per_execution must be a whole number, at least 1, got {wanted!r}.")
    if wanted is not None and kept is not None and wanted != kept:
        raise ValueError(
            f"The run to go on with had steps_per_execution={kept}, got {wanted}; pass steps_per_execution={kept}."
        )
    foreign = [each for each in callbacks if not isinstance(each, CurriculumLog)]
    chosen = kept if wanted is None else int(wanted)
    counting = _what_counts(trainer, foreign)
    if chosen is None:
        # A logger's axis would count executions.
        is_seen = counting or foreign or trainer.loggers
        return 1 if is_seen else min(_STEPS, checkpoint_every or _STEPS)
    if chosen > 1 and counting:
        raise ValueError(
            f"{', '.join(counting)} of the trainer cannot be had with mini-batches executed together "
            f"(steps_per_execution={chosen}); train with steps_per_execution=1 from the start."
        )
    if chosen > 1 and wanted is None and (foreign or trainer.loggers):
        logger.warning(
            "Callbacks and loggers see %d mini-batches at a time, as the run that goes on executed them.",
            chosen,
        )
    return chosen


def _what_counts(trainer: pl.Trainer, callbacks: Sequence[Callback]) -> list[str]:
    """List the settings under which Lightning has to do something between two mini-batches."""
    found = [(name, getattr(trainer, name, neutral), neutral) for name, neutral in _NEUTRAL.items()]
    counting = [
        f"{name}={value!r}"
        for name, value, neutral in found
        if value != neutral or type(value) is not type(neutral)
    ]
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        counting.append(f"strategy={type(trainer.strategy).__name__}")
    return counting + [f"callback {type(each).__name__}" for each in callbacks if isinstance(each, _STEERS)]


@contextmanager
def in_executions(datamodule: LightningDataModule, n: int) -> Iterator[None]:
    """Let a data module hand out its training mini-batches several at a time.

    Parameters
    ----------
    datamodule
        Its training loader is a :class:`scr2mae._utils.batches.BatchLoader`, and it does nothing to mini-batches on their way to the
        device.
    n
        How many together; with 1 nothing changes.

    Raises
    ------
    ValueError
        When the loader is asked for, if that is not so.
    """
    if n == 1:
        yield
        return
    single: Any = datamodule.train_dataloader
    own = {"train_dataloader": single} if "train_dataloader" in vars(datamodule) else {}

    def train_dataloader() -> ExecutionLoader:
        loader = single()
        moves = any(is_overridden(hook, datamodule, LightningDataModule) for hook in _MOVE_BATCHES)
        if moves or not isinstance(loader, BatchLoader):
            raise ValueError(
                f"steps_per_execution={n} needs this package's loaders, and a data module that leaves the transfer of mini-batches "
                f"alone; got {type(loader).__name__} of {type(datamodule).__name__}. Leave it out."
            )
        return ExecutionLoader(loader, n)

    datamodule.train_dataloader = train_dataloader  # type: ignore[method-assign]
    try:
        yield
    finally:
        del datamodule.train_dataloader
        vars(datamodule).update(own)
