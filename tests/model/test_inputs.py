"""Odd input works and is left as it was."""

import logging
from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scr2mae import R2MAEModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)


def _with_explicit_zeros(X: sp.csr_matrix) -> sp.csr_matrix:
    full = sp.csr_matrix(np.ones(X.shape, dtype=X.dtype))
    full.data[:] = X.toarray().ravel()
    return full


def _with_unsorted_indices(X: sp.csr_matrix) -> sp.csr_matrix:
    X = X.copy()
    for start, stop in zip(X.indptr, X.indptr[1:], strict=False):
        X.indices[start:stop] = X.indices[start:stop][::-1].copy()
        X.data[start:stop] = X.data[start:stop][::-1].copy()
    X.has_sorted_indices = False
    return X


CONTAINERS: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csr_matrix-int64": lambda X: X.astype(np.int64),
    "csr_matrix-float64": lambda X: X.astype(np.float64),
    "csr_matrix-int64-indices": lambda X: sp.csr_matrix(
        (X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)), shape=X.shape
    ),
    "csr_matrix-explicit-zeros": _with_explicit_zeros,
    "csr_matrix-unsorted-indices": _with_unsorted_indices,
    "csr_array-float32": sp.csr_array,
    "csr_array-int64": lambda X: sp.csr_array(X.astype(np.int64)),
    "csc_matrix-float32": lambda X: X.tocsc(),
    "csc_array-float64": lambda X: sp.csc_array(X.astype(np.float64)),
    "dense-float32": lambda X: X.toarray(),
    "dense-int64": lambda X: X.toarray().astype(np.int64),
    "dense-float64": lambda X: X.toarray().astype(np.float64),
    "dense-fortran-order": lambda X: np.asfortranarray(X.toarray()),
    "dense-uint8": lambda X: X.toarray().astype(np.uint8),
}
BACKED = {"csr": lambda X: X, "csc": lambda X: X.tocsc(), "dense": lambda X: X.toarray()}


@pytest.fixture(scope="module")
def plain_embedding(trained: R2MAEModel) -> np.ndarray:
    """Embedding of the simulation as CSR float32."""
    return trained.get_latent_representation()


@pytest.fixture(scope="module")
def train_once(train_tiny: Callable[..., R2MAEModel], encoder: str) -> Callable[[AnnData], np.ndarray]:
    """Embedding of an AnnData by a model trained on it."""
    return lambda adata: train_tiny(adata, model={"encoder": encoder}).get_latent_representation()


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_trains_and_embeds_bitwise_like_float32_csr(
    container: str,
    adata: AnnData,
    trained: R2MAEModel,
    plain_embedding: np.ndarray,
    train_once: Callable[[AnnData], np.ndarray],
    unchanged: Any,
) -> None:
    adata.X = CONTAINERS[container](adata.X)
    with unchanged(adata):
        queried = trained.get_latent_representation(adata)
        retrained = train_once(adata)
    np.testing.assert_array_equal(queried, plain_embedding)
    np.testing.assert_array_equal(retrained, plain_embedding)


@pytest.mark.parametrize("container", ["csr_array-int64", "csc_matrix-float32", "dense-float64"])
def test_counts_in_a_layer_train_like_counts_in_x(
    container: str,
    adata: AnnData,
    plain_embedding: np.ndarray,
    train_once: Callable[[AnnData], np.ndarray],
    unchanged: Any,
) -> None:
    adata.layers["counts"] = CONTAINERS[container](adata.X)
    adata.X = np.log1p(adata.X.toarray())
    with unchanged(adata):
        R2MAEModel.setup_anndata(adata, layer="counts")
        np.testing.assert_array_equal(train_once(adata), plain_embedding)


