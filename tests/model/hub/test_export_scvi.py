"""The exported ``model.pt``, against scvi-tools' own loader."""

import pickletools
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from scvi.model.base import BaseModelClass

from scr2mae import R2MAEModel
from scr2mae.masking import DecayRatio

load_as_scvi_does = BaseModelClass.load.__func__


@pytest.fixture(
    params=[{}, {"curriculum": "cl"}, {"mask_ratio": DecayRatio(0.5, 0.1)}], ids=["plain", "cl", "decay"]
)
def model(request, train_tiny, adata, covariates):
    return train_tiny(adata, setup=covariates, model=request.param)


def test_scvi_tools_loads_the_export_with_data(model, simulate, tmp_path):
    model.export_scvi(tmp_path)
    loaded = load_as_scvi_does(R2MAEModel, str(tmp_path), adata=simulate(), accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert loaded.is_trained_
    assert loaded.init_params_ == model.init_params_
    assert loaded.mask_ratio == model.mask_ratio
    assert loaded.curriculum == model.curriculum
    np.testing.assert_array_equal(loaded.train_indices, model.train_indices)
    pd.testing.assert_frame_equal(loaded.history["train_loss"], model.history["train_loss"])


@pytest.mark.filterwarnings("ignore:Save path contains no saved anndata")
def test_scvi_tools_loads_the_export_without_data(model, simulate, tmp_path):
    model.export_scvi(tmp_path)
    loaded = load_as_scvi_does(R2MAEModel, str(tmp_path), accelerator="cpu")
    query = simulate()
    np.testing.assert_array_equal(
        loaded.get_latent_representation(query), model.get_latent_representation(query)
    )


def test_scvi_tools_reads_the_registry_of_the_export(reference, tmp_path):
    reference.export_scvi(tmp_path)
    registry = BaseModelClass.load_registry(str(tmp_path))
    assert registry["model_name"] == "R2MAEModel"
    assert registry["setup_args"]["batch_key"] == "batch"


def test_scvi_tools_refuses_the_export_for_another_class(reference, tmp_path, simulate):
    reference.export_scvi(tmp_path)

    class Another(R2MAEModel):
        pass

    with pytest.raises(ValueError, match="different class"):
        load_as_scvi_does(Another, str(tmp_path), adata=simulate(), accelerator="cpu")


def test_the_file_has_the_parts_that_scvi_tools_writes(trained, tmp_path):
    BaseModelClass.save(trained, str(tmp_path / "scvi"))
    trained.export_scvi(tmp_path / "ours")
    theirs, ours = (torch.load(tmp_path / name / "model.pt", weights_only=False) for name in ("scvi", "ours"))
    assert ours.keys() == theirs.keys()
    np.testing.assert_array_equal(ours["var_names"], theirs["var_names"])
    assert ours["var_names"].dtype == theirs["var_names"].dtype
    weights = {
        name: value for name, value in theirs["model_state_dict"].items() if name != "pyro_param_store"
    }
    torch.testing.assert_close(dict(ours["model_state_dict"]), weights, rtol=0, atol=0)
    # What is left out is this package's own, and no other program could read it.
    assert {"split_", "n_new_categories_"} >= theirs["attr_dict"].keys() - ours["attr_dict"].keys()


def test_a_plain_model_is_exported_without_a_class_of_this_package(trained, tmp_path):
    trained.export_scvi(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        data = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = list(pickletools.genops(archive.read(data)))
    classes = [str(argument) for operation, argument, _ in operations if operation.name == "GLOBAL"]
    assert "numpy ndarray" in classes
    assert not [name for name in classes if "scr2mae" in name]
    assert "STACK_GLOBAL" not in {operation.name for operation, *_ in operations}


def test_an_export_is_replaced_only_when_asked(trained, tmp_path):
    trained.export_scvi(tmp_path)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        trained.export_scvi(tmp_path)
    trained.export_scvi(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_model_with_new_categories_of_a_query_is_not_exported(reference, simulate, tmp_path):
    query = R2MAEModel.load_query_data(simulate(seed=1, batches=("b0", "b2")), reference)
    with pytest.raises(ValueError, match="new categories of a query"):
        query.export_scvi(tmp_path)


def test_a_schedule_of_the_users_own_is_not_exported(train_tiny, adata, tmp_path):
    model = train_tiny(adata, model={"mask_ratio": lambda step, total: 0.3})
    with pytest.raises(ValueError, match=r"set model\.mask_ratio"):
        model.export_scvi(tmp_path)
    assert list(tmp_path.iterdir()) == []
