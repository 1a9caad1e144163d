"""A small benchmark, run once, and quick settings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import benchmark
from scr2mae.benchmark.design import Design, make_design
from scr2mae.benchmark.methods import make_methods
from scr2mae.benchmark.pretraining import Embedding, Options
from scr2mae.benchmark.tasks import as_tasks
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


@pytest.fixture
def one(quick: dict[str, Any]) -> dict[str, Any]:
    """Settings of one target, split and scaling."""
    return quick | {"targets": {"disease": "classification"}, "n_splits": 1, "scale": False}


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
    """120 cells of 8 donors, with a random embedding."""
    return _cells()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[benchmark.Benchmark, Any]:
    """A benchmark of every kind of method and its folder; do not modify them."""
    folder = tmp_path_factory.mktemp("benchmark") / "out"
    methods = ["lognorm", "pca", "scvi", "r2mae", "X_mine"]
    return benchmark.run(_cells(), methods=methods, seeds=(0, 1), out=folder, **QUICK), folder


def _fit_one(
    adata: AnnData,
    name: str,
    *,
    seed: int = 0,
    pretrain_on: Any = "all",
    split: int | None = None,
    **options: Any,
) -> tuple[Embedding, Design]:
    """Embedding of one method, without probes."""
    design = make_design(
        adata,
        as_tasks({"disease": "classification"}, []),
        donor_key="donor",
        pretrain_on=pretrain_on,
    )
    settings = {
        "model_kwargs": {"n_hidden": 8, "n_latent": 4},
        "train_kwargs": {"max_epochs": 1, "batch_size": 64},
        "scvi_model_kwargs": {"n_hidden": 8, "n_latent": 4},
        "scvi_train_kwargs": {"max_epochs": 1},
        "n_pcs": 5,
        "ratios": (0.5,),
        "accelerator": "cpu",
    }
    (method,) = make_methods([name], adata, Options(**(settings | options)))
    return method.fit(design.pretraining(split), seed), design


@pytest.fixture(scope="session")
def fit_one() -> Callable[..., tuple[Embedding, Design]]:
    """Return ``fit_one(adata, name, seed=, pretrain_on=, split=, **options)``: one method, without probes."""
    return _fit_one