@pytest.mark.parametrize("storage", BACKED)
def test_a_backed_anndata_trains_and_embeds_like_one_in_memory(
    storage: str,
    adata: AnnData,
    tmp_path: Any,
    trained: R2MAEModel,
    plain_embedding: np.ndarray,
    train_once: Callable[[AnnData], np.ndarray],
    unchanged: Any,
) -> None:
    adata.X = BACKED[storage](adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        with unchanged(backed):
            np.testing.assert_array_equal(trained.get_latent_representation(backed), plain_embedding)
            np.testing.assert_array_equal(train_once(backed), plain_embedding)
        assert backed.isbacked
    finally:
        backed.file.close()


@pytest.mark.parametrize("storage", BACKED)
def test_a_view_of_a_backed_anndata_embeds_and_trains(
    storage: str, adata: AnnData, tmp_path: Any, trained: R2MAEModel, plain_embedding: np.ndarray
) -> None:
    adata.X = BACKED[storage](adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    try:
        embedded = trained.get_latent_representation(backed[20:70])
        np.testing.assert_allclose(embedded, plain_embedding[20:70], atol=1e-6)
        assert R2MAEModel(backed[20:70], n_hidden=8, n_latent=2).adata.n_obs == 50
    finally:
        backed.file.close()


def test_a_view_is_copied_with_a_log_line_and_its_parent_is_left_alone(
    adata: AnnData, caplog: pytest.LogCaptureFixture, train_tiny: Callable[..., R2MAEModel], unchanged: Any
) -> None:
    view = adata[10:90]
    plain = train_tiny(adata[10:90].copy()).get_latent_representation()
    with unchanged(adata), caplog.at_level(logging.INFO, logger="scr2mae"):
        embedded = train_tiny(view).get_latent_representation()
    assert "_scvi_uuid" not in adata.uns
    assert "_scvi_batch" not in adata.obs
    assert sum("view" in message for message in caplog.messages) == 1
    np.testing.assert_array_equal(embedded, plain)


def test_embedding_a_view_neither_copies_nor_changes_it(
    adata: AnnData, trained: R2MAEModel, plain_embedding: np.ndarray, unchanged: Any
) -> None:
    view = adata[[5, 3, 100]]
    with unchanged(view), unchanged(adata):
        embedded = trained.get_latent_representation(view)
    assert view.is_view
    np.testing.assert_allclose(embedded, plain_embedding[[5, 3, 100]], atol=1e-6)


@pytest.mark.parametrize(
    "derive",
    [
        pytest.param(lambda adata: adata.copy(), id="copy"),
        pytest.param(lambda adata: adata[30:].copy(), id="copied-subset"),
        pytest.param(lambda adata: adata[30:], id="view"),
    ],
)
def test_a_copy_or_subset_of_a_registered_anndata_is_registered_alike(
    derive: Callable[[AnnData], AnnData], adata: AnnData, covariates: dict[str, Any], unchanged: Any
) -> None:
    R2MAEModel.setup_anndata(adata, **covariates)
    first = R2MAEModel(adata, n_hidden=8, n_latent=2)
    derived = derive(adata)
    with unchanged(derived), unchanged(adata):
        model = R2MAEModel(derived, n_hidden=8, n_latent=2)
    assert model.registry["setup_args"] == first.registry["setup_args"]
    assert model.adata.n_obs == derived.n_obs
    assert R2MAEModel(adata, n_hidden=8, n_latent=2).adata is adata


def test_a_copy_of_a_registered_anndata_embeds_in_the_first_model(
    adata: AnnData, reference: R2MAEModel, covariates: dict[str, Any], unchanged: Any
) -> None:
    R2MAEModel.setup_anndata(adata, **covariates)
    copied = adata[::-1].copy()
    with unchanged(copied):
        embedded = reference.get_latent_representation(copied)
    np.testing.assert_allclose(embedded[::-1], reference.get_latent_representation(), atol=1e-6)


def test_fewer_cells_than_a_batch_train(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel], unchanged: Any
) -> None:
    few = adata[:8].copy()
    with unchanged(few):
        model = train_tiny(few, batch_size=128)
    assert len(model.history_["train_loss_step"]) == 2
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_last_batch_of_one_cell_is_dropped_in_training_and_still_embedded(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel], unchanged: Any
) -> None:
    cells = adata[:65].copy()
    with unchanged(cells):
        model = train_tiny(cells, train_size=1.0, batch_size=32, max_epochs=1)
        assert len(model.history_["train_loss_step"]) == 2
        in_batches = model.get_latent_representation(batch_size=32)
    assert in_batches.shape == (65, 4)
    np.testing.assert_allclose(in_batches, model.get_latent_representation(), atol=1e-5)


