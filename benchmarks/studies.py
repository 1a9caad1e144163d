"""Cells of other studies in pretraining: scores on donors that took no part, with unequal gene panels joined.

    python benchmarks/studies.py --data DATA -o OUT [--sets csle ifnb control] [--sizes 0 3000 30000]
    python benchmarks/studies.py --data DATA -o OUT --step-time 1500 5000

For each set and draw of donors, every method is fitted to the training donors and to N cells of other blood studies, drawn
with equal numbers of each study where it has them; copies of the set's own cells are dropped (``scr2mae.data.find_copies``).
Genes: those of the set (``union``: what another study lacks is masked), those that all studies have (``shared``), or
those of the set with zeros for what was not measured (``zeros``). ``own start`` fits components, frequencies and dispersions
to the set's own cells, and ``batch`` names the study as batch. ``start`` is ``from_pretrained`` with a model of the other
studies alone, ``warm`` the same after its ``train``, and ``frozen`` that with the hidden layers as they were. ``scvi`` is scVI on the shared genes, with the study as batch. Linear
probes and the masked likelihood are of the donors that took no part. The set ``simulated`` (``--sets simulated``) has 60 cell
types on 1,000 own cells, and up to as many other cells as asked for, of three studies that capture each gene differently and
lack a quarter of them. Writes a table per set, ``summary.csv`` and ``studies.png``. ``--step-time`` instead prints what a
training step costs with six panels of four fifths of the genes each, against the same counts without panels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scvi
import torch
from scipy import sparse
from sklearn.decomposition import PCA

import scr2mae
from common_setup import make_parser, select_genes, silence
from scale import simulate as simulate_donors
from scr2mae.data import find_copies, join_studies
from scr2mae.probe import donor_splits, linear_probe

FILES = {
    "covid": "covid_combat_6donors.h5ad",
    "zheng": "pbmc_facs_zheng.h5ad",
    "control": "kang_pbmc_ctrl_12k.h5ad",
    "onek1k": "onek1k_40donors_age.h5ad",
}


class Target(NamedTuple):
    """A set to score: its file, the probes' targets, training donors, most cells, and other studies."""

    file: str
    targets: dict[str, str]
    n_train_donors: int
    n_obs: int | None
    others: tuple[str, ...]


CELLS, NUMBER = "classification", "regression"
TARGETS = {
    "csle": Target("csle_pbmc_44donors.h5ad", {"cell_type": CELLS, "condition": CELLS, "age": NUMBER}, 22, None, ("covid", "zheng", "control", "onek1k")),
    "ifnb": Target("kang_pbmc_ifnb_8donors.h5ad", {"cell_type": CELLS}, 2, None, ("covid", "zheng", "onek1k")),
    "control": Target("kang_pbmc_ctrl_12k.h5ad", {"cell_type": CELLS}, 2, 3000, ("covid", "zheng", "onek1k")),
    "onek1k": Target("onek1k_40donors_age.h5ad", {"cell_type": CELLS, "age": NUMBER}, 20, 3000, ("covid", "zheng", "control")),
    "covid": Target("covid_combat_6donors.h5ad", {"condition": CELLS}, 3, 3000, ("zheng", "control", "onek1k")),
    "simulated": Target("", {"cell_type": CELLS}, 5, None, ("a", "b", "c")),
}  # fmt: skip
LABELS = {
    "own": "R²MAE, own cells",
    "union": "R²MAE, missing genes masked",
    "own start": "R²MAE, missing genes masked, components of the own cells",
    "batch": "R²MAE, missing genes masked, study as batch",
    "shared": "R²MAE, shared genes",
    "zeros": "R²MAE, missing genes zero",
    "start": "R²MAE of the other studies, before training on the own cells",
    "warm": "R²MAE of the other studies, trained further on the own cells",
    "frozen": "R²MAE of the other studies, trained further on the own cells but for the hidden layers",
    "pca": "PCA, own cells",
    "pca union": "PCA, all cells",
    "scvi": "scVI, shared genes, study as batch",
}
METHODS = tuple(LABELS)
METRICS = ("balanced_accuracy", "macro_auroc", "spearman")


