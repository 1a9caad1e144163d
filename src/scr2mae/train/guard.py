"""Steps with a non-finite loss or gradient: skipped, counted, and reported with the observations that cause them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves, tree_map

from scr2mae.train.distributed import gather_from_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning.pytorch as pl
    from torch import Tensor

__all__ = ["MAX_SKIPPED_IN_A_ROW", "NonFiniteError", "StepGuard"]

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20
"""Skipped steps in a row at which training stops; a float16 gradient scaler needs sixteen from 65,536 down to 1."""

_CHECK_EVERY = 16  # off the CPU, where a check makes the host wait for the device
_ORDINARY_NORM = 1e4
_MAX_TRIED = 512
_MAX_NAMED = 5


class NonFiniteError(RuntimeError):
    """Raised after too many steps in a row with a non-finite loss or gradient.

    Attributes
    ----------
    positions
        Positions, in the data of the run, of the observations that cause it; of the whole mini-batch if no observation
        does so alone; None if unavailable.
    """

    def __init__(self, message: str, positions: np.ndarray | None) -> None:
        super().__init__(message)
        self.positions = positions


class StepGuard(Callback):
    """Skip optimizer steps whose gradient is not finite, and stop after too many in a row.

    A skipped step changes nothing: weights, moments and step count of the optimizer, and the running
    statistics of batch normalization stay as before. The plan passes a non-finite loss, or non-finite running
    statistics, on to the gradient. Gradients are summed over ranks before they are checked, so that all ranks
    skip the same steps.

    ``obs_names`` and ``unit`` name the observations in messages. Every ``check_every`` optimizer steps (by default
    each on a CPU, else every sixteenth) the guard checks whether to stop. Off the CPU only that check waits for the
    device: a fused optimizer receives the result of the check as a tensor, as from ``torch.amp.GradScaler``. With such
    a scaler, which skips the step itself, steps skipped while the scale adjusts also count. A gradient whose squares
    overflow counts as non-finite, because Adam's second moment would remain infinite. ``n_skipped`` is the number of
    steps skipped in this run.
    """

    def __init__(
        self, obs_names: Sequence[str] | None = None, *, unit: str = "cells", check_every: int | None = None
    ) -> None:
        self.obs_names, self.unit, self.check_every = obs_names, unit, check_every
        self.n_skipped = self._n_steps = 0
        self._in_epoch: Tensor | int = 0
        self._in_a_row: Tensor | int = 0
        self._before: Tensor | None = None
        self._has_named = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the running statistics, which the forward pass changes."""
        if self._before is None:
            statistics = pl_module.statistics
            self._before = torch.cat([s.flatten() for s in statistics]) if statistics else None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the gradient; skip the step if it is bad."""
        before, self._before = self._before, None
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        is_bad = _is_bad(gradients)
        on_cpu = is_bad.device.type == "cpu"
        if not on_cpu or is_bad:
            _restore(pl_module.statistics, before, is_bad)
            self._skip(trainer, optimizer, is_bad)
        elif hasattr(optimizer, "found_inf"):
            del optimizer.found_inf
        self._n_steps += 1
        self._in_epoch = self._in_epoch + is_bad.int()
        self._in_a_row = (self._in_a_row + 1) * is_bad.int()
        every = self.check_every or (1 if on_cpu else _CHECK_EVERY)
        if trainer.global_step % every == every - 1:
            self._check(trainer, pl_module)

    @staticmethod
    def _skip(trainer: pl.Trainer, optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
        """Skip the next step of an optimizer if the result of the check, which may still be on the device, is bad."""
        if getattr(trainer, "scaler", None) is not None:
            return
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        elif is_bad:  # waits for the device
            optimizer.zero_grad(set_to_none=True)

    def _check(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Warn at the first bad step; stop at too many in a row."""
        n_in_a_row = int(self._in_a_row)
        if n_in_a_row == 0 or (self._has_named and n_in_a_row < MAX_SKIPPED_IN_A_ROW):
            return
        named, positions, _ = cause = self._find_cause(trainer, pl_module)
        if n_in_a_row < MAX_SKIPPED_IN_A_ROW:
            self._has_named = True
            logger.warning(
                "Step %d was skipped: its loss or gradient is not finite; %s.", trainer.global_step, named
            )
            return
        causes = gather_from_ranks(trainer, cause)
        causes = [each for each in causes if each[2]] or causes
        known = [each[1] for each in causes if each[1] is not None]
        positions = np.concatenate(known) if known else None
        raise NonFiniteError(
            f"The last {n_in_a_row} steps had a loss or gradient that is not finite. They were skipped, so the weights are "
            f"unchanged. In the last mini-batch {'; '.join(each[0] for each in causes)}. Check their counts and covariates "
            "and drop or scale them; if they are correct, lower lr or train with precision='32-true'.",
            positions,
        )

    def _find_cause(self, trainer: pl.Trainer, pl_module: Any) -> tuple[str, np.ndarray | None, bool]:
        """Return the cause in this rank's mini-batch: message, positions, and whether single observations are enough."""
        batch, number, _ = pl_module.context
        rows, why = _bad_rows(trainer, pl_module, batch)
        at = getattr(trainer.train_dataloader, "positions", None)
        positions = None if at is None else at(number)
        if rows is None:
            return f"none of the {self.unit} causes it alone: {self._names(positions)}", positions, False
        chosen = rows if positions is None else positions[rows]
        named = self._names(chosen) if positions is not None else f"rows {rows[:_MAX_NAMED].tolist()}"
        return f"{named} {why}", None if positions is None else chosen, True

    def _names(self, positions: np.ndarray | None) -> str:
        if positions is None:
            return "their positions are unknown"
        shown = positions[:_MAX_NAMED].tolist()
        listed: list[Any] = shown if self.obs_names is None else [str(self.obs_names[i]) for i in shown]
        more = f" and {len(positions) - len(shown)} more" if len(positions) > len(shown) else ""
        return f"{self.unit} {listed}{more}" + ("" if self.obs_names is None else f" (positions {shown})")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Record and report the skipped steps of the epoch."""
        n_skipped, self._in_epoch = int(self._in_epoch), 0
        if n_skipped:
            self.n_skipped += n_skipped
            pl_module.record("skipped_steps", trainer.current_epoch, n_skipped)
            logger.warning(
                "Epoch %d: %d steps had a loss or gradient that is not finite; they were skipped.",
                trainer.current_epoch,
                n_skipped,
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raise if all steps of the run, or all of its second half, were skipped."""
        n_last = self._n_steps if self.n_skipped == self._n_steps else int(self._in_a_row)
        if n_last and 2 * n_last >= self._n_steps:
            which = f"All {n_last}" if n_last == self._n_steps else f"The last {n_last} of {self._n_steps}"
            raise NonFiniteError(
                f"{which} steps had a loss or gradient that is not finite. They were skipped, so nothing was learned in "
                "them. Check counts and covariates; if they are correct, lower lr or train with precision='32-true'.",
                None,
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Record and report the skipped steps of an unfinished epoch."""
        self.on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, int]:
        """Return the counts for a checkpoint."""
        return {"n_skipped": self.n_skipped, "in_epoch": int(self._in_epoch), "n_steps": self._n_steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the counts from a checkpoint."""
        self.n_skipped, self._in_epoch = state_dict["n_skipped"], state_dict["in_epoch"]
        self._n_steps = state_dict.get("n_steps", 0)


def _is_bad(gradients: list[Tensor]) -> Tensor:
    """Return whether a gradient has a value that is not finite, or so large that its squares are not."""
    vectors = [g for g in gradients if g.dim() < 2 and g.device.type == "cpu"]
    # On a CPU reading all matrices takes a twentieth of a step. Bad values in the gradient of a layer's matrix reach its
    # vectors (biases, normalization) too, which cost nothing to read; the matrices are read only if a vector is unusual.
    if vectors and torch.stack(torch._foreach_norm(vectors)).sum() < _ORDINARY_NORM:
        return torch.zeros((), dtype=torch.bool)
    return ~torch.stack(torch._foreach_norm(gradients)).sum().isfinite()


@torch.no_grad()
def _restore(statistics: list[Tensor], before: Tensor | None, is_bad: Tensor) -> None:
    """Restore the running statistics if the forward pass was bad."""
    if before is None:
        return
    after = torch.cat([s.flatten() for s in statistics])
    kept = torch.where(is_bad, before, after).split([s.numel() for s in statistics])
    for statistic, part in zip(statistics, kept, strict=True):
        statistic.copy_(part.view_as(statistic))


def _bad_rows(trainer: pl.Trainer, pl_module: Any, batch: Any) -> tuple[np.ndarray | None, str]:
    """Return the rows of a mini-batch that have non-finite values, or cause the loss or gradient alone, and which."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        return None, ""
    n = len(tensors[0])
    is_bad = torch.zeros(n, dtype=torch.bool)
    for tensor in tensors:
        if len(tensor) == n and tensor.is_floating_point():
            is_bad |= ~tensor.isfinite().reshape(n, -1).all(dim=1).cpu()
    if is_bad.any():
        return is_bad.nonzero().flatten().numpy(), "have values that are not finite"
    why = "make the loss or gradient infinite or undefined by themselves"
    try:
        is_bad = _fail_alone(trainer, pl_module, batch, n)
    except Exception:
        # Some networks do not accept single observations; the type of error says nothing about the data.
        logger.debug("Cannot score single observations.", exc_info=True)
    return (is_bad.nonzero().flatten().numpy(), why) if is_bad.any() else (None, "")


def _fail_alone(trainer: pl.Trainer, pl_module: Any, batch: Any, n: int) -> Tensor:
    """Return whether each observation alone, normalized as in evaluation, has a non-finite loss or gradient."""
    parameters = [p for p in pl_module.module.parameters() if p.requires_grad]
    training = [(each, each.training) for each in pl_module.modules()]
    is_bad = torch.zeros(n, dtype=torch.bool)
    pl_module.eval()
    try:
        for i in range(min(n, _MAX_TRIED)):

            def alone(leaf: Any, i: int = i) -> Any:
                is_row = isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == n
                return leaf[i : i + 1] if is_row else leaf

            with torch.enable_grad(), trainer.precision_plugin.forward_context():
                loss = pl_module.training_loss(tree_map(alone, batch))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms = [g.norm().cpu() for g in gradients if g is not None]
            is_bad[i] = not torch.stack([loss.detach().cpu(), *norms]).isfinite().all()
    finally:
        for each, mode in training:
            each.training = mode
    return is_bad
