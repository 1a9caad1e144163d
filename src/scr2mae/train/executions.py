"""Several mini-batches in one call of Lightning's loop, whose cost a small network would otherwise feel."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from scr2mae._batches import BatchLoader, ExecutionLoader
from scr2mae.train.curriculum_log import CurriculumLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lightning.pytorch as pl

__all__ = ["choose_steps", "in_executions"]

_STEPS = 16
_SEE_MINI_BATCHES = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
_MOVE_BATCHES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_NEUTRAL = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "max_steps": -1,
    "min_steps": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,
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
        The caller's choice; None for sixteen, or fewer where ``checkpoint_every`` is less, or one where something looks at
        single mini-batches, as loggers do.
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
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
        raise ValueError(f"steps_per_execution must be a whole number, at least 1, got {wanted!r}.")
    if wanted is not None and kept is not None and wanted != kept:
        raise ValueError(
            f"The run to go on with had steps_per_execution={kept}, got {wanted}; leave it out to go on so."
        )
    counted = [
        f"{name}={value!r}"
        for name, neutral in _NEUTRAL.items()
        if (value := getattr(trainer, name, neutral)) != neutral
    ]
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        counted.append(f"strategy={type(trainer.strategy).__name__}")
    chosen = kept if wanted is None else wanted
    if chosen is None:
        foreign = [each for each in callbacks if not isinstance(each, CurriculumLog)]
        sees = any(is_overridden(hook, each, Callback) for each in foreign for hook in _SEE_MINI_BATCHES)
        # A logger's axis would count executions.
        return 1 if counted or sees or trainer.loggers else min(_STEPS, checkpoint_every or _STEPS)
    if chosen > 1 and counted:
        raise ValueError(
            f"{', '.join(counted)} of the trainer cannot be had with mini-batches executed together "
            f"(steps_per_execution={chosen}); train with steps_per_execution=1 from the start."
        )
    return chosen


@contextmanager
def in_executions(datamodule: LightningDataModule, n: int) -> Iterator[None]:
    """Let a data module hand out its training mini-batches several at a time.

    Parameters
    ----------
    datamodule
        Its training loader is a :class:`scr2mae._batches.BatchLoader`, and it does nothing to mini-batches on their way to the
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
