"""Training code shared by all modalities: the loss of a mini-batch, repeatable dropout, parameter groups, the run."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from scr2mae.masking import draw_integers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["BatchLoss", "decay_groups", "repeatable_dropout", "train_network"]

_DROPOUT_STREAM = 100
_Network = TypeVar("_Network", bound="nn.Module")


@dataclass(frozen=True)
class BatchLoss:
    """Loss of a mini-batch of ``n_obs_minibatch`` items: the mean over masked positions, or over labels."""

    loss: Tensor
    n_obs_minibatch: int


@contextmanager
def repeatable_dropout(module: nn.Module, device: torch.device, *, seed: int, step: int) -> Iterator[None]:
    """Make dropout a function of seed, step and rank, so that a resumed run is bitwise identical."""
    if not module.training:
        yield
        return
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    drawn = draw_integers(1, 1 << 32, seed=seed, step=step, stream=_DROPOUT_STREAM + rank)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(drawn))
        yield


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trained parameters for an optimizer: matrices decay; biases and normalization do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def train_network(
    network: _Network,
    data: Any,
    *,
    plan: dict[str, Any],
    seed: int,
    max_epochs: int,
    n_obs_epoch: int | None = None,
    **trainer_kwargs: Any,
) -> _Network:
    """Train a network in place, continuing its curves; return it in evaluation mode with ``history_`` and ``runs_``.

    ``data`` is a data module with ``train`` and ``validation``, ``plan`` further arguments of the training plan.
    """
    # Networks import this file, and work without Lightning.
    from scr2mae.train import MaskedTrainingPlan, fit

    if data.validation is None:
        trainer_kwargs.setdefault("limit_val_batches", 0)
    module: Any = network
    training_plan = MaskedTrainingPlan(
        network, seed=seed, before=getattr(network, "history_", None) or None, **plan
    )
    try:
        fit(
            training_plan,
            data,
            max_epochs=max_epochs,
            n_obs_epoch=len(data.train) if n_obs_epoch is None else n_obs_epoch,
            **trainer_kwargs,
        )
    finally:
        network.eval()
        if training_plan.rows:
            module.history_ = training_plan.history
    return network