def read(path: Path) -> ad.AnnData:
    """Read counts with unique names."""
    adata = ad.read_h5ad(path)
    adata.var_names_make_unique()
    adata.obs_names_make_unique()
    return adata


def read_target(name: str, folder: Path, seed: int) -> ad.AnnData:
    """Return the labeled cells of a set, at most 2,000 variable genes."""
    target = TARGETS[name]
    adata = read(folder / target.file)
    if name == "ifnb":
        adata = adata[adata.obs["condition"] == "ctrl"]
    adata = adata[adata.obs[next(iter(target.targets))].notna()].copy()
    if target.n_obs is not None and adata.n_obs > target.n_obs:
        rng = np.random.default_rng(seed)
        adata = adata[np.sort(rng.choice(adata.n_obs, target.n_obs, replace=False))].copy()
    for key in [key for key, kind in target.targets.items() if kind == CELLS]:
        adata.obs[key] = adata.obs[key].astype(str).astype("category")
    return select_genes(adata, 2000)


def read_others(own: ad.AnnData, names: tuple[str, ...], folder: Path) -> tuple[ad.AnnData, int]:
    """Return other studies on the genes of a set, with the table of what they measured, and the number of copies dropped."""
    studies = {"own": own}
    for name in names:
        other = read(folder / FILES[name])
        other = other[:, other.var_names.isin(own.var_names)].copy()
        studies[name] = other[np.asarray(other.X.sum(axis=1)).ravel() > 20].copy()
    slim = {name: ad.AnnData(a.X, obs=a.obs[[]], var=a.var[[]]) for name, a in studies.items()}
    joined = join_studies(slim)
    is_copy = find_copies(joined)
    return joined[~is_copy & (joined.obs["study"] != "own").to_numpy()].copy(), int(is_copy.sum())


