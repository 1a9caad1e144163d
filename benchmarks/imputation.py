"""Expression of genes that a panel lacks, in donors that no method has seen: R²MAE, neighbors in PCA space, scVI.

    python benchmarks/imputation.py --data DATA -o OUT [--sets csle ifnb kang] [--seeds 3]

Each method is fitted to the training donors with all genes. A fifth of the genes, drawn at random, is then withheld from
the test donors and estimated: by R²MAE as missing genes, by the mean of the 30 training cells nearest in the components of
the other genes, and by scVI with zeros in their place. Scores are correlations with the log-normalized counts, of each
gene over cells and of each cell over genes, means over genes that are found in at least 5 % of the test cells.

    python benchmarks/imputation.py --data DATA -o OUT --pairs ifnb:covid csle:covid control:zheng

withholds genes from one of two studies instead: a fifth of the genes that both have measured are taken from the first. R²MAE
is trained on both, and neighbors are the other study's cells nearest in the components of the genes that are left in both.
"""

from __future__ import annotations

import argparse
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import scr2mae
from common_setup import make_parser, silence
from panels import zero_padded
from schemes import SETS, read
from scr2mae.data import join_studies
from scr2mae.probe import donor_splits
from studies import FILES, TARGETS, read_others, read_target

MOST = 3000  # cells of the other study
WITHHELD, N_NEIGHBORS, LEAST = 0.2, 30, 0.05
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def logged(counts: np.ndarray, total: float) -> np.ndarray:
    """Return log1p of counts at a library of ``total``."""
    return np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0) * total)


def median_library(adata: ad.AnnData) -> float:
    """Return the median total count of a cell."""
    return float(np.median(np.asarray(adata.X.sum(axis=1))))


def by_r2mae(
    train: ad.AnnData, test: ad.AnnData, withheld: np.ndarray, seed: int, **sizes: int
) -> np.ndarray:
    """Impute the withheld genes as missing ones."""
    model = scr2mae.R2MAEModel(train.copy(), seed=seed, **sizes)
    model.train(split_key=False, **QUIET)
    panel = test[:, np.setdiff1d(np.arange(test.n_vars), withheld)].copy()
    rho = model.get_normalized_expression(panel, gene_list=test.var_names[withheld], return_numpy=True)
    return np.log1p(median_library(train) * rho)


def by_neighbors(
    train: ad.AnnData, test: ad.AnnData, withheld: np.ndarray, seed: int, *, fit_to_both: bool = False
) -> np.ndarray:
    """Average the withheld genes over training cells that are near in the components of the others."""
    shared = np.setdiff1d(np.arange(test.n_vars), withheld)
    counts, queried = train.X.toarray(), test.X.toarray()[:, shared]
    total = float(np.median(counts[:, shared].sum(axis=1)))
    known, asked = (logged(x, total) for x in (counts[:, shared], queried))
    model = PCA(50, random_state=seed).fit(np.concatenate([known, asked]) if fit_to_both else known)
    neighbors = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(model.transform(known))
    nearest = neighbors.kneighbors(model.transform(asked), return_distance=False)
    expression = logged(counts, float(np.median(counts.sum(axis=1))))[:, withheld]
    return expression[nearest].mean(axis=1)


def by_scvi(train: ad.AnnData, test: ad.AnnData, withheld: np.ndarray, seed: int) -> np.ndarray:
    """Decode the withheld genes, which are zero in the input."""
    scvi.settings.seed = seed
    copy = train.copy()
    scvi.model.SCVI.setup_anndata(copy)
    model = scvi.model.SCVI(copy)
    model.train(**QUIET)
    padded = zero_padded(test, np.setdiff1d(np.arange(test.n_vars), withheld))
    rho = model.get_normalized_expression(padded, return_numpy=True)[:, withheld]
    return np.log1p(median_library(train) * rho)


METHODS = {
    "R²MAE": partial(by_r2mae),
    "R²MAE, hidden layer in the decoder": partial(by_r2mae, n_layers_decoder=1),
    "30 neighbors": by_neighbors,
    "scVI": by_scvi,
}


def correlation(first: np.ndarray, second: np.ndarray, axis: int) -> float:
    """Return the mean Pearson correlation along an axis, of what varies."""
    first, second = (x - x.mean(axis=axis, keepdims=True) for x in (first, second))
    norm = np.sqrt((first**2).sum(axis=axis) * (second**2).sum(axis=axis))
    return float(((first * second).sum(axis=axis)[norm > 0] / norm[norm > 0]).mean())


