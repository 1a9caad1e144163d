"""Saved probes: calibration, unknown cells, and genes.

    python benchmarks/kept_probes.py --data FOLDER -o out

Writes four tables: the calibration error on held-out donors before and after calibration; the share of cells called
unknown, of known types and of a type that the reference lacks; on simulated donors, the share of planted genes among the
top genes of a probe, and of a t test on pseudobulk counts; and the agreement of gene ranks between training seeds of the
network, and between folds of donors. Scores of a probe are nested: penalty and calibration come from other donors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats import ttest_ind

import scr2mae
from common_setup import make_parser, select_genes, silence
from scr2mae.probe import fit_probe, gene_attribution, rank_stability

# File, target, and whether cells of the type can be withheld.
SETS = {
    "csle": ("csle_pbmc_44donors.h5ad", "condition"),
    "csle types": ("csle_pbmc_44donors.h5ad", "cell_type"),
    "ifnb": ("kang_pbmc_ifnb_8donors.h5ad", "condition"),
    "gbm": ("gbm_panobinostat_5donors_age.h5ad", "condition"),
    "kang types": ("kang_pbmc_ctrl_12k.h5ad", "cell_type"),
}
WITHHELD = ("B cells", "CD14+ Monocytes", "NK cells")


def train(adata: ad.AnnData, seed: int = 0, **kwargs: object) -> scr2mae.R2MAEModel:
    """Train a model on all cells, without their labels."""
    model = scr2mae.R2MAEModel(adata, seed=seed, **kwargs)
    model.train(split_key=False, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    return model


def read(folder: Path, file: str, n_top_genes: int) -> ad.AnnData:
    """Read a file with its most variable genes."""
    return select_genes(ad.read_h5ad(folder / file), n_top_genes)


def calibrate(options: argparse.Namespace) -> pd.DataFrame:
    """Return scores of held-out donors before and after calibration, and the rate of unknown cells."""
    rows = []
    for name in options.sets:
        file, target = SETS[name]
        adata = read(options.data, file, options.n_top_genes)
        model = train(adata)
        adata.obsm["X_r2mae"] = model.get_latent_representation()
        for method in ("sigmoid", "isotonic"):
            kept = fit_probe(
                adata, target=target, kind="classification", donor_key="donor", model=model,
                calibration=method, reject=options.rate, n_bootstrap=0,
            )  # fmt: skip
            scores = kept.scores.set_index(["level", "metric"])["value"]
            for level in scores.index.get_level_values("level").unique():
                found = scores[level]
                rows.append(
                    {"data": name, "calibration": method, "level": level}
                    | {m: found.get(m) for m in ("macro_auroc", "calibration_error_before", "calibration_error", "unknown_rate")}
                )  # fmt: skip
            print(pd.DataFrame(rows[-2:]).to_string(), flush=True)
    return pd.DataFrame(rows)


def withhold(options: argparse.Namespace) -> pd.DataFrame:
    """Leave a cell type out of model and probe, and return how many cells of other donors are unknown."""
    adata = read(options.data, SETS["kang types"][0], options.n_top_genes)
    donors = np.unique(adata.obs["donor"].astype(str))
    is_new = adata.obs["donor"].astype(str).isin(donors[::2]).to_numpy()
    rows = []
    for label in options.withheld:
        absent = (adata.obs["cell_type"] == label).to_numpy()
        reference, new = adata[~is_new & ~absent].copy(), adata[is_new].copy()
        model = train(reference)
        cell_type = {"target": "cell_type", "kind": "classification", "donor_key": "donor"}
        kept = fit_probe(reference, model=model, reject=options.rate, n_bootstrap=0, **cell_type)
        unknown = kept.predict(new)["unknown"].to_numpy()
        was_absent = (new.obs["cell_type"] == label).to_numpy()
        by_donor = pd.Series(unknown[~was_absent]).groupby(new.obs["donor"].to_numpy()[~was_absent]).mean()
        rows.append(
            {"withheld": label, "known": by_donor.mean(), "of the withheld type": unknown[was_absent].mean()}
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def pseudobulk_t(adata: ad.AnnData) -> pd.Series:
    """Return the absolute t of each gene between donors, on log counts per million summed over cells."""
    sums = sc.get.aggregate(adata, by="donor", func="sum")
    counts = np.asarray(sums.layers["sum"])
    logged = np.log2(counts / counts.sum(axis=1, keepdims=True) * 1e6 + 1)
    cases = adata.obs.groupby("donor", observed=True)["disease"].first()[sums.obs_names] == "disease"
    t = ttest_ind(logged[cases.to_numpy()], logged[~cases.to_numpy()]).statistic
    return pd.Series(np.abs(np.nan_to_num(t)), index=adata.var_names)


def simulate(options: argparse.Namespace, seed: int) -> ad.AnnData:
    """Return 20 donors whose disease shifts planted genes."""
    return scr2mae.datasets.simulate_donors(
        n_donors=20, n_cells_per_donor=100, n_genes=500, disease_effect=options.effect, donor_effect=0.2, seed=seed
    )  # fmt: skip


def repeat(options: argparse.Namespace) -> pd.DataFrame:
    """Return the agreement of gene ranks between networks that differ in their training seed only."""
    sets = {"simulated": (simulate(options, 0), "disease")}
    for name in ("csle", "ifnb"):
        file, target = SETS[name]
        sets[name] = (read(options.data, file, options.n_top_genes), target)
    rows = []
    for name, (adata, target) in sets.items():
        tables = []
        for seed in range(options.training_seeds):
            model = train(adata, seed=seed)
            kept = fit_probe(
                adata, target=target, kind="classification", donor_key="donor", model=model, n_bootstrap=0
            )
            tables.append(gene_attribution(kept, adata, n_top=50, max_cells_per_donor=30))
        top = tables[0][tables[0]["rank"] <= 50]
        between = rank_stability(tables, n_top=50)
        rows.append({"data": name, **between, "overlap of folds": top["stability"].mean()})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def plant(options: argparse.Namespace) -> pd.DataFrame:
    """Return the precision at the number of planted genes, for attributions, their t, and the pseudobulk t test."""
    rows = []
    for seed in range(options.seeds):
        adata = simulate(options, seed)
        planted = adata.var["disease_lfc"] != 0
        k = int(planted.sum())
        model = train(adata, seed=seed)
        kept = fit_probe(
            adata, target="disease", kind="classification", donor_key="donor", model=model, n_bootstrap=0
        )
        table = gene_attribution(kept, adata, n_top=k).set_index("gene")
        ranked = {
            "attribution": table["attribution"],
            "t of attribution": table["t"],
            "pseudobulk t": pseudobulk_t(adata),
        }
        for n in (10, k):
            rows.append({"seed": seed, "k": n} | {
                name: planted[values.sort_values(ascending=False).index[:n]].mean() for name, values in ranked.items()
            })  # fmt: skip
        print(rows[-2:], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the requested parts, print and write their tables."""
    parser = make_parser(__doc__, seeds=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--withheld", nargs="+", default=list(WITHHELD))
    parser.add_argument("--rate", type=float, default=0.05, help="nominal share of unknown cells")
    parser.add_argument("--effect", type=float, default=0.5, help="log fold change of planted genes")
    parser.add_argument(
        "--training-seeds", type=int, default=3, help="networks per set, for the ranks of genes"
    )
    parser.add_argument("--n-top-genes", type=int, default=2000)
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        table = PARTS[name](options)
        table.to_csv(options.out / f"kept_probes_{name}.csv", index=False)
        print(table.to_markdown(index=False, floatfmt=".3f"), flush=True)


PARTS = {"calibration": calibrate, "unknown": withhold, "genes": plant, "seeds": repeat}

if __name__ == "__main__":
    main()
