"""A small benchmark, run once, and quick settings."""

from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import benchmark
from scr2mae.datasets import simulate_donors

QUICK: dict[str, Any] = {
    "targets": {"disease": "classification", "age": "regression", "cell_type": "classification"},
    "donor_key": "donor",
    "model_kwargs": {"n_hidden": 8, "n_latent": 4},
    "train_kwargs": {"max_epochs": 1, "batch_size": 64},
    "scvi_model_kwargs": {"n_hidden": 8, "n_latent": 4},
    "scvi_train_kwargs": {"max_epochs": 1},
    "n_pcs": 5,
    "n_splits": 2,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    return QUICK


def _cells() -> AnnData:
    adata = simulate_donors(
        n_donors=8,
        n_cells_per_donor=15,
        n_genes=40,
        n_cell_types=2,
        disease_effect=1.5,
        effect_fraction=0.4,
        seed=0,
    )
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    return adata


@pytest.fixture
def cells() -> AnnData:
    """120 cells of 8 donors, with an embedding that knows nothing."""
    return _cells()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[benchmark.Benchmark, Any]:
    """A benchmark of every kind of method, and its folder; read, never change them."""
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    methods = ["lognorm", "pca", "scvi", "r2mae", "X_mine"]
    return benchmark.run(_cells(), methods=methods, seeds=(0, 1), out=folder, **QUICK), folder
