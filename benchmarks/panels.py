"""Label transfer to donors measured with a smaller gene panel: R²MAE, scVI with zero padding, PCA with the rest estimated.

    python benchmarks/panels.py --data DATA -o OUT [--sets csle ifnb kang]

Each method, and a linear probe of cell type, is fitted to the training donors with all genes. Then 0, 25, 50 and 75 % of
the genes, drawn at random, are removed from the test donors. R²MAE treats them as masked; PCA uses the conditional mean
of its scores given the measured genes, like the linear path of R²MAE; scVI sees zeros. Dashed: the probe is fitted again
to the training donors embedded from the same genes, which needs the reference cells. Writes ``panels.csv`` and
``panels.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from sklearn.decomposition import PCA

import scr2mae
from common_setup import make_parser, silence
from schemes import SET_LABELS, SETS, read
from scr2mae.metrics import balanced_accuracy
from scr2mae.probe import LogisticProbe, donor_splits

SHARES = (0.0, 0.25, 0.5, 0.75)
METHODS = ("R²MAE", "scVI", "PCA")
TARGET = "cell_type"

Embed = Callable[[ad.AnnData, np.ndarray], np.ndarray]
"""Maps cells with all genes and the positions of the measured genes to an embedding."""


def zero_padded(adata: ad.AnnData, measured: np.ndarray) -> ad.AnnData:
    """Return the cells with zeros for all other genes."""
    keep = np.zeros(adata.n_vars, dtype=np.float32)
    keep[measured] = 1.0
    return ad.AnnData(sp.csr_matrix(adata.X.multiply(keep)), obs=adata.obs.copy(), var=adata.var.copy())


def fit_r2mae(train: ad.AnnData, seed: int) -> Embed:
    """Train R²MAE with its defaults."""
    model = scr2mae.R2MAEModel(train.copy(), seed=seed)
    model.train(enable_progress_bar=False, accelerator="cpu", split_key=False)
    return lambda adata, measured: model.get_latent_representation(adata[:, measured].copy())


def fit_scvi(train: ad.AnnData, seed: int, max_epochs: int | None) -> Embed:
    """Train scVI with its defaults; absent genes are padded with zeros, as in its own query preparation."""
    scvi.settings.seed = seed
    copy = train.copy()
    scvi.model.SCVI.setup_anndata(copy)
    model = scvi.model.SCVI(copy)
    model.train(max_epochs, enable_progress_bar=False, accelerator="cpu")
    return lambda adata, measured: model.get_latent_representation(zero_padded(adata, measured))


def fit_pca(train: ad.AnnData, seed: int) -> Embed:
    """Fit fifty components of expression at the median library; of a panel, their conditional mean."""
    counts = train.X.toarray()
    frequencies = counts.sum(axis=0) / counts.sum()
    median = np.median(counts.sum(axis=1))

    def logged(adata: ad.AnnData, measured: np.ndarray) -> np.ndarray:
        X = adata.X.toarray()[:, measured]
        share = frequencies[measured].sum()
        return np.log1p(median * share * X / np.maximum(X.sum(axis=1, keepdims=True), 1.0))

    everything = np.arange(train.n_vars)
    model = PCA(50, random_state=seed).fit(logged(train, everything))
    noise = model.noise_variance_ * (1 - 50 / min(counts.shape)) / model.explained_variance_

    def embed(adata: ad.AnnData, measured: np.ndarray) -> np.ndarray:
        axes = model.components_[:, measured]
        solved = np.linalg.solve(axes @ axes.T + np.diag(noise), np.eye(50) + np.diag(noise))
        return (logged(adata, measured) - model.mean_[measured]) @ axes.T @ solved

    return embed


def score(train_z: np.ndarray, test_z: np.ndarray, train: ad.AnnData, test: ad.AnnData) -> float:
    """Return the balanced accuracy of a probe on test donors."""
    probe = LogisticProbe().fit(
        train_z.astype(float), train.obs[TARGET].astype(str), groups=train.obs["donor"]
    )
    return balanced_accuracy(test.obs[TARGET].astype(str).to_numpy(), probe.predict(test_z.astype(float)))


def run(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Run all methods, shares and seeds on one set; the seed is that of training, donor split and panels."""
    counts = SETS[name]
    adata = read(counts, options.data)
    adata = adata[adata.obs[TARGET].notna().to_numpy()].copy()
    splits = donor_splits(
        adata,
        targets={TARGET: "classification"},
        donor_key="donor",
        n_train_donors=counts.n_train_donors,
        n_splits=options.seeds,
    )[TARGET]
    rows: list[dict[str, object]] = []
    for seed, split in enumerate(splits):
        on_train = adata.obs["donor"].astype(str).isin(split.train_donors).to_numpy()
        train, test = adata[on_train].copy(), adata[~on_train].copy()
        fits = {
            "R²MAE": lambda s, t=train: fit_r2mae(t, s),
            "scVI": lambda s, t=train: fit_scvi(t, s, options.scvi_epochs),
            "PCA": lambda s, t=train: fit_pca(t, s),
        }
        everything = np.arange(adata.n_vars)
        for method in options.methods:
            if method == "scVI" and "scvi" not in counts.baselines:
                continue
            embed = fits[method](seed)
            reference = embed(train, everything)
            for share in SHARES:
                rng = np.random.default_rng([seed, round(100 * share)])
                n_measured = round((1 - share) * adata.n_vars)
                measured = np.sort(rng.choice(adata.n_vars, n_measured, replace=False))
                query = embed(test, measured)
                for where, z in (("all genes", reference), ("same genes", embed(train, measured))):
                    value = score(z, query, train, test)
                    rows.append({"set": name, "method": method, "missing": share, "reference": where, "seed": seed, "score": value, "chance": 1 / adata.obs[TARGET].nunique()})  # fmt: skip
            print(
                f"{name} {method} seed {seed}: {[round(float(r['score']), 3) for r in rows[-8:]]}", flush=True
            )
    return rows


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw one panel per set: score by share of missing genes, mean and standard deviation over seeds."""
    names = list(dict.fromkeys(frame["set"]))
    fig, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.8), layout="constrained", squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=True):
        for i, method in enumerate(m for m in METHODS if m in set(frame["method"])):
            for where, dash in (("all genes", "-"), ("same genes", "--")):
                rows = frame[
                    (frame["set"] == name) & (frame["method"] == method) & (frame["reference"] == where)
                ]
                by = rows.groupby("missing")["score"]
                ax.errorbar(
                    100 * by.mean().index, by.mean(), by.std(), color=scr2mae.pl.OKABE_ITO[i], marker="o^s"[i],
                    linestyle=dash, markersize=5, capsize=2, label=f"{method}, reference with {where}",
                )  # fmt: skip
        ax.set(title=SET_LABELS.get(name, name), xlabel="Genes missing in the query (%)")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("Cell type in test donors\n(balanced accuracy)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=len(labels) // 2, frameon=False, fontsize="small"
    )
    fig.savefig(path, dpi=150)


def main() -> None:
    """Run the sets, write the table and the figure."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle", "ifnb", "kang"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--scvi-epochs", type=int, help="default: that of scvi-tools")
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([row for name in options.sets for row in run(name, options)])
    frame.to_csv(options.out / "panels.csv", index=False)
    draw(frame, options.out / "panels.png")
    table = frame.pivot_table(
        index=["set", "reference", "method"], columns="missing", values="score", sort=False
    )
    print(table.round(3).to_markdown())
    above = frame.assign(score=frame["score"] - frame["chance"])
    above = above.pivot_table(
        index=["set", "reference", "method"], columns="missing", values="score", sort=False
    )
    kept = above.div(above[0.0], axis=0)
    print("\nShare of the score above chance that is kept\n", kept.round(3).to_markdown(), sep="\n")


if __name__ == "__main__":
    main()
