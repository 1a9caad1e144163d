"""Data-parallel training: processes, devices, and what ranks exchange besides gradients."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.fabric.utilities.imports import _IS_INTERACTIVE
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import lightning.pytorch as pl
    from torch import Tensor

__all__ = [
    "RankAverages",
    "count_processes",
    "data_parallel_options",
    "gather_from_ranks",
    "moving_statistics",
]

logger = logging.getLogger(__name__)

_TIMEOUT = timedelta(minutes=10)

Devices = int | list[int] | str


class RankAverages(Callback):
    """Average running statistics and the displayed loss over ranks after each step.

    Without :class:`torch.nn.SyncBatchNorm` each rank normalizes by its own part of the mini-batch. Its running
    statistics are linear in those of the mini-batches, so averaging at each step gives the mean over ranks, at any
    moment: for validation, a weight average, a checkpoint, a saved model. At the end every rank takes the first one's
    curves, so that all hold the same history.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average in one exchange."""
        if trainer.world_size == 1:
            return
        shared = [pl_module.last_loss, *moving_statistics(pl_module, synchronized=False)]
        flat = torch.cat([each.detach().flatten().float() for each in shared])
        mean: Any = trainer.strategy.reduce(flat, reduce_op="mean")
        for each, part in zip(shared, mean.split([each.numel() for each in shared]), strict=True):
            each.copy_(part.view_as(each))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the first rank's curves."""
        if trainer.world_size > 1:
            pl_module.flush_steps()
            pl_module.rows = trainer.strategy.broadcast(pl_module.rows)


def gather_from_ranks(trainer: pl.Trainer, value: Any) -> list[Any]:
    """Return the picklable values of all ranks; every rank must call this."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def moving_statistics(module: torch.nn.Module, *, synchronized: bool = True) -> list[Tensor]:
    """Return the running means and variances that a forward pass moves, with or without those of ``SyncBatchNorm``."""
    return [
        statistic
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        and layer.training
        and (synchronized or not isinstance(layer, torch.nn.SyncBatchNorm))
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]


def data_parallel_options(
    *,
    devices: Devices = "auto",
    accelerator: str = "auto",
    given: Mapping[str, Any],
    find_unused_parameters: bool = False,
) -> dict[str, Any]:
    """Choose devices, nodes and strategy of a trainer; ``given``, its further arguments, take precedence.

    Returns ``devices``, and for several processes ``num_nodes``, ``strategy`` and ``sync_batchnorm``: batch
    normalization is synchronized on GPUs and by rank on CPUs. Raises ValueError if torchrun, srun or Ray
    Train started another number of processes, or if the processes could not return their result.
    """
    n_nodes = int(given.get("num_nodes", 1))
    launch = _launch()
    if launch is not None and devices == "auto" and "num_nodes" not in given:
        devices, n_nodes = launch.on_node, launch.n_nodes
    if n_nodes * _count_devices(devices, accelerator) <= 1:
        if launch is not None:
            raise ValueError(
                f"{launch.by} has started {launch.on_node * launch.n_nodes} processes, but one device on one node makes each "
                f"train alone; leave devices and num_nodes out, or pass devices={launch.on_node}, num_nodes={launch.n_nodes}."
            )
        return {"devices": devices}
    strategy = given.get("strategy", "auto")
    if isinstance(strategy, str) and strategy.split("_find_")[0] in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
        raise ValueError(
            f"strategy={strategy!r} leaves the curves of training in the processes that it starts; use 'ddp', from a script."
        )
    if _IS_INTERACTIVE and strategy == "auto":
        if devices not in ("auto", -1, "-1"):
            raise ValueError(
                f"devices={devices!r} makes several processes, which a notebook cannot start; run a script, or pass devices=1."
            )
        logger.info(
            "Training on one device: a notebook cannot start the processes that several devices need."
        )
        return {"devices": 1}
    options: dict[str, Any] = {"devices": devices, "num_nodes": n_nodes}
    if strategy == "auto":
        options["strategy"] = DDPStrategy(
            broadcast_buffers=False,  # RankAverages makes them equal
            find_unused_parameters=find_unused_parameters,
            timeout=_TIMEOUT,
        )
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        options["sync_batchnorm"] = given.get("sync_batchnorm", True)
    return options


def count_processes(trainer_kwargs: Mapping[str, Any]) -> int:
    """Return the number of processes, each with a device and a part of every batch, that these arguments lead to."""
    chosen = {name: trainer_kwargs[name] for name in ("devices", "accelerator") if name in trainer_kwargs}
    options = data_parallel_options(**chosen, given=trainer_kwargs)
    n_devices = _count_devices(options["devices"], trainer_kwargs.get("accelerator", "auto"))
    return n_devices * options.get("num_nodes", 1)


def _count_devices(devices: Devices, accelerator: str) -> int:
    """Return the number of devices per node that an argument of Lightning's trainer names."""
    if devices in ("auto", "-1", -1):
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    if isinstance(devices, str) and not devices.isdigit():
        return len([each for each in devices.split(",") if each.strip()])
    return len(devices) if isinstance(devices, list) else int(devices)


class _Launch(NamedTuple):
    """Processes that a launcher has started."""

    by: str
    on_node: int
    n_nodes: int


def _launch() -> _Launch | None:
    """Return the launcher that started several processes, and their numbers; None if this process is alone."""
    torchrun = TorchElasticEnvironment.detect()
    # Ray Train sets torchrun's variables except the one that names it, and joins its workers itself.
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if torchrun or (joined and "LOCAL_WORLD_SIZE" in os.environ):
        on_node, n_processes = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        by = "torchrun" if torchrun else "Ray Train"
        return _Launch(by, on_node, n_processes // on_node) if n_processes > 1 else None
    # SLURM_NTASKS is set in a batch script too, which is one process; these are set in a step alone.
    n_tasks, n_nodes = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if n_tasks > 1 and SLURMEnvironment.detect():
        return _Launch("srun", n_tasks // n_nodes, n_nodes)
    return None
