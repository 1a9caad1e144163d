"""Checkpoints: written whole or not at all, by the epoch and the step, and refused to another run."""

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

from scr2mae._utils.files import atomic_write

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from scr2mae.train.plan import MaskedTrainingPlan

__all__ = ["ResumeState", "StepCheckpoint", "WholeFileIO", "find_checkpoint", "run_settings"]

_RUN = "scr2mae_run"
_STEPS = "scr2mae_steps_per_execution"
_RANDOM_STATE = "scr2mae_random_state"
_CELLS_COMPARED = 64


class WholeFileIO(TorchCheckpointIO):
    """Write checkpoints so that whoever is killed while writing leaves the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the old checkpoint, then take its name."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, str(path), storage_options)
            return
        with atomic_write(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)


class StepCheckpoint(Callback):
    """Replace ``last.ckpt`` every so many optimizer steps; an epoch's last step is left to its end.

    Where mini-batches are executed together, the checkpoint follows at the end of an execution.

    Parameters
    ----------
    folder
        Where it lies.
    every
        Optimizer steps between two, >= 1.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        self.path, self.every = Path(folder) / "last.ckpt", every
        self._before = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from where a resumed run goes on."""
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, unless the end of the epoch, with its validation, is next."""
        before, self._before = self._before, trainer.global_step
        if self._before // self.every > before // self.every and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)


class ResumeState(Callback):
    """Keep with each checkpoint what its run was, and the state of the global random generators.

    The generators are put back when a single process goes on. Masks, ratios and orders need none of them: they are
    functions of seed and step.

    Attributes
    ----------
    described
        As :func:`run_settings` returns it; to be set before training.
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
        """Read from a checkpoint."""
        self._random_state = checkpoint[_RANDOM_STATE]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the generators back."""
        # The checkpoint is the first rank's; the others would all draw what it draws.
        if self._random_state is not None and trainer.world_size == 1:
            _set_random_state(self._random_state)
        self._random_state = None


def _random_state() -> dict[str, Any]:
    """State of the generators of torch, numpy and Python, in types that a checkpoint without pickle may hold."""
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
    """Say what a run must have in common with the one that it goes on with.

    Parameters
    ----------
    plan
        Its plan.
    datamodule
        Its data. Where they have ``split``, ``cells`` and ``batch_size``, as :class:`scr2mae.data.CellDataModule` does,
        these count too; of the cells 64, spread over all, are compared.
    n_processes
        In how many processes it runs.
    """
    optimizer = ", ".join(f"{name}={value}" for name, value in plan.optimizer_kwargs.items())
    described = {
        "seed": str(plan.mask_seed),
        # A schedule by the epoch knows how many there are; a run may be made longer.
        "mask_ratio": _named(getattr(plan.ratio_schedule, "schedule", plan.ratio_schedule)),
        "curriculum": _named(plan.gradient_schedule),
        "optimizer": f"{plan.optimizer_name}({optimizer})",
        "averaging": str(plan.averaging),
        "processes": str(n_processes),
    }
    if getattr(datamodule, "batch_size", None) is not None:
        described["batch_size"] = str(datamodule.batch_size)
    if hasattr(getattr(datamodule, "split", None), "sha256"):
        described["split"] = datamodule.split.sha256[:16]
    if hasattr(getattr(datamodule, "cells", None), "collate"):
        described["cells"] = _fingerprint(datamodule.cells)
    return described


def _named(value: Any) -> str:
    """Say the same of two equal settings: of a function its name, since its ``repr`` holds an address."""
    if value is None or is_dataclass(value):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _fingerprint(cells: Any) -> str:
    """Return the number of cells and a hash of some of them, counts and covariates."""
    where = np.unique(np.linspace(0, cells.n_obs - 1, _CELLS_COMPARED).astype(np.int64))
    digest = hashlib.sha256()
    for key, array in sorted(cells.collate(where).items()):
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return f"{cells.n_obs} of {digest.hexdigest()[:16]}"


def find_checkpoint(
    resume: str | Path, plan: MaskedTrainingPlan, described: dict[str, str], *, max_epochs: int
) -> tuple[Path, int]:
    """Find a checkpoint and check that it is of this run, and not beyond its end.

    Parameters
    ----------
    resume
        The file, or a folder with ``last.ckpt``.
    plan, described
        The run that is to go on.
    max_epochs
        Its length.

    Returns
    -------
    The file, and how many mini-batches its run executed together.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, of another model or run, or of more epochs than this run has.
    """
    path = Path(resume)
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}; pass the .ckpt file, or the folder given as checkpoint_dir to the run to go on with."
        )
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tuple(t.shape) for name, t in kept["state_dict"].items()}
        done = int(kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        before, together = dict(kept[_RUN]), int(kept.get(_STEPS, 1))
        kept["scr2mae_history"], kept[_RANDOM_STATE]
    except Exception as error:
        raise ValueError(
            f"{path} is no checkpoint of this package, or is damaged: {str(error)[:200]}"
        ) from error
    if shapes != {name: tuple(t.shape) for name, t in plan.state_dict().items()}:
        raise ValueError(
            f"{path} is the checkpoint of a model of another shape; build the model as it was built then."
        )
    changed = [
        f"{name} was {before.get(name)}, is {described.get(name)}"
        for name in sorted({*before, *described})
        if before.get(name) != described.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} is of another run: {'; '.join(changed)}. Resume with that run's data and arguments; to train a "
            "model on with others, call train() again without resume."
        )
    if done > max_epochs:
        raise ValueError(
            f"{path} has {done} epochs behind it; max_epochs counts them in and cannot be smaller, got {max_epochs}."
        )
    return path, together
