"""Linear probes of R²MAE, scVI, PCA and log-normalized expression on held-out donors.

Pretraining sees all cells, as in the paper; only the probe's labels are held out. Every method is probed on the same
donor splits, with and without feature scaling; R²MAE and scVI are trained from several seeds. Embeddings are stored in
``OUT/embeddings``, so that the same command continues an interrupted run.

    python benchmarks/embeddings.py --data DATA -o OUT

DATA holds ``csle_pbmc_44donors.h5ad`` (lupus B and T cells; Nehar-Belaid et al. 2020), ``kang_pbmc_ctrl_12k.h5ad``
(PBMC of 8 lupus patients, 1,287 genes; Kang et al. 2018) and ``kang_pbmc_ifnb_8donors.h5ad`` (a thousand control cells of the same
study with 9,015 genes), raw counts in ``X``, donors in ``obs["donor"]``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scvi

import scr2mae
from common_setup import make_parser, silence
from scr2mae.pl import OKABE_ITO
from scr2mae.probe import donor_splits, linear_probe

SCORES = ("balanced_accuracy", "macro_f1")
METHODS = ["R²MAE", "scVI", "PCA"]
LABELS = {"csle": "cSLE", "kang": "Kang", "ifnb": "Kang, 9,015 genes"}


@dataclass(frozen=True)
class Task:
    """A data set with its prediction targets and number of training donors."""

    file: str
    targets: tuple[str, ...]
    n_train_donors: int
    condition: str | None = None


TASKS = {
    "csle": Task("csle_pbmc_44donors.h5ad", ("cell_type", "condition"), 22),
    "kang": Task("kang_pbmc_ctrl_12k.h5ad", ("cell_type",), 2),
    "ifnb": Task("kang_pbmc_ifnb_8donors.h5ad", ("cell_type",), 2, condition="ctrl"),
}


def read(task: Task, folder: Path) -> ad.AnnData:
    """Read a data set; with a condition, only its labeled cells."""
    adata = ad.read_h5ad(folder / task.file)
    if task.condition is None:
        return adata
    labeled = adata.obs[list(task.targets)].notna().all(axis=1)
    return adata[((adata.obs["condition"] == task.condition) & labeled).to_numpy()].copy()


def log_normalize(adata: ad.AnnData) -> ad.AnnData:
    """Return counts per 10,000 on the log scale."""
    out = ad.AnnData(adata.X.copy(), obs=adata.obs, var=adata.var)
    sc.pp.normalize_total(out, target_sum=1e4)
    sc.pp.log1p(out)
    return out


def embed(method: str, seed: int, adata: ad.AnnData, options: argparse.Namespace) -> np.ndarray:
    """Return the embedding of one method and training seed, shape (n_obs, n_dims)."""
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    if method == "PCA":
        return sc.pp.pca(log_normalize(adata), n_comps=50, random_state=seed, copy=True).obsm["X_pca"]
    if method == "log-normalized":
        return log_normalize(adata).X.toarray()
    if method.startswith("scVI"):
        scvi.settings.seed = seed
        copy = adata.copy()
        scvi.model.SCVI.setup_anndata(copy)
        model = scvi.model.SCVI(copy)
        _, _, epochs = method.partition("-")  # "scVI" trains for its default, "scVI-100" for 100 epochs
        model.train(int(epochs) if epochs else None, **quiet)
        return model.get_latent_representation()
    model = scr2mae.R2MAEModel(adata.copy(), seed=seed, **options.model)
    model.train(options.max_epochs, batch_size=options.batch_size, split_key=False, train_size=1.0, **quiet)
    return model.get_latent_representation()


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean scores by method and scaling, and differences from R²MAE over paired splits and seeds."""
    rows = frame[(frame["level"] == "cell") & frame["metric"].isin(SCORES)]
    score = rows.groupby(["data", "target", "method", "scale", "train_seed", "split"])["value"].mean()
    by = score.groupby(["data", "target", "method", "scale"])
    summary = pd.DataFrame({"mean": by.mean(), "sd": by.std()}).reset_index()
    best = summary.loc[summary.groupby(["data", "target", "method"])["mean"].idxmax()]
    result = []
    for (data, target), group in best.groupby(["data", "target"]):
        chosen = group.set_index("method")["scale"]
        splits = {m: score.loc[data, target, m, s].groupby("split").mean() for m, s in chosen.items()}
        for _, row in group.sort_values("mean", ascending=False).iterrows():
            gap = splits["R²MAE"] - splits[row["method"]]
            result.append({**row, "R²MAE minus it": gap.mean(), "se": gap.std() / np.sqrt(len(gap))})
    return pd.DataFrame(result)


