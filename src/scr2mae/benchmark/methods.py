"""Embeddings to compare: each method is fitted to the cells that pretraining may see and embeds all cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from anndata import AnnData
from scipy.stats import rankdata
from sklearn.decomposition import PCA

from scr2mae._paper import SCHEME_NAMES, schemes
from scr2mae._utils.methods import check_methods
from scr2mae.benchmark.cache import digest
from scr2mae.benchmark.integrators import INTEGRATORS, installed_integrators
from scr2mae.benchmark.pretraining import BATCH, Embedding, Options, Pretraining
from scr2mae.benchmark.scvi import fit_scvi
from scr2mae.metrics import TARGET_SUM
from scr2mae.model import R2MAEModel
from scr2mae.probe.inputs import read_representation

SCVI_CLASSES: dict[str, Any] = {"scvi": scvi.model.SCVI}
# Available from scvi-tools 1.5.
if hasattr(scvi.external, "JointEmbeddingSCVI"):
    SCVI_CLASSES["scvi_joint"] = scvi.external.JointEmbeddingSCVI

# Arguments of ``train`` that the benchmark sets for all methods.
_DATA_ARGUMENTS = {"datasplitter_kwargs", "split_key", "train_size", "validation_size", "seed", "datamodule"}
_FIXED = {
    "model_kwargs": {"mask_ratio", "curriculum", "seed"},
    "train_kwargs": _DATA_ARGUMENTS | {"resume", "checkpoint_dir"},
    "scvi_train_kwargs": _DATA_ARGUMENTS,
}


@dataclass(frozen=True)
class Method:
    """A row of the table: how to embed cells, and all settings that the embedding depends on."""

    name: str
    fit: Callable[[Pretraining, int], Embedding]
    settings: Any
    learns: bool = True  # whether it is fitted to cells, so that it matters which
    seeded: bool = True  # whether the embedding depends on the seed
    saw: str = ""  # cells that pretraining has seen, if ``learns`` is False
    probed: bool = True  # False if the embedding has seen the labels


def make_methods(
    names: Sequence[str] | None, adata: AnnData, options: Options, *, labels: pd.Series | None = None
) -> list[Method]:
    """Return methods by name; None means all except the embeddings of ``adata``.

    With ``labels`` of the cells, integration methods are included.
    """
    for argument, fixed in _FIXED.items():
        if taken := sorted(getattr(options, argument).keys() & fixed):
            raise ValueError(
                f"{argument} sets {taken}, which the benchmark sets for all methods; leave it out."
            )
    built_in = _built_in(options) | ({} if labels is None else _integrators(options, labels))
    chosen = list(built_in) if names is None else [names] if isinstance(names, str) else list(names)
    check_methods(chosen, list(built_in), list(adata.obsm), integration=labels is not None)
    return [built_in[name] if name in built_in else _given(adata, name) for name in chosen]


def _built_in(options: Options) -> dict[str, Method]:
    """Return the methods that need no batches by name: expression, PCA, scVI and the schemes."""
    methods = [Method("lognorm", _log_normalize_all, {}, seeded=False)]
    for kind in list(BASELINES)[1:]:
        fit_pca = partial(_fit_pca, kind=kind, n_pcs=options.n_pcs)
        methods.append(Method(kind, fit_pca, {"n_pcs": options.n_pcs}, seeded=False))
    settings = _settings(options, options.scvi_model_kwargs, options.scvi_train_kwargs)
    for name, model_class in SCVI_CLASSES.items():
        methods.append(Method(name, partial(fit_scvi, model_class=model_class, options=options), settings))
    settings = _settings(options, options.model_kwargs, options.train_kwargs)
    if options.schemes != "single_cell" or options.curriculum is not None:
        settings |= {"schemes": options.schemes, "curriculum": options.curriculum}
    for name in SCHEME_NAMES:
        methods.append(Method(name, partial(_fit_scheme, name=name, options=options), settings))
    return {method.name: method for method in methods}


def _settings(options: Options, model: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": dict(model),
        "train": dict(train),
        "ratios": options.ratios,
        "mask_seed": options.mask_seed,
    }


def _integrators(options: Options, labels: pd.Series) -> dict[str, Method]:
    """Return the methods of integration by name: the aligned default, and those that are installed."""
    settings = _settings(options, options.model_kwargs, options.train_kwargs)
    fit = partial(_fit_scheme, name="r2mae", options=options, integration=True)
    methods = [Method("r2mae_aligned", fit, settings)]
    for name in installed_integrators():
        fit = partial(INTEGRATORS[name], options=options, labels=labels)
        if name == "harmony":
            fit = partial(fit, components=BASELINES["pca_1e4"])  # the library of scanpy's tutorial
        used = [
            options.n_pcs,
            dict(options.scvi_model_kwargs),
            dict(options.scvi_train_kwargs),
            digest(labels.astype(str)),
        ]
        saw = "all cells and labels" if name == "scanvi" else "all cells"
        methods.append(Method(name, fit, used, learns=False, saw=saw, probed=name != "scanvi"))
    return {method.name: method for method in methods}


def _given(adata: AnnData, key: str) -> Method:
    values = read_representation(adata, key)
    return Method(key, lambda *_: Embedding(values), {"values": digest(values)}, False, False, "not known")


def _log_normalize_all(cells: Pretraining, _: int) -> Embedding:
    return Embedding(_expression(cells.cells.X, cells.seen))


def _fit_pca(cells: Pretraining, _: int, *, kind: str, n_pcs: int) -> Embedding:
    return Embedding(BASELINES[kind](cells.cells.X, cells.seen, n_pcs=n_pcs))


def _normalize(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    """Return log1p of counts scaled to a library size."""
    library = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    scaled = counts.astype(np.float32)
    scaled.data = np.log1p(scaled.data * np.repeat(target_sum / library, np.diff(counts.indptr)))
    return scaled


def _expression(counts: sp.csr_matrix, seen: np.ndarray) -> sp.csr_matrix:
    """Return log-normalized counts at the median library of the cells in ``seen``, scanpy's default."""
    return _normalize(counts, float(np.median(np.asarray(counts[seen].sum(axis=1)))))


