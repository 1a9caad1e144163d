"""Integration of batches: R²MAE with and without its alignment, PCA, Harmony, scVI, scANVI and SysVI, by scib-metrics.

    python benchmarks/integration.py --data DATA -o OUT [--sets kang studies] [--methods pca r2mae] [--seeds 3]
    python benchmarks/integration.py --data DATA -o OUT --cost 100000

Sets: control and stimulated cells of Kang et al.; 1,500 cells each of Zheng et al. and of the controls of Kang et al., with
coarse cell types; simulated donors in two batches with effects of .15, .30 and .50, and with one of .30 and unequal cell types; ``disjoint``, the controls of Kang et
al. with T and NK cells as one batch and all others as the other, where nothing should move; and ``unseen``, the second
study aligned with a model of the first (its stored mixture, and its cells), by the mixing within shared types, the transfer of labels, and how many neighbors of
new types are of the same type. Needs scib-metrics, and harmonypy for Harmony. Writes ``integration.csv``, with seconds,
the scIB table of each set, and UMAPs of R²MAE before and after the alignment. ``--cost`` instead prints the processor time
of fitting the alignment to that many simulated cells of 20 batches, and of embedding a tenth of them with and without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scr2mae
from common_setup import make_parser, select_genes, silence
from scr2mae._utils.scib import INTEGRATION_SCORES

N_GENES = 2000
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
COARSE = {
    "CD14+ Monocytes": "monocyte",
    "FCGR3A+ Monocytes": "monocyte",
    "CD14+ Monocyte": "monocyte",
    "B cells": "B",
    "CD19+ B": "B",
    "NK cells": "NK",
    "CD56+ NK": "NK",
    "CD34+": "CD34+",
    "Dendritic cells": None,
    "Megakaryocytes": None,
}
"""Names of cell types that both studies use; all others are T cells, and rare ones are not scored."""


def kang(data: Path) -> ad.AnnData:
    """Return control and stimulated cells; two thirds have a label."""
    adata = ad.read_h5ad(data / "kang_pbmc_ifnb_8donors.h5ad")
    adata.obs["batch"], adata.obs["label"] = adata.obs["condition"].astype(str), adata.obs["cell_type"]
    return select_genes(adata, N_GENES)


def studies(data: Path) -> ad.AnnData:
    """Return 1,500 cells of each of two studies, on their common genes."""
    rng, parts = np.random.default_rng(0), {}
    for name, file in (("zheng", "pbmc_facs_zheng"), ("kang", "kang_pbmc_ctrl_12k")):
        cells = ad.read_h5ad(data / f"{file}.h5ad")
        parts[name] = cells[np.sort(rng.choice(cells.n_obs, 1500, replace=False))].copy()
    adata = ad.concat(parts, label="batch", index_unique="_")
    adata.obs["label"] = [COARSE.get(name, "T") for name in adata.obs["cell_type"].astype(str)]
    return select_genes(adata, N_GENES)


def disjoint(data: Path) -> ad.AnnData:
    """Return 3,000 control cells, split into batches by cell type."""
    adata = ad.read_h5ad(data / "kang_pbmc_ctrl_12k.h5ad")
    adata = adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, 3000, replace=False))].copy()
    adata.obs["label"] = adata.obs["cell_type"].astype(str)
    lymphoid = adata.obs["label"].isin(["CD4 T cells", "CD8 T cells", "NK cells"])
    adata.obs["batch"] = np.where(lymphoid, "T and NK", "others")
    return adata


def simulated(effect: float) -> Callable[[Path], ad.AnnData]:
    """Return a function that simulates donors in two batches."""

    def simulate(_: Path) -> ad.AnnData:
        adata = scr2mae.datasets.simulate_donors(batch_effect=effect)
        adata.obs["label"] = adata.obs["cell_type"].astype(str)
        return adata

    return simulate


def unequal(data: Path) -> ad.AnnData:
    """Return two simulated batches; the second lacks a type, has one of its own, and a fifth of the cells of a third."""
    adata = simulated(0.3)(data)
    types, is_second = adata.obs["label"], (adata.obs["batch"] == adata.obs["batch"].unique()[1]).to_numpy()
    lacking, own, rare = types.value_counts().index[:3]
    is_left_out = (types == lacking) & is_second | (types == own) & ~is_second
    is_left_out |= (types == rare) & is_second & (np.random.default_rng(0).random(adata.n_obs) > 0.2)
    return adata[~is_left_out].copy()


SETS: dict[str, Callable[[Path], ad.AnnData]] = {
    "kang": kang,
    "studies": studies,
    **{f"simulated {effect:.2f}": simulated(effect) for effect in (0.15, 0.3, 0.5)},
    "simulated unequal": unequal,
    "disjoint": disjoint,
}


def principal_components(adata: ad.AnnData) -> np.ndarray:
    """Return fifty components of log-normalized expression."""
    logged = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    return sc.pp.pca(logged, 50, copy=True).obsm["X_pca"]


def pca(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield PCA; it has no seed."""
    if seed == 0:
        yield "PCA", principal_components(adata)


