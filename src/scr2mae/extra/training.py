"""The training run shared by all modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from scr2mae.train import MaskedTrainingPlan, fit

if TYPE_CHECKING:
    from torch import nn

__all__ = ["train_network"]

_Network = TypeVar("_Network", bound="nn.Module")


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
