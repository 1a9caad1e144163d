"""Several mini-batches per Lightning iteration: the same run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LambdaCallback,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from scr2mae import R2MAEModel
from scr2mae._utils.batches import BatchLoader, ExecutionLoader
from scr2mae.data import CellDataModule
from scr2mae.nn.layers import Standardize
from scr2mae.train import LearningRateSchedule
from scr2mae.train.callbacks import CurriculumLog
from scr2mae.train.executions import choose_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

N_STEPS = 7  # an epoch of 112 of the 120 cells
OPTIONS: dict[str, Any] = {
    "max_epochs": 3,
    "batch_size": 16,
    "train_size": 0.93,
    "split_key": False,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "precision": "32-true",
}


def train(adata: AnnData, model: dict[str, Any] | None = None, **options: Any) -> R2MAEModel:
    built = R2MAEModel(adata, n_hidden=8, n_latent=2, **(model or {}))
    built.train(**{**OPTIONS, **options})
    return built


def executed(model: R2MAEModel) -> int:
    return model.trainer.lightning_module.steps_per_execution


def assert_same_run(one: R2MAEModel, other: R2MAEModel) -> None:
    torch.testing.assert_close(one.module.state_dict(), other.module.state_dict(), rtol=0, atol=0)
    assert set(one.history) == set(other.history)
    for name, curve in one.history.items():
        assert curve.equals(other.history[name]), name


@pytest.mark.parametrize(
    ("precision", "curriculum"),
    [("32-true", None), ("32-true", "cl"), ("bf16-mixed", None), ("bf16-mixed", "cl")],
)
def test_several_mini_batches_per_iteration_give_the_same_run(
    precision: str, curriculum: str | None, simulate: Callable[..., AnnData]
) -> None:
    options = {
        "model": {"curriculum": curriculum},
        "precision": precision,
        "plan_kwargs": {"learning_rate": LearningRateSchedule("cosine", warmup=5)},
    }
    alone = train(simulate(), steps_per_execution=1, **options)
    assert executed(alone) == 1
    assert len(alone.history["train_loss_step"]) == 3 * N_STEPS
    for n in (2, 3, N_STEPS, 100):  # with a rest, and without
        together = train(simulate(), steps_per_execution=n, **options)
        assert executed(together) == n
        assert together.trainer.global_step == 3 * N_STEPS
        assert_same_run(together, alone)


def test_counts_on_the_device_and_compiled_steps_give_the_same_run(simulate: Callable[..., AnnData]) -> None:
    alone = train(simulate(), steps_per_execution=1)
    assert_same_run(train(simulate(), counts_on="device"), alone)
    options = {"plan_kwargs": {"compile": True, "compile_kwargs": {"backend": "eager"}}}
    compiled = [train(simulate(), steps_per_execution=n, **options) for n in (1, None)]
    assert [executed(model) for model in compiled] == [1, 16]
    assert_same_run(*compiled)


class _Calls(pl.Callback):
    """What Lightning's loop shows to a callback."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)


def test_callbacks_see_iterations_only_on_request(
    simulate: Callable[..., AnnData],
) -> None:
    seen, single = _Calls(), _Calls()
    together = train(simulate(), steps_per_execution=3, callbacks=[seen], max_epochs=2)
    assert seen.steps == [3, 6, 7, 10, 13, 14]
    alone = train(simulate(), callbacks=[single], max_epochs=2)
    assert executed(alone) == 1
    assert single.steps == list(range(1, 15))
    assert_same_run(together, alone)


def test_a_step_that_is_not_finite_is_skipped_alone_and_its_cell_is_named(
    simulate: Callable[..., AnnData], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standardize, "fit", lambda module, values: None)
    adata = simulate()
    adata.obs["age"] = adata.obs["age"].astype(np.float32)
    adata.obs.loc[["cell5", "cell9", "cell21"], "age"] = np.float32(3e38)
    R2MAEModel.setup_anndata(adata, continuous_covariate_keys=["age"])
    alone = train(adata, steps_per_execution=1, max_epochs=2, train_size=1.0)
    caplog.clear()
    together = train(adata, steps_per_execution=3, max_epochs=2, train_size=1.0)
    assert together.history["skipped_steps"]["skipped_steps"].tolist() == [3, 2]  # two share a mini-batch
    assert "cells ['cell5'] (positions [5]) make the loss or gradient infinite" in caplog.text
    assert_same_run(together, alone)


