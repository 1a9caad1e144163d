"""Covariates and counts read as the registry of a model says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.data import CellSpec, read_cells


@pytest.fixture
def spec(adata: AnnData, covariates: dict[str, Any]) -> CellSpec:
    R2MAEModel.setup_anndata(adata, **covariates)
    return R2MAEModel(adata, n_hidden=4, n_latent=2).spec


def test_the_specification_names_the_fields_that_the_network_reads(spec: CellSpec) -> None:
    assert spec.var_names.tolist() == [f"gene{i}" for i in range(60)]
    assert [(key, categories.tolist()) for key, categories in spec.categorical] == [
        ("batch", ["b0", "b1"]),
        ("chemistry", ["v2", "v3"]),
    ]
    assert spec.continuous == ("age",)
    assert (spec.layer, spec.size_factor_key, spec.integers) == (None, None, True)


def test_codes_depend_on_the_names_of_categories_not_on_their_order(
    spec: CellSpec, simulate: Callable[..., AnnData]
) -> None:
    query = simulate(seed=5)
    expected = query.obs["batch"].cat.codes.to_numpy()
    query.obs["batch"] = query.obs["batch"].cat.reorder_categories(["b1", "b0"])
    query.obs["chemistry"] = query.obs["chemistry"].astype(str)
    cells = read_cells(query, spec)
    np.testing.assert_array_equal(cells.categories[:, 0], expected)
    np.testing.assert_array_equal(cells.categories[:, 1], (query.obs["chemistry"] == "v3").astype(int))
    np.testing.assert_array_equal(cells.continuous[:, 0], query.obs["age"])


def test_a_mini_batch_holds_the_chosen_cells_dense(spec: CellSpec, adata: AnnData) -> None:
    indices = np.array([7, 0, 119])
    batch = read_cells(adata, spec).collate(indices)
    np.testing.assert_array_equal(batch["X"], adata.X[indices].toarray())
    assert {key: value.shape for key, value in batch.items()} == {
        "X": (3, 60),
        "batch": (3, 1),
        "extra_categorical_covs": (3, 1),
        "extra_continuous_covs": (3, 1),
    }


def test_reading_does_not_copy_the_counts(spec: CellSpec, adata: AnnData) -> None:
    assert np.shares_memory(read_cells(adata, spec).counts.data, adata.X.data)


@pytest.mark.parametrize(
    ("column", "values", "error", "message"),
    [
        ("batch", None, KeyError, "No 'batch' in adata.obs, but the model was set up with"),
        ("batch", [None, *["b0"] * 119], ValueError, "has 1 missing values"),
        (
            "chemistry",
            ["v9"] * 120,
            ValueError,
            r"holds \['v9'\], which the model has not seen; its categories are \['v2', 'v3'\]",
        ),
        ("age", None, KeyError, "No 'age' in adata.obs"),
        ("age", ["old"] * 120, ValueError, "must be numeric, got (object|str)"),
        ("age", [np.inf] * 120, ValueError, "must be finite"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused(
    column: str, values: Any, error: type[Exception], message: str, spec: CellSpec, adata: AnnData
) -> None:
    if values is None:
        del adata.obs[column]
    else:
        adata.obs[column] = values
    with pytest.raises(error, match=message):
        read_cells(adata, spec)
