"""The training plan: a ratio and a mask for each step, fixed masks in validation, a history of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device

from scr2mae.masking import DiscreteRatio
from scr2mae.train.averaging import RunningWeightAverage
from scr2mae.train.compiled import compile_loss
from scr2mae.train.distributed import moving_statistics
from scr2mae.train.guard import StepGuard
from scr2mae.train.provenance import History, extend_history, history_from_state, history_to_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scr2mae.masking import RatioSchedule
    from scr2mae.nn.curriculum import GradientSchedule
    from scr2mae.train.learning_rate import LearningRateSchedule

__all__ = ["VALIDATION_RATIOS", "MaskedModule", "MaskedTrainingPlan"]

VALIDATION_RATIOS = (0.1, 0.3, 0.5)
"""Validation hides these shares whatever the training scheme, so that curves compare across schemes."""

_VALIDATION_SEED = 20_250_921
_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


class _Loss(Protocol):
    loss: torch.Tensor
    n_obs_minibatch: int


class StepContext(NamedTuple):
    """What is trained on now.

    Attributes
    ----------
    batch
        A mini-batch; None before and after training.
    number
        Its number in the epoch.
    step
        Its number in the run.
    """

    batch: Any = None
    number: int = 0
    step: int = 0


class MaskedModule(Protocol):
    """What a network must offer to be trained here.

    It may also have ``masked_nll``, a part of ``training_loss`` of tensors alone: ``training_loss`` then also takes that part
    compiled, as ``compiled``. And it may have ``parameter_groups(weight_decay)``, which returns the optimizer's groups, each
    a dict with ``params`` and, where they differ from the run's, ``weight_decay`` and ``lr``, or ``lr_scale``, a multiple of
    it.
    """

    def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> _Loss:
        """Hide a share of a mini-batch, as a pure function of seed and step, and score it."""
        ...


class MaskedTrainingPlan(pl.LightningModule):
    """Draw a ratio and a mask for each step, minimize the loss over what is hidden.

    Parameters
    ----------
    module
        The network.
    ratio_schedule
        Called as ``(step, total_steps)``.
    seed
        Seed of the masks; they depend on it and on the step alone.
    lr, weight_decay, eps
        Of the optimizer.
    optimizer
        ``"Adam"`` (the paper's, weight decay inside the gradient) or ``"AdamW"``.
    betas
        Of the optimizer.
    learning_rate
        What ``lr`` is multiplied by at each optimizer step; None keeps it constant.
    averaging
        Average the weights over this share of the run (:class:`RunningWeightAverage`); None keeps the last ones.
    validation_ratios
        Shares hidden in validation.
    gradient_schedule
        Multiplier of the curriculum's gradient, for a network with ``module.curriculum``; None without.
    before
        Curves of earlier runs of the same network, which this run continues.
    compile
        Whether training steps are compiled; the network must have ``masked_nll``. Validation is not.
    compile_kwargs
        Arguments of :func:`torch.compile`; ``dynamic`` is False by default, as in scvi-tools.

    Notes
    -----
    ``history`` is filled by the plan itself, so it exists without a logger: the loss and ratio of every step, and
    per epoch the mean training loss and the validation loss at each ratio and on average. A step whose loss is not finite
    shows as such and is left out of the mean; :class:`scr2mae.train.StepGuard` skips and counts it.
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
        betas: tuple[float, float] = (0.9, 0.999),
        learning_rate: LearningRateSchedule | None = None,
        averaging: float | None = None,
        validation_ratios: Sequence[float] = VALIDATION_RATIOS,
        gradient_schedule: GradientSchedule | None = None,
        before: History | None = None,
        compile: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
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
        self.optimizer_kwargs = {"lr": lr, "weight_decay": weight_decay, "eps": eps, "betas": tuple(betas)}
        self.learning_rate = learning_rate
        self.averaging = averaging
        self.validation_ratios = tuple(validation_ratios)
        self.gradient_schedule = gradient_schedule
        self.last_grad_scale = 0.0
        self._compiled = {"compiled": compile_loss(module, **(compile_kwargs or {}))} if compile else {}
        self.before = before or {}
        self.rows: dict[str, list[tuple[int, float]]] = {}
        self._steps: list[tuple[int, float, torch.Tensor]] = []
        self._epoch_losses: list[float] = []
        self.statistics: list[torch.Tensor] = []
        self.steps_per_execution = 1
        self.context = StepContext()
        self._total_steps = 0

    @property
    def history(self) -> History:
        """One frame a curve, indexed by step or epoch, with one column of the curve's name; earlier runs first."""
        frames = {}
        for name, rows in self.rows.items():
            index = pd.Index([i for i, _ in rows], name="step" if name.endswith("_step") else "epoch")
            frames[name] = pd.DataFrame({name: [value for _, value in rows]}, index=index)
        return extend_history(self.before, frames)

    @property
    def last_loss(self) -> torch.Tensor:
        """Loss of the last step, on its device; what is written into it enters the history."""
        return self._steps[-1][2]

    def record(self, name: str, index: int, value: float) -> None:
        """Add a point to a curve of the history.

        Parameters
        ----------
        name
            Name of the curve.
        index
            Step or epoch.
        value
            The point.
        """
        self.rows.setdefault(name, []).append((index, value))

    def execute_together(self, n: int) -> None:
        """Let Lightning hand over several mini-batches at a time.

        Parameters
        ----------
        n
            How many; 1 leaves everything to Lightning.
        """
        self.steps_per_execution = n
        self.automatic_optimization = n == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        """Return the loss over what is hidden at this step, or train on several mini-batches.

        Parameters
        ----------
        batch
            A mini-batch, as the network takes it, or an iterator over several.
        batch_idx
            Its number in the epoch.
        """
        if self.automatic_optimization:
            return self._training_loss(batch)
        self._execute(batch)
        return None

    def _execute(self, batches: Iterator[Any]) -> None:
        """Train on several mini-batches, each as Lightning does."""
        trainer: Any = self.trainer
        optimizer: Any = self.optimizers()
        follow = [each for each in trainer.callbacks if isinstance(each, (StepGuard, RunningWeightAverage))]
        loader = trainer.train_dataloader
        before = self.current_epoch * len(loader.loader)
        # The first of them is made already.
        for i, made in enumerate(batches, loader.n_seen - 1):
            batch = move_data_to_device(made, self.device)
            for callback in follow:
                callback.on_train_batch_start(trainer, self, batch, i)
            self._begin(StepContext(batch, i, before + i))
            loss = self._training_loss(batch)
            optimizer.zero_grad(set_to_none=True)
            # Lightning calls this method under autocast, its own backward pass and optimizer not.
            with torch.autocast(self.device.type, enabled=False):
                loss.backward()
                optimizer.step()
            for callback in follow:
                callback.on_train_batch_end(trainer, self, None, batch, i)

    def _training_loss(self, batch: Any) -> torch.Tensor:
        step, total = self.context.step, self._total_steps
        loss = self._score(batch, **self._compiled)
        self._steps.append((step, self.ratio_schedule(step, total), loss.detach()))
        # What is not finite here is to be seen in the gradient, on every rank that it is added up with.
        total_moved = sum((s.sum() for s in self.statistics), start=loss.detach())
        return loss * torch.where(total_moved.isfinite(), 1.0, torch.nan)

    def training_loss(self, batch: Any) -> torch.Tensor:
        """Score a mini-batch as the step under way does, without a trace.

        Parameters
        ----------
        batch
            A mini-batch, as the network takes it.

        Returns
        -------
        The loss, a scalar.
        """
        return self._score(batch)

    def _score(self, batch: Any, **compiled: Any) -> torch.Tensor:
        step, total = self.context.step, self._total_steps
        module: Any = self.module
        ratio = self.ratio_schedule(step, total)
        options = {**self._weighting(step, total), **compiled}
        return module.training_loss(batch, ratio=ratio, seed=self.mask_seed, step=step, **options).loss

    def _weighting(self, step: int, total: int) -> dict[str, Any]:
        """Column and gradient multiplier of the curriculum at this step; freezes and thaws its network."""
        if self.gradient_schedule is None:
            return {}
        module: Any = self.module
        frozen = self.gradient_schedule.is_frozen(step, total)
        # A zero gradient would still let weight decay and momentum move the weights.
        module.curriculum.requires_grad_(not frozen)
        grad_scale = self.gradient_schedule(step, total)
        self.last_grad_scale = grad_scale
        ratio_index = self.ratio_schedule.index(step) if isinstance(self.ratio_schedule, DiscreteRatio) else 0
        return {"ratio_index": ratio_index, "grad_scale": grad_scale}

    def flush_steps(self) -> None:
        """Move the steps' losses from the device to the history, in one transfer."""
        if not self._steps:
            return
        losses = torch.stack([loss for *_, loss in self._steps]).float().cpu().tolist()
        for (step, ratio, _), loss in zip(self._steps, losses, strict=True):
            self.record("train_loss_step", step, loss)
            self.record("mask_ratio_step", step, ratio)
        self._epoch_losses += losses
        self._steps.clear()

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch."""
        self.flush_steps()
        if self._epoch_losses:
            counted = [loss for loss in self._epoch_losses if math.isfinite(loss)]
            mean = math.fsum(counted) / len(counted) if counted else math.nan
            self._epoch_losses.clear()
            self.record("train_loss", self.current_epoch, mean)
            self.log("train_loss", mean, sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score this batch under the same masks at every epoch and for every scheme.

        Parameters
        ----------
        batch
            A mini-batch, as the network takes it.
        batch_idx
            Its number.
        """
        module: Any = self.module
        for ratio in self.validation_ratios:
            out = module.training_loss(batch, ratio=ratio, seed=_VALIDATION_SEED, step=batch_idx)
            self.log(
                f"validation_loss_{ratio:g}",
                out.loss,
                on_epoch=True,
                sync_dist=True,
                batch_size=out.n_obs_minibatch,
            )

    def on_validation_epoch_end(self) -> None:
        """Record each validation curve and their mean."""
        metrics = self.trainer.callback_metrics
        curves = {f"validation_loss_{ratio:g}": 0.0 for ratio in self.validation_ratios}
        curves = {name: float(metrics[name]) for name in curves if name in metrics}
        if not curves:
            return
        mean = math.fsum(curves.values()) / len(curves)
        self.log("validation_loss", mean, sync_dist=True)
        for name, value in {"validation_loss": mean, **curves}.items():
            self.record(name, self.current_epoch, value)

    def configure_optimizers(self) -> Any:
        """Return the optimizer over the parameters that train."""
        module: Any = self.module
        if self.gradient_schedule is not None:
            module.curriculum.requires_grad_(True)
        groups: list[dict[str, Any]] = (
            module.parameter_groups(self.optimizer_kwargs["weight_decay"])
            if hasattr(module, "parameter_groups")
            else [{"params": list(module.parameters())}]
        )
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        for group in groups:
            if "lr_scale" in group:
                group["lr"] = self.optimizer_kwargs["lr"] * group.pop("lr_scale")
        for group in groups:
            group["peak_lr"] = group.setdefault("lr", self.optimizer_kwargs["lr"])
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        # A fused optimizer unscales gradients itself, which Lightning cannot clip under mixed precision.
        fused = fused and not (self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision))
        return _OPTIMIZERS[self.optimizer_name](groups, fused=fused, **self.optimizer_kwargs)

    def on_train_start(self) -> None:
        """Find the running statistics that the forward pass moves, and count the mini-batches of the run."""
        self.statistics = moving_statistics(self.module)
        trainer: Any = self.trainer
        if self.automatic_optimization:
            # Not of optimizer steps: with accumulated gradients each mini-batch has a ratio and a mask of its own.
            self._total_steps = int(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches
        else:
            self._total_steps = trainer.max_epochs * len(trainer.train_dataloader.loader)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this optimizer step.

        Parameters
        ----------
        batch
            A mini-batch, as the network takes it, or an iterator over several.
        batch_idx
            Its number in the epoch.
        """
        if self.automatic_optimization:
            self._begin(StepContext(batch, batch_idx, self.trainer.fit_loop.epoch_loop.total_batch_idx))

    def on_train_end(self) -> None:
        """Let go of the last mini-batch."""
        self.context = StepContext()

    def _begin(self, context: StepContext) -> None:
        """Take up a mini-batch."""
        self.context = context
        if self.learning_rate is None:
            return
        # Not by a scheduler: to make one, the length of the run must be known, and asking for it before a checkpoint is
        # restored sets up loaders that then start the epoch afresh.
        total = self._total_steps // self.trainer.accumulate_grad_batches
        multiplier = self.learning_rate(self.trainer.global_step, total)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["peak_lr"] * multiplier

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history with the weights, the epoch that is under way included."""
        self.flush_steps()
        checkpoint["scr2mae_history"] = {
            "rows": {name: list(rows) for name, rows in self.rows.items()},
            "epoch_losses": list(self._epoch_losses),
            "before": history_to_state(self.before),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        kept = checkpoint["scr2mae_history"]
        self.rows = {name: [(int(i), float(v)) for i, v in rows] for name, rows in kept["rows"].items()}
        self._epoch_losses = list(kept["epoch_losses"])
        self.before = history_from_state(kept["before"])
