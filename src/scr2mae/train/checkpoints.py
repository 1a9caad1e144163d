"""Checkpoints: atomic writing, saving within an epoch, resuming only with the settings of the original run."""

from __future__ import annotations

import hashlib
import random
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scr2mae._utils.files import as_path, atomic_write

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from scr2mae.train.plan import MaskedTrainingPlan

__all__ = ["AtomicCheckpointIO", "ResumeState", "StepCheckpoint", "find_checkpoint", "run_settings"]

_RUN = "scr2mae_run"
_STEPS = "scr2mae_steps_per_execution"
_RANDOM_STATE = "scr2mae_random_state"
_CELLS_COMPARED = 64


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, so that a process killed while writing leaves the previous one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a temporary file, then rename it."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, str(path), storage_options)
            return
        with atomic_write(as_path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)


class StepCheckpoint(Callback):
    """Replace ``last.ckpt`` every ``every`` optimizer steps, except at the end of an epoch, when it is written anyway.

    With several mini-batches per Lightning iteration, it is written after the last of them.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        self.path, self.every = as_path(folder) / "last.ckpt", every
        self._before = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from the first step of a resumed run."""
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, unless the end of the epoch, with its validation, comes next."""
        before, self._before = self._before, trainer.global_step
        if self._before // self.every > before // self.every and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)


class ResumeState(Callback):
    """Save the run's ``settings``, set before training, and global RNG states with each checkpoint.

    RNG states are restored only in single-process runs. Masks, ratios and orders do not need them: they are functions
    of seed and step.
    """

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self._random_state: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint."""
        checkpoint[_RUN] = dict(self.settings)
        checkpoint[_STEPS] = pl_module.steps_per_execution
        checkpoint[_RANDOM_STATE] = _random_state()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the generators from a checkpoint."""
        self._random_state = checkpoint[_RANDOM_STATE]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators."""
        # The checkpoint has those of the first rank; with several, all ranks would draw the same numbers.
        if self._random_state is not None and trainer.world_size == 1:
            _set_random_state(self._random_state)
        self._random_state = None


def _random_state() -> dict[str, Any]:
    """Return the state of the generators of torch, numpy and Python, in types that need no pickle."""
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(key, np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def run_settings(plan: MaskedTrainingPlan, datamodule: Any, *, n_processes: int) -> dict[str, str]:
    """Return the settings that a run must share with the run that it resumes.

    If the data module has ``split``, ``cells`` and ``batch_size``, as ``CellDataModule`` does, they are included; 64
    cells, spread over all of them, are compared.
    """
    optimizer = ", ".join(f"{name}={value}" for name, value in plan.optimizer_kwargs.items())
    settings = {
        "seed": str(plan.mask_seed),
        # A schedule per epoch contains the number of epochs, which may be increased.
        "mask_ratio": _named(getattr(plan.ratio_schedule, "schedule", plan.ratio_schedule)),
        "curriculum": _named(plan.gradient_schedule),
        "optimizer": f"{plan.optimizer_name}({optimizer})",
        "averaging": str(plan.averaging),
        "processes": str(n_processes),
    }
    if getattr(datamodule, "batch_size", None) is not None:
        settings["batch_size"] = str(datamodule.batch_size)
    if hasattr(getattr(datamodule, "split", None), "sha256"):
        settings["split"] = datamodule.split.sha256[:16]
    if hasattr(getattr(datamodule, "cells", None), "collate"):
        settings["cells"] = _fingerprint(datamodule.cells)
    return settings


def _named(value: Any) -> str:
    """Return the same text for equal settings: the name of a function, because its ``repr`` holds an address."""
    if value is None or is_dataclass(value):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _fingerprint(cells: Any) -> str:
    """Return the number of cells and a hash of the counts and covariates of some of them."""
    indices = np.unique(np.linspace(0, cells.n_obs - 1, _CELLS_COMPARED).astype(np.int64))
    digest = hashlib.sha256()
    for key, array in sorted(cells.collate(indices).items()):
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return f"{cells.n_obs} of {digest.hexdigest()[:16]}"


def find_checkpoint(
    resume: str | Path, plan: MaskedTrainingPlan, settings: dict[str, str], *, max_epochs: int
) -> tuple[Path, int]:
    """Return the checkpoint file, and the number of mini-batches per iteration in its run.

    ``resume`` is the file or a folder with ``last.ckpt``. Raises ValueError if it is damaged, from another
    model or run, or has more epochs than this run.
    """
    path = as_path(resume)
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}; pass the .ckpt file, or the checkpoint_dir of the run to resume."
        )
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tuple(t.shape) for name, t in kept["state_dict"].items()}
        done = int(kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        before, together = dict(kept[_RUN]), int(kept.get(_STEPS, 1))
        kept["scr2mae_history"], kept[_RANDOM_STATE]
    except Exception as error:
        raise ValueError(
            f"{path} is not a checkpoint of this package, or is damaged: {str(error)[:200]}"
        ) from error
    if shapes != {name: tuple(t.shape) for name, t in plan.state_dict().items()}:
        raise ValueError(
            f"{path} is the checkpoint of a model of another shape; build the model with the same arguments."
        )
    changed = [
        f"{name} was {before.get(name)}, is {settings.get(name)}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} is from another run: {'; '.join(changed)}. Resume with the data and arguments of that run; to continue "
            "with others, call train() again without resume."
        )
    if done > max_epochs:
        raise ValueError(
            f"{path} is from epoch {done}; max_epochs includes those epochs and cannot be smaller, got {max_epochs}."
        )
    return path, together
