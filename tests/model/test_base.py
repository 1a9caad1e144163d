"""Setup, initial weights, and inputs that are refused."""

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.masking import DecayRatio

TINY = {"n_hidden": 16, "n_latent": 4}


def weights(model: R2MAEModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_equal_weights(first: R2MAEModel, second: R2MAEModel) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


def test_an_anndata_never_set_up_is_registered_with_defaults_and_one_log_line(
    adata: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        model = R2MAEModel(adata, **TINY)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("scr2mae")]
    assert len(ours) == 1
    assert "adata.X" in ours[0]
    assert "setup_anndata" in ours[0]
    arguments = model.registry["setup_args"]
    assert arguments.pop("check_counts") is True
    assert arguments.pop("infer_measured") is False
    assert set(arguments.values()) == {None}


def test_an_anndata_that_was_set_up_is_taken_without_a_word(
    adata: AnnData, covariates: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    R2MAEModel.setup_anndata(adata, **covariates)
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        R2MAEModel(adata, **TINY)
    assert not [record for record in caplog.records if record.name.startswith("scr2mae")]


def test_models_built_alike_start_equal_whatever_the_global_seed(adata: AnnData) -> None:
    torch.manual_seed(1)
    first = R2MAEModel(adata, **TINY)
    torch.manual_seed(2)
    assert_equal_weights(first, R2MAEModel(adata, **TINY))
    other = R2MAEModel(adata, **TINY, seed=1)
    assert not torch.equal(first.module.to_latent.weight, other.module.to_latent.weight)


def test_building_training_and_using_a_model_leaves_the_global_generators_alone(
    adata: AnnData, covariates: dict[str, Any], train_tiny: Callable[..., R2MAEModel], tmp_path: Any
) -> None:
    before = random.getstate(), np.random.get_state()[1:], torch.get_rng_state()  # noqa: NPY002
    model = train_tiny(adata, setup=covariates)
    model.get_latent_representation()
    model.get_masked_reconstruction()
    model.save(tmp_path / "model")
    R2MAEModel.load(tmp_path / "model")
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1][0])  # noqa: NPY002
    assert np.random.get_state()[2:] == before[1][1:]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_layers_and_widths_are_those_asked_for(adata: AnnData) -> None:
    sizes = {"n_hidden": 8, "n_latent": 3, "n_layers": 3, "n_layers_decoder": 2}
    module = R2MAEModel(adata, encoder="mlp", **sizes).module
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters() if value.ndim == 2}
    assert shapes == {
        "encoder.first.linear.weight": (8, 60),
        "encoder.rest.2.weight": (8, 8),
        "encoder.rest.5.weight": (8, 8),
        "to_latent.weight": (3, 8),
        "decoder.first.linear.weight": (8, 3),
        "decoder.rest.2.weight": (8, 8),
        "to_logits.weight": (60, 8),
    }


@pytest.mark.parametrize(
    ("n_latent", "n_deep", "n_shown"), [(None, 60, 50), (300, 200, 50), (64, 24, 20), (4, 2, 1), (2, 2, 0)]
)
def test_components_take_five_of_sixteen_dimensions_per_block(
    n_latent: int | None, n_deep: int, n_shown: int, adata: AnnData
) -> None:
    module = R2MAEModel(adata, n_hidden=8, n_latent=n_latent).module
    assert module.to_latent.weight.shape == (n_deep, 8)
    assert module.n_shown == n_shown
    assert module.to_logits.weight.shape == (60, module.n_latent) == (60, n_latent or 160)
    assert module.encoder.first.linear.weight.shape == (8, 100)


def test_the_paper_preset_has_the_paper_s_widths(adata: AnnData) -> None:
    model = R2MAEModel.paper(adata, seed=3)
    assert model.init_params_ == {
        "n_hidden": 1000,
        "n_latent": 512,
        "n_layers": 2,
        "n_layers_decoder": 1,
        "encoder": "mlp",
        "seed": 3,
    }
    assert model.module.to_latent.weight.shape == (512, 1000)


def test_a_model_describes_itself(trained: R2MAEModel, adata: AnnData) -> None:
    assert "16 hidden units, 4 latent dimensions" in trained._model_summary_string
    model = R2MAEModel(adata, **TINY, mask_ratio=DecayRatio(0.6, 0.2))
    assert "DecayRatio(high=0.6, low=0.2, rate=None)" in model._model_summary_string


def _set(adata: AnnData, value: float) -> AnnData:
    X = adata.X.toarray()
    X[7, 9] = value
    adata.X = sp.csr_matrix(X)
    return adata


def _log_normalize(adata: AnnData) -> AnnData:
    X = adata.X.toarray()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(1e4 * X / X.sum(axis=1, keepdims=True)).astype(np.float32)
    return adata