def _residuals(counts: sp.csr_matrix, seen: np.ndarray) -> np.ndarray:
    """Return Pearson residuals (Lause et al. 2021) with the frequencies of the cells in ``seen``."""
    frequencies = np.asarray(counts[seen].sum(axis=0)).ravel()
    mean = np.asarray(counts.sum(axis=1)) * (frequencies / frequencies.sum())
    residuals = (counts.toarray() - mean) / np.sqrt(mean + mean**2 / 100.0 + 1e-9)
    return residuals.clip(-np.sqrt(len(seen)), np.sqrt(len(seen))).astype(np.float32)


def _ranks(counts: sp.csr_matrix, _: np.ndarray) -> np.ndarray:
    """Return the rank of each gene within its cell, ties averaged, between 0 and 1."""
    return (rankdata(counts.toarray(), axis=1) / counts.shape[1]).astype(np.float32)


def _pca(
    transform: Callable[[sp.csr_matrix, np.ndarray], Any],
    counts: sp.csr_matrix,
    seen: np.ndarray,
    *,
    n_pcs: int = 50,
) -> np.ndarray:
    """Fit PCA to the cells in ``seen``, and project all."""
    expression = transform(counts, seen)
    learned = expression[seen]
    # The result is exact to rounding and needs no seed; only the start of the iteration is random.
    model = PCA(min(n_pcs, *(n - 1 for n in learned.shape)), svd_solver="arpack", random_state=0)
    return model.fit(learned).transform(expression).astype(np.float32)


BASELINES: dict[str, Callable[..., Any]] = {
    "lognorm": _expression,
    "pca": partial(_pca, _expression),
    "pca_1e4": partial(_pca, lambda counts, _: _normalize(counts, TARGET_SUM)),
    "pca_residuals": partial(_pca, _residuals),
    "pca_ranks": partial(_pca, _ranks),
}
"""Embeddings that do not learn by gradient, as functions of counts and the indices of the cells to fit to."""


def _fit_scheme(
    cells: Pretraining, seed: int, *, name: str, options: Options, integration: bool = False
) -> Embedding:
    """Train a model with the masking of a scheme and embed all cells."""
    scheme = schemes(options.schemes, seed=seed, curriculum=options.curriculum)[name]
    seen = cells.subset(cells.seen)
    R2MAEModel.setup_anndata(seen, batch_key=BATCH if cells.has_batch else None)
    model = R2MAEModel(
        seen, mask_ratio=scheme.mask_ratio, curriculum=scheme.curriculum, seed=seed, **options.model_kwargs
    )
    defaults: dict[str, Any] = {
        "accelerator": options.accelerator,
        "split_key": False,
        "integration": integration,  # the paper does not align batches
        "enable_progress_bar": False,
        "datasplitter_kwargs": {"external_indexing": cells.external_indexing},
    }
    model.train(**defaults | dict(options.train_kwargs))
    everything = cells.subset()
    values = model.get_latent_representation(everything)
    epochs = len(model.history["train_loss"])
    if not options.ratios:
        return Embedding(values, epochs=epochs)
    frame = model.get_masked_reconstruction(
        everything, cells.scored, ratios=options.ratios, seed=options.mask_seed
    )
    pearson = dict(zip(options.ratios, frame["pearson"].tolist(), strict=True))
    return Embedding(values, pearson, epochs)