def harmony(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield Harmony on PCA, with its defaults and without its early stop; its scores hardly depend on the seed."""
    if seed > 0:
        return
    import harmonypy

    components = principal_components(adata)
    longer = {"max_iter_harmony": 50, "epsilon_harmony": -1.0}
    for name, settings in {"Harmony": {}, "Harmony, 50 iterations": longer}.items():
        found = harmonypy.run_harmony(
            components, adata.obs, "batch", random_state=seed, verbose=False, **settings
        ).Z_corr
        yield name, found if found.shape == components.shape else found.T


def train_scvi(adata: ad.AnnData, seed: int) -> scvi.model.SCVI:
    """Train scVI with 30 dimensions and two layers, the settings of its authors for integration."""
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, n_latent=30, n_layers=2, gene_likelihood="nb")
    model.train(**QUIET)
    return model


def scvi_latent(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield scVI."""
    yield "scVI", train_scvi(adata, seed).get_latent_representation()


def scanvi(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield scANVI, which is told the labels that the scores compare with."""
    adata.obs["known"] = adata.obs["label"].astype(object).fillna("unknown").astype("category")
    model = scvi.model.SCANVI.from_scvi_model(
        train_scvi(adata, seed), unlabeled_category="unknown", labels_key="known"
    )
    model.train(max_epochs=20, n_samples_per_label=100, **QUIET)
    yield "scANVI", model.get_latent_representation()


def sysvi(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield SysVI with its defaults, on log-normalized counts."""
    scvi.settings.seed = seed
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    scvi.external.SysVI.setup_anndata(adata, batch_key="batch")
    model = scvi.external.SysVI(adata)
    model.train(**QUIET)
    yield "SysVI", model.get_latent_representation()


def r2mae(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield R²MAE with its defaults, without and with the alignment."""
    model = fit(adata, seed)
    yield "R²MAE, not aligned", model.get_latent_representation(integrated=False)
    yield "R²MAE", model.get_latent_representation()


def mlp(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield R²MAE with ``encoder="mlp"``, aligned."""
    yield "R²MAE, mlp", fit(adata, seed, encoder="mlp").get_latent_representation()


METHODS = {
    "pca": pca,
    "harmony": harmony,
    "scvi": scvi_latent,
    "scanvi": scanvi,
    "sysvi": sysvi,
    "r2mae": r2mae,
    "mlp": mlp,
}


def fit(adata: ad.AnnData, seed: int, **settings: str) -> scr2mae.R2MAEModel:
    """Train R²MAE, with its defaults but for ``settings``."""
    scr2mae.R2MAEModel.setup_anndata(adata, batch_key="batch")
    model = scr2mae.R2MAEModel(adata, seed=seed, **settings)
    model.train(**QUIET)
    return model


FIGURES = {"kang": "integration_kang.png", "studies": "integration_studies.png"}  # as on the page


def draw_umaps(out: Path, name: str, obs: pd.DataFrame, embeddings: dict[str, np.ndarray]) -> None:
    """Draw embeddings side by side, by batch in the first row and by label in the second."""
    adata = ad.AnnData(obs=obs[["batch", "label"]].astype("category"))
    figure, axes = plt.subplots(2, len(embeddings), figsize=(6.5 * len(embeddings), 9), layout="constrained")
    for column, (method, Z) in enumerate(embeddings.items()):
        adata.obsm[method] = np.asarray(Z)
        for row, color in enumerate(("batch", "label")):
            scr2mae.pl.embedding(adata, method, color=color, ax=axes[row, column])
            axes[row, column].set_title(method)
    figure.savefig(out / FIGURES.get(name, f"umap_{name.replace(' ', '_')}.png"), dpi=80)
    plt.close(figure)


def draw_scores(out: Path, table: pd.DataFrame) -> None:
    """Draw the scIB table of each set."""
    for name, rows in table.groupby(level="set", sort=False):
        scores = rows.droplevel("set").reindex(columns=list(INTEGRATION_SCORES)).dropna()
        if len(scores):
            ax = scr2mae.pl.integration_scores(scores)
            ax.figure.savefig(out / f"scores_{str(name).replace(' ', '_')}.png", dpi=80, bbox_inches="tight")
            plt.close(ax.figure)


def score(Z: np.ndarray, obs: pd.DataFrame) -> dict[str, float]:
    """Return the scores of scib-metrics where batches share a label, and the recovery of labels by neighbors."""
    known = obs["label"].notna().to_numpy()
    scores = {"knn": scr2mae.metrics.knn_label_recovery(Z[known], obs["label"][known].astype(str))}
    if obs[known].groupby("label", observed=True)["batch"].nunique().max() > 1:
        scores |= scr2mae.metrics.integration_scores(Z, obs["batch"], obs["label"])
    return scores


def unseen(data: Path, seed: int) -> Iterator[dict[str, object]]:
    """Yield scores of each study as a new batch of a model of the other, before and after it is aligned."""
    both = studies(data)
    for query_name in ("zheng", "kang"):
        is_query = (both.obs["batch"] == query_name).to_numpy()
        reference, query = both[~is_query].copy(), both[is_query].copy()
        for part in (reference, query):
            part.obs["batch"] = part.obs["batch"].astype(str)
        model = fit(reference, seed)
        start = time.perf_counter()
        new = scr2mae.R2MAEModel.load_query_data(query, model, accelerator="cpu")
        new.train()
        seconds = time.perf_counter() - start
        embedded = {name: new.get_latent_representation(integrated=on) for name, on in (("R²MAE, not aligned", False), ("R²MAE", True))}  # fmt: skip
        start = time.perf_counter()
        new.integrate(reference)
        of_cells = time.perf_counter() - start
        embedded["R²MAE, with the reference's cells"] = new.get_latent_representation()
        host = model.get_latent_representation()
        for method, guest in embedded.items():
            scores = score_query(host, guest, reference.obs["label"], query.obs["label"])
            yield {
                "set": f"unseen {query_name}",
                "method": method,
                "seed": seed,
                "seconds": of_cells if "cells" in method else seconds,
                **scores,
            }


def score_query(host: np.ndarray, guest: np.ndarray, known: pd.Series, truth: pd.Series) -> dict[str, float]:
    """Return mixing among 15 neighbors (1 for one data set) and transfer for shared types, purity for new ones."""
    shared = truth.isin(known.dropna()).to_numpy()
    labeled = known.notna().to_numpy()
    guess = KNeighborsClassifier(15).fit(host[labeled], known[labeled]).predict(guest[shared])
    everyone = np.concatenate([host, guest])
    nearest = NearestNeighbors(n_neighbors=16).fit(everyone).kneighbors(guest, return_distance=False)[:, 1:]
    share = (nearest[shared] < len(host)).mean() / (len(host) / (len(everyone) - 1))
    scores = {"mixing": share, "transfer": float((guess == truth[shared].to_numpy()).mean())}
    if (new := ~shared & truth.notna().to_numpy()).any():
        names = np.concatenate([known.to_numpy(dtype=object), truth.to_numpy(dtype=object)])
        scores["purity of new types"] = float((names[nearest[new]] == truth[new].to_numpy()[:, None]).mean())
    return scores


def cost(n_obs: int) -> None:
    """Print processor seconds of fitting the alignment to cells of 20 batches, and of embedding them with and without it."""
    torch.set_num_threads(1)
    adata = scr2mae.datasets.simulate_donors(
        n_donors=40, n_cells_per_donor=n_obs // 40, n_genes=N_GENES, n_batches=20
    )
    scr2mae.R2MAEModel.setup_anndata(adata, batch_key="batch")
    model = scr2mae.R2MAEModel(adata, seed=0)
    model.train(max_epochs=1, integration=False, **QUIET)
    start = time.process_time()
    model.integrate()
    whole = time.process_time() - start
    sample, start = np.arange(min(20_000, n_obs)), time.process_time()
    model.get_latent_representation(indices=sample, integrated=False)
    fit_alone = whole - (time.process_time() - start)
    n_batches = adata.obs["batch"].nunique()
    print(
        f"{adata.n_obs} cells of {n_batches} batches: {whole:.1f} s, {fit_alone:.1f} s without the embedding of its sample"
    )
    few, seconds = np.arange(0, adata.n_obs, 10), {True: [], False: []}
    for _ in range(5):
        for integrated, values in seconds.items():
            start = time.process_time()
            model.get_latent_representation(indices=few, integrated=integrated)
            values.append(time.process_time() - start)
    aligned, plain = (min(values) for values in seconds.values())
    print(f"embedding {len(few)} cells: {aligned:.2f} s, without the alignment {plain:.2f} s")


def main() -> None:
    """Score all methods on all sets, and print the means."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=[*SETS, "unseen"], default=[*SETS, "unseen"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--cost", type=int, help="number of simulated cells to time the alignment on")
    arguments = parser.parse_args()
    silence()
    if arguments.cost:
        cost(arguments.cost)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for name in arguments.sets:
        for seed in range(arguments.seeds):
            if name == "unseen":
                rows += unseen(arguments.data, seed)
                continue
            adata = SETS[name](arguments.data)
            for method in arguments.methods:
                start = time.perf_counter()
                embedded = list(METHODS[method](adata.copy(), seed))
                seconds = time.perf_counter() - start
                if method == "r2mae" and seed == 0:
                    draw_umaps(arguments.out, name, adata.obs, dict(embedded))
                for label, Z in embedded:
                    rows.append({"set": name, "method": label, "seed": seed, "seconds": seconds})
                    rows[-1] |= score(np.asarray(Z), adata.obs)
            pd.DataFrame(rows).to_csv(arguments.out / "integration.csv", index=False)
        pd.DataFrame(rows).to_csv(arguments.out / "integration.csv", index=False)
    table = pd.DataFrame(rows).drop(columns="seed").groupby(["set", "method"], sort=False).mean()
    draw_scores(arguments.out, table)
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
