"""All masking schemes on real counts with donors: probe scores, ranks, reconstruction of masked genes.

    python benchmarks/schemes.py --data DATA -o OUT [--sets csle kang ...] [--encoder mlp]

For each set, :func:`scr2mae.benchmark.run` writes the folder ``OUT/SET``; the same command continues an interrupted run.
For all sets: ``ranks.csv`` (mean rank of each scheme among the schemes, by set), ``reconstruction.csv``
(Pearson by scheme and ratio, minus the best, by set) and the two as one figure, ``schemes.png``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scr2mae
from common_setup import make_parser, select_genes, silence
from scr2mae import benchmark
from scr2mae._utils.methods import LABELS

SCHEMES = list(scr2mae.schemes())
LOWEST_DRAWN = -0.05
"""Lower end of the axis of reconstructions, so that small differences are visible; the table has all values."""


@dataclass(frozen=True)
class Counts:
    """A data set with its prediction targets and training length."""

    file: str
    targets: dict[str, str]
    n_train_donors: int
    max_epochs: int | None = None
    n_top_genes: int | None = None
    baselines: tuple[str, ...] = ("pca", "scvi")
    where: dict[str, str] = field(default_factory=dict)
    n_obs: int | None = None


SETS = {
    "csle": Counts(
        "csle_pbmc_44donors.h5ad",
        {"cell_type": "classification", "condition": "classification", "age": "regression"},
        22,
    ),
    "ifnb": Counts(
        "kang_pbmc_ifnb_8donors.h5ad",
        {"cell_type": "classification"},
        2,
        n_top_genes=2000,
        where={"condition": "ctrl"},
    ),
    "pig": Counts("cf_pig_airway_7donors.h5ad", {"cell_type": "classification", "condition": "classification"}, 4),
    "kang": Counts(
        "kang_pbmc_ctrl_12k.h5ad", {"cell_type": "classification"}, 2, max_epochs=20, baselines=("pca",)
    ),
    "onek1k": Counts(
        "onek1k_40donors_age.h5ad",
        {"cell_type": "classification", "age": "regression"},
        10,
        max_epochs=20,
        baselines=("pca",),
    ),
    "gbm": Counts("gbm_panobinostat_5donors_age.h5ad", {"condition": "classification"}, 2),
    "tms": Counts(
        "tms_liver_facs_age.h5ad",
        {"age_group": "classification"},
        5,
        n_top_genes=2000,
        where={"cell_type": "hepatocyte"},
    ),
}  # fmt: skip

SET_LABELS = {
    "csle": "cSLE",
    "ifnb": "Kang, 1,000",
    "kang": "Kang, 12,000",
    "pig": "pig airway",
    "onek1k": "OneK1K",
    "gbm": "glioblastoma",
    "tms": "mouse liver",
    "mean": "mean",
}


def read(counts: Counts, folder: Path) -> ad.AnnData:
    """Read a set with the cells and genes to use."""
    adata = ad.read_h5ad(folder / counts.file)
    for column, value in counts.where.items():
        adata = adata[(adata.obs[column] == value).to_numpy()].copy()
    if counts.n_obs is not None and adata.n_obs > counts.n_obs:
        chosen = np.random.default_rng(0).permutation(adata.n_obs)[: counts.n_obs]
        adata = adata[np.sort(chosen)].copy()
    adata = select_genes(adata, counts.n_top_genes)
    if "age" in counts.targets:
        adata.obs["age"] = adata.obs["age"].astype(float)
    return adata


def run(name: str, options: argparse.Namespace) -> benchmark.Benchmark:
    """Benchmark one set."""
    counts = SETS[name]
    train_kwargs = {}
    if counts.max_epochs and options.encoder == "mlp":
        train_kwargs["max_epochs"] = counts.max_epochs
    return benchmark.run(
        read(counts, options.data),
        targets=counts.targets,
        donor_key="donor",
        methods=[*(options.baselines or counts.baselines), *SCHEMES],
        seeds=range(options.seeds),
        n_splits=options.splits,
        n_train_donors=counts.n_train_donors,
        model_kwargs={} if options.encoder is None else {"encoder": options.encoder},
        train_kwargs=train_kwargs,
        accelerator="cpu",
        out=options.out / name,
    )


def best_of_scalings(result: benchmark.Benchmark) -> pd.DataFrame:
    """Return the scores of each method, each with or without feature scaling, whichever is better."""
    tables = [result.table(scale=scale).iloc[:, :-3] for scale in result.scalings]
    return tables[0].combine(tables[1].loc[tables[0].index], lambda a, b: a.where(a >= b, b))


def mean_ranks(results: dict[str, benchmark.Benchmark]) -> pd.DataFrame:
    """Return the mean rank of each scheme among the schemes by set; ties have the smallest rank."""
    ranks = {
        name: best_of_scalings(result).loc[SCHEMES].rank(ascending=False, method="min").mean(axis=1)
        for name, result in results.items()
    }
    frame = pd.DataFrame(ranks)
    return frame.assign(mean=frame.mean(axis=1)).sort_values("mean")


def draw(ranks: pd.DataFrame, gaps: pd.DataFrame, path: Path) -> None:
    """Draw the ranks by set, and the difference from the best reconstruction."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    for i, name in enumerate(column for column in ranks if column != "mean"):
        left.scatter(
            ranks[name], range(len(ranks)), color=scr2mae.pl.OKABE_ITO[i], marker="o^sPX"[i % 5], s=28,
            label=SET_LABELS[name],
        )  # fmt: skip
    left.scatter(ranks["mean"], range(len(ranks)), color="black", marker="D", s=44, label="mean")
    left.set_yticks(range(len(ranks)), [LABELS[name] for name in ranks.index])
    left.invert_yaxis()
    left.set(xlabel="Mean rank among the schemes (1 is best)")
    left.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    mean = gaps.groupby("scheme", sort=False).mean(numeric_only=True)
    scr2mae.pl.benchmark_reconstruction(mean.rename(index=LABELS), ax=right)
    right.set_ylim(LOWEST_DRAWN, 0.005)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=150)


def main() -> None:
    """Run the sets and summarize them."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--baselines", nargs="+", choices=("pca", "scvi"), help="default: those of the set")
    parser.add_argument("--encoder", choices=("linear+mlp", "mlp"), help="default: that of the package")
    options = parser.parse_args()
    silence()
    results = {}
    for name in options.sets:
        results[name] = run(name, options)
        table = best_of_scalings(results[name])
        table.columns = [f"{target}, {metric} ({level})" for target, metric, level in table.columns]
        print(f"\n{name}\n{table.round(3).to_markdown()}", flush=True)
    ranks = mean_ranks(results)
    tables = {name: result.reconstruction().loc[SCHEMES] for name, result in results.items()}
    gaps = pd.concat(
        {name: table - table.max() for name, table in tables.items()}, names=["set", "scheme"]
    ).reset_index()
    ranks.to_csv(options.out / "ranks.csv")
    gaps.to_csv(options.out / "reconstruction.csv", index=False)
    draw(ranks, gaps, options.out / "schemes.png")
    print(f"\nMean rank among the schemes\n{ranks.round(2).to_markdown()}")
    print(f"\nReconstruction minus the best\n{gaps.round(4).to_markdown(index=False)}")


if __name__ == "__main__":
    main()