def simulate(n_obs: int, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return 1,000 cells of ten donors, and n cells of three studies that capture each gene differently and lack a quarter."""
    others, own = simulate_donors(n_obs, 500, seed=seed)
    own = own[:1000].copy()
    rng = np.random.default_rng(seed)
    of_cell = others.obs["donor"].astype(int).to_numpy() % len(TARGETS["simulated"].others)
    studies = {"own": ad.AnnData(own.X, obs=own.obs[[]], var=own.var[[]])}
    for i, name in enumerate(TARGETS["simulated"].others):
        study = others[of_cell == i]
        captured = sparse.csr_matrix(study.X)
        share = np.exp(-np.abs(rng.normal(0.0, 0.7, own.n_vars)))
        captured.data = rng.binomial(captured.data.astype(int), share[captured.indices]).astype(np.float32)
        captured.eliminate_zeros()
        panel = np.sort(rng.permutation(own.n_vars)[: 3 * own.n_vars // 4])
        studies[name] = ad.AnnData(captured, obs=study.obs[[]], var=own.var[[]])[:, panel].copy()
    joined = join_studies(studies)[:, own.var_names]
    return own, joined[joined.obs["study"] != "own"].copy()


def draw(studies: np.ndarray, n_obs: int, rng: np.random.Generator, how: str) -> np.ndarray:
    """Return positions of n cells: of each study equally many, by the root of its size, or by its size."""
    names, sizes = np.unique(studies, return_counts=True)
    weights = sizes ** {"equal": 0.0, "root": 0.5, "cells": 1.0}[how]
    wanted = np.zeros(len(names), dtype=int)
    while wanted.sum() < min(n_obs, len(studies)):  # what a small study lacks goes to the others
        left = min(n_obs, len(studies)) - wanted.sum()
        is_open = wanted < sizes
        share = np.maximum(1, np.floor(left * weights * is_open / (weights * is_open).sum())).astype(int)
        for i in np.flatnonzero(is_open):
            wanted[i] += min(share[i], sizes[i] - wanted[i], min(n_obs, len(studies)) - wanted.sum())
    chosen = [
        rng.choice(np.flatnonzero(studies == name), n, replace=False)
        for name, n in zip(names, wanted, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def pca_of(train: ad.AnnData, adata: ad.AnnData, seed: int) -> np.ndarray:
    """Return fifty components of expression at the median library of the training cells."""
    median = np.median(np.asarray(train.X.sum(axis=1)))

    def logged(cells: ad.AnnData) -> np.ndarray:
        X = cells.X.toarray()
        return np.log1p(median * X / np.maximum(X.sum(axis=1, keepdims=True), 1))

    return PCA(50, random_state=seed).fit(logged(train)).transform(logged(adata))


def scvi_of(train: ad.AnnData, adata: ad.AnnData, seed: int) -> np.ndarray:
    """Return the embedding of scVI, trained with its defaults and the study as batch."""
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(train, batch_key="study")
    model = scvi.model.SCVI(train)
    model.train(enable_progress_bar=False, accelerator="cpu")
    return model.get_latent_representation(adata)


def fit(method: str, train: ad.AnnData, seed: int) -> scr2mae.R2MAEModel:
    """Train on cells of several studies with the defaults."""
    train = train.copy()
    if method == "zeros":
        train.varm.clear()
    scr2mae.R2MAEModel.setup_anndata(train, batch_key="study" if method == "batch" else None)
    model = scr2mae.R2MAEModel(train, seed=seed)
    if method == "own start":
        own = train[train.obs["study"] == "own"]
        counts = torch.from_numpy(own.X.toarray())
        log_library = counts.sum(dim=1, keepdim=True).clamp(min=1).log()
        model.module.start_from(counts, log_library, seed=seed)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    model.train(split_key=False, train_size=1.0, integration=False, **quiet)
    return model


def embed(
    method: str, own: ad.AnnData, on_train: np.ndarray, others: ad.AnnData, seed: int
) -> tuple[np.ndarray, float]:
    """Return features of the set's cells, and the masked likelihood of the donors that took no part."""
    donors = own.obs["donor"].astype(str).to_numpy()[on_train]
    own = ad.AnnData(own.X, obs=own.obs[[]].assign(study="own"), var=own.var[[]])
    train = own[on_train].copy()
    parts = {
        name: ad.AnnData(part.X, obs=part.obs[[]], var=part.var)[:, part.varm["scr2mae_measured"][name].to_numpy()].copy()
        for name, part in ((name, others[others.obs["study"] == name]) for name in others.obs["study"].unique())
    }  # fmt: skip
    if method in ("start", "warm", "frozen"):
        pretrained = fit(method, join_studies(parts), seed)
        mine = ad.AnnData(train.X, obs=train.obs[[]].assign(donor=donors), var=train.var)
        scr2mae.R2MAEModel.setup_anndata(mine, donor_key="donor")
        model = scr2mae.R2MAEModel.from_pretrained(pretrained, mine, accelerator="cpu")
        if method == "frozen":
            for name, parameter in model.module.named_parameters():
                parameter.requires_grad_(not name.startswith(("encoder.", "to_latent.")))
        if method != "start":
            model.train(integration=False, enable_progress_bar=False, accelerator="cpu")
        return features(model, own, on_train)
    mine = ad.AnnData(train.X, obs=train.obs[[]], var=train.var)
    both = join_studies({"own": mine} | parts)[:, own.var_names].copy()
    if method.startswith("pca"):
        return pca_of(train if method == "pca" else both, own, seed), np.nan
    if method in ("shared", "scvi"):
        genes = both.varm["scr2mae_measured"].all(axis=1).to_numpy()
        both, own = both[:, genes].copy(), own[:, genes].copy()
    if method == "scvi":
        return scvi_of(both, own, seed), np.nan
    return features(fit(method, train if method == "own" else both, seed), own, on_train)


def features(model: scr2mae.R2MAEModel, own: ad.AnnData, on_train: np.ndarray) -> tuple[np.ndarray, float]:
    """Return features of the set's cells, and the masked likelihood of the donors that took no part."""
    masked = model.get_masked_reconstruction(own, np.flatnonzero(~on_train), ratios=(0.3,))
    return model.get_latent_representation(own), float(masked["nll"].iloc[0])


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all methods, sizes and draws of donors on one set."""
    target, rows = TARGETS[name], []
    for seed in range(options.seeds):
        if name == "simulated":
            (own, pool), n_copies = simulate(max(options.sizes), seed), 0
        else:
            own = read_target(name, options.data, seed)
            names = tuple(other for other in target.others if other in options.others)
            pool, n_copies = read_others(own, names, options.data)
        print(f"{name} {own.shape}, others {pool.n_obs}, {n_copies} copies dropped", flush=True)
        first = next(iter(target.targets))
        splits = donor_splits(own, targets={first: target.targets[first]}, donor_key="donor", n_train_donors=target.n_train_donors, n_splits=1, seeds=(seed,))[first]  # fmt: skip
        on_train = own.obs["donor"].astype(str).isin(splits[0].train_donors).to_numpy()
        for size in options.sizes:
            rng = np.random.default_rng([seed, size])
            others = pool[draw(pool.obs["study"].astype(str).to_numpy(), size, rng, options.sampling)].copy()
            for method in options.methods:
                if (size == 0) != (method in ("own", "pca")):
                    continue
                start = time.perf_counter()
                z, nll = embed(method, own, on_train, others, seed)
                seconds = time.perf_counter() - start
                about = {
                    "set": name,
                    "method": method,
                    "n_others": others.n_obs,
                    "seed": seed,
                    "nll": nll,
                    "seconds": seconds,
                }
                scored = probe(own, z, target.targets, splits[0])
                rows += [{**about, **each} for each in scored]
                shown = {f"{each['target']} {each['metric']}": round(each["score"], 3) for each in scored}
                print(
                    f"{name} {method} {size} seed {seed}: {shown} nll {nll:.4f} {seconds:.0f} s", flush=True
                )
                pd.DataFrame(rows).to_csv(options.out / f"studies-{name}.csv", index=False)
    return rows


def probe(own: ad.AnnData, z: np.ndarray, targets: dict[str, str], split: Any) -> list[dict[str, Any]]:
    """Return balanced accuracy and AUROC, or Spearman correlation, per target on the donors that took no part."""
    probed = ad.AnnData(obs=own.obs, obsm={"z": z.astype(np.float64)})
    splits = {target: [split] for target in targets}
    frame = linear_probe(
        probed, use_rep="z", targets=targets, donor_key="donor", splits=splits, n_bootstrap=0
    )
    frame = frame[(frame["level"] == "cell") & frame["metric"].isin(METRICS)]
    return frame[["target", "metric", "value"]].rename(columns={"value": "score"}).to_dict("records")


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard error over draws of the score, and of its gain over the own cells, in points."""
    own = frame[frame["method"] == "own"].set_index(["set", "seed", "target", "metric"])["score"]
    key = pd.MultiIndex.from_frame(frame[["set", "seed", "target", "metric"]])
    frame = frame.assign(
        points=100 * frame["score"], gain=100 * (frame["score"].to_numpy() - own.reindex(key).to_numpy())
    )
    by = frame.groupby(["set", "target", "metric", "method", "n_others"])
    return by[["points", "gain", "nll"]].agg(["mean", "sem"])


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Draw the balanced accuracy of cell types against the number of cells of other studies, one panel per set."""
    frame = frame[(frame["target"] == "cell_type") & (frame["metric"] == "balanced_accuracy")]
    frame = frame.assign(
        n_others=frame["n_others"].round(-2), score=100 * frame["score"]
    )  # draws differ by a few
    names = list(dict.fromkeys(frame["set"]))
    if not names:
        return
    fig, axes = plt.subplots(
        1, len(names), figsize=(3.0 * len(names) + 2.2, 3.2), layout="constrained", squeeze=False
    )
    methods = [m for m in METHODS if m in set(frame["method"]) and m not in ("own", "pca")]
    for ax, name in zip(axes.flat, names, strict=True):
        of_set = frame[frame["set"] == name]
        for i, method in enumerate(methods):
            alone = "pca" if method.startswith("pca") else "own"  # of which every line starts
            chosen = of_set[of_set["method"].isin([method, alone])]
            by = chosen.groupby("n_others")["score"].agg(["mean", "sem"])
            color = scr2mae.pl.OKABE_ITO[i % len(scr2mae.pl.OKABE_ITO)]
            style = {"marker": "o", "markersize": 5, "capsize": 2, "color": color, "label": LABELS[method]}
            ax.errorbar(by.index, by["mean"], by["sem"], **style)
        ax.set_xscale("symlog", linthresh=1000, linscale=0.5)
        ax.set_xticks([0, 1000, 10_000], ["0", "1,000", "10,000"])
        ax.minorticks_off()
        ax.set(title=name, xlabel="cells of other studies")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("balanced accuracy, cell types (%)")
    axes[0, -1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.savefig(path, dpi=150)


def step_time(n_genes: int, n_steps: int = 200, batch_size: int = 128) -> None:
    """Print the least and the median processor time of a step, with six panels and without, in turn."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    adata = scr2mae.datasets.simulate_donors(n_donors=12, n_cells_per_donor=100, n_genes=n_genes)
    studies = [f"study {i}" for i in range(6)]
    table = rng.random((n_genes, 6)) < 0.8
    of_cell = np.arange(adata.n_obs) % 6
    plain = ad.AnnData(sparse.csr_matrix(adata.X.toarray() * table[:, of_cell].T), var=adata.var)
    panels = plain.copy()
    panels.obs["study"] = np.array(studies)[of_cell]
    panels.varm["scr2mae_measured"] = pd.DataFrame(table, index=panels.var_names, columns=studies)
    sides = {}
    for name, cells in (("plain", plain), ("panels", panels)):
        scr2mae.R2MAEModel.setup_anndata(cells)
        model = scr2mae.R2MAEModel(cells, seed=0)
        model.train(
            max_epochs=1, split_key=False, train_size=1.0, accelerator="cpu", enable_progress_bar=False
        )
        loader = scr2mae.data.CellLoader(model._cells(None), batch_size=batch_size, shuffle=True, seed=0)
        optimizer = torch.optim.Adam(model.module.train().parameters(), fused=True)
        sides[name] = model.module, list(loader)[:9], optimizer
    times = np.empty((n_steps, 2))
    for step in range(n_steps):
        for side, (module, batches, optimizer) in enumerate(sides.values()):
            optimizer.zero_grad(set_to_none=True)
            start = time.process_time()
            module.training_loss(
                batches[step % 9], ratio=0.1 + 0.1 * (step % 5), seed=0, step=step
            ).loss.backward()
            optimizer.step()
            times[step, side] = time.process_time() - start
    times = 1e3 * times[n_steps // 10 :]
    least, median = times.min(axis=0), np.median(times, axis=0)
    ratios = f"{least[1] / least[0] - 1:+.0%}, {median[1] / median[0] - 1:+.0%}"
    pairs = np.median(times[:, 1] / times[:, 0]) - 1
    print(
        f"{n_genes} genes: least {least.round(2)} ms, median {median.round(2)} ms: {ratios}, of pairs {pairs:+.0%}"
    )


def main() -> None:
    """Run the sets, and write tables and the figure."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--sets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[0, 1000, 3000, 10_000, 30_000])
    parser.add_argument(
        "--others", nargs="+", choices=FILES, default=list(FILES), help="studies to draw from"
    )
    parser.add_argument("--sampling", choices=("equal", "root", "cells"), default="equal")
    parser.add_argument("--step-time", nargs="+", type=int, default=[], help="numbers of genes")
    parser.add_argument("--tables-only", action="store_true", help="tables and figure of an earlier run")
    options = parser.parse_args()
    silence()
    for n_genes in options.step_time:
        step_time(n_genes)
    if options.step_time:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.tables_only:
        for name in options.sets:
            run(name, options)
    frame = pd.concat([pd.read_csv(path) for path in sorted(options.out.glob("studies-*.csv"))])
    summary = summarize(frame)
    summary.to_csv(options.out / "summary.csv")
    print(summary.round(2).to_string())
    plot(frame, options.out / "studies.png")


if __name__ == "__main__":
    main()