def run(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Score the methods on one set; a seed is for training, donor split and withheld genes."""
    counts = SETS[name]
    adata = read(counts, options.data)
    target = next(iter(counts.targets))
    splits = donor_splits(
        adata, targets={target: counts.targets[target]}, donor_key="donor",
        n_train_donors=counts.n_train_donors, n_splits=options.seeds,
    )[target]  # fmt: skip
    rows: list[dict[str, object]] = []
    for seed, split in enumerate(splits):
        on_train = adata.obs["donor"].astype(str).isin([str(d) for d in split.train_donors]).to_numpy()
        train, test = adata[on_train].copy(), adata[~on_train].copy()
        rng = np.random.default_rng(seed)
        withheld = np.sort(rng.choice(adata.n_vars, round(WITHHELD * adata.n_vars), replace=False))
        observed = logged(test.X.toarray(), median_library(train))[:, withheld]
        found = (observed > 0).mean(axis=0) >= LEAST
        for method in options.methods:
            if method == "scVI" and "scvi" not in counts.baselines:
                continue
            values = METHODS[method](train, test, withheld, seed)[:, found]
            rows.append({
                "set": name, "method": method, "seed": seed, "genes": int(found.sum()),
                "over cells": correlation(values, observed[:, found], 0),
                "over genes": correlation(values, observed[:, found], 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def from_other_study(
    other: ad.AnnData, own: ad.AnnData, genes: pd.Index, seed: int, **sizes: int
) -> np.ndarray:
    """Train on both studies, and impute genes that are withheld from one of them there."""
    panel = own[:, ~own.var_names.isin(genes)]
    slim = {"own": panel, "other": other}
    joined = join_studies({name: ad.AnnData(a.X, obs=a.obs[[]], var=a.var[[]]) for name, a in slim.items()})
    scr2mae.R2MAEModel.setup_anndata(joined)
    model = scr2mae.R2MAEModel(joined, seed=seed, **sizes)
    model.train(split_key=False, train_size=1.0, **QUIET)
    mine = np.flatnonzero(joined.obs["study"] == "own")
    rho = model.get_normalized_expression(indices=mine, gene_list=genes, return_numpy=True)
    return np.log1p(median_library(own) * rho)


def run_pair(pair: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Score the methods on genes that are withheld from the first of two studies."""
    name, other_name = pair.split(":")
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        own = read_target(name, options.data, seed)
        pool, _ = read_others(own, (other_name,), options.data)
        genes = own.var_names[own.var_names.isin(pool.var_names[pool.varm["scr2mae_measured"][other_name]])]
        other = pool[np.sort(rng.permutation(pool.n_obs)[:MOST]), genes].copy()
        withheld = np.sort(rng.choice(len(genes), round(WITHHELD * len(genes)), replace=False))
        mine = own[:, genes].copy()
        observed = logged(mine.X.toarray(), median_library(own))[:, withheld]
        found = (observed > 0).mean(axis=0) >= LEAST
        for method in options.methods:
            if method == "scVI":
                continue
            if method == "30 neighbors":
                values = by_neighbors(other, mine, withheld, seed, fit_to_both=True)
            else:
                values = from_other_study(other, own, genes[withheld], seed, **METHODS[method].keywords)
            rows.append({
                "set": pair, "method": method, "seed": seed, "genes": int(found.sum()),
                "over cells": correlation(values[:, found], observed[:, found], 0),
                "over genes": correlation(values[:, found], observed[:, found], 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the sets and print the table."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["csle", "ifnb", "kang", "gbm"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--pairs", nargs="+", default=[], help="SET:STUDY, to withhold genes from one of two studies"
    )
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    for pair in options.pairs:
        first, _, second = pair.partition(":")
        if first not in TARGETS or second not in FILES:
            parser.error(
                f"--pairs takes one of {list(TARGETS)}, a colon and one of {list(FILES)}; got {pair}"
            )
    if options.pairs:
        frame = pd.DataFrame([row for pair in options.pairs for row in run_pair(pair, options)])
    else:
        frame = pd.DataFrame([row for name in options.sets for row in run(name, options)])
    frame.to_csv(options.out / "imputation.csv", index=False)
    table = frame.groupby(["set", "method"], sort=False)[["over cells", "over genes"]].mean()
    print(table.round(3).to_markdown())


if __name__ == "__main__":
    main()
