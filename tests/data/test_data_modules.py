"""Foreign data modules: those of scvi-tools, and the batches and attributes that any of them may have."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.data import CellDataModule, CellSpec, split_cells
from scr2mae.data.loaders import check_data_module


class AsScviSendsThem(CellDataModule):
    """Our mini-batches with the keys that data modules of scvi-tools always add."""

    def on_after_batch_transfer(
        self, batch: dict[str, torch.Tensor], dataloader_idx: int
    ) -> dict[str, torch.Tensor]:
        tensors = dict(super().on_after_batch_transfer(batch, dataloader_idx))
        n_obs = len(tensors["batch"])
        size = torch.linspace(0.5, 2, n_obs)[:, None]
        return {
            **tensors,
            "size_factor": size,
            "labels": torch.zeros(n_obs, 1),
            "sample": torch.ones(n_obs, 1),
        }


class AsLaminSendsThem(CellDataModule):
    """Our mini-batches as a Lamin collection without columns and validation yields them."""

    def on_after_batch_transfer(
        self, batch: dict[str, torch.Tensor], dataloader_idx: int
    ) -> dict[str, torch.Tensor]:
        tensors = super().on_after_batch_transfer(batch, dataloader_idx)
        absent = dict.fromkeys(["batch", "extra_categorical_covs", "extra_continuous_covs", "sample"])
        return {"X": tensors["X"], "labels": 0, **absent}

    def val_dataloader(self) -> None:
        return None


def train(kind: type[CellDataModule], adata: AnnData) -> R2MAEModel:
    model = R2MAEModel(adata, n_hidden=16, n_latent=4)
    split = split_cells(120)
    datamodule = kind(model._cells(None), split, batch_size=32, seed=0)
    model.train(2, datamodule=datamodule, accelerator="cpu", enable_progress_bar=False)
    assert "val_dataloader" not in vars(datamodule)
    return model


def test_a_batch_validation_or_covariate_that_is_none_is_ignored(simulate: Callable[..., AnnData]) -> None:
    adata = simulate()
    R2MAEModel.setup_anndata(adata)
    ours, theirs = train(CellDataModule, adata), train(AsLaminSendsThem, adata)
    assert (
        set(ours.history_) - set(theirs.history_) == {n for n in ours.history_ if "validation" in n} != set()
    )
    torch.testing.assert_close(ours.module.state_dict(), theirs.module.state_dict(), rtol=0, atol=0)


def test_an_unregistered_size_factor_is_ignored(adata: AnnData) -> None:
    ours, theirs = train(CellDataModule, adata), train(AsScviSendsThem, adata)
    torch.testing.assert_close(ours.module.state_dict(), theirs.module.state_dict(), rtol=0, atol=0)


@pytest.fixture
def adata(adata: AnnData) -> AnnData:
    adata.obs["plate"] = np.where(np.arange(adata.n_obs) % 3, "b", "a")
    R2MAEModel.setup_anndata(adata, batch_key="plate")
    return adata


@pytest.fixture
def spec(adata: AnnData) -> CellSpec:
    return R2MAEModel(adata).spec


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"n_vars": 59}, r"yields 59 genes, but the model has 60; give it the model's genes"),
        ({"n_batch": 3}, r"has 3 batch\(es\), the model 2 \(column 'plate' of obs\)"),
        ({"batch_labels": np.array(["b", "a"])}, r"numbers the batches \['b', 'a'\], the model \['a', 'b'\]"),
    ],
)
def test_a_data_module_of_other_genes_or_batches_is_refused_before_training(
    says: dict[str, object], message: str, spec: CellSpec, adata: AnnData
) -> None:
    with pytest.raises(ValueError, match=message):
        check_data_module(SimpleNamespace(**says), spec)
    model = R2MAEModel(adata, n_hidden=4, n_latent=2)
    with pytest.raises(ValueError, match=message):
        model.train(1, datamodule=SimpleNamespace(**says))
    assert not model.is_trained_


def test_a_data_module_without_attributes_or_with_fitting_ones_is_accepted(spec: CellSpec) -> None:
    labels = spec.categorical[0][1]
    for fits in ({}, {"n_vars": 60, "n_batch": len(labels), "batch_labels": labels}):
        check_data_module(SimpleNamespace(**fits), spec)
    with pytest.raises(ValueError, match="numbers the batches"):
        check_data_module(SimpleNamespace(batch_labels=labels[::-1]), spec)


def test_batches_are_compared_by_the_codes_of_a_data_module_not_by_the_order_of_its_list(
    spec: CellSpec,
) -> None:
    ours, other = spec.categorical[0][1], spec.categorical[0][1][::-1]
    # TileDB-SOMA's lists them as they come and numbers them by an encoder; Lamin's has the number of each.
    check_data_module(SimpleNamespace(batch_labels=other, batch_encoder=SimpleNamespace(classes_=ours)), spec)
    check_data_module(SimpleNamespace(batch_labels={"b": 1, "a": 0}), spec)
    for numbered in ({"batch_encoder": SimpleNamespace(classes_=other)}, {"batch_labels": {"b": 0, "a": 1}}):
        with pytest.raises(ValueError, match=r"numbers the batches \['b', 'a'\], the model \['a', 'b'\]"):
            check_data_module(SimpleNamespace(**{"batch_labels": ours, **numbered}), spec)


def test_covariates_that_a_data_module_joins_reorders_or_lacks_are_refused(adata: AnnData) -> None:
    categorical, continuous = ["chemistry", "cell_type"], ["age"]
    R2MAEModel.setup_anndata(
        adata, categorical_covariate_keys=categorical, continuous_covariate_keys=continuous
    )
    spec = R2MAEModel(adata).spec
    names = {key: np.asarray(known) for key, known in spec.categorical[1:]}

    def check(mapping: dict[str, np.ndarray] | None = None, columns: list[str] | None = None) -> None:
        said = {
            "extra_categorical_covs": {"state_registry": {"mapping": names if mapping is None else mapping}}
        }
        said["extra_continuous_covs"] = {"state_registry": {"columns": columns or continuous}}
        check_data_module(SimpleNamespace(**said), spec)

    check()
    check({key: np.arange(len(known)) for key, known in names.items()})  # as Lamin's names them
    joined = np.array([f"{a}//{b}" for a in names["chemistry"] for b in names["cell_type"]])
    with pytest.raises(
        ValueError, match=r"covariates of \[6\] categories, the model has \[2, 3\] .* one: register them"
    ):
        check({"chemistry": joined})
    with pytest.raises(ValueError, match=r"covariates of \[\] categories, the model has \[2, 3\]"):
        check({})
    with pytest.raises(ValueError, match=r"numbers the categories of 'chemistry' .*'v3', 'v2'.*, the model"):
        check({**names, "chemistry": names["chemistry"][::-1]})
    with pytest.raises(ValueError, match=r"continuous covariates \['depth'\], the model has \['age'\]"):
        check(columns=["depth"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata", "ignore:Sparse")
def test_training_from_annbatch_reaches_the_loss_of_training_in_memory(
    adata: AnnData, tmp_path: Path
) -> None:
    annbatch = pytest.importorskip("annbatch")
    dataloaders = pytest.importorskip("scvi.dataloaders")
    if not hasattr(dataloaders, "AnnbatchDataModule"):
        pytest.skip("this scvi-tools has no data module for annbatch")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    collection = annbatch.DatasetCollection(zarr.open(tmp_path / "collection.zarr", mode="w"))
    collection.add_adatas([tmp_path / "cells.h5ad"])
    sizes = {"chunk_size": 8, "preload_nchunks": 4}
    sampler = annbatch.samplers.RandomSampler(batch_size=32, **sizes)
    loader = annbatch.Loader(batch_sampler=sampler, preload_to_gpu=False)
    loader.use_collection(collection)
    spec = R2MAEModel(adata).spec
    own = dataloaders.AnnbatchDataModule(
        loader, batch_key=spec.categorical[0][0], preload_to_gpu=False, **sizes
    )
    own.set_split(train_size=0.8, batch_size=32)

    def train(**kwargs: object) -> R2MAEModel:
        model = R2MAEModel(adata, n_hidden=16, n_latent=4)
        model.train(4, accelerator="cpu", enable_progress_bar=False, **kwargs)
        return model

    theirs = train(datamodule=own).history_["train_loss"]["train_loss"]
    ours = train(train_size=0.8, batch_size=32).history_["train_loss"]["train_loss"]
    np.testing.assert_allclose(theirs, ours, rtol=0.1)
