"""Training plan: a ratio and a mask for each step, fixed masks in validation, history of the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device

from scr2mae.masking import DiscreteRatio
from scr2mae.train.callbacks import RunningWeightAverage
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
"""Fractions masked in validation by every training scheme, so that their curves can be compared."""

_VALIDATION_SEED = 20_250_921
_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


class _Loss(Protocol):
    loss: torch.Tensor
    n_obs_minibatch: int


class StepContext(NamedTuple):
    """Mini-batch of the current step (None outside training), its number in the epoch, and the step of the run."""

    batch: Any = None
    number: int = 0
    step: int = 0


class MaskedModule(Protocol):
    """Interface of a network that the plan trains.

    Optional: ``masked_nll``, the part of ``training_loss`` that can be compiled, which ``training_loss`` then
    accepts as ``compiled``; and ``parameter_groups(weight_decay)``, which returns the optimizer's groups,
    dicts with ``params`` and, where they differ from the run's, ``weight_decay`` and ``lr`` or ``lr_scale``,
    a factor of it.
    """

    def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> _Loss:
        """Mask a fraction of a mini-batch, as a pure function of seed and step, and score it."""
        ...


class MaskedTrainingPlan(pl.LightningModule):
    """Draw a ratio and a mask for each step and minimize the loss over the masked part.

    Parameters
    ----------
    module
        Network to train.
    ratio_schedule
        Masking ratio, called as ``(step, total_steps)``.
    seed
        Random seed for the masks, which depend only on it and on the step.
    lr, weight_decay, eps
        Learning rate, weight decay and epsilon of the optimizer.
    optimizer
        ``"Adam"`` (the paper's, with weight decay added to the gradient, L2) or ``"AdamW"``.
    betas
        Decay rates of the optimizer's moments.
    learning_rate
        Multiplier for the learning rate at each optimizer step; None keeps it constant.
    averaging
        Fraction of the run over which to average weights (:class:`RunningWeightAverage`); None keeps the last weights.
    validation_ratios
        Fractions masked in validation.
    gradient_schedule
        Scale of the curriculum's gradient, for a network with ``module.curriculum``; None for no curriculum.
    before
        Curves of earlier runs of the same network, which this run continues.
    compile
        Whether to compile training steps; the network must have ``masked_nll``. Validation is not compiled.
    compile_kwargs
        Arguments of :func:`torch.compile`; ``dynamic`` is False by default, as in scvi-tools.

    Notes
    -----
    The plan fills ``history`` without a logger: loss and ratio of every step, and per epoch the mean training loss and the
    validation loss at each ratio and on average. Non-finite losses of skipped steps appear in the per-step
    curve but not in the epoch mean.
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
        self.module: Any = module
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
        """Curves by name, indexed by step or epoch, each a frame with one column of that name; earlier runs first."""
        frames = {}
        for name, rows in self.rows.items():
            index = pd.Index([i for i, _ in rows], name="step" if name.endswith("_step") else "epoch")
            frames[name] = pd.DataFrame({name: [value for _, value in rows]}, index=index)
        return extend_history(self.before, frames)

    @property
    def last_loss(self) -> torch.Tensor:
        """Loss of the last step, on its device; in-place changes are recorded in the history."""
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
            Value at the step or epoch.
        """
        self.rows.setdefault(name, []).append((index, value))

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """Whether Lightning runs the optimizer, as it does with one mini-batch per iteration."""
        return self.steps_per_execution == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        """Return the loss of a mini-batch, or train on an iterator over several.

        Parameters
        ----------
        batch
            Mini-batch, as the network takes it, or an iterator over several.
        batch_idx
            Its index in the epoch.
        """
        if self.automatic_optimization:
            return self._training_loss(batch)
        self._execute(batch)
        return None

    def _execute(self, batches: Iterator[Any]) -> None:
        """Train on several mini-batches, each as Lightning does."""
        trainer: Any = self.trainer
        optimizer: Any = self.optimizers()
        per_step = [each for each in trainer.callbacks if isinstance(each, (StepGuard, RunningWeightAverage))]
        loader = trainer.train_dataloader
        first_step = self.current_epoch * len(loader.loader)
        # The loader has already made, and counted, the first of them.
        for i, made in enumerate(batches, loader.n_seen - 1):
            batch = move_data_to_device(made, self.device)
            for callback in per_step:
                callback.on_train_batch_start(trainer, self, batch, i)
            self._begin(StepContext(batch, i, first_step + i))
            loss = self._training_loss(batch)
            optimizer.zero_grad(set_to_none=True)
            # Lightning calls this method under autocast, but not its own backward pass and optimizer.
            with torch.autocast(self.device.type, enabled=False):
                loss.backward()
                optimizer.step()
            for callback in per_step:
                callback.on_train_batch_end(trainer, self, None, batch, i)

    def _training_loss(self, batch: Any) -> torch.Tensor:
        """Compute and record the loss of a mini-batch; it is NaN if running statistics are not finite."""
        step, total = self.context.step, self._total_steps
        loss = self.training_loss(batch, **self._compiled)
        self._steps.append((step, self.ratio_schedule(step, total), loss.detach()))
        # Non-finite values here must show in the gradient, which is summed over ranks.
        checked = sum((s.sum() for s in self.statistics), start=loss.detach())
        return loss * torch.where(checked.isfinite(), 1.0, torch.nan)

    def training_loss(self, batch: Any, **compiled: Any) -> torch.Tensor:
        """Return the loss of a mini-batch at the current step, without recording it.

        Parameters
        ----------
        batch
            Mini-batch, as the network takes it.
        compiled
            Empty, or ``compiled``, the compiled part of the loss.

        Returns
        -------
        A scalar.
        """
        step, total = self.context.step, self._total_steps
        ratio = self.ratio_schedule(step, total)
        options = {**self._weighting(step, total), **compiled}
        return self.module.training_loss(batch, ratio=ratio, seed=self.mask_seed, step=step, **options).loss

    def _weighting(self, step: int, total: int) -> dict[str, Any]:
        """Return the curriculum's column and gradient scale at this step; freeze or unfreeze its network."""
        if self.gradient_schedule is None:
            return {}
        frozen = self.gradient_schedule.is_frozen(step, total)
        # With a zero gradient, weight decay and momentum would still change the weights.
        self.module.curriculum.requires_grad_(not frozen)
        self.last_grad_scale = self.gradient_schedule(step, total)
        ratio_index = self.ratio_schedule.index(step) if isinstance(self.ratio_schedule, DiscreteRatio) else 0
        return {"ratio_index": ratio_index, "grad_scale": self.last_grad_scale}

    def flush_steps(self) -> None:
        """Move the losses of the steps from the device to the history, in one transfer."""
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
        """Score a mini-batch under the same masks at every epoch and for every scheme.

        Parameters
        ----------
        batch
            Mini-batch, as the network takes it.
        batch_idx
            Its index in the epoch.
        """
        for ratio in self.validation_ratios:
            out = self.module.training_loss(batch, ratio=ratio, seed=_VALIDATION_SEED, step=batch_idx)
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
        names = dict.fromkeys(f"validation_loss_{ratio:g}" for ratio in self.validation_ratios)
        curves = {name: float(metrics[name]) for name in names if name in metrics}
        if not curves:
            return
        mean = math.fsum(curves.values()) / len(curves)
        self.log("validation_loss", mean, sync_dist=True)
        for name, value in {"validation_loss": mean, **curves}.items():
            self.record(name, self.current_epoch, value)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trainable parameters."""
        if self.gradient_schedule is not None:
            self.module.curriculum.requires_grad_(True)
        lr, weight_decay = self.optimizer_kwargs["lr"], self.optimizer_kwargs["weight_decay"]
        groups: list[dict[str, Any]] = (
            self.module.parameter_groups(weight_decay)
            if hasattr(self.module, "parameter_groups")
            else [{"params": list(self.module.parameters())}]
        )
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        for group in groups:
            if "lr_scale" in group:
                group["lr"] = lr * group.pop("lr_scale")
            group["peak_lr"] = group.setdefault("lr", lr)
        fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        # A fused optimizer unscales gradients itself, so that Lightning cannot clip them under mixed precision.
        fused = fused and not (self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision))
        return _OPTIMIZERS[self.optimizer_name](groups, fused=fused, **self.optimizer_kwargs)

    def on_train_start(self) -> None:
        """Find the running statistics that the forward pass changes, and count the mini-batches of the run."""
        self.statistics = moving_statistics(self.module)
        trainer: Any = self.trainer
        if self.automatic_optimization:
            # Mini-batches rather than optimizer steps: each has its own ratio and mask even if gradients accumulate.
            self._total_steps = int(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches
        else:
            self._total_steps = trainer.max_epochs * len(trainer.train_dataloader.loader)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin a step, unless the batch is an iterator over several mini-batches."""
        if self.automatic_optimization:
            self._begin(StepContext(batch, batch_idx, self.trainer.fit_loop.epoch_loop.total_batch_idx))

    def on_train_end(self) -> None:
        """Release the last mini-batch."""
        self.context = StepContext()

    def _begin(self, context: StepContext) -> None:
        """Set the context and the learning rate of a step."""
        self.context = context
        if self.learning_rate is None:
            return
        # A Lightning scheduler would need the length of the run when it is made. Computing it before a checkpoint is
        # restored sets up loaders that then restart the epoch.
        total = self._total_steps // self.trainer.accumulate_grad_batches
        factor = self.learning_rate(self.trainer.global_step, total)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["peak_lr"] * factor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the history, including the current epoch."""
        self.flush_steps()
        checkpoint["scr2mae_history"] = {
            "rows": {name: list(rows) for name, rows in self.rows.items()},
            "epoch_losses": list(self._epoch_losses),
            "before": history_to_state(self.before),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history."""
        kept = checkpoint["scr2mae_history"]
        self.rows = {name: [(int(i), float(v)) for i, v in rows] for name, rows in kept["rows"].items()}
        self._epoch_losses = list(kept["epoch_losses"])
        self.before = history_from_state(kept["before"])
