"""Steps whose loss or gradient is not finite: skipped, counted, and named when they do not end."""

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
"""Training stops at so many. A gradient scaler of float16 halves its scale from 65,536 to one in sixteen."""

_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 16  # looking makes the host wait for the device
_CALM = 1e4
_MOST_TRIED = 512
_MOST_NAMED = 5


class NonFiniteError(RuntimeError):
    """Training met nothing but steps with a non-finite loss or gradient.

    Attributes
    ----------
    positions
        Of the observations to blame, in the data of the run; of the whole mini-batch where none is to blame alone; None
        where the loader does not tell.
    """

    def __init__(self, message: str, positions: np.ndarray | None) -> None:
        super().__init__(message)
        self.positions = positions


class StepGuard(Callback):
    """Skip the optimizer steps whose gradient is not finite, and stop when they do not end.

    A skipped step leaves no trace: weights, moments and step count of the optimizer, and the running statistics of batch
    normalization are those of before. The plan carries a loss, or running statistics, that are not finite over to the
    gradient; gradients are added up over ranks before they are looked at, so that all ranks skip the same steps.

    Parameters
    ----------
    obs_names
        What the observations of the run are called; None for their positions.
    unit
        What they are.
    look_every
        Optimizer steps between two looks at whether to stop; None for each on a CPU, else every sixteenth.

    Attributes
    ----------
    n_skipped
        Steps skipped in this run, as far as the host knows.

    Notes
    -----
    Off the CPU nothing waits for the device but that look: a fused optimizer is handed the verdict as a tensor, as
    ``torch.amp.GradScaler`` does. Where there is such a scaler it skips the step itself, and its own steps in search
    of a scale are counted here. A gradient whose squares overflow counts as non-finite: Adam would keep the infinity.
    """

    def __init__(
        self, obs_names: Sequence[str] | None = None, *, unit: str = "cells", look_every: int | None = None
    ) -> None:
        self.obs_names, self.unit, self.look_every = obs_names, unit, look_every
        self.n_skipped = 0
        self._in_epoch: Tensor | int = 0
        self._in_a_row: Tensor | int = 0
        self._before: Tensor | None = None
        self._has_named = False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the forward pass changes."""
        if self._before is None:
            statistics = pl_module.statistics
            self._before = torch.cat([s.flatten() for s in statistics]) if statistics else None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradient."""
        before, self._before = self._before, None
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        is_bad = _is_bad(gradients)
        on_cpu = is_bad.device.type == "cpu"
        if not on_cpu or is_bad:
            _put_back(pl_module.statistics, before, is_bad)
            self._skip(trainer, optimizer, is_bad)
        elif hasattr(optimizer, "found_inf"):
            del optimizer.found_inf
        self._in_epoch = self._in_epoch + is_bad.int()
        self._in_a_row = (self._in_a_row + 1) * is_bad.int()
        every = self.look_every or _LOOK_EVERY.get(is_bad.device.type, _LOOK_EVERY_ELSEWHERE)
        if trainer.global_step % every == every - 1:
            self._look(trainer, pl_module)

    @staticmethod
    def _skip(trainer: pl.Trainer, optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
        """Keep an optimizer from stepping if the verdict, which may still be on its way, says so."""
        if getattr(trainer, "scaler", None) is not None:
            return
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        elif is_bad:  # waits for the device
            optimizer.zero_grad(set_to_none=True)

    def _look(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say at the first bad step who is to blame; stop at too many in a row."""
        n_in_a_row = int(self._in_a_row)
        if n_in_a_row == 0 or (self._has_named and n_in_a_row < MAX_SKIPPED_IN_A_ROW):
            return
        named, positions, _ = found = self._blame(trainer, pl_module)
        if n_in_a_row < MAX_SKIPPED_IN_A_ROW:
            self._has_named = True
            logger.warning(
                "Step %d was skipped: its loss or gradient is not finite; %s.", trainer.global_step, named
            )
            return
        founds = gather_from_ranks(trainer, found)
        alone = [each for each in founds if each[2]] or founds
        known = [each[1] for each in alone if each[1] is not None]
        positions = np.concatenate(known) if known else None
        raise NonFiniteError(
            f"The last {n_in_a_row} steps had a loss or gradient that is not finite. They were skipped, so the weights are "
            f"those of before. In the last mini-batch {'; '.join(each[0] for each in alone)}. Look at their counts and "
            "covariates and drop or scale them; if they are as they should be, lower lr or train with precision='32-true'.",
            positions,
        )

    def _blame(self, trainer: pl.Trainer, pl_module: Any) -> tuple[str, np.ndarray | None, bool]:
        """Who is to blame in this rank's mini-batch: in words, by position, and whether alone."""
        batch, number, _ = pl_module.context
        rows, why = _bad_rows(trainer, pl_module, batch)
        at = getattr(trainer.train_dataloader, "positions", None)
        positions = None if at is None else at(number)
        if rows is None:
            return f"no one of the {self.unit} is to blame alone: {self._names(positions)}", positions, False
        chosen = rows if positions is None else positions[rows]
        named = self._names(chosen) if positions is not None else f"rows {rows[:_MOST_NAMED].tolist()}"
        return f"{named} {why}", None if positions is None else chosen, True

    def _names(self, positions: np.ndarray | None) -> str:
        if positions is None:
            return "their positions are unknown"
        shown = positions[:_MOST_NAMED].tolist()
        listed: list[Any] = shown if self.obs_names is None else [str(self.obs_names[i]) for i in shown]
        more = f" and {len(positions) - len(shown)} more" if len(positions) > len(shown) else ""
        return f"{self.unit} {listed}{more}" + ("" if self.obs_names is None else f" (positions {shown})")

    def _close_epoch(self, pl_module: Any, epoch: int, n_steps: int | None = None) -> None:
        n_skipped, self._in_epoch = int(self._in_epoch), 0
        if n_skipped:
            self.n_skipped += n_skipped
            pl_module.record("skipped_steps", epoch, n_skipped)
            logger.warning(
                "Epoch %d: %d steps had a loss or gradient that is not finite; they were skipped.",
                epoch,
                n_skipped,
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the steps of the epoch that were skipped."""
        self._close_epoch(pl_module, trainer.current_epoch)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Count those of an epoch that breaks off."""
        self._close_epoch(pl_module, trainer.current_epoch)

    def state_dict(self) -> dict[str, int]:
        """Keep the counts with a checkpoint."""
        return {"n_skipped": self.n_skipped, "in_epoch": int(self._in_epoch)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the counts up again."""
        self.n_skipped, self._in_epoch = state_dict["n_skipped"], state_dict["in_epoch"]


def _is_bad(gradients: list[Tensor]) -> Tensor:
    """Whether a gradient has a value that is not finite, or so large that its squares are not."""
    vectors = [g for g in gradients if g.dim() < 2 and g.device.type == "cpu"]
    # Each layer's vectors, biases and normalization, are given what its matrices are given, and cost nothing to read; a
    # processor reads the matrices for as long as a twentieth of a step takes. They are looked at when a vector stands out.
    if vectors and torch.stack(torch._foreach_norm(vectors)).sum() < _CALM:
        return torch.zeros((), dtype=torch.bool)
    return ~torch.stack(torch._foreach_norm(gradients)).sum().isfinite()


@torch.no_grad()
def _put_back(statistics: list[Tensor], before: Tensor | None, is_bad: Tensor) -> None:
    """Undo what a bad forward pass did to the running statistics."""
    if before is None:
        return
    after = torch.cat([s.flatten() for s in statistics])
    kept = torch.where(is_bad, before, after).split([s.numel() for s in statistics])
    for statistic, part in zip(statistics, kept, strict=True):
        statistic.copy_(part.view_as(statistic))


def _bad_rows(trainer: pl.Trainer, pl_module: Any, batch: Any) -> tuple[np.ndarray | None, str]:
    """Rows of a mini-batch that hold values that are not finite, or make the loss or gradient so alone."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors:
        return None, ""
    n = len(tensors[0])
    is_bad = torch.zeros(n, dtype=torch.bool)
    for tensor in tensors:
        if len(tensor) == n and tensor.is_floating_point():
            is_bad |= (
                ~tensor.isfinite().flatten(1).all(dim=1).cpu()
                if tensor.dim() > 1
                else ~tensor.isfinite().cpu()
            )
    if is_bad.any():
        return is_bad.nonzero().flatten().numpy(), "have values that are not finite"
    try:
        is_bad = _fail_alone(trainer, pl_module, batch, n)
    except Exception:
        # A network may not take one observation at a time; which error this is says nothing about the data.
        logger.debug("Cannot score single observations.", exc_info=True)
    if is_bad.any():
        return (
            is_bad.nonzero().flatten().numpy(),
            "make the loss or gradient infinite or undefined by themselves",
        )
    return None, ""


def _fail_alone(trainer: pl.Trainer, pl_module: Any, batch: Any, n: int) -> Tensor:
    """Whether each observation by itself, normalized as in evaluation, has a non-finite loss or gradient."""
    parameters = [p for p in pl_module.module.parameters() if p.requires_grad]
    training = [(each, each.training) for each in pl_module.modules()]
    is_bad = torch.zeros(n, dtype=torch.bool)
    pl_module.eval()
    try:
        for i in range(min(n, _MOST_TRIED)):

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
