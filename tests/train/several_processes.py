"""Runs in several processes, for the tests: ``python several_processes.py NAME FOLDER``."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch

from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.nn.curriculum import Curriculum, GradientSchedule
from scr2mae.nn.module import R2MAEModule
from scr2mae.train import MaskedTrainingPlan, NonFiniteError

N_PROCESSES = 2
BATCH_SIZE = 64
CURRICULUM = Curriculum(n_ratios=4, schedule=GradientSchedule(frozen=2, start=3, end=6))
FROZEN: dict[str, Any] = {
    "max_epochs": 1,
    "plan_kwargs": {"lr": 1e-30, "weight_decay": 0.0, "averaging": None},
}
COMPILED = {"compile": True, "compile_kwargs": {"backend": "aot_eager", "fullgraph": True}}
NEVER_BETTER = {"early_stopping": True, "early_stopping_patience": 2, "early_stopping_min_delta": 100.0}
COMMAND = [
    "--n-hidden",
    "16",
    "--n-latent",
    "4",
    "--max-epochs",
    "3",
    "--accelerator",
    "cpu",
    "--donor-key",
    "donor",
    "--precision",
    "32-true",
]


def fit(
    counts: Path,
    *,
    curriculum: Curriculum | None = None,
    batch_key: str | None = None,
    with_panels: bool = False,
    **options: Any,
) -> R2MAEModel:
    """Train a tiny model, on request as if every other donor had been measured on two thirds of the genes."""
    adata = anndata.read_h5ad(counts)
    if with_panels:
        is_panel = (adata.obs["donor"].astype("category").cat.codes % 2 == 1).to_numpy()
        is_missing = np.arange(adata.n_vars) % 3 == 0
        counted = adata.X.toarray()
        counted[np.ix_(is_panel, is_missing)] = 0
        adata.X = counted
        adata.obs["study"] = np.where(is_panel, "panel", "all")
        measured = {"all": True, "panel": ~is_missing}
        adata.varm["scr2mae_measured"] = pd.DataFrame(measured, index=adata.var_names)
    R2MAEModel.setup_anndata(adata, donor_key="donor", batch_key=batch_key)
    model = R2MAEModel(adata, n_hidden=16, n_latent=4, curriculum=curriculum)
    quick = {
        "max_epochs": 3,
        "batch_size": BATCH_SIZE,
        "accelerator": "cpu",
        "precision": "32-true",
        "enable_progress_bar": False,
    }
    model.train(**{**quick, **options})
    return model


def with_extreme_ages(counts: Path, cells: slice) -> dict[str, Any]:
    """Train on cells some of which have a covariate at the end of float32's range; say what came of it."""
    adata = anndata.read_h5ad(counts)
    adata.obs["age"] = adata.obs["age"].astype("float32")
    adata.obs.iloc[cells, adata.obs.columns.get_loc("age")] = np.float32(3e38)
    R2MAEModel.setup_anndata(adata, continuous_covariate_keys=["age"])
    model = R2MAEModel(adata, n_hidden=16, n_latent=4)
    model.module.standardize.fit = lambda values: None
    error = ""
    try:
        model.train(
            4,
            batch_size=BATCH_SIZE,
            train_size=1.0,
            accelerator="cpu",
            precision="32-true",
            enable_progress_bar=False,
        )
    except NonFiniteError as caught:
        error = str(caught)
    return {
        "skipped": model.history["skipped_steps"]["skipped_steps"].tolist(),
        "error": error,
        "digest": digest(model),
        "finite": all(bool(t.isfinite().all()) for t in model.module.state_dict().values()),
    }


