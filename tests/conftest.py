"""Small counts and small models, shared by the tests of the main class."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

TINY = {"n_hidden": 16, "n_latent": 4}
QUICK = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}
COVARIATES = {
    "batch_key": "batch",
    "donor_key": "donor",
    "labels_key": "cell_type",
    "categorical_covariate_keys": ["chemistry"],
    "continuous_covariate_keys": ["age"],
}


def _simulate(
    n_obs: int = 120, n_vars: int = 60, *, seed: int = 0, batches: tuple[str, ...] = ("b0", "b1")
) -> AnnData:
    """Negative binomial counts of six donors and three cell types; every column of obs shifts the mean."""
    rng = np.random.default_rng(seed)
    donor, cell_type = rng.integers(6, size=n_obs), rng.integers(3, size=n_obs)
    batch, chemistry = rng.integers(len(batches), size=n_obs), rng.integers(2, size=n_obs)
    age = rng.uniform(-1, 1, n_obs).astype(np.float32)
    # Effects come from a stream of their own, so that reference and query share them whatever their seeds.
    effects = np.random.default_rng(1)
    log_mean = effects.normal(0, 0.7, n_vars) + effects.normal(0, 1, (3, n_vars))[cell_type]
    for codes in (donor, batch, chemistry):
        log_mean = log_mean + effects.normal(0, 0.2, (6, n_vars))[codes]
    mean = np.exp(log_mean + 0.2 * age[:, None])
    counts = rng.negative_binomial(2.0, 2.0 / (2.0 + mean)).astype(np.float32)
    counts[np.arange(n_obs), rng.integers(n_vars, size=n_obs)] += 1  # no empty cell
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"donor{i}" for i in donor]),
            "cell_type": pd.Categorical([f"type{i}" for i in cell_type]),
            "batch": pd.Categorical([batches[i] for i in batch], categories=list(batches)),
            "chemistry": pd.Categorical([f"v{i + 2}" for i in chemistry]),
            "age": age,
        },
        index=[f"cell{i}" for i in range(n_obs)],
    )
    return AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
    )


@pytest.fixture(scope="session")
def simulate() -> Callable[..., AnnData]:
    """Return the simulation: ``simulate(n_obs, n_vars, seed=, batches=)``."""
    return _simulate


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Scripts of benchmarks, which some tests run in this process, quieten the package for good."""
    package = logging.getLogger("scr2mae")
    level = package.level
    yield
    package.setLevel(level)


@pytest.fixture
def adata() -> AnnData:
    """120 cells x 60 genes that no test has touched, CSR float32 in ``X``."""
    return _simulate()


@pytest.fixture(scope="session")
def simulated() -> AnnData:
    """2,400 cells of 12 donors with effects of disease and age; read, never change it."""
    from scr2mae import datasets

    return datasets.simulate_donors(
        n_donors=12,
        n_cells_per_donor=200,
        n_genes=300,
        n_cell_types=4,
        n_batches=3,
        disease_effect=0.7,
        age_effect=0.2,
    )


@pytest.fixture
def atlas_like(simulated) -> AnnData:
    """Log-values in X, raw counts of more genes in raw, as the portal lays its files out."""
    import scanpy as sc

    counts = simulated.X[::4].astype(np.float64)
    n_obs = counts.shape[0]
    counts[:5] = counts[:5].multiply(np.arange(counts.shape[1]) < 3)  # cells with hardly any gene
    full = AnnData(X=sp.csr_matrix(counts), obs=simulated.obs.iloc[::4].copy(), var=simulated.var.copy())
    adata = full.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.raw = full
    adata = adata[:, 10:].copy()
    adata.obsm["X_other"] = np.arange(2.0 * n_obs).reshape(n_obs, 2)
    return adata


@pytest.fixture(scope="session")
def covariates() -> dict[str, Any]:
    """Setup arguments that use every column of the simulation."""
    return COVARIATES


@pytest.fixture(scope="session")
def train_tiny() -> Callable[..., Any]:
    """Return ``train_tiny(adata, setup=None, model=None, **train_kwargs)``: a tiny model, trained for two epochs."""
    from scr2mae import R2MAEModel

    def train(
        adata: AnnData,
        *,
        setup: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> R2MAEModel:
        if setup is not None:
            R2MAEModel.setup_anndata(adata, **setup)
        built = R2MAEModel(adata, **{**TINY, **(model or {})})
        built.train(**{**QUICK, **kwargs})
        return built

    return train


@pytest.fixture(scope="session", params=["linear+mlp", "mlp"])
def encoder(request: pytest.FixtureRequest) -> str:
    """Encoder of the shared models; tests of them run with each."""
    return request.param


@pytest.fixture(scope="session")
def trained(train_tiny: Callable[..., Any], encoder: str) -> Any:
    """A model trained on the simulation without covariates; read, never change it."""
    return train_tiny(_simulate(), model={"encoder": encoder})


@pytest.fixture(scope="session")
def reference(train_tiny: Callable[..., Any], encoder: str) -> Any:
    """A model trained with two categorical covariates and one continuous; read, never change it."""
    return train_tiny(_simulate(), setup=COVARIATES, model={"encoder": encoder})


def _snapshot(adata: AnnData) -> tuple[Any, ...]:
    X = adata.X
    values = X[:] if adata.isbacked else X
    values = values.toarray() if sp.issparse(values) else np.array(values)
    own = [column for column in adata.obs if not str(column).startswith("_scvi")]
    container = getattr(X, "format", None), isinstance(X, sp.sparray)
    return container, values.dtype, values, adata.obs[own].copy(), adata.var.copy()


@pytest.fixture(scope="session")
def unchanged() -> Callable[[AnnData], AbstractContextManager[None]]:
    """Return a context that fails if ``X``, ``obs`` or ``var`` of an AnnData change, scvi's own columns aside."""

    @contextmanager
    def check(adata: AnnData) -> Iterator[None]:
        before = _snapshot(adata)
        yield
        after = _snapshot(adata)
        assert after[:2] == before[:2]
        np.testing.assert_array_equal(after[2], before[2])
        pd.testing.assert_frame_equal(after[3], before[3])
        pd.testing.assert_frame_equal(after[4], before[4])

    return check


@pytest.fixture
def at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard error, which is captured, pass for a terminal."""
    # Of its class: each phase of a test captures with another.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)


@pytest.fixture
def set_sigint() -> Iterator[Callable[[Any], None]]:
    """Set what Ctrl-C does and put it back: a run in the background starts deaf to it."""
    before = signal.getsignal(signal.SIGINT)

    def set_handler(handler: Any) -> None:
        signal.signal(signal.SIGINT, handler)

    yield set_handler
    signal.signal(signal.SIGINT, before)
