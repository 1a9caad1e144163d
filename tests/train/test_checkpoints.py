"""Checkpoints: killed and resumed runs, refusal by other runs, atomic writes."""

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.train.checkpoints import AtomicCheckpointIO

Train = Callable[..., R2MAEModel]


@pytest.fixture(scope="module")
def killed(run_script: Callable[..., Any]) -> Path:
    """Checkpoints of runs that were ended by SIGKILL within an epoch."""
    folder, done = run_script("killed")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", ["average", "curriculum"])
def test_a_run_killed_within_an_epoch_resumes_to_the_result_of_an_uninterrupted_one(
    kind: str, killed: Path, runs: ModuleType, counts: Path
) -> None:
    folder, curriculum = killed / kind, runs.CURRICULUM if kind == "curriculum" else None
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 12
    assert kept["global_step"] % 10 != 0  # ten steps an epoch: this one is in the middle of the second
    assert {"averaging_state", "current_model_state", "optimizer_states", "scr2mae_random_state"} <= set(kept)
    resumed = runs.fit(counts, curriculum=curriculum, resume=folder)
    whole = runs.fit(counts, curriculum=curriculum)
    assert kept["scr2mae_run"]["split"] == whole.split_.sha256[:16]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    for name, curve in whole.history_.items():
        np.testing.assert_array_equal(resumed.history_[name], curve)


def test_the_command_line_resumes_a_killed_run_to_the_result_of_an_uninterrupted_one(
    killed: Path, runs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(killed)
    assert not Path("model").exists()
    options = [*runs.COMMAND, "--batch-size", str(runs.BATCH_SIZE), "-q"]
    assert main(["train", "counts.h5ad", "-o", "whole", *options]) == 0
    assert main(["train", "counts.h5ad", "-o", "resumed", "--resume", "command", *options]) == 0
    whole, resumed = (R2MAEModel.load(name).module.state_dict() for name in ("whole", "resumed"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.fixture(scope="module")
def checkpointed(
    simulate: Callable[..., AnnData], train_tiny: Train, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("checkpointed")
    train_tiny(simulate(), checkpoint_dir=folder, max_epochs=1)
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1; split was "),
        ({"train_size": 0.8}, "is from another run: split was "),
        ({"batch_size": 16}, "is from another run: batch_size was 32, is 16"),
        ({"plan_kwargs": {"lr": 0.01}}, r"optimizer was Adam\(lr=0.003, .*, is Adam\(lr=0.01"),
        ({"plan_kwargs": {"averaging": None}}, "averaging was 0.1, is None"),
        ({"model": {"mask_ratio": 0.25}}, r"mask_ratio was UniformRatio\(.*, is FixedRatio"),
    ],
    ids=["seed", "split", "batch_size", "lr", "averaging", "mask_ratio"],
)
def test_a_checkpoint_of_another_run_is_refused(
    changed: dict[str, Any], message: str, checkpointed: Path, adata: AnnData, train_tiny: Train
) -> None:
    with pytest.raises(ValueError, match=message):
        train_tiny(adata, resume=checkpointed, **changed)


@pytest.mark.parametrize("changed", ["counts", "cells"])
def test_changed_data_are_refused(
    changed: str, checkpointed: Path, adata: AnnData, train_tiny: Train
) -> None:
    if changed == "counts":
        adata.X.data += 1
        with pytest.raises(ValueError, match=r"another run: cells was 120 of .*, is 120 of "):
            train_tiny(adata, resume=checkpointed)
    else:
        with pytest.raises(ValueError, match=r"cells was 120 of .*, is 119 of .*; split was"):
            train_tiny(adata[:119].copy(), resume=checkpointed)


def test_resuming_restores_the_random_generators(
    simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    class Draw(pl.Callback):
        def __init__(self) -> None:
            self.drawn: list[tuple[float, float, float]] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.drawn.append((float(torch.rand(())), np.random.rand(), random.random()))  # noqa: NPY002

    whole, resumed = Draw(), Draw()
    train_tiny(simulate(), callbacks=[whole], checkpoint_dir=tmp_path, max_epochs=1)
    train_tiny(simulate(), callbacks=[whole], resume=tmp_path)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    train_tiny(simulate(), callbacks=[resumed], resume=tmp_path)
    assert resumed.drawn == whole.drawn[4:]
    assert len(set(whole.drawn)) == 8


def test_an_interrupted_write_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def write_half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


@pytest.mark.parametrize("options", [{"checkpoint_dir": "run"}, {}], ids=["zero steps", "no folder"])
def test_checkpoints_per_step_need_a_number_and_a_folder(
    options: dict[str, Any], adata: AnnData, train_tiny: Train
) -> None:
    with pytest.raises(ValueError, match="checkpoint_every_n_steps must be at least 1 and needs"):
        train_tiny(adata, checkpoint_every_n_steps=0 if options else 5, **options)