class _KilledError(RuntimeError):
    pass


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Make the loader fail at a mini-batch of the run, counted from one."""
    count = 0
    plain = CellDataModule.train_dataloader

    def kill(at: int | None) -> None:
        nonlocal count
        count = 0

        def train_dataloader(self: CellDataModule) -> Any:
            loader = plain(self)
            collate = loader.collate

            def counted(indices: np.ndarray) -> Any:
                nonlocal count
                count += 1
                if count == at:
                    raise _KilledError
                return collate(indices)

            loader.collate = counted
            return loader

        monkeypatch.setattr(CellDataModule, "train_dataloader", train_dataloader)

    return kill


@pytest.mark.parametrize(("every", "at", "written"), [(3, 13, 10), (5, 14, 12), (None, 13, 7)])
def test_an_interrupted_run_resumes_from_the_end_of_an_iteration(
    every: int | None,
    at: int,
    written: int,
    killed_at: Callable[[int | None], None],
    simulate: Callable[..., AnnData],
    tmp_path: Path,
) -> None:
    killed_at(at)
    with pytest.raises(_KilledError):
        train(simulate(), checkpoint_dir=tmp_path, checkpoint_every_n_steps=every)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == written
    assert kept["scr2mae_steps_per_execution"] == (every or 16)
    killed_at(None)
    resumed = train(simulate(), resume=tmp_path)
    assert executed(resumed) == (every or 16)
    assert_same_run(resumed, train(simulate(), steps_per_execution=1))
    with pytest.raises(ValueError, match=rf"had steps_per_execution={every or 16}, got 2; pass steps_per"):
        train(simulate(), resume=tmp_path, steps_per_execution=2)


class _SaveOnError(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_a_checkpoint_within_an_iteration_resumes_at_its_mini_batch(
    killed_at: Callable[[int | None], None], simulate: Callable[..., AnnData], tmp_path: Path
) -> None:
    options, path = {"steps_per_execution": 5, "plan_kwargs": {"averaging": None}}, tmp_path / "a.ckpt"
    killed_at(11)  # the fourth of the second epoch
    with pytest.raises(_KilledError):
        train(simulate(), callbacks=[_SaveOnError(path)], **options)
    assert torch.load(path, weights_only=True)["global_step"] == 10
    killed_at(None)
    assert_same_run(train(simulate(), resume=path, **options), train(simulate(), **options))


def test_a_run_of_single_mini_batches_resumes_with_single_ones(
    simulate: Callable[..., AnnData], tmp_path: Path
) -> None:
    train(simulate(), max_epochs=1, callbacks=[_Calls()], checkpoint_dir=tmp_path)
    resumed = train(simulate(), resume=tmp_path)
    assert executed(resumed) == 1
    assert_same_run(resumed, train(simulate()))


def test_a_callback_added_to_a_resumed_run_gives_a_warning(
    simulate: Callable[..., AnnData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(simulate(), max_epochs=1, checkpoint_dir=tmp_path)
    assert not caplog.records
    train(simulate(), resume=tmp_path, callbacks=[pl.Callback()])
    assert "Callbacks and loggers see 16 mini-batches at a time" in caplog.text


@pytest.mark.parametrize(
    "callback", [StochasticWeightAveraging(1e-3), GradientAccumulationScheduler({0: 1, 1: 2})]
)
def test_callbacks_that_control_the_loop_get_single_mini_batches(callback: Any) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert choose_steps(None, trainer, callbacks=[callback]) == 1
    with pytest.raises(
        ValueError, match=rf"callback {type(callback).__name__} of the trainer cannot be combined"
    ):
        choose_steps(4, trainer, callbacks=[callback])


def test_a_lambda_callback_is_accepted(simulate: Callable[..., AnnData]) -> None:
    seen: list[Any] = []
    model = train(simulate(), callbacks=[LambdaCallback(on_train_end=lambda *_: seen.append(1))])
    assert executed(model) == 1
    assert seen == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 1.0},
        {"limit_train_batches": 3},
        {"limit_train_batches": 1},
        {"overfit_batches": 2},
        {"max_steps": 4},
        {"val_check_interval": 0.5},
        {"val_check_interval": 1},
        {"devices": 2},
        {"strategy": "ddp"},
    ],
    ids=str,
)
def test_settings_that_count_mini_batches_get_single_ones(options: dict[str, Any]) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    assert choose_steps(None, trainer, callbacks=[]) == 1
    assert choose_steps(1, trainer, callbacks=[]) == 1
    spread = {"devices", "strategy"} & set(options)
    named = "strategy=DDPStrategy" if spread else "=".join(map(str, *options.items()))
    with pytest.raises(
        ValueError, match=rf"{named} of the trainer cannot be combined .*\(steps_per_execution=4\)"
    ):
        choose_steps(4, trainer, callbacks=[])
    with pytest.raises(ValueError, match=r"train with steps_per_execution=1 from the start"):
        choose_steps(None, trainer, callbacks=[], kept=16)


def test_the_default_number_depends_on_checkpoints_and_callbacks() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert choose_steps(None, trainer, callbacks=[]) == 16
    assert choose_steps(None, trainer, callbacks=[], checkpoint_every=5) == 5
    assert choose_steps(None, trainer, callbacks=[], checkpoint_every=500) == 16
    assert choose_steps(None, trainer, callbacks=[], checkpoint_every=5, kept=16) == 16
    assert choose_steps(None, trainer, callbacks=[pl.Callback()]) == 1
    assert choose_steps(None, trainer, callbacks=[CurriculumLog(None)]) == 16
    assert choose_steps(np.int64(4), trainer, callbacks=[]) == 4
    assert choose_steps(40, trainer, callbacks=[_Calls()]) == 40


def test_a_logger_counts_mini_batches(simulate: Callable[..., AnnData], tmp_path: Path) -> None:
    model = train(simulate(), logger=CSVLogger(tmp_path), max_epochs=2)
    assert executed(model) == 1
    (logged,) = tmp_path.rglob("metrics.csv")
    assert sorted(set(pd.read_csv(logged)["step"])) == [N_STEPS - 1, 2 * N_STEPS - 1]


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "16"])
def test_a_number_below_one_is_refused(wrong: Any, simulate: Callable[..., AnnData]) -> None:
    with pytest.raises(ValueError, match="steps_per_execution must be an integer >= 1, got"):
        train(simulate(), steps_per_execution=wrong)


def test_a_foreign_data_module_gives_single_mini_batches(simulate: Callable[..., AnnData]) -> None:
    adata = simulate()
    model = train(adata, steps_per_execution=1)

    class Foreign(pl.LightningDataModule):
        n_obs, n_vars, n_batch = adata.n_obs, adata.n_vars, 1

        def train_dataloader(self) -> Any:
            inner = CellDataModule(model._cells(None), model.split_, batch_size=16)
            return torch.utils.data.DataLoader(list(inner.train_dataloader()), batch_size=None)

        val_dataloader = train_dataloader

    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "precision": "32-true"}
    model.train(datamodule=Foreign(), **options)
    assert executed(model) == 1
    with pytest.raises(ValueError, match=r"steps_per_execution=2 needs .*; got DataLoader of Foreign"):
        model.train(datamodule=Foreign(), steps_per_execution=2, **options)


def test_mini_batches_of_an_iteration_are_made_on_demand() -> None:
    made: list[int] = []

    def collate(indices: np.ndarray) -> list[int]:
        made.append(len(made))
        return indices.tolist()

    loader = ExecutionLoader(BatchLoader(collate, np.arange(10), batch_size=2), 2)
    assert len(loader) == 3
    executions = iter(loader)
    first = next(executions)
    assert made == [0]
    assert list(first) == [[0, 1], [2, 3]]
    assert made == [0, 1]
    state = loader.state_dict()
    assert [list(each) for each in executions] == [[[4, 5], [6, 7]], [[8, 9]]]
    assert loader.positions(3).tolist() == [6, 7]
    again = ExecutionLoader(BatchLoader(collate, np.arange(10), batch_size=2), 2)
    again.load_state_dict(state)
    assert [list(each) for each in again] == [[[4, 5], [6, 7]], [[8, 9]]]
    assert list(next(iter(again))) == [[0, 1], [2, 3]]
