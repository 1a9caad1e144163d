"""``scr2mae demo``: train on 700 real cells, embed them, compare with PCA and draw, with nothing to download.

In the comparison, network and PCA see the counts of all cells and no label; a linear probe learns the labels of some
cells and is scored on the others, as in Dong et al. (2025).
"""

from __future__ import annotations

import logging
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from scr2mae._utils.files import as_path
from scr2mae.cli import options as opt
from scr2mae.cli.files import check_output
from scr2mae.cli.process import loading

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from scr2mae.model import R2MAEModel

logger = logging.getLogger(__name__)

FILES = ("model", "embedded.h5ad", "umap.png", "training_curves.png")
SNIPPET = """\
model = scr2mae.R2MAEModel(adata)
model.train()
adata.obsm["X_r2mae"] = model.get_latent_representation()"""

_LABELS = "cell_type"
_BASELINES = ("pca", "pca_1e4", "pca_residuals", "pca_ranks")


def demo(
    *,
    output: Annotated[opt.OutPath, opt.doc("Folder to write to.")] = Path("demo"),
    max_epochs: Annotated[opt.PositiveInt | None, opt.doc("Passes over the cells.")] = None,
    seed: Annotated[opt.NonNegativeInt, opt.doc("Random seed.")] = 0,
    accelerator: opt.Accelerator = "auto",
    all_baselines: Annotated[
        bool, opt.doc("Compare with plain expression and scVI too; takes some minutes more.")
    ] = False,
    force: Annotated[bool, opt.doc("Replace the files of an earlier demo.")] = False,
    messages: opt.Messages = opt.Messages(),
) -> str:
    """Train, embed and draw 700 real cells, offline.

    Train on 700 blood cells that come with Scanpy, embed them, compare with PCA by linear probe and draw a UMAP
    and the training curves. Nothing is downloaded; it takes less than two minutes on two cores.

    Examples
    --------
    scr2mae demo
    scr2mae demo -o somewhere/ --seed 1
    scr2mae demo --all-baselines --force
    """
    check_output(output, folder=True, force=force)
    with loading():
        import_module("scr2mae.model")
    result = run_demo(
        seed=seed,
        all_baselines=all_baselines,
        max_epochs=max_epochs,
        accelerator=accelerator,
        enable_progress_bar=not messages.quiet,
    )
    save_demo(result, output, force=force)
    n_obs, n_vars = result.adata.shape
    return "\n".join(
        [
            f"{n_obs} PBMCs, {n_vars} genes; cell types predicted by a linear probe, on held-out cells:",
            "",
            _table(result.scores),
            "",
            "Written:",
            *(f"  {output / name}" for name in FILES),
            "",
            "The same on your own raw counts:",
            "",
            *(f"  {line}" for line in SNIPPET.splitlines()),
        ]
    )


def _table(scores: pd.DataFrame) -> str:
    """Format scores as mean ± standard deviation over folds."""
    columns = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
    width = max(map(len, scores.index))
    lines = ["  " + " " * width + "".join(f"{title:>20}" for title in columns.values())]
    for name, row in scores.iterrows():
        cells = (f"{row[column]:.3f} ± {row[f'{column}_sd']:.3f}" for column in columns)
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


class DemoResult(NamedTuple):
    """Cells with the embedding and PCA in obsm, the trained model, and the scores of ``compare``."""

    adata: AnnData
    model: R2MAEModel
    scores: pd.DataFrame


def run_demo(*, seed: int = 0, all_baselines: bool = False, **train_kwargs: Any) -> DemoResult:
    """Train on ``datasets.pbmc68k``, embed, and compare with PCA, and with expression and scVI if asked."""
    import numpy as np

    from scr2mae._utils.methods import LABELS
    from scr2mae.benchmark.methods import BASELINES
    from scr2mae.datasets import pbmc68k
    from scr2mae.model import R2MAEModel

    adata = pbmc68k()
    logger.info("Training on %d cells and %d genes.", adata.n_obs, adata.n_vars)
    R2MAEModel.setup_anndata(adata, labels_key=_LABELS)
    model = R2MAEModel(adata, seed=seed)
    model.train(**train_kwargs)
    adata.obsm["X_r2mae"] = model.get_latent_representation()
    everything = np.arange(adata.n_obs)
    embeddings = {"R²MAE": adata.obsm["X_r2mae"]}
    names = (*_BASELINES, "lognorm") if all_baselines else _BASELINES
    embeddings |= {LABELS[name]: BASELINES[name](adata.X, everything) for name in names}
    adata.obsm["X_pca"] = embeddings[LABELS["pca"]]
    if all_baselines:
        logger.info("Training scVI with its defaults.")
        for n_latent in (10, 30):
            embeddings[f"scVI, {n_latent} dimensions"] = _embed_by_scvi(adata, n_latent, seed=seed)
    logger.info("Comparing with the baselines by linear probes of the cell type.")
    return DemoResult(adata, model, compare(embeddings, adata.obs[_LABELS], seed=seed))


def _embed_by_scvi(adata: AnnData, n_latent: int, *, seed: int) -> np.ndarray:
    """Return the embedding of scVI, trained with its defaults."""
    import scvi
    import torch
    from anndata import AnnData
    from lightning.pytorch.utilities.seed import isolate_rng

    from scr2mae.benchmark.scvi import quiet

    cells = AnnData(adata.X)
    with isolate_rng(), quiet():
        torch.manual_seed(seed)
        scvi.model.SCVI.setup_anndata(cells)
        model = scvi.model.SCVI(cells, n_latent=n_latent)
        model.train(accelerator="cpu", enable_progress_bar=False)
        embedded: np.ndarray = model.get_latent_representation()
    return embedded


def compare(
    embeddings: dict[str, Any], labels: pd.Series, *, n_folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Score embeddings of the cells by a linear probe of their labels, over folds that hold out every cell once.

    The columns are the mean and the standard deviation (``_sd``) over folds of ``balanced_accuracy`` and
    ``macro_f1``.
    """
    import numpy as np
    import pandas as pd
    from sklearn.model_selection import StratifiedKFold

    from scr2mae.metrics import balanced_accuracy, macro_f1
    from scr2mae.probe import LogisticProbe

    y = labels.to_numpy().astype(str)
    folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(y, y))
    rows = {}
    for name, X in embeddings.items():
        predicted = [LogisticProbe().fit(X[fit], y[fit]).predict(X[test]) for fit, test in folds]
        row: dict[str, float] = {}
        for score in (balanced_accuracy, macro_f1):
            values = [score(y[test], guess) for (_, test), guess in zip(folds, predicted, strict=True)]
            row[score.__name__] = float(np.mean(values))
            row[f"{score.__name__}_sd"] = float(np.std(values, ddof=1))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def save_demo(result: DemoResult, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Write model, cells and figures in the order of ``FILES``; on an error nothing is left or changed.

    The UMAP is added to the ``adata`` of the result. With ``force`` other files in the folder are left alone.
    """
    folder = as_path(folder).resolve()
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
    """Write model, cells, UMAP and training curves."""
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
