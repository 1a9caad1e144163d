"""``R2MAEModel.train``: repeatable, split by donor, recorded, continued, broken off and resumed."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import ModelCheckpoint

from scr2mae import R2MAEModel
from scr2mae.data import CellDataModule, split_cells
from scr2mae.masking import DecayRatio, FixedRatio, MDLMRatio, UniformRatio
from scr2mae.model.training import default_max_epochs

Train = Callable[..., R2MAEModel]
FROZEN = {"lr": 1e-30, "weight_decay": 0.0}


def assert_same_run(first: R2MAEModel, second: R2MAEModel) -> None:
    """Equal weights and curves, bit for bit."""
    torch.testing.assert_close(first.module.state_dict(), second.module.state_dict(), rtol=0, atol=0)
    assert set(first.history_) == set(second.history_)
    for name, curve in first.history_.items():
        pd.testing.assert_frame_equal(curve, second.history_[name], check_exact=True)


def donors(adata: AnnData, positions: np.ndarray) -> set[str]:
    return set(adata.obs["donor"].iloc[positions])


def test_training_is_bitwise_repeatable_for_a_seed_and_differs_for_another(
    simulate: Callable[..., AnnData],
    reference: R2MAEModel,
    covariates: dict[str, Any],
    train_tiny: Train,
    encoder: str,
) -> None:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    options = {"setup": covariates, "model": {"encoder": encoder}}
    assert_same_run(train_tiny(simulate(), **options), reference)
    other = train_tiny(simulate(), **options, seed=1)
    assert not torch.equal(other.module.log_theta, reference.module.log_theta)


def test_the_seed_of_training_is_the_model_s_unless_given(adata: AnnData, train_tiny: Train) -> None:
    implicit = train_tiny(adata, model={"seed": 5})
    assert_same_run(implicit, train_tiny(adata.copy(), model={"seed": 5}, seed=5))
    assert implicit.split_.seed == 5


def test_curves_are_frames_named_and_indexed_by_step_or_epoch(reference: R2MAEModel) -> None:
    n_steps = len(reference.history_["train_loss_step"])
    assert n_steps == 2 * -(-len(reference.split_.train) // 32)
    validation = [f"validation_loss{suffix}" for suffix in ("", "_0.1", "_0.3", "_0.5")]
    assert set(reference.history_) == {"train_loss_step", "mask_ratio_step", "train_loss", *validation}
    for name, curve in reference.history_.items():
        by_step = name.endswith("_step")
        assert curve.columns.tolist() == [name]
        assert curve.index.name == ("step" if by_step else "epoch")
        assert curve.index.tolist() == list(range(n_steps if by_step else 2))
        assert np.isfinite(curve.to_numpy()).all()
    per_step = reference.history_["train_loss_step"].to_numpy().reshape(2, -1)
    np.testing.assert_allclose(reference.history_["train_loss"].to_numpy().ravel(), per_step.mean(axis=1))
    mean = np.mean([reference.history_[name].to_numpy() for name in validation[1:]], axis=0)
    np.testing.assert_allclose(reference.history_["validation_loss"], mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask_ratio", "schedule"),
    [
        (0.3, FixedRatio(0.3)),
        ((0.2, 0.6), UniformRatio(0.2, 0.6, seed=4)),
        (DecayRatio(0.6, 0.2), DecayRatio(0.6, 0.2)),
        (MDLMRatio(seed=8), MDLMRatio(seed=8)),
    ],
    ids=["float", "pair", "decay", "mdlm"],
)
def test_the_ratio_of_each_step_is_the_schedule_s(
    mask_ratio: Any, schedule: Callable[[int, int], float], adata: AnnData, train_tiny: Train
) -> None:
    model = train_tiny(adata, model={"mask_ratio": mask_ratio}, seed=4)
    ratios = model.history_["mask_ratio_step"]["mask_ratio_step"].tolist()
    assert ratios == [schedule(step, len(ratios)) for step in range(len(ratios))]


def test_validation_masks_the_same_genes_at_every_epoch_and_for_every_scheme(adata: AnnData) -> None:
    curves = []
    for mask_ratio in (0.9, (0.1, 0.5)):
        model = R2MAEModel(adata.copy(), n_hidden=8, n_latent=2, mask_ratio=mask_ratio)
        for layer in model.module.modules():
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.momentum = 0.0  # so that a network that learns nothing stays the same
        model.train(3, accelerator="cpu", enable_progress_bar=False, batch_size=32, plan_kwargs=FROZEN)
        curves.append(model.history_["validation_loss"].to_numpy().ravel())
    assert len(set(np.concatenate(curves))) == 1


def test_training_lowers_the_validation_loss(
    simulate: Callable[..., AnnData], train_tiny: Train, encoder: str
) -> None:
    model = train_tiny(simulate(2000), model={"encoder": encoder}, max_epochs=6)
    curve = model.history_["validation_loss"]["validation_loss"]
    assert curve.iloc[-1] < curve.iloc[0] - 0.03


def test_a_second_call_goes_on_from_the_weights_and_curves_of_the_first(
    adata: AnnData, train_tiny: Train
) -> None:
    model = train_tiny(adata)
    learned = {name: value.clone() for name, value in model.module.named_parameters()}
    first = {name: curve.copy() for name, curve in model.history_.items()}
    model.train(3, accelerator="cpu", enable_progress_bar=False, batch_size=32, plan_kwargs=FROZEN)
    torch.testing.assert_close(dict(model.module.named_parameters()), learned, rtol=0, atol=1e-12)
    for name, curve in first.items():
        joined = model.history_[name]
        pd.testing.assert_frame_equal(joined.iloc[: len(curve)], curve)
        assert joined.index.tolist() == list(range(len(joined)))
        assert joined.index.name == curve.index.name
    assert len(model.history_["train_loss"]) == 5


def test_a_second_call_without_validation_keeps_the_curves_of_the_first(
    adata: AnnData, train_tiny: Train
) -> None:
    model = train_tiny(adata)
    arguments: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 32}
    model.train(2, train_size=1.0, **arguments)
    assert model.history_["validation_loss"].index.tolist() == [0, 1]
    model.train(2, **arguments)
    assert model.history_["train_loss"].index.tolist() == [0, 1, 2, 3, 4, 5]
    assert model.history_["validation_loss"].index.tolist() == [0, 1, 4, 5]


def test_the_registered_donor_splits_by_default(reference: R2MAEModel) -> None:
    split, adata = reference.split_, reference.adata
    assert split.key == "donor"
    assert not donors(adata, split.train) & donors(adata, split.validation)
    assert donors(adata, split.train) == set(split.groups["train"])
    assert len(split.validation) > 0
    np.testing.assert_array_equal(reference.train_indices, split.train)
    np.testing.assert_array_equal(reference.validation_indices, split.validation)
    expected = split_cells(120, groups=adata.obs["donor"], key="donor", seed=0)
    assert split.sha256 == expected.sha256


def test_any_column_splits_on_request(adata: AnnData, covariates: dict[str, Any], train_tiny: Train) -> None:
    split = train_tiny(adata, setup=covariates, split_key="cell_type", train_size=0.6).split_
    assert split.key == "cell_type"
    assert {side: len(groups) for side, groups in split.groups.items()} == {
        "train": 2,
        "validation": 1,
        "test": 0,
    }


def test_false_splits_by_cell_although_donors_are_known(
    adata: AnnData, covariates: dict[str, Any], train_tiny: Train
) -> None:
    split = train_tiny(adata, setup=covariates, split_key=False).split_
    assert split.key is None
    assert split.sha256 == split_cells(120, seed=0).sha256


def test_two_donors_are_too_few_to_split_by(adata: AnnData, train_tiny: Train) -> None:
    adata.obs["donor"] = np.where(np.arange(120) < 60, "a", "b")
    with pytest.warns(UserWarning, match="2 groups; at least 3 are needed to split by group"):
        model = train_tiny(adata, setup={"donor_key": "donor"})
    assert model.split_.key is None


def test_everything_may_train(adata: AnnData, train_tiny: Train) -> None:
    model = train_tiny(adata, train_size=1.0)
    assert (len(model.split_.train), len(model.split_.validation)) == (120, 0)
    assert set(model.history_) == {"train_loss_step", "mask_ratio_step", "train_loss"}


def test_given_positions_need_not_cover_every_cell(adata: AnnData, train_tiny: Train) -> None:
    sides = [np.arange(0, 80), np.arange(90, 100)]
    model = train_tiny(adata, datasplitter_kwargs={"external_indexing": sides})
    np.testing.assert_array_equal(model.split_.train, sides[0])
    np.testing.assert_array_equal(model.split_.validation, sides[1])
    assert len(model.split_.test) == 0
    assert model.get_latent_representation().shape == (120, 4)


def test_cells_outside_the_training_side_do_not_change_the_weights(adata: AnnData, train_tiny: Train) -> None:
    sides = {"external_indexing": [np.arange(0, 80), np.arange(80, 90)]}
    first = train_tiny(adata.copy(), datasplitter_kwargs=sides)
    adata.X = adata.X.multiply(np.where(np.arange(120) < 80, 1, 7)[:, None]).tocsr()
    second = train_tiny(adata, datasplitter_kwargs=sides)
    torch.testing.assert_close(first.module.state_dict(), second.module.state_dict(), rtol=0, atol=0)


def test_a_user_defined_data_module_replaces_the_data(
    adata: AnnData, trained: R2MAEModel, encoder: str
) -> None:
    model = R2MAEModel(adata, n_hidden=16, n_latent=4, encoder=encoder)
    own = CellDataModule(model._cells(None), split_cells(120), batch_size=32, seed=0)
    model.train(2, datamodule=own, accelerator="cpu", enable_progress_bar=False)
    assert_same_run(model, trained)


@pytest.mark.parametrize("logger", [False, True])
def test_training_runs_with_and_without_a_logger(
    logger: bool, adata: AnnData, train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = pl.loggers.CSVLogger(tmp_path) if logger else False
    assert len(train_tiny(adata, logger=own).history_["validation_loss"]) == 2
    assert any(tmp_path.rglob("metrics.csv")) == logger


def test_training_writes_no_file_of_its_own_accord(
    adata: AnnData, train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train_tiny(adata)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_a_terminal")
def test_the_progress_bar_shows_loss_speed_and_time_left_on_one_line(
    adata: AnnData, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny(adata, enable_progress_bar=True)
    shown = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    last = shown[-1]
    assert re.fullmatch(
        r"Epoch 2/2: 100%\|.*\| .*cells/s, \S+ left, loss=\d+\.\d{4}, val=\d+\.\d{4}\s*", last
    )
    assert len(last) <= 80


def test_without_a_progress_bar_nothing_is_printed(
    adata: AnnData, train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny(adata)
    assert capsys.readouterr() == ("", "")


def test_early_stopping_watches_the_validation_loss(adata: AnnData, train_tiny: Train) -> None:
    model = train_tiny(
        adata, max_epochs=20, early_stopping=True, early_stopping_patience=2, early_stopping_min_delta=100.0
    )
    assert len(model.history_["validation_loss"]) == 3


def test_early_stopping_without_validation_cells_is_refused(adata: AnnData, train_tiny: Train) -> None:
    with pytest.raises(ValueError, match="early_stopping"):
        train_tiny(adata, train_size=1.0, early_stopping=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs must be at least 1, got 0"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 2, got 1"),
        ({"train_size": 1.5}, ValueError, "train_size must lie in"),
        (
            {"split_key": "nothere"},
            KeyError,
            r"No 'nothere' in adata\.obs; choose one of \['donor'",
        ),
        ({"split_key": True}, ValueError, "takes a column of adata.obs, None"),
        ({"plan_kwargs": {"lr": -1.0}}, ValueError, "lr and eps must be positive"),
        ({"plan_kwargs": {"optimizer": "SGD"}}, ValueError, r"one of \['Adam', 'AdamW'\], got 'SGD'"),
        ({"resume": "nowhere.ckpt"}, FileNotFoundError, "No checkpoint at nowhere.ckpt; pass"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_impossible_arguments_are_refused_and_leave_the_model_untrained(
    arguments: dict[str, Any], error: type[Exception], message: str, adata: AnnData
) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.raises(error, match=message):
        model.train(**{"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **arguments})
    assert not model.is_trained_
    assert not model.module.training


@pytest.mark.filterwarnings("ignore:Category 0 .* has fewer than 3 cells:UserWarning")  # scvi-tools'
def test_two_cells_can_train_and_one_cannot(adata: AnnData, train_tiny: Train) -> None:
    assert len(train_tiny(adata[:2].copy()).split_.train) == 2
    with pytest.raises(ValueError, match="Training needs at least two cells, got 1 of 1"):
        train_tiny(adata[:1].copy())


@pytest.mark.parametrize(
    ("n_obs", "epochs", "of_mlp"),
    [(1, 33, 100), (1_000, 33, 100), (8_000, 20, 60), (24_000, 7, 20), (10_000_000, 6, 20)],
)
def test_epochs_by_default_fall_with_the_number_of_cells(n_obs: int, epochs: int, of_mlp: int) -> None:
    assert default_max_epochs(n_obs) == epochs
    assert default_max_epochs(n_obs, 480_000) == of_mlp


def test_the_rate_by_default_is_that_of_the_encoder(trained: R2MAEModel, adata: AnnData) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=4, encoder=trained.init_params_["encoder"])
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    rates = [group["lr"] for group in model.trainer.optimizers[0].param_groups]
    assert rates == ([3e-3, 3e-2] if trained.init_params_["encoder"] == "linear+mlp" else [1e-3])


@pytest.mark.parametrize("mask_ratio", [(0.1, 0.5), MDLMRatio(3)], ids=["pair", "mdlm"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    mask_ratio: Any, simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    options = {"model": {"mask_ratio": mask_ratio}}
    whole = train_tiny(simulate(), max_epochs=4, **options)
    train_tiny(simulate(), max_epochs=2, checkpoint_dir=tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    resumed = train_tiny(simulate(), max_epochs=4, resume=tmp_path, checkpoint_dir=tmp_path, **options)
    assert_same_run(resumed, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class _StopAt(pl.Callback):
    """Break a run off after a step, as a killed job does."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("every", [3, 4, 6], ids=["mid-epoch", "last step of an epoch", "mid-second-epoch"])
