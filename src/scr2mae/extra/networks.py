"""Helpers for the networks of all modalities: loss of a mini-batch, repeatable dropout, curriculum, weights."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scr2mae.masking import draw_integers
from scr2mae.nn.curriculum import CurriculumWeights

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from scr2mae.nn.curriculum import Curriculum

__all__ = ["BatchLoss", "DecayingNetwork", "load_weights", "make_curriculum", "repeatable_dropout"]

_DROPOUT_STREAM = 100


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


class DecayingNetwork(nn.Module):
    """Network whose matrices decay in training; its biases and normalizations do not."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return two groups for an optimizer: matrices with weight decay, biases and normalizations without.

        Parameters
        ----------
        weight_decay
            Weight decay of the matrices.
        """
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]


def make_curriculum(settings: Curriculum | None, n_in: int) -> CurriculumWeights | None:
    """Create the network of a curriculum over tokens, with the paper's sizes for DNA; None without settings."""
    if settings is None:
        return None
    return CurriculumWeights(n_in, settings.n_ratios, hidden=(128, 128), offset=0.5, n_iter=settings.n_iter)


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], *, place: str | Path, tied: Collection[str] = ()
) -> None:
    """Load weights in place; raise a ValueError unless shapes and names agree, where ``tied`` names may be missing."""
    try:
        missing, unexpected = network.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())[:400]
        raise ValueError(f"The weights in {place} do not fit the configuration: {reasons}") from error
    if (missing := sorted(set(missing) - set(tied))) or unexpected:
        raise ValueError(
            f"The weights in {place} do not fit the configuration: {missing[:5]} are missing, "
            f"{sorted(unexpected)[:5]} are unexpected."
        )