BAD_COUNTS = {
    "negative": (lambda a: _set(a, -1), "got -1 (negative) at cell 'cell7', gene 'gene9'"),
    "fractional": (lambda a: _set(a, 0.5), "got 0.5 (fractional) at cell 'cell7', gene 'gene9'"),
    "NaN": (lambda a: _set(a, np.nan), "got nan (not finite) at cell 'cell7', gene 'gene9'"),
    "infinite": (lambda a: _set(a, np.inf), "got inf (not finite) at cell 'cell7', gene 'gene9'"),
    "log-normalized": (_log_normalize, "(fractional) at cell 'cell0', gene"),
}


@pytest.mark.parametrize("kind", BAD_COUNTS)
@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csc_matrix, np.asarray], ids=["csr", "csc", "dense"])
def test_what_is_no_count_is_refused_with_its_cell_and_gene_and_where_counts_usually_are(
    kind: str, container: Callable[[Any], Any], adata: AnnData, trained: R2MAEModel
) -> None:
    spoil, message = BAD_COUNTS[kind]
    adata = spoil(adata)
    dense = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    adata.X = container(dense)
    for use in (R2MAEModel.setup_anndata, R2MAEModel, trained.get_latent_representation):
        with pytest.raises(ValueError, match=r"Expected raw counts in adata\.X") as caught:
            use(adata)
        for part in (message, "layers['counts']", "adata.raw"):
            assert part in str(caught.value)


def test_the_message_about_counts_names_the_layers_and_raw_that_exist(adata: AnnData) -> None:
    adata.raw = adata.copy()
    adata = _log_normalize(adata)
    with pytest.raises(
        ValueError,
        match=r"layers\['counts'\], adata\.raw; whole numbers are in adata\.layers\['counts'\] and adata\.raw: "
        r"write R2MAEModel\.setup_anndata\(adata, layer='counts'\)",
    ):
        R2MAEModel.setup_anndata(adata)


def test_fractions_are_accepted_on_request_and_still_no_other_non_count(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    model = train_tiny(_set(adata, 0.5), setup={"check_counts": False})
    assert np.isfinite(model.get_latent_representation()).all()
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"negative|not finite"):
            R2MAEModel.setup_anndata(_set(adata, value), check_counts=False)


def _missing_batch(adata: AnnData) -> AnnData:
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(adata.n_obs) != 4)
    return adata


def _text_age(adata: AnnData) -> AnnData:
    adata.obs["age"] = [f"{age:.1f} years" for age in adata.obs["age"]]
    return adata


def _missing_age(adata: AnnData) -> AnnData:
    adata.obs.loc["cell4", "age"] = np.nan
    return adata


def _duplicate_gene(adata: AnnData) -> AnnData:
    adata.var_names = ["gene0", "gene0", *adata.var_names[2:]]
    return adata


BAD_ANNDATA = {
    "duplicate gene names": (_duplicate_gene, r"\['gene0'\] occur more than once"),
    "NaN in the batch": (_missing_batch, r"adata.obs\['batch'\] has 1 missing values"),
    "NaN in a covariate": (_missing_age, r"adata.obs\['age'\] (has 1|contains) missing"),
    "text in a numeric covariate": (_text_age, r"adata.obs\['age'\] must be numeric"),
    "one gene": (lambda a: a[:, :1].copy(), "at least two genes.*got 1"),
    "no cells": (lambda a: a[:0].copy(), r"empty AnnData \(0 x 60\)"),
    "no genes": (lambda a: a[:, :0].copy(), "genes"),
    "no X": (lambda a: AnnData(obs=a.obs, var=a.var), "adata.X is None"),
}


@pytest.mark.parametrize("kind", BAD_ANNDATA)
def test_an_unusable_anndata_is_refused_at_setup_and_as_a_query(
    kind: str, adata: AnnData, covariates: dict[str, Any], reference: R2MAEModel
) -> None:
    spoil, message = BAD_ANNDATA[kind]
    adata = spoil(adata)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.setup_anndata(adata, **covariates)
    with pytest.raises(ValueError, match=message):
        reference.get_latent_representation(adata)


def test_a_query_that_shares_no_gene_is_refused(adata: AnnData, trained: R2MAEModel) -> None:
    adata.var_names = [f"ENSG{i:011d}" for i in range(60)]
    with pytest.raises(ValueError, match="No shared genes: the query has 0 of the reference's 60 genes"):
        trained.get_latent_representation(adata)


def test_an_unseen_batch_is_refused_with_the_way_to_learn_it(
    simulate: Callable[..., AnnData], reference: R2MAEModel
) -> None:
    query = simulate(30, seed=4, batches=("b1", "new"))
    with pytest.raises(ValueError, match=r"\['new'\], which the model has not seen.*load_query_data"):
        reference.get_latent_representation(query)


@pytest.mark.parametrize("column", ["batch", "chemistry", "age"])
def test_a_query_without_a_covariate_is_refused(column: str, adata: AnnData, reference: R2MAEModel) -> None:
    del adata.obs[column]
    with pytest.raises(KeyError, match=f"No '{column}' in adata.obs"):
        reference.get_latent_representation(adata)
