"""Habits of users of scvi-tools: words that mean the same are accepted, the others explained."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import scvi
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.model.scvi_words import ARGUMENTS, METHODS

TINY = {"n_hidden": 8, "n_latent": 2}
QUICK = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def model(adata: AnnData) -> R2MAEModel:
    """Not trained."""
    R2MAEModel.setup_anndata(adata, batch_key="batch", donor_key="donor")
    return R2MAEModel(adata, **TINY)


def call(method: str, more: dict[str, Any], trained: R2MAEModel, adata: AnnData, folder: Path) -> Any:
    """Call a method with arguments more."""
    if method == "__init__":
        return R2MAEModel(adata, **TINY, **more)
    if method == "setup_anndata":
        return R2MAEModel.setup_anndata(adata, **more)
    if method == "train":
        return R2MAEModel(adata, **TINY).train(**QUICK, **more)
    if method == "save":
        return trained.save(folder / "m", **more)
    if method == "load":
        trained.save(folder / "m")
        return R2MAEModel.load(folder / "m", **more)
    if method == "load_query_data":
        R2MAEModel.setup_anndata(adata, batch_key="batch")
        return R2MAEModel.load_query_data(adata.copy(), R2MAEModel(adata, **TINY), **more)
    return getattr(trained, method)(adata, indices=[0, 1], **more)


def described(result: Any) -> Any:
    """What can be compared of the result of a method."""
    if isinstance(result, R2MAEModel):
        return result.init_params_, result.registry["setup_args"], result.is_trained_
    if isinstance(result, dict):
        return {name: np.asarray(value).tolist() for name, value in result.items()}
    return None if result is None else np.asarray(result).tolist()


SAME = [
    (method, name, word.same[0])
    for method, words in ARGUMENTS.items()
    for name, word in words.items()
    if word.same and word.into is None
]
REFUSED = [
    (method, name) for method, words in ARGUMENTS.items() for name, word in words.items() if word.reason
]


@pytest.mark.filterwarnings("ignore:This query has no new:UserWarning")
@pytest.mark.parametrize(("method", "name", "value"), SAME, ids=str)
def test_values_that_mean_the_same_are_accepted(
    method: str, name: str, value: Any, trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    plain = call(method, {}, trained, adata, tmp_path / "plain")
    found = call(method, {name: value}, trained, adata, tmp_path / "more")
    assert described(found) == described(plain)


@pytest.mark.parametrize(("method", "name"), REFUSED, ids=str)
def test_other_values_are_refused_with_what_to_use(
    method: str, name: str, trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    word = ARGUMENTS[method][name]
    with pytest.raises(TypeError) as caught:
        call(method, {name: "something else"}, trained, adata, tmp_path)
    assert f"{name}='something else' is not available" in str(caught.value)
    assert word.reason in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_do_not_exist_say_what_to_use(name: str, trained: R2MAEModel) -> None:
    assert not hasattr(trained, name)
    with pytest.raises(AttributeError, match=f"{name} is not available: ") as caught:
        getattr(trained, name)
    assert METHODS[name] in str(caught.value)
    with pytest.raises(AttributeError, match="'R2MAEModel' object has no attribute 'nothing'"):
        trained.nothing  # noqa: B018


def test_the_learning_rate_and_the_split_are_taken_in_scvi_s_words(model: R2MAEModel) -> None:
    model.train(**QUICK, lr=3e-3, weight_decay=0.0, external_indexing=[np.arange(100), np.arange(100, 120)])
    arguments = model.runs_[-1]["arguments"]["train"]
    assert arguments["plan_kwargs"] == {"lr": 3e-3, "weight_decay": 0.0}
    np.testing.assert_array_equal(model.split_.validation, np.arange(100, 120))


def test_early_stopping_is_taken_in_scvi_s_words(model: R2MAEModel) -> None:
    options = {"patience": 1, "min_delta": 1e9, "monitor": "elbo_validation"}
    model.train(
        20,
        accelerator="cpu",
        enable_progress_bar=False,
        early_stopping=True,
        train_size=0.7,
        check_val_every_n_epoch=None,
        **{f"early_stopping_{name}": value for name, value in options.items()},
    )
    assert len(model.history["train_loss"]) == 2
    with pytest.raises(TypeError, match=r"\['early_stopping_speed'\] are not known"):
        model.train(**QUICK, early_stopping_speed=1)


def test_a_checkpoint_path_resumes(model: R2MAEModel, adata: AnnData, tmp_path: Path) -> None:
    model.train(**QUICK, checkpoint_dir=tmp_path)
    again = R2MAEModel(adata, **TINY)
    again.train(**{**QUICK, "max_epochs": 2}, ckpt_path=tmp_path)
    assert len(again.history["train_loss"]) == 2


def test_entries_of_the_plan_are_explained_too(model: R2MAEModel) -> None:
    with pytest.raises(TypeError, match=r"n_epochs_kl_warmup=400 is not available.*no KL term"):
        model.train(**QUICK, plan_kwargs={"n_epochs_kl_warmup": 400})
    model.train(**QUICK, plan_kwargs={"reduce_lr_on_plateau": False, "lr": 1e-3})


def test_a_word_that_nobody_knows_is_refused_with_the_nearest(trained: R2MAEModel) -> None:
    with pytest.raises(
        TypeError, match=r"get_latent_representation does not know 'batchsize'; did you mean 'batch_size'\?"
    ):
        trained.get_latent_representation(batchsize=3)
    with pytest.raises(TypeError, match="R2MAEModel does not know 'n_hiden'; did you mean 'n_hidden'"):
        R2MAEModel(trained.adata, n_hiden=3)


def test_curves_of_scvi_are_named_with_those_that_there_are(trained: R2MAEModel, tmp_path: Path) -> None:
    trained.save(tmp_path / "m")
    for model in (trained, R2MAEModel.load(tmp_path / "m", accelerator="cpu")):
        assert "elbo_train" not in model.history
        assert model.history.get("elbo_train") is None
        with pytest.raises(
            KeyError, match=r"No curve 'elbo_train': the model has no evidence bound.*'train_loss'"
        ):
            model.history["elbo_train"]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("get_latent_representation", 3), ("get_normalized_expression", 6)],
)
def test_arguments_that_mean_something_else_in_scvi_are_not_positional(
    method: str, arguments: int, trained: R2MAEModel
) -> None:
    with pytest.raises(TypeError, match="by position"):
        getattr(trained, method)(*[None] * arguments)


def test_arguments_of_setup_and_class_are_not_positional(adata: AnnData) -> None:
    with pytest.raises(TypeError, match="by position"):
        R2MAEModel.setup_anndata(adata, None, "batch", "cell_type", "donor")
    with pytest.raises(TypeError, match="by position"):
        R2MAEModel(adata, 128)


def test_the_global_seed_of_scvi_is_used_where_none_is_given(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert R2MAEModel(adata, **TINY).seed == 0
    monkeypatch.setattr(scvi.settings, "_seed", 7)
    model = R2MAEModel(adata, **TINY)
    assert model.seed == 7
    assert R2MAEModel(adata, **TINY, seed=3).seed == 3
    other = R2MAEModel(adata, **TINY, seed=0)
    assert not np.array_equal(
        model.module.to_latent.weight.detach().numpy(), other.module.to_latent.weight.detach().numpy()
    )


# --- a setup other than the user thinks


def test_a_setup_of_another_class_is_not_ignored(adata: AnnData) -> None:
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(
        ValueError, match=r"set up by SCVI\.setup_anndata\(batch_key='batch'\).*call R2MAEModel\.setup"
    ):
        R2MAEModel(adata, **TINY)
    with pytest.raises(ValueError, match=r"set up by SCVI\.setup_anndata"):
        R2MAEModel(adata[:50].copy(), **TINY)
    R2MAEModel.setup_anndata(adata, batch_key="batch")
    assert R2MAEModel(adata, **TINY).summary_stats.n_batch == 2


def test_a_setup_of_another_class_without_columns_is_replaced(adata: AnnData) -> None:
    scvi.model.SCVI.setup_anndata(adata)
    assert R2MAEModel(adata, **TINY).summary_stats.n_batch == 1


def test_a_setup_of_another_session_is_not_ignored(model: R2MAEModel, tmp_path: Path) -> None:
    import anndata

    model.adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    R2MAEModel._setup_adata_manager_store.pop(read.uns["_scvi_uuid"])
    with pytest.raises(ValueError, match=r"set up in another session with a batch, in obs\['_scvi_batch'\]"):
        R2MAEModel(read, **TINY)


@pytest.mark.parametrize("axis", ["genes", "cells"])
def test_a_filter_in_place_after_the_setup_is_noticed(
    axis: str, adata: AnnData, covariates: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    R2MAEModel.setup_anndata(adata, **covariates)
    if axis == "genes":
        adata._inplace_subset_var(np.arange(60) < 40)
    else:
        adata._inplace_subset_obs(np.arange(120) < 90)
    with caplog.at_level("INFO", logger="scr2mae"):
        model = R2MAEModel(adata, **TINY)
    assert "was changed after its setup; setting it up in the same way" in caplog.text
    assert (model.summary_stats.n_cells, model.summary_stats.n_vars) == adata.shape
    assert model.registry["setup_args"]["batch_key"] == "batch"
    model.train(**QUICK)
    assert model.get_latent_representation().shape == (adata.n_obs, 2)


def test_the_registry_of_another_class_says_why_not(adata: AnnData) -> None:
    scvi.model.SCVI.setup_anndata(adata)
    registry = scvi.model.SCVI(adata).registry
    with pytest.raises(ValueError, match="registry= is of SCVI, set up by another class; pass adata="):
        R2MAEModel(registry=registry)


# --- entries of others in the registry


def test_a_field_that_another_tool_asked_for_does_not_break_saving(
    model: R2MAEModel, tmp_path: Path, adata: AnnData
) -> None:
    model.train(**QUICK)
    z = model.get_latent_representation()
    with pytest.raises(KeyError):  # and leaves an entry
        model.get_state_registry("labels")
    assert "labels" in model.registry["field_registries"]
    model.registry["field_registries"]["mine"] = {"state_registry": {"of": object()}}
    model.registry["other_tool"] = {"x": object()}
    model.save(tmp_path / "m")
    for given in (None, adata):
        loaded = R2MAEModel.load(tmp_path / "m", given, accelerator="cpu")
        np.testing.assert_array_equal(loaded.get_latent_representation(adata), z)


# --- callbacks


class Watch(pl.Callback):
    """Remember the model of the trainer."""

    model: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.model = trainer._model


def test_one_callback_without_a_list_is_taken_and_finds_the_model(model: R2MAEModel) -> None:
    watch = Watch()
    model.train(**QUICK, callbacks=watch)
    assert watch.model is model
    with pytest.raises(TypeError, match="callbacks takes Lightning callbacks, got 3"):
        model.train(**QUICK, callbacks=[3])


def test_checkpoints_of_the_user_and_of_scvi_are_written_where_they_say(
    model: R2MAEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "mine", monitor="validation_loss")
    theirs = scvi.train.SaveCheckpoint(dirpath=str(tmp_path / "theirs"), monitor="validation_loss")
    model.train(**{**QUICK, "max_epochs": 2}, callbacks=[mine, theirs])
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "theirs"}
    assert Path(mine.best_model_path).is_file()
    loaded = R2MAEModel.load(theirs.best_model_path, accelerator="cpu")
    assert loaded.is_trained
    assert loaded.get_latent_representation(model.adata).shape == (120, 2)


REFUSED_OPTIONS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no folder": (lambda: {"enable_checkpointing": True}, "enable_checkpointing=True needs a folder; pass checkpoint_dir="),
    "no dirpath": (lambda: {"callbacks": [pl.callbacks.ModelCheckpoint()]}, "ModelCheckpoint needs a folder"),
    "no logger": (lambda: {"callbacks": [pl.callbacks.LearningRateMonitor()]}, "LearningRateMonitor writes to a logger; pass one"),
    "best": (lambda: {"callbacks": [scvi.train.SaveCheckpoint("x", load_best_on_end=True)]}, "load_best_on_end=True"),
}  # fmt: skip


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_what_lacks_a_place_is_refused_and_nothing_is_written(
    option: str, model: R2MAEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED_OPTIONS[option]
    with pytest.raises(ValueError, match=message):
        model.train(**QUICK, **make())
    assert not list(tmp_path.iterdir())


def test_sizes_may_be_numpy_integers_and_train_size_none(adata: AnnData, tmp_path: Path) -> None:
    model = R2MAEModel(
        adata, n_hidden=np.int64(8), n_latent=np.uint8(2), n_layers=np.int32(1), seed=np.int64(1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(
            np.int64(1),
            accelerator="cpu",
            enable_progress_bar=False,
            batch_size=np.int64(32),
            train_size=None,
        )
    assert len(model.split_.train) == 108
    model.save(tmp_path / "m")
    assert R2MAEModel.load(tmp_path / "m").init_params_["n_hidden"] == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_epoch": 3}, "train does not know 'max_epoch'; did you mean 'max_epochs'?"),
        ({"plan": None}, "train does not know 'plan'"),
        ({"train_fun_kwargs": {}}, "train does not know 'train_fun_kwargs'"),
    ],
)
def test_what_train_does_not_know_is_not_left_to_lightning(given: Any, message: str, adata: AnnData) -> None:
    with pytest.raises(TypeError) as caught:
        R2MAEModel(adata, **TINY).train(**QUICK, **given)
    assert message in str(caught.value)


def test_other_names_of_epochs_rate_and_callbacks_are_taken(adata: AnnData) -> None:
    model = R2MAEModel(adata, **TINY)
    quick = {name: value for name, value in QUICK.items() if name != "max_epochs"}
    model.train(n_epochs=1, learning_rate=1e-3, callback=[], pin_memory=True, **quick)
    assert len(model.history["train_loss"]) == 1
