"""Predict cell types of new donors by a probe of the embedding and by three other methods.

    python benchmarks/label_transfer.py --data FOLDER -o out

The reference is half of the donors and the query the others, with all genes or with a panel in another order. Methods: a
saved probe of R²MAE; logistic regression on log-normalized expression of the shared genes, as CellTypist fits it; a vote
of 15 nearest neighbors among principal components; and scANVI of scvi-tools, with zeros for genes that the query lacks.
With --study, the query is another study, whose names of cell types are mapped.
"""

from __future__ import annotations

import argparse
import time

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import scr2mae
from common_setup import make_parser, silence
from scr2mae.metrics import balanced_accuracy, macro_f1
from scr2mae.probe import fit_probe

METHODS = ("R²MAE probe", "logistic regression", "neighbors in PCA", "scANVI")
# Names of Zheng et al. (2017) in the words of Kang et al. (2018).
NAMES = {
    "CD19+ B": "B cells",
    "CD14+ Monocyte": "CD14+ Monocytes",
    "CD56+ NK": "NK cells",
    "CD8+ Cytotoxic T": "CD8 T cells",
    "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T cells",
    "CD4+ T Helper2": "CD4 T cells",
    "CD4+/CD45RO+ Memory": "CD4 T cells",
    "CD4+/CD25 T Reg": "CD4 T cells",
    "CD4+/CD45RA+/CD25- Naive T": "CD4 T cells",
}


def log_normalize(adata: ad.AnnData) -> np.ndarray:
    """Return dense log1p values at 10,000 counts per cell."""
    copy = ad.AnnData(adata.X.copy(), obs=adata.obs, var=adata.var)
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    return copy.X.toarray() if sp.issparse(copy.X) else copy.X


def probe(reference: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Predict by a probe of R²MAE's embedding."""
    model = scr2mae.R2MAEModel(reference, seed=seed)
    model.train(split_key=False, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    # The probe is fitted to what the query measures.
    shared = reference[:, reference.var_names.isin(query.var_names)].copy()
    kept = fit_probe(
        shared, target="cell_type", kind="classification", donor_key="donor", model=model, n_bootstrap=0
    )
    return kept.predict(query)["prediction"].astype(str).to_numpy()


def logistic(reference: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Predict by logistic regression on the expression of shared genes."""
    genes = query.var_names.intersection(reference.var_names)
    scaler = StandardScaler().fit(X := log_normalize(reference[:, genes]))
    model = LogisticRegression(C=1.0, max_iter=100, random_state=seed)
    model.fit(scaler.transform(X), reference.obs["cell_type"].astype(str))
    return model.predict(scaler.transform(log_normalize(query[:, genes])))


def neighbors(reference: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Predict by a vote of neighbors among principal components."""
    genes = query.var_names.intersection(reference.var_names)
    both = np.vstack([log_normalize(reference[:, genes]), log_normalize(query[:, genes])])
    Z = sc.pp.pca(both, n_comps=min(50, len(genes) - 1), random_state=seed)
    n = reference.n_obs
    return KNeighborsClassifier(15).fit(Z[:n], reference.obs["cell_type"].astype(str)).predict(Z[n:])


def scanvi(reference: ad.AnnData, query: ad.AnnData, seed: int) -> np.ndarray:
    """Predict by scANVI, with zeros for genes that the query lacks."""
    import scvi

    scvi.settings.seed = seed
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    reference, query = reference.copy(), query.copy()
    reference.obs["set"], query.obs["set"] = "reference", "query"
    query.obs["cell_type"] = "?"
    both = ad.concat([reference, query], join="outer", fill_value=0)
    scvi.model.SCVI.setup_anndata(both, batch_key="set", labels_key="cell_type")
    base = scvi.model.SCVI(both)
    base.train(100, **quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, unlabeled_category="?")
    model.train(20, **quiet)
    return np.asarray(model.predict())[reference.n_obs :]


FUNCTIONS = dict(zip(METHODS, (probe, logistic, neighbors, scanvi), strict=True))


def tasks(options: argparse.Namespace) -> dict[str, tuple[ad.AnnData, ad.AnnData]]:
    """Return reference and query of each task."""
    cells = ad.read_h5ad(options.data / "kang_pbmc_ctrl_12k.h5ad")
    donors = np.unique(cells.obs["donor"].astype(str))
    is_new = cells.obs["donor"].astype(str).isin(donors[::2]).to_numpy()
    reference, query = cells[~is_new].copy(), cells[is_new].copy()
    rng = np.random.default_rng(0)
    panel = rng.choice(cells.n_vars, options.panel, replace=False)
    found = {
        "donors": (reference, query),
        f"donors, {options.panel} genes": (reference, query[:, panel].copy()),
    }
    if options.study:
        zheng = ad.read_h5ad(options.data / "pbmc_facs_zheng.h5ad")
        zheng.obs["cell_type"] = zheng.obs["cell_type"].map(NAMES)
        zheng = zheng[zheng.obs["cell_type"].notna().to_numpy()].copy()
        found["another study"] = (cells, zheng[:, zheng.var_names.isin(cells.var_names)].copy())
    return found


def main() -> None:
    """Run the methods and print balanced accuracy, macro F1 and seconds."""
    parser = make_parser(__doc__, seeds=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--panel", type=int, default=300, help="number of genes of the panel")
    parser.add_argument("--study", action="store_true", help="add a query from another study")
    parser.add_argument(
        "--only", nargs="+", help="names of tasks to run, such as 'another study'; default: all"
    )
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for task, (reference, query) in tasks(options).items():
        if options.only and task not in options.only:
            continue
        truth = query.obs["cell_type"].astype(str).to_numpy()
        for method in options.methods:
            for seed in range(options.seeds):
                start = time.perf_counter()
                predicted = FUNCTIONS[method](reference.copy(), query.copy(), seed)
                scores = {
                    "balanced accuracy": balanced_accuracy(truth, predicted),
                    "macro F1": macro_f1(truth, predicted),
                }
                seconds = time.perf_counter() - start
                rows.append({"task": task, "method": method, "seed": seed, **scores, "seconds": seconds})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "label_transfer.csv", index=False)
    means = table.groupby(["task", "method"], sort=False).mean(numeric_only=True).drop(columns="seed")
    print(means.to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    main()