def digest(model: R2MAEModel) -> str:
    """Hash weights and running statistics."""
    values = [value.numpy().tobytes() for value in model.module.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


class KillAt(pl.Callback):
    """Kill this process after a step, if it is the rank that is meant."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def torchrun(folder: Path) -> None:
    """Train in every way on each rank, say what came of it, then lose a rank."""
    rank, counts = int(os.environ["RANK"]), folder / "counts.h5ad"
    drawn = []
    draw = R2MAEModule.draw_gene_mask

    def watched(self: R2MAEModule, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask = draw(self, *args, **kwargs)
        if self.training:
            drawn.append(mask.nonzero().squeeze(1).tolist())
        return mask

    R2MAEModule.draw_gene_mask = watched
    model = fit(counts)
    R2MAEModule.draw_gene_mask = draw
    model.save(folder / "model")
    shard = np.array_split(np.arange(model.adata.n_obs), N_PROCESSES)[rank]
    np.save(folder / f"embedding{rank}.npy", model.get_latent_representation(indices=shard))
    fit(counts, max_epochs=2, checkpoint_dir=folder / "run")
    stopped = fit(counts, max_epochs=20, **NEVER_BETTER)
    frozen = fit(counts, **FROZEN)
    curriculum = fit(counts, curriculum=CURRICULUM)
    compiled = fit(counts, plan_kwargs=COMPILED)
    aligned = fit(counts, max_epochs=1, batch_key="batch")
    panels = fit(counts, with_panels=True)
    extreme = {
        "one": with_extreme_ages(counts, slice(3, 4)),
        "all": with_extreme_ages(counts, slice(None)),
    }
    alignment = b"".join(value.numpy().tobytes() for value in aligned.alignment_.to_state().values())
    said = {
        "extreme": extreme,
        "alignment": hashlib.sha256(alignment).hexdigest(),
        "masks": drawn,
        "split": model.split_.sha256,
        "history": {name: curve[name].tolist() for name, curve in model.history_.items()},
        "digest": digest(model),
        "digest_resumed": digest(fit(counts, resume=folder / "run")),
        "digest_compiled": digest(compiled),
        "losses_compiled": compiled.history_["train_loss_step"]["train_loss_step"].tolist(),
        "epochs_until_stopped": len(stopped.history_["train_loss"]),
        "digest_panels": digest(panels),
        "losses_panels": panels.history_["train_loss_step"]["train_loss_step"].tolist(),
        "digest_frozen": digest(frozen),
        "digest_curriculum": digest(curriculum),
        "history_curriculum": {name: curve[name].tolist() for name, curve in curriculum.history_.items()},
    }
    if rank == 0:
        torch.save(frozen.module.state_dict(), folder / "frozen.pt")
        curriculum.save(folder / "curriculum")
    (folder / f"rank{rank}.json").write_text(json.dumps(said))
    lose_a_rank(folder, counts)


def lose_a_rank(folder: Path, counts: Path) -> None:
    """Kill the second rank at its fifth step; note when, and whether the first went on to the end."""
    (folder / "lost_at").write_text(str(time.time()))
    fit(counts, max_epochs=1000, callbacks=[KillAt(5, rank=1)], devices=N_PROCESSES)
    (folder / "went_on").touch()


def command(folder: Path) -> None:
    """Train by the command line in processes that Lightning starts, then lose one."""
    # No change of folder: the other process starts here again, and a relative PYTHONPATH must still hold.
    paths = [str(folder / "counts.h5ad"), "-o", str(folder / "model")]
    code = main(["train", *paths, "--devices", "2", "--batch-size", str(BATCH_SIZE), *COMMAND])
    sys.stdout.flush()
    if code:
        sys.exit(code)
    lose_a_rank(folder, folder / "counts.h5ad")


def killed(folder: Path) -> None:
    """Let a run of each kind be killed in the middle of its second epoch."""
    counts = folder / "counts.h5ad"
    runs: dict[str, Callable[[], Any]] = {
        "average": lambda: fit(counts, **_checkpoints(folder / "average")),
        "curriculum": lambda: fit(counts, curriculum=CURRICULUM, **_checkpoints(folder / "curriculum")),
        "command": lambda: _killed_command(folder),
    }
    for name, run in runs.items():
        child = os.fork()
        if not child:
            run()
            os._exit(1)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            sys.exit(f"{name} was not killed")


def _checkpoints(folder: Path) -> dict[str, Any]:
    return {"checkpoint_dir": folder, "checkpoint_every_n_steps": 3, "callbacks": [KillAt(14)]}


def _killed_command(folder: Path) -> None:
    end = MaskedTrainingPlan.on_train_batch_start

    def kill(self: MaskedTrainingPlan, batch: Any, batch_idx: int) -> None:
        KillAt(14).on_train_batch_end(self.trainer)
        end(self, batch, batch_idx)

    MaskedTrainingPlan.on_train_batch_start = kill
    os.chdir(folder)
    options = [
        "--checkpoint-dir",
        "command",
        "--checkpoint-every",
        "3",
        "--batch-size",
        str(BATCH_SIZE),
        "-q",
    ]
    main(["train", "counts.h5ad", "-o", "model", *options, *COMMAND])


if __name__ == "__main__":
    {"torchrun": torchrun, "command": command, "killed": killed}[sys.argv[1]](Path(sys.argv[2]))
