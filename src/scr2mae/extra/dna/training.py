"""Pretraining with any of the paper's schemes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scr2mae._paper import schemes
from scr2mae._utils.batches import BatchSampler
from scr2mae.extra.batches import BatchDataModule
from scr2mae.extra.dna.compatibility import check_windows
from scr2mae.extra.training import train_network
from scr2mae.masking import as_ratio_schedule
from scr2mae.nn.curriculum import Curriculum
from scr2mae.train import LearningRateSchedule
from scr2mae.train.distributed import count_processes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scr2mae.extra.dna.dataset import MSAWindowDataset
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM
    from scr2mae.masking import RatioSchedule

__all__ = ["VALIDATION_RATIOS", "pretrain"]

VALIDATION_RATIOS = (0.05, 0.15, 0.30)
"""Fractions of bases masked in validation, for every scheme."""


def _schedule(
    network: GPNMSAForMaskedLM, scheme: str, mask_ratio: Any, seed: int
) -> tuple[RatioSchedule, Curriculum | None]:
    """Return the ratio schedule of a run and the settings of its curriculum."""
    known = schemes("dna", seed=seed)
    if scheme not in known:
        raise ValueError(f"scheme must be one of {list(known)}, got {scheme!r}.")
    wanted, own = Curriculum.named(known[scheme].curriculum), Curriculum.named(network.config.curriculum)
    if (wanted is None) != (own is None):
        raise ValueError(
            f"Scheme {scheme!r} has curriculum={known[scheme].curriculum!r}, the network has {network.config.curriculum!r}; make it "
            f"with GPNMSAConfig(curriculum={known[scheme].curriculum!r})."
        )
    ratio = known[scheme].mask_ratio if mask_ratio is None else mask_ratio
    return as_ratio_schedule(ratio, seed=seed) if own is None else own.ratio_schedule(ratio, seed=seed), own


def pretrain(
    network: GPNMSAForMaskedLM,
    train: MSAWindowDataset,
    validation: MSAWindowDataset | None = None,
    *,
    scheme: str = "r2mae",
    mask_ratio: float | tuple[float, float] | RatioSchedule | None = None,
    max_steps: int = 30_000,
    batch_size: int = 2048,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    warmup: int | float = 1000,
    seed: int = 0,
    validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_kwargs: Any,
) -> GPNMSAForMaskedLM:
    """Train a network to predict masked human bases.

    Parameters
    ----------
    network
        Trained in place.
    train
        Training windows.
    validation
        Windows to validate on after each epoch, preferably without label flips; None for no validation.
    scheme
        Name of one of the eleven schemes that :func:`scr2mae.schemes` lists for DNA. A scheme with a curriculum needs a
        network with one.
    mask_ratio
        Fraction of bases to mask, instead of the scheme's: a number, a pair or a schedule.
    max_steps
        Total number of optimizer steps, including those before ``resume``. They are spread evenly over the epochs they
        need, so there may be a few more, and each epoch may leave out different windows.
    batch_size
        Windows per mini-batch and device; ``accumulate_grad_batches`` multiplies it.
    lr, weight_decay
        Learning rate and weight decay of AdamW.
    warmup
        Steps (int), or share of the run (float), of linear warm-up before cosine decay.
    seed
        Seed of masks, ratios, dropout and the order of windows.
    validation_ratios
        Fractions of bases masked in validation.
    resume
        A checkpoint, or the ``checkpoint_dir`` of an earlier run, to continue. Pass the ``max_steps`` of that run, since
        ratios and the learning rate depend on it.
    checkpoint_dir
        Folder for a checkpoint after every epoch.
    trainer_kwargs
        Additional arguments of :func:`scr2mae.train.fit`, such as ``accelerator``, ``early_stopping`` or ``precision``.

    Returns
    -------
    The network in evaluation mode, with the names of the alignment's species in ``species_``, the record of the run added
    to ``runs_``, and its curves added to ``history_``: loss and ratio per step; per epoch the mean training loss and
    the validation loss at each ratio.

    Raises
    ------
    ValueError
        If the scheme is unknown or does not match the network, species differ in number, name or order, windows are too
        long, or a number is out of range.
    FileNotFoundError
        If there is no checkpoint to resume from.

    Notes
    -----
    The defaults are those of the paper (appendix C.7), where the batch is 2048 over all devices.
    """
    if max_steps < 1 or batch_size < 1:
        raise ValueError(f"max_steps and batch_size must be at least 1, got {max_steps} and {batch_size}.")
    for data in (train, validation):
        if data is not None:
            check_windows(network, data)
    schedule, curriculum = _schedule(network, scheme, mask_ratio, seed)
    n_together = int(trainer_kwargs.get("accumulate_grad_batches", 1))
    n_processes = count_processes(trainer_kwargs)
    n_batches = len(BatchSampler(len(train), batch_size, world_size=n_processes))
    if not n_batches:
        raise ValueError(f"There are {len(train)} windows for {n_processes} devices; train on fewer devices.")
    # Given max_steps, Lightning mistakes a finished epoch for an interrupted one and skips most of the next.
    max_epochs = math.ceil(max_steps * n_together / n_batches)
    trainer_kwargs.setdefault("limit_train_batches", math.ceil(max_steps / max_epochs) * n_together)
    train_network(
        network,
        BatchDataModule(train, validation, batch_size=batch_size, seed=seed, shard_validation=True),
        plan={
            "ratio_schedule": schedule,
            "lr": lr,
            "weight_decay": weight_decay,
            "optimizer": "AdamW",
            "learning_rate": LearningRateSchedule("cosine", warmup=warmup),
            "validation_ratios": validation_ratios,
            "gradient_schedule": None if curriculum is None else curriculum.schedule,
        },
        seed=seed,
        max_epochs=max_epochs,
        n_obs_epoch=min(len(train), trainer_kwargs["limit_train_batches"] * batch_size * n_processes),
        unit="windows",
        resume=resume,
        checkpoint_dir=checkpoint_dir,
        **trainer_kwargs,
    )
    if train.msa.species is not None:
        network.species_ = train.msa.species[1:]
    return network