def test_cells_without_counts_are_counted_in_one_warning_and_embed(
    adata: AnnData, trained: R2MAEModel, plain_embedding: np.ndarray, unchanged: Any
) -> None:
    X = adata.X.tolil()
    X[[3, 50]] = 0
    adata.X = X.tocsr()
    with unchanged(adata), pytest.warns(UserWarning, match="2 of 120 cells have no counts") as caught:
        embedded = trained.get_latent_representation(adata)
    assert len(caught) == 1
    others = np.setdiff1d(np.arange(120), [3, 50])
    np.testing.assert_allclose(embedded[others], plain_embedding[others], atol=1e-6)
    np.testing.assert_array_equal(embedded[3], embedded[50])
    assert np.isfinite(embedded).all()


@pytest.mark.filterwarnings("ignore:40 of 120 cells have no counts:UserWarning")
def test_cells_without_counts_train_and_have_a_library_of_one(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    X = adata.X.tolil()
    X[::3] = 0
    adata.X = X.tocsr()
    model = train_tiny(adata)
    assert np.isfinite(model.history_["train_loss_step"].to_numpy()).all()
    values = model.get_normalized_expression(library_size="observed", return_numpy=True)
    np.testing.assert_allclose(values[::3].sum(axis=1), 1.0, rtol=1e-5)
    assert np.isfinite(model.get_reconstruction_error()["reconstruction_loss"])
    assert np.isfinite(model.get_masked_reconstruction(ratios=[0.3]).to_numpy()).all()


def test_shuffled_genes_embed_alike(
    adata: AnnData, trained: R2MAEModel, plain_embedding: np.ndarray, unchanged: Any
) -> None:
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    with unchanged(shuffled):
        embedded = trained.get_latent_representation(shuffled)
    np.testing.assert_array_equal(embedded, plain_embedding)


def test_genes_that_the_model_does_not_know_are_ignored(
    adata: AnnData, trained: R2MAEModel, plain_embedding: np.ndarray, unchanged: Any
) -> None:
    foreign = adata[:, :10].copy()
    foreign.var_names = [f"unknown{i}" for i in range(10)]
    wider = anndata.concat([foreign, adata], axis=1, merge="first")
    with unchanged(wider):
        np.testing.assert_array_equal(trained.get_latent_representation(wider), plain_embedding)


def test_partly_missing_genes_embed_as_if_they_had_no_counts(
    adata: AnnData, trained: R2MAEModel, unchanged: Any
) -> None:
    zeroed = adata.copy()
    zeroed.X = zeroed.X.multiply(np.arange(60) < 45).tocsr()
    if trained.init_params_["encoder"] == "linear+mlp":  # to which a count of zero is a measurement
        zeroed.var["scr2mae_measured"] = np.arange(60) < 45
    panel = adata[:, :45].copy()
    with unchanged(panel):
        embedded = trained.get_latent_representation(panel)
    np.testing.assert_array_equal(embedded, trained.get_latent_representation(zeroed))


def test_categories_that_are_numbers_or_booleans_are_matched_by_value(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    adata.obs["lane"] = pd.Series(np.arange(120) % 3, index=adata.obs_names)
    adata.obs["sorted"] = np.arange(120) % 2 == 0
    setup = {"batch_key": "lane", "categorical_covariate_keys": ["sorted"]}
    model = train_tiny(adata, setup=setup)
    one_lane = adata[adata.obs["lane"] == 2].copy()
    np.testing.assert_allclose(
        model.get_latent_representation(one_lane), model.get_latent_representation()[2::3], atol=1e-6
    )