def test_a_run_killed_and_resumed_from_a_checkpoint_of_a_step_equals_a_whole_one(
    every: int, simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    options = {"model": {"mask_ratio": DecayRatio(0.6, 0.2)}, "max_epochs": 3}  # four steps an epoch
    whole = train_tiny(simulate(), **options)
    checkpoint = ModelCheckpoint(tmp_path, filename="step", every_n_train_steps=every)
    with pytest.raises(RuntimeError, match="killed"):
        train_tiny(
            simulate(),
            callbacks=[checkpoint, _StopAt(7, RuntimeError("killed"))],
            enable_checkpointing=True,
            **options,
        )
    resumed = train_tiny(simulate(), resume=tmp_path / "step.ckpt", **options)
    if every == 4:  # Lightning saves this one before the epoch's validation and does not make up for it
        for curves in (whole.history_, resumed.history_):
            for name in [name for name in curves if not name.endswith("_step")]:
                del curves[name]
    assert_same_run(resumed, whole)


def test_resuming_in_the_model_that_was_broken_off_counts_no_epoch_twice(
    simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    whole = train_tiny(simulate(), max_epochs=4)
    model = train_tiny(simulate(), max_epochs=2, checkpoint_dir=tmp_path)
    model.train(4, resume=tmp_path, accelerator="cpu", enable_progress_bar=False, batch_size=32)
    assert_same_run(model, whole)


def test_a_folder_without_a_checkpoint_cannot_be_resumed(
    adata: AnnData, train_tiny: Train, tmp_path: Path
) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"No checkpoint at .*last\.ckpt; pass the \.ckpt file, or the checkpoint_dir"
    ):
        train_tiny(adata, resume=tmp_path)


@pytest.mark.parametrize("averaging", [0.1, None], ids=["average", "last weights"])
def test_the_checkpoint_of_a_run_that_was_killed_before_it_was_saved_gives_its_result(
    averaging: float | None, simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    options = {"plan_kwargs": {"averaging": averaging}, "max_epochs": 3, "checkpoint_dir": tmp_path}
    whole = train_tiny(simulate(), **options)
    resumed = train_tiny(simulate(), **options, resume=tmp_path)
    assert_same_run(resumed, whole)
    assert resumed.runs_[-1]["outcome"] == "finished"


def test_a_checkpoint_of_another_model_damaged_or_of_a_longer_run_cannot_be_resumed(
    adata: AnnData, train_tiny: Train, tmp_path: Path
) -> None:
    train_tiny(adata, max_epochs=2, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="a model of another shape"):
        train_tiny(adata, max_epochs=4, resume=tmp_path, model={"n_hidden": 8, "n_latent": 4})
    with pytest.raises(ValueError, match=r"is from epoch 2; max_epochs includes those epochs .* got 1"):
        train_tiny(adata, max_epochs=1, resume=tmp_path)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((tmp_path / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a checkpoint of this package, or is damaged"):
        train_tiny(adata, max_epochs=4, resume=damaged)


def test_each_accumulated_mini_batch_has_a_ratio_of_its_own(adata: AnnData, train_tiny: Train) -> None:
    model = train_tiny(adata, accumulate_grad_batches=2)
    curve = model.history_["mask_ratio_step"]
    assert curve.index.tolist() == list(range(8))
    assert curve["mask_ratio_step"].nunique() == 8


def test_ctrl_c_leaves_a_model_that_works_and_a_second_ctrl_c_that_is_heard(
    adata: AnnData, tmp_path: Path, set_sigint: Callable[[Any], None]
) -> None:
    model = R2MAEModel(adata, n_hidden=16, n_latent=4)
    handler = signal.default_int_handler
    set_sigint(handler)
    with pytest.raises(KeyboardInterrupt):
        model.train(
            3,
            callbacks=[_StopAt(6, KeyboardInterrupt())],
            accelerator="cpu",
            enable_progress_bar=False,
            batch_size=32,
        )
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert len(model.history_["train_loss_step"]) == 6
    assert np.isfinite(model.get_latent_representation()).all()
    model.save(tmp_path / "model")
    model.train(1, accelerator="cpu", enable_progress_bar=False, batch_size=32)
    assert len(model.history_["train_loss_step"]) == 10