def draw(frame: pd.DataFrame, best: pd.DataFrame, path: Path) -> None:
    """Draw one panel per task: a line per donor split over the methods and their mean, in the better scaling of each."""
    rows = frame[(frame["level"] == "cell") & frame["metric"].isin(SCORES)]
    score = rows.groupby(["data", "target", "method", "scale", "split"])["value"].mean()
    tasks = list(dict.fromkeys(zip(best["data"], best["target"], strict=True)))
    fig, axes = plt.subplots(
        1, len(tasks), figsize=(2.6 * len(tasks), 3.2), layout="constrained", squeeze=False
    )
    for ax, (data, target) in zip(axes.flat, tasks, strict=True):
        scales = best[(best["data"] == data) & (best["target"] == target)].set_index("method")["scale"]
        names = [method for method in METHODS if method in scales.index]
        splits = pd.DataFrame({m: score.loc[data, target, m, scales[m]] for m in names})
        ax.plot(splits.T.to_numpy(), "o-", color="0.65", linewidth=1, markersize=3.5)
        for i, method in enumerate(names):
            ax.plot(i, splits[method].mean(), "D", color=OKABE_ITO[i], markersize=9, zorder=3)
        ax.set_xticks(range(len(names)), names)
        ax.margins(x=0.2)
        ax.set_title(f"{LABELS[data]}\n{target.replace('_', ' ')}")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("Score in held-out donors")
    fig.savefig(path, dpi=150)


def run(name: str, options: argparse.Namespace) -> pd.DataFrame:
    """Embed and probe one data set."""
    task = TASKS[name]
    adata = read(task, options.data)
    keep = options.out / "embeddings"
    keep.mkdir(parents=True, exist_ok=True)
    targets = dict.fromkeys(task.targets, "classification")
    splits = donor_splits(
        adata, targets=targets, donor_key="donor", n_train_donors=task.n_train_donors, n_splits=options.splits
    )
    frames = []
    for method in options.methods:
        for seed in range(options.seeds if method.startswith(("R²MAE", "scVI")) else 1):
            path = keep / f"{name}-{method}-{options.tag if method == 'R²MAE' else ''}{seed}.npy"
            start = time.perf_counter()
            if not path.exists():
                np.save(path, embed(method, seed, adata, options))
            seconds = time.perf_counter() - start
            probed = ad.AnnData(obs=adata.obs, obsm={method: np.load(path).astype(np.float64)})
            frame = linear_probe(
                probed, use_rep=method, targets=targets, donor_key="donor", splits=splits, scale=(False, True), n_bootstrap=0,
            )  # fmt: skip
            frames.append(frame.assign(data=name, train_seed=seed, seconds=seconds))
            print(
                f"{name} {method} seed {seed}: {seconds:.0f} s, probed in {time.perf_counter() - start - seconds:.0f} s",
                flush=True,
            )
    return pd.concat(frames)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n-hidden", type=int)
    parser.add_argument("--n-latent", type=int)
    parser.add_argument("--tag", default="", help="names embeddings of other settings")
    options = parser.parse_args()
    options.model = {k: v for k in ("n_hidden", "n_latent") if (v := getattr(options, k)) is not None}
    silence()
    frame = pd.concat([run(name, options) for name in options.sets])
    frame.drop(columns=["note"]).to_csv(options.out / "embeddings.csv", index=False)
    result = table(frame)
    result.to_csv(options.out / "embeddings_table.csv", index=False)
    draw(frame, result, options.out / "embeddings.png")
    print(result.to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
