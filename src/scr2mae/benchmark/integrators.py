"""Embeddings that integrate batches, for ``run(integration=True)``: Harmony, scANVI and SysVI."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from lightning.pytorch.utilities.seed import isolate_rng

from scr2mae._utils.optional import require
from scr2mae.benchmark.pretraining import BATCH, Embedding, Options, Pretraining
from scr2mae.benchmark.scvi import quiet
from scr2mae.metrics import TARGET_SUM
from scr2mae.train.loop import interruptible

_UNKNOWN = "unknown"
_LABEL = "label"


def installed_integrators() -> list[str]:
    """Return the names of the integrators whose packages are installed."""
    there = {"harmony": find_spec("harmonypy") is not None, "sysvi": hasattr(scvi.external, "SysVI")}
    return [name for name in INTEGRATORS if there.get(name, True)]


def fit_harmony(
    cells: Pretraining, seed: int, *, options: Options, labels: Any, components: Callable[..., np.ndarray]
) -> Embedding:
    """Correct principal components of all cells with Harmony's defaults (Korsunsky et al. 2019)."""
    harmonypy = require("harmonypy", extra="metrics")
    scores = components(cells.cells.X, np.arange(cells.cells.n_obs), n_pcs=options.n_pcs)
    found = harmonypy.run_harmony(scores, cells.cells.obs, BATCH, random_state=seed, verbose=False)
    corrected = np.asarray(found.Z_corr, dtype=np.float32)
    return Embedding(corrected if corrected.shape == scores.shape else corrected.T)  # versions differ


def fit_scanvi(cells: Pretraining, seed: int, *, options: Options, labels: Any) -> Embedding:
    """Train scVI, then scANVI on the labels of all cells that have one."""

    def embed(adata: AnnData, settings: dict[str, Any]) -> np.ndarray:
        adata.obs[_LABEL] = labels.astype(object).where(labels.notna(), _UNKNOWN).astype(str).to_numpy()
        scvi.model.SCVI.setup_anndata(adata, batch_key=BATCH)
        start = scvi.model.SCVI(adata, **options.scvi_model_kwargs)
        start.train(**settings)
        model = scvi.model.SCANVI.from_scvi_model(start, unlabeled_category=_UNKNOWN, labels_key=_LABEL)
        model.train(**settings)
        return model.get_latent_representation()

    return _embed(cells, seed, options, embed)


def fit_sysvi(cells: Pretraining, seed: int, *, options: Options, labels: Any) -> Embedding:
    """Train SysVI on log-normalized expression (Hrovatin et al. 2025)."""

    def embed(adata: AnnData, settings: dict[str, Any]) -> np.ndarray:
        total = np.maximum(np.asarray(adata.X.sum(axis=1)), 1.0)
        adata.X = np.log1p(adata.X.toarray() * (TARGET_SUM / total)).astype(np.float32)
        scvi.external.SysVI.setup_anndata(adata, batch_key=BATCH)
        model = scvi.external.SysVI(adata)
        model.train(**settings)
        return model.get_latent_representation(adata)

    return _embed(cells, seed, options, embed)


def _embed(
    cells: Pretraining, seed: int, options: Options, embed: Callable[[AnnData, dict[str, Any]], np.ndarray]
) -> Embedding:
    settings = {"accelerator": options.accelerator, "enable_progress_bar": False}
    with isolate_rng(), quiet(), interruptible():
        torch.manual_seed(seed)
        values = embed(cells.subset(), settings | dict(options.scvi_train_kwargs))
    return Embedding(np.asarray(values, dtype=np.float32))


INTEGRATORS: dict[str, Callable[..., Embedding]] = {
    "harmony": fit_harmony,
    "scanvi": fit_scanvi,
    "sysvi": fit_sysvi,
}
"""Methods that see all cells with their batches; scANVI also sees their labels, so it is not probed."""
