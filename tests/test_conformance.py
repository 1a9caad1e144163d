"""What code written for any model of scvi-tools may expect of this one."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass
from scvi_cases import ABSENT, COVERED
from torch.utils.data import DataLoader

from scr2mae import R2MAEModel
from scr2mae.data import CellDataModule, read_cells, split_cells

QUICK = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 32}
TINY = {"n_hidden": 8, "n_latent": 2}
copies_a_trainer = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*is deprecated:FutureWarning"
)  # by Lightning


@pytest.fixture
def model(adata: AnnData, covariates: dict[str, Any]) -> R2MAEModel:
    """A model of two categorical covariates and one continuous, not trained."""
    R2MAEModel.setup_anndata(adata, **covariates)
    return R2MAEModel(adata, **TINY)


# --- setup and managers


def test_it_is_a_model_of_scvi_tools(model: R2MAEModel) -> None:
    assert isinstance(model, BaseModelClass)
    assert (model.summary_stats.n_cells, model.summary_stats.n_vars, model.summary_stats.n_batch) == (
        120,
        60,
        2,
    )
    assert model.summary_stats.n_extra_categorical_covs == 1
    assert model.summary_stats.n_extra_continuous_covs == 1


def test_setup_writes_the_keys_that_scvi_tools_writes(adata: AnnData, covariates: dict[str, Any]) -> None:
    R2MAEModel.setup_anndata(adata, **covariates)
    assert {"_scvi_uuid", "_scvi_manager_uuid"} <= set(adata.uns)
    np.testing.assert_array_equal(adata.obs["_scvi_batch"], adata.obs["batch"].cat.codes)


def test_every_model_of_one_anndata_shares_its_manager_and_each_keeps_its_own_registry(
    adata: AnnData, covariates: dict[str, Any]
) -> None:
    R2MAEModel.setup_anndata(adata, batch_key="batch")
    first, second = R2MAEModel(adata, **TINY), R2MAEModel(adata, **TINY)
    assert first.adata_manager is second.adata_manager
    R2MAEModel.setup_anndata(adata, **covariates)
    third = R2MAEModel(adata, **TINY)
    assert third.adata_manager is not first.adata_manager
    assert first.registry["setup_args"]["donor_key"] is None
    assert third.registry["setup_args"]["donor_key"] == "donor"
    assert first.module.encoder.first.continuous is None
    assert third.module.encoder.first.continuous is not None


def test_the_manager_of_an_anndata_is_found_and_can_be_let_go(model: R2MAEModel, adata: AnnData) -> None:
    manager = model.get_anndata_manager(adata, required=True)
    assert manager is model.adata_manager
    assert model.get_anndata_manager(AnnData(np.ones((2, 2)))) is None
    with pytest.raises(ValueError, match=r"Please set up your AnnData with R2MAEModel\.setup_anndata"):
        model.get_anndata_manager(AnnData(np.ones((2, 2))), required=True)
    other = adata.copy()
    del other.uns["_scvi_uuid"]
    other_model = R2MAEModel(other, **TINY)
    assert other_model.get_anndata_manager(other) is not None
    other_model.deregister_manager(other)
    assert other_model.get_anndata_manager(other) is None
    assert model.get_anndata_manager(adata, required=True) is manager


def test_letting_go_of_all_managers_leaves_the_model_its_own(model: R2MAEModel, adata: AnnData) -> None:
    model.deregister_manager()
    assert model.get_anndata_manager(adata, required=True) is model.adata_manager


def test_a_setup_is_transferred_to_another_anndata_with_the_codes_of_the_first(
    model: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    other = simulate(50, seed=3)
    other.obs["batch"] = other.obs["batch"].astype(str)
    only_b1 = other[other.obs["batch"] == "b1"].copy()
    model.adata_manager.transfer_fields(only_b1)
    assert set(only_b1.obs["_scvi_batch"]) == {1}  # not 0, though it is the only batch there
    assert model._validate_anndata(only_b1) is only_b1


def test_a_transfer_refuses_categories_that_were_not_there(
    model: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    with pytest.raises(ValueError, match=r"Category b9 not found in source registry"):
        model.adata_manager.transfer_fields(simulate(50, seed=3, batches=("b0", "b9")))


def test_data_of_the_registry_are_those_of_the_anndata(model: R2MAEModel, adata: AnnData) -> None:
    counts = model.get_from_registry(adata, REGISTRY_KEYS.X_KEY)
    assert (counts != adata.X).nnz == 0
    age = model.get_from_registry(adata, REGISTRY_KEYS.CONT_COVS_KEY)
    np.testing.assert_array_equal(np.asarray(age).ravel(), adata.obs["age"])


def test_the_setup_can_be_looked_at(
    model: R2MAEModel, trained: R2MAEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.view_anndata_setup()
    model.view_anndata_setup(hide_state_registries=True)
    model.view_setup_method_args()
    shown = capsys.readouterr().out
    for part in ("Anndata setup with scvi-tools version", "R2MAEModel.setup_anndata", "batch"):
        assert part in shown
    with pytest.raises(ValueError, match="Given AnnData not setup with R2MAEModel"):
        model.view_anndata_setup(AnnData(np.ones((2, 2))))
    repr(trained)  # scvi-tools prints it
    assert (
        f"R2MAEModel with encoder '{trained.init_params_['encoder']}', 16 hidden units"
        in capsys.readouterr().out
    )
    assert trained.get_setup_arg("layer") is None


def test_a_registry_has_the_parts_that_scvi_tools_reads(model: R2MAEModel) -> None:
    assert {"scvi_version", "model_name", "setup_args", "field_registries", "setup_method_name"} <= set(
        model.registry
    )
    assert model.registry["model_name"] == "R2MAEModel"
    assert AnnDataManager._get_summary_stats_from_registry(model.registry).n_vars == 60
    assert model.get_var_names().tolist() == [f"gene{i}" for i in range(60)]


def test_the_registry_of_a_saved_model_can_be_read_and_looked_at(
    reference: R2MAEModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.save(tmp_path / "model")
    registry = R2MAEModel.load_registry(tmp_path / "model")
    assert registry["setup_args"] == reference.registry["setup_args"]
    R2MAEModel.view_setup_args(tmp_path / "model")
    assert "donor_key" in capsys.readouterr().out


def test_minified_data_are_refused(adata: AnnData) -> None:
    R2MAEModel.setup_anndata(adata)
    adata.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    with pytest.raises(
        NotImplementedError, match="R2MAEModel model currently does not support minified data"
    ):
        R2MAEModel(adata, **TINY)
    assert not hasattr(R2MAEModel, "minify_adata")


@pytest.mark.parametrize(
    "setup",
    [
        {},
        {"batch_key": "batch"},
        {"categorical_covariate_keys": ["chemistry", "donor"]},
        {"continuous_covariate_keys": ["age"]},
        {"size_factor_key": "size", "labels_key": "cell_type"},
    ],
    ids=str,
)
def test_every_kind_of_covariate_trains_saves_and_loads(
    setup: dict[str, Any], adata: AnnData, tmp_path: Path
) -> None:
    adata.obs["size"] = np.linspace(50, 200, adata.n_obs)
    R2MAEModel.setup_anndata(adata, **setup)
    model = R2MAEModel(adata, **TINY)
    model.train(1, **QUICK)
    model.save(tmp_path / "model")
    z = model.get_latent_representation()
    np.testing.assert_array_equal(
        R2MAEModel.load(tmp_path / "model", accelerator="cpu").get_latent_representation(adata), z
    )
    assert np.isfinite(model.get_normalized_expression(return_numpy=True)).all()


# --- training


class Batches(pl.LightningDataModule):
    """A data module of someone else's: mini-batches under scvi-tools' keys, in an order of its own."""

    def __init__(self, adata: AnnData) -> None:
        super().__init__()
        self.adata, self.n_obs = adata, adata.n_obs

    def _batches(self, n: int) -> DataLoader[Any]:
        X = torch.from_numpy(self.adata.X.toarray())
        batch = torch.from_numpy(self.adata.obs["batch"].cat.codes.to_numpy(dtype=np.int64, copy=True))[
            :, None
        ]
        keys = (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY)
        batches = [
            dict(zip(keys, each, strict=True)) for each in zip(X.split(40), batch.split(40), strict=True)
        ]
        return DataLoader(batches[:n], batch_size=None)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._batches(3)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._batches(1)


@pytest.mark.parametrize("curriculum", [None, "cl"])
def test_a_data_module_of_one_s_own_trains(curriculum: str | None, adata: AnnData) -> None:
    R2MAEModel.setup_anndata(adata, batch_key="batch")
    model = R2MAEModel(adata, **TINY, curriculum=curriculum)
    before = copy.deepcopy(model.module.state_dict())
    model.train(2, datamodule=Batches(adata), accelerator="cpu", enable_progress_bar=False)
    assert model.is_trained
    assert model.train_indices is None
    assert len(model.history["train_loss_step"]) == 2 * 3
    assert len(model.history["validation_loss"]) == 2
    assert ("curriculum_multiplier" in model.history) == (curriculum is not None)
    assert not torch.equal(model.module.state_dict()["to_latent.weight"], before["to_latent.weight"])


def test_a_data_module_of_the_package_trains_like_the_model_itself(adata: AnnData) -> None:
    own, given = R2MAEModel(adata, **TINY), R2MAEModel(adata, **TINY)
    own.train(1, **QUICK)
    module = CellDataModule(read_cells(adata, given.spec), split_cells(adata.n_obs), batch_size=32, seed=0)
    given.train(1, datamodule=module, accelerator="cpu", enable_progress_bar=False)
    torch.testing.assert_close(given.module.state_dict(), own.module.state_dict(), rtol=0, atol=0)


def test_curves_are_frames_by_epoch_and_step(trained: R2MAEModel) -> None:
    assert {"train_loss", "train_loss_step", "validation_loss"} <= set(trained.history)
    for name, curve in trained.history.items():
        assert isinstance(curve, pd.DataFrame)
        assert curve.columns.tolist() == [name]
        assert curve.index.name == ("step" if name.endswith("_step") else "epoch")
        assert curve.index.is_monotonic_increasing


def test_train_called_again_goes_on(adata: AnnData) -> None:
    model = R2MAEModel(adata, **TINY)
    assert not model.is_trained
    model.train(2, **QUICK)
    weights = model.module.to_latent.weight.detach().clone()
    model.train(1, **QUICK)
    assert len(model.history["train_loss"]) == 3
    assert model.history["train_loss"].index.tolist() == [0, 1, 2]
    assert not torch.equal(model.module.to_latent.weight, weights)
    assert model.history["train_loss"].iloc[2, 0] < model.history["train_loss"].iloc[0, 0]


def test_sides_of_the_split_are_disjoint_and_cover_the_cells(trained: R2MAEModel) -> None:
    sides = [trained.train_indices, trained.validation_indices, trained.test_indices]
    np.testing.assert_array_equal(np.sort(np.concatenate(sides)), np.arange(120))


# --- devices, copies, files


@copies_a_trainer
def test_a_model_moves_to_a_device_and_back(trained: R2MAEModel, adata: AnnData) -> None:
    model = copy.deepcopy(trained)
    expected = model.get_latent_representation()
    model.to_device("cpu")
    assert model.device == torch.device("cpu")
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    model.to_device("meta")
    assert {p.device.type for p in model.module.parameters()} == {"meta"}


@copies_a_trainer
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_moves_to_a_gpu_and_back(trained: R2MAEModel) -> None:
    model = copy.deepcopy(trained)
    expected = model.get_latent_representation()
    model.to_device(0)
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-4)
    model.to_device("cpu")
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


@copies_a_trainer
def test_a_deep_copy_is_a_model_of_its_own(trained: R2MAEModel) -> None:
    expected = trained.get_latent_representation()
    copied = copy.deepcopy(trained)
    np.testing.assert_array_equal(copied.get_latent_representation(copied.adata), expected)
    copied.train(1, **QUICK)
    with torch.no_grad():
        copied.module.to_latent.weight.zero_()
    assert len(copied.history["train_loss"]) == 3
    assert len(trained.history["train_loss"]) == 2
    np.testing.assert_array_equal(trained.get_latent_representation(), expected)


def test_the_counts_are_freed_with_the_model(simulate: Callable[..., AnnData]) -> None:
    import weakref

    adata = simulate()
    model = R2MAEModel(adata, **TINY)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_saved_model_holds_no_data(trained: R2MAEModel, adata: AnnData, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    names = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert ".h5ad" not in names
    assert b"cell17" not in b"".join(path.read_bytes() for path in (tmp_path / "model").iterdir())
    loaded = R2MAEModel.load(tmp_path / "model")
    assert loaded.adata is None
    with pytest.raises(ValueError, match=r"loaded without data; pass adata="):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match=r"loaded without data; load it with adata="):
        loaded.train(1)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(adata), trained.get_latent_representation()
    )


def test_genes_in_another_order_are_embedded_by_name_but_attached_only_in_order(
    trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model")
    reversed_genes = adata[:, ::-1].copy()
    with pytest.raises(ValueError, match=r"60 of the model's 60 are there, or the order differs"):
        R2MAEModel.load(tmp_path / "model", reversed_genes)
    loaded = R2MAEModel.load(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.get_latent_representation(reversed_genes), trained.get_latent_representation()
    )
    R2MAEModel.prepare_query_anndata(reversed_genes, tmp_path / "model")
    attached = R2MAEModel.load(tmp_path / "model", reversed_genes)
    np.testing.assert_array_equal(attached.get_latent_representation(), trained.get_latent_representation())


def test_a_subclass_has_managers_and_folders_of_its_own(adata: AnnData, tmp_path: Path) -> None:
    class Other(R2MAEModel):
        """Another class."""

    Other.setup_anndata(adata)
    model = Other(adata, **TINY)
    assert R2MAEModel._setup_adata_manager_store is not Other._setup_adata_manager_store
    model.save(tmp_path / "model")
    assert type(Other.load(tmp_path / "model")) is Other
    with pytest.raises(ValueError, match="contains a Other, not a R2MAEModel"):
        R2MAEModel.load(tmp_path / "model")


# --- what the tests of scvi-tools 1.4.2 are about


def test_every_test_of_scvi_tools_has_a_counterpart_or_a_reason() -> None:
    assert len(ABSENT) <= 38
    assert not set(ABSENT) & set(COVERED)
    assert all(len(reason.split()) > 3 for reason in ABSENT.values())
    here = Path(__file__).parent
    for about, place in COVERED.items():
        file, _, function = place.partition("::")
        assert f"def {function}(" in (here / file).read_text(encoding="utf-8"), about


@pytest.fixture
def quick(model: R2MAEModel) -> R2MAEModel:
    """The model of two covariates and one continuous, trained for one epoch."""
    model.train(1, **QUICK)
    return model


def test_data_with_other_batches_are_not_attached(
    reference: R2MAEModel, simulate: Callable[..., AnnData], tmp_path: Path
) -> None:
    reference.save(tmp_path / "model")
    with pytest.raises(ValueError, match="which the model has not seen"):
        R2MAEModel.load(tmp_path / "model", simulate(batches=("b8", "b9")))


@pytest.mark.parametrize("names", [("b0", "b1"), (0, 1), (0.0, 1.0), (False, True)], ids=str)
def test_expression_in_one_batch_or_several_by_name_or_number(names: tuple[Any, Any], adata: AnnData) -> None:
    adata.obs["lane"] = np.array(names)[np.arange(120) % 2]
    R2MAEModel.setup_anndata(adata, batch_key="lane")
    model = R2MAEModel(adata, **TINY)
    model.train(1, **QUICK)
    first, second, both = (
        model.get_normalized_expression(transform_batch=batch, return_numpy=True)
        for batch in (names[0], names[1], list(names))
    )
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)


def test_views_and_copies_embed_as_their_original(quick: R2MAEModel, adata: AnnData) -> None:
    expected = quick.get_latent_representation()
    np.testing.assert_allclose(quick.get_latent_representation(adata[:10]), expected[:10], atol=1e-5)
    np.testing.assert_allclose(quick.get_latent_representation(adata.copy()), expected, atol=1e-5)
    assert quick.get_latent_representation(adata, indices=[1, 2, 3]).shape == (3, 2)


def test_a_monitor_of_the_learning_rate_writes_to_the_logger(model: R2MAEModel, tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    monitor = pl.callbacks.LearningRateMonitor()
    model.train(2, **QUICK, callbacks=[monitor], logger=logger, log_every_n_steps=1)
    assert any("lr-Adam" in path.read_text() for path in tmp_path.rglob("metrics.csv"))


def test_a_last_mini_batch_of_one_cell_is_left_out(adata: AnnData) -> None:
    model = R2MAEModel(adata, **TINY)
    model.train(1, train_size=1.0, accelerator="cpu", enable_progress_bar=False, batch_size=119)
    assert len(model.history["train_loss_step"]) == 1


def test_the_data_of_a_model_can_be_exchanged(quick: R2MAEModel, simulate: Callable[..., AnnData]) -> None:
    other = simulate(seed=4)
    expected = quick.get_latent_representation(other)
    quick.adata = other
    np.testing.assert_array_equal(quick.get_latent_representation(), expected)
    without = simulate(seed=5)
    del without.obs["batch"]

    def exchange() -> None:
        quick.adata = without
        quick.get_latent_representation()

    with pytest.raises(KeyError, match="batch"):
        exchange()


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_backed_file_trains(mode: str, adata: AnnData, tmp_path: Path) -> None:
    import anndata

    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed=mode)
    R2MAEModel.setup_anndata(backed, batch_key="batch")
    model = R2MAEModel(backed, **TINY)
    model.train(1, **QUICK)
    assert model.get_latent_representation().shape == (120, 2)


@pytest.mark.parametrize("lacking", ["chemistry", "age"])
def test_a_query_needs_the_covariates_of_its_reference_and_may_have_others(
    lacking: str, reference: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    query = simulate(60, seed=3, batches=("b0", "b9"))
    query.obs["other"] = "x"
    query.obs["chemistry"] = query.obs["chemistry"].cat.rename_categories({"v2": "v9"})
    found = R2MAEModel.load_query_data(query.copy(), reference, accelerator="cpu")
    assert found.n_new_categories_ == [1, 1]
    assert found.registry["setup_args"]["categorical_covariate_keys"] == ["chemistry"]
    del query.obs[lacking]
    with pytest.raises(KeyError, match=f"No '{lacking}' in adata.obs"):
        R2MAEModel.load_query_data(query, reference)


@pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)
def test_a_query_is_prepared_in_its_layer(adata: AnnData, simulate: Callable[..., AnnData]) -> None:
    adata.layers["counts"] = adata.X.copy()
    R2MAEModel.setup_anndata(adata, layer="counts", batch_key="batch")
    model = R2MAEModel(adata, **TINY)
    query = simulate(60, seed=3, batches=("b9",))
    query.layers["counts"] = query.X.copy()
    query.var_names = [*(f"other{i}" for i in range(10)), *query.var_names[10:]]
    R2MAEModel.prepare_query_anndata(query, model)
    assert query.layers["counts"][:, :10].nnz == 0
    assert query.var_names.equals(adata.var_names)
    assert R2MAEModel.load_query_data(query, model).spec.layer == "counts"


def test_only_the_rows_of_new_batches_have_a_gradient(
    reference: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    query = R2MAEModel.load_query_data(
        simulate(60, seed=3, batches=("b0", "b9")), reference, accelerator="cpu"
    )
    trainable = {name for name, p in query.module.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.endswith(".new") for name in trainable)
    before = reference.get_latent_representation(integrated=False)
    query.train(1, **QUICK)
    np.testing.assert_array_equal(query.get_latent_representation(reference.adata, integrated=False), before)


def test_the_splitter_of_scvi_tools_trains(model: R2MAEModel, adata: AnnData) -> None:
    from scvi.dataloaders import DataSplitter

    sides = [np.arange(90), np.arange(90, 120), None]
    splitter = DataSplitter(model.adata_manager, external_indexing=sides, batch_size=30)
    model.train(1, datamodule=splitter, accelerator="cpu", enable_progress_bar=False)
    assert model.is_trained
    assert float(model.module.standardize.mean) == pytest.approx(adata.obs["age"][:90].mean(), abs=1e-5)


def test_the_data_loader_of_scvi_tools_is_taken(quick: R2MAEModel, adata: AnnData) -> None:
    loader = quick._make_data_loader(adata)
    np.testing.assert_allclose(
        quick.get_latent_representation(dataloader=loader), quick.get_latent_representation(adata), atol=1e-5
    )
    assert quick.get_reconstruction_error(dataloader=loader)["reconstruction_loss"] > 0


def test_workers_of_the_loader_change_nothing(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    import scvi

    plain, workers = R2MAEModel(adata, **TINY), R2MAEModel(adata, **TINY)
    plain.train(1, **QUICK)
    monkeypatch.setattr(scvi.settings, "dl_num_workers", 7)
    workers.train(1, **QUICK)
    torch.testing.assert_close(workers.module.state_dict(), plain.module.state_dict(), rtol=0, atol=0)
