"""The package in one go, offline: train on 700 real cells, embed them, compare with PCA, draw.

Method of the comparison: network and PCA see the counts of all cells and no label; a linear probe learns the labels of
some cells and is scored on the others, as in Dong et al. (2025).
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

    from scr2mae.model import R2MAEModel

__all__ = ["FILES", "SNIPPET", "DemoResult", "compare", "log_normalized_pca", "run_demo", "save_demo"]

logger = logging.getLogger(__name__)

FILES = ("model", "embedded.h5ad", "umap.png", "training_curves.png")
"""What :func:`save_demo` writes: the folder of the model, the cells and two figures."""

SNIPPET = """\
model = scr2mae.R2MAEModel(adata)
model.train()
adata.obsm["X_r2mae"] = model.get_latent_representation()"""
"""The same for data of one's own: ``adata`` holds raw counts."""

_LABELS = "cell_type"


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration has made.

    Attributes
    ----------
    adata
        Counts with ``obsm["X_r2mae"]`` and ``obsm["X_pca"]``.
    model
        The trained model.
    scores
        One row an embedding, as :func:`compare` returns it.
    """

    adata: AnnData
    model: R2MAEModel
    scores: pd.DataFrame


def log_normalized_pca(adata: AnnData, *, n_components: int = 50, seed: int = 0) -> np.ndarray:
    """Principal components of log-normalized counts (1e4 a cell), the usual embedding.

    Parameters
    ----------
    adata
        Raw counts in ``X``; not changed.
    n_components
        Dimensions, fewer where there are fewer cells or genes.
    seed
        Seed of the solver.

    Returns
    -------
    float32, shape ``(n_obs, n_components)``.
    """
    import scanpy as sc

    work = adata.copy()
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.pp.pca(work, n_comps=min(n_components, *(n - 1 for n in work.shape)), random_state=seed)
    return np.asarray(work.obsm["X_pca"], dtype=np.float32)


def compare(
    adata: AnnData, bases: dict[str, str], *, labels: str = _LABELS, n_folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Score embeddings by how well a linear probe tells the labels of cells it was not fitted to.

    Parameters
    ----------
    adata
        Cells with embeddings in ``obsm`` and labels in ``obs``.
    bases
        Name in the table to key of ``adata.obsm``.
    labels
        Column of ``adata.obs``.
    n_folds
        Every cell is held out once; folds have the labels in equal shares.
    seed
        Which cells share a fold; the same for every embedding.

    Returns
    -------
    One row an embedding: mean over folds and standard deviation (``_sd``) of ``balanced_accuracy`` and ``macro_f1``,
    both in [0, 1].
    """
    from sklearn.model_selection import StratifiedKFold

    from scr2mae.metrics import balanced_accuracy, macro_f1
    from scr2mae.probe import LogisticProbe

    y = adata.obs[labels].to_numpy().astype(str)
    folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y))
    rows = {}
    for name, key in bases.items():
        X = np.asarray(adata.obsm[key])
        predicted = [LogisticProbe().fit(X[fit], y[fit]).predict(X[test]) for fit, test in folds]
        row: dict[str, float] = {}
        for score in (balanced_accuracy, macro_f1):
            values = [score(y[test], guess) for (_, test), guess in zip(folds, predicted, strict=True)]
            row[score.__name__] = float(np.mean(values))
            row[f"{score.__name__}_sd"] = float(np.std(values, ddof=1))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def run_demo(*, seed: int = 0, **train_kwargs: Any) -> DemoResult:
    """Train on :func:`scr2mae.datasets.pbmc68k`, embed, and compare with PCA.

    Parameters
    ----------
    seed
        Seed of everything.
    train_kwargs
        Arguments of :meth:`scr2mae.R2MAEModel.train`.

    Returns
    -------
    Cells, model and scores. Nothing is written or downloaded.
    """
    from scr2mae.datasets import pbmc68k
    from scr2mae.model import R2MAEModel

    adata = pbmc68k()
    logger.info("Training on %d cells and %d genes.", adata.n_obs, adata.n_vars)
    R2MAEModel.setup_anndata(adata, labels_key=_LABELS)
    model = R2MAEModel(adata, seed=seed)
    model.train(**train_kwargs)
    adata.obsm["X_r2mae"] = model.get_latent_representation()
    adata.obsm["X_pca"] = log_normalized_pca(adata, seed=seed)
    logger.info("Comparing with PCA by linear probes of the cell type.")
    scores = compare(adata, {"R²MAE": "X_r2mae", "PCA": "X_pca"}, seed=seed)
    return DemoResult(adata, model, scores)


def save_demo(result: DemoResult, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Write model, cells and figures; if anything fails while they are made, nothing is left or changed.

    Parameters
    ----------
    result
        What :func:`run_demo` returned; the UMAP is added to its ``adata``.
    folder
        Where to; made where it is absent.
    force
        Whether to replace what an earlier call has written. Other files in the folder are left alone.

    Returns
    -------
    The paths written, in the order of :data:`FILES`.

    Raises
    ------
    FileExistsError
        If the folder is not empty and ``force`` is False.
    """
    folder = Path(folder).resolve()
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose another folder or pass force=True.")
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    staged.mkdir(parents=True)
    try:
        _write_files(result, staged)
        if folder.exists():
            for name in FILES[1:]:
                (staged / name).replace(folder / name)
            result.model.save(folder / FILES[0], overwrite=True)
        else:
            staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return [folder / name for name in FILES]


def _write_files(result: DemoResult, folder: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scr2mae import pl

    model, cells, umap, curves = FILES
    result.model.save(folder / model)
    for name, size in ((umap, (7.0, 4.5)), (curves, (5.5, 3.6))):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        if name == umap:
            pl.embedding(result.adata, color=_LABELS, ax=ax)
        else:
            pl.training_curves(result.model, ax=ax)
        figure.savefig(folder / name, dpi=150)
    result.adata.write_h5ad(folder / cells)
