"""Masked language modeling on packed text, by the one training plan."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch

from scr2mae._utils.batches import BatchLoader
from scr2mae.train import LearningRateSchedule, MaskedTrainingPlan, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scr2mae.extra.text.model import RobertaR2MAE
    from scr2mae.extra.text.packing import TokenBlocks

__all__ = ["LEARNING_RATES", "VALIDATION_RATIOS", "masked_losses", "pretrain"]

VALIDATION_RATIOS = (0.15, 0.275, 0.40)
"""Validation hides these shares whatever the training scheme: the ends of R²MAE's range and its middle."""

LEARNING_RATES: Mapping[str, float] = MappingProxyType({"tiny": 1e-3, "medium": 7e-4, "base": 3e-4})
"""Peak learning rates by size; medium and base as in the paper."""

_EVALUATION_SEED = 20_250_922
_COURSE = LearningRateSchedule("linear", warmup=0.03)


class _Blocks(pl.LightningDataModule):
    """Mini-batches of packed text, each rank its share."""

    def __init__(
        self, train: TokenBlocks, validation: TokenBlocks | None, *, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled blocks."""
        return _loader(
            self.train,
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the blocks of validation in order."""
        return [] if self.validation is None else _loader(self.validation, self.batch_size)


def _loader(blocks: TokenBlocks, batch_size: int, **sampler_kwargs: Any) -> BatchLoader:
    def collate(indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(blocks.tokens[indices], dtype=np.int64))

    return BatchLoader(collate, np.arange(len(blocks)), batch_size=batch_size, **sampler_kwargs)


def _check(model: RobertaR2MAE, blocks: TokenBlocks, name: str) -> None:
    if blocks.tokenizer.sha256 != model.tokenizer.sha256:
        raise ValueError(
            f"{name} was packed with a tokenizer of {len(blocks.tokenizer)} tokens that is not the model's, of "
            f"{len(model.tokenizer)}; pack the text with model.tokenizer."
        )
    if blocks.length > model.max_length:
        raise ValueError(
            f"{name} has blocks of {blocks.length} tokens and the network positions for {model.max_length}; "
            f"pack the text with length={model.max_length} or less."
        )


def pretrain(
    model: RobertaR2MAE,
    blocks: TokenBlocks,
    *,
    validation: TokenBlocks | None = None,
    max_epochs: int = 1,
    batch_size: int = 256,
    accumulate_grad_batches: int = 8,
    lr: float | None = None,
    weight_decay: float = 0.01,
    learning_rate: LearningRateSchedule | None = _COURSE,
    gradient_clip_val: float | None = 1.0,
    validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    seed: int | None = None,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    precision: Any = "32-true",
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_kwargs: Any,
) -> pl.Trainer:
    """Train a model to predict hidden tokens; the model has the new weights and curves afterwards.

    Parameters
    ----------
    model
        What to train, with its masking scheme.
    blocks
        Text, packed with the model's tokenizer.
    validation
        Held-out text, scored after each epoch; None for none.
    max_epochs
        Passes over the text, those before ``resume`` counted in.
    batch_size
        Blocks a micro-batch and device. Each has a ratio and a mask of its own.
    accumulate_grad_batches
        Micro-batches an optimizer step; their gradients are averaged with equal weights, whatever their ratios.
    lr
        Peak learning rate; None for :data:`LEARNING_RATES`.
    weight_decay
        Of AdamW, on matrices alone.
    learning_rate
        Its course: 3 % warm-up and linear decay, as in the paper; None keeps it constant.
    gradient_clip_val
        Largest norm of a gradient (1 inferred, the customary value); None for no limit.
    validation_ratios
        Shares hidden in validation.
    seed
        Seed of order, masks and dropout; None for the model's.
    accelerator, devices, precision
        As in :class:`lightning.pytorch.Trainer`: ``precision="bf16-mixed"`` on recent GPUs.
    resume
        Checkpoint, or ``checkpoint_dir`` of an earlier run, to go on from.
    checkpoint_dir
        Folder that receives a checkpoint after every epoch.
    trainer_kwargs
        Further arguments of :class:`lightning.pytorch.Trainer`.

    Returns
    -------
    The trainer, after training.

    Raises
    ------
    ValueError
        If an argument is out of range, or the text was packed with another tokenizer or is too long.
    FileNotFoundError
        If there is no checkpoint to resume from.

    Notes
    -----
    The defaults are the recipe of Dong et al. (2025), appendix C.6: an effective batch of 2048 blocks of 128 tokens, here
    8 micro-batches of 256. A ratio a micro-batch rather than an optimizer step is a choice of this package.
    """
    _check(model, blocks, "blocks")
    if validation is not None:
        _check(model, validation, "validation")
    if max_epochs < 1:
        raise ValueError(f"max_epochs must be at least 1, got {max_epochs}.")
    seed = model.seed if seed is None else seed
    if validation is None:
        trainer_kwargs.setdefault("limit_val_batches", 0)
    settings = model.curriculum_settings
    plan = MaskedTrainingPlan(
        model,
        ratio_schedule=model.ratio_schedule(seed),
        seed=seed,
        lr=LEARNING_RATES[model.size] if lr is None else lr,
        weight_decay=weight_decay,
        optimizer="AdamW",
        learning_rate=learning_rate,
        validation_ratios=validation_ratios,
        gradient_schedule=None if settings is None else settings.schedule,
        before=model.history_,
    )
    try:
        return fit(
            plan,
            _Blocks(blocks, validation, batch_size=batch_size, seed=seed),
            max_epochs=max_epochs,
            n_obs_epoch=len(blocks),
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            accumulate_grad_batches=accumulate_grad_batches,
            gradient_clip_val=gradient_clip_val,
            resume=resume,
            checkpoint_dir=checkpoint_dir,
            **trainer_kwargs,
        )
    finally:
        model.eval()
        if plan.rows:
            model.history_ = plan.history


@torch.no_grad()
def masked_losses(
    model: RobertaR2MAE,
    blocks: TokenBlocks,
    *,
    ratios: Sequence[float] = (0.05, 0.15, 0.3, 0.4, 0.6, 0.8, 0.95),
    batch_size: int = 64,
    seed: int = _EVALUATION_SEED,
) -> pd.DataFrame:
    """Score how well hidden tokens are predicted, at several shares of hidden tokens.

    Parameters
    ----------
    model
        The network; it is where it is, on a CPU or a GPU.
    blocks
        Held-out text, packed with the model's tokenizer.
    ratios
        Shares to hide, in [0, 1].
    batch_size
        Blocks at a time.
    seed
        Seed of the masks: the same ones for every model that is given the same blocks, seed and batch size.

    Returns
    -------
    One row a ratio: ``ratio``, ``loss`` (mean negative log-likelihood of hidden tokens, nats), ``accuracy`` (share predicted
    right) and ``n_tokens`` scored. Of the hidden tokens 80 % are masked and 20 % are not, as in training.

    Raises
    ------
    ValueError
        If the text was packed with another tokenizer, or a ratio lies outside [0, 1].
    """
    _check(model, blocks, "blocks")
    model.eval()
    device = model.network.device
    rows = []
    for ratio in ratios:
        loss, n_correct, n_scored = 0.0, 0, 0
        for step, tokens in enumerate(_loader(blocks, batch_size)):
            out = model.training_loss(tokens.to(device), ratio=ratio, seed=seed, step=step)
            loss += float(out.loss) * out.n_scored
            n_correct += int(out.n_correct)
            n_scored += out.n_scored
        rows.append((ratio, loss / n_scored, n_correct / n_scored, n_scored))
    return pd.DataFrame(rows, columns=["ratio", "loss", "accuracy", "n_tokens"])
