"""What networks of every modality owe the training plan: a loss, repeatable dropout, groups of parameters."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scr2mae.masking import draw_integers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["BatchLoss", "decay_groups", "repeatable_dropout"]

_DROPOUT_STREAM = 100


@dataclass(frozen=True)
class BatchLoss:
    """Loss of a mini-batch.

    Attributes
    ----------
    loss
        Mean over what was hidden, or over labels.
    n_obs_minibatch
        Observations that it is a mean over.
    """

    loss: Tensor
    n_obs_minibatch: int


@contextmanager
def repeatable_dropout(module: nn.Module, device: torch.device, *, seed: int, step: int) -> Iterator[None]:
    """Make dropout a function of seed, step and rank, so that a resumed run goes on bit for bit.

    Parameters
    ----------
    module
        Left alone in evaluation mode.
    device
        Where it computes.
    seed, step
        Of the run, and within it.
    """
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
    """Group the parameters of an optimizer: matrices decay; biases and normalization do not.

    Parameters
    ----------
    module
        Its parameters that train are grouped.
    weight_decay
        Of the first group.

    Returns
    -------
    Two groups.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
