"""Several mini-batches per Lightning iteration, which saves small networks most of the overhead of its loop."""

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
from scr2mae.train.callbacks import CurriculumLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback

__all__ = ["choose_steps", "in_executions", "replaced"]

logger = logging.getLogger(__name__)

_STEPS = 16
_NEED_SINGLE_BATCHES = (StochasticWeightAveraging, GradientAccumulationScheduler)
_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_NEUTRAL = {
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "max_steps": -1,
    "min_steps": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
    "val_check_interval": 1.0,  # the int 1 means each mini-batch
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
    """Return the number of mini-batches per iteration; ValueError if the trainer needs single ones and more are wanted.

    ``callbacks`` are the caller's, ``kept`` is the number in the run that is resumed, which must stay the
    same. None wants ``kept``, else sixteen, or ``checkpoint_every`` if that is less, or one if a callback or
    logger may use single ones.
    """
    if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, Integral) or wanted < 1):
        raise ValueError(f"steps_per_execution must be an integer >= 1, got {wanted!r}.")
    if wanted is not None and kept is not None and wanted != kept:
        raise ValueError(
            f"The run to resume had steps_per_execution={kept}, got {wanted}; pass steps_per_execution={kept}."
        )
    foreign = [each for each in callbacks if not isinstance(each, CurriculumLog)]
    chosen = kept if wanted is None else int(wanted)
    reasons = _reasons_for_single_batches(trainer, foreign)
    if chosen is None:
        # A logger would count iterations instead of steps.
        needs_single = reasons or foreign or trainer.loggers
        return 1 if needs_single else min(_STEPS, checkpoint_every or _STEPS)
    if chosen > 1 and reasons:
        raise ValueError(
            f"{', '.join(reasons)} of the trainer cannot be combined with several mini-batches per iteration "
            f"(steps_per_execution={chosen}); train with steps_per_execution=1 from the start."
        )
    if chosen > 1 and wanted is None and (foreign or trainer.loggers):
        logger.warning(
            "Callbacks and loggers see %d mini-batches at a time, as in the run that is resumed.", chosen
        )
    return chosen


def _reasons_for_single_batches(trainer: pl.Trainer, callbacks: Sequence[Callback]) -> list[str]:
    """List the settings for which Lightning acts between two mini-batches."""
    found = [(name, getattr(trainer, name, neutral), neutral) for name, neutral in _NEUTRAL.items()]
    reasons = [
        f"{name}={value!r}"
        for name, value, neutral in found
        if value != neutral or type(value) is not type(neutral)
    ]
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        reasons.append(f"strategy={type(trainer.strategy).__name__}")
    return reasons + [
        f"callback {type(each).__name__}" for each in callbacks if isinstance(each, _NEED_SINGLE_BATCHES)
    ]


@contextmanager
def in_executions(datamodule: LightningDataModule, n: int) -> Iterator[None]:
    """Make a data module yield ``n`` training mini-batches at a time.

    With ``n > 1`` its loader must be a :class:`~scr2mae._utils.batches.BatchLoader`, and it must not override
    the transfer of mini-batches to the device; else ValueError when the loader is made.
    """
    if n == 1:
        yield
        return
    single: Any = datamodule.train_dataloader

    def train_dataloader() -> ExecutionLoader:
        loader = single()
        moves = any(is_overridden(hook, datamodule, LightningDataModule) for hook in _TRANSFER_HOOKS)
        if moves or not isinstance(loader, BatchLoader):
            raise ValueError(
                f"steps_per_execution={n} needs this package's loaders, and a data module that does not override the transfer "
                f"of mini-batches; got {type(loader).__name__} of {type(datamodule).__name__}. Omit it."
            )
        return ExecutionLoader(loader, n)

    with replaced(datamodule, "train_dataloader", train_dataloader):
        yield


@contextmanager
def replaced(instance: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute or a method of an instance inside the block."""
    own = {name: vars(instance)[name]} if name in vars(instance) else {}
    setattr(instance, name, value)
    try:
        yield
    finally:
        delattr(instance, name)
        vars(instance).update(own)
