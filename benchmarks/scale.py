"""Masked likelihood on unseen donors against the number of training cells, for the default network and changes of it.

    python benchmarks/scale.py -o OUT [--data DATA] [--sizes 1000 10000 100000] [--networks ...] [--seeds 2]

Simulated counts: 40 donors, 60 cell types, and a random network of two layers from 30 latent dimensions to log rates, so
that there is something to learn that no linear map knows. ``--data`` adds real cells (Kang, six of eight donors, and OneK1K,
thirty of forty), down-sampled. The likelihood is that of masked genes (30 %) of 4,000 cells of donors that took no part.
Writes ``scale.csv``, ``scale.md`` (nats per gene above the default of the same data, in thousandths) and ``scale.png``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scr2mae
from common_setup import make_parser, silence
from embeddings import RATIO, LinearModule
from schemes import SET_LABELS, SETS, read
from scr2mae.model.training import default_max_epochs
from scr2mae.pl import OKABE_ITO

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear encoder": {},
    "mlp": {"encoder": "mlp"},
    "hidden 512": {"n_hidden": 512},
    "hidden 1024, two layers": {"n_hidden": 1024, "n_layers": 2},
    "latent 320": {"n_latent": 320},
    "hidden layer in the decoder": {"n_layers_decoder": 1},
    "half the epochs": {},
    "twice the epochs": {},
}
EPOCHS = {"half the epochs": 0.5, "twice the epochs": 2.0}
N_UNSEEN = 4000


def simulate(n_obs: int, n_vars: int, *, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return training cells of 40 donors and cells of ten others, with their types, from the same random network."""
    truth = np.random.default_rng(0)
    n_latent, n_hidden = 30, 200
    types = truth.standard_normal((60, n_latent))
    donors = 0.3 * truth.standard_normal((50, n_latent))
    first = truth.standard_normal((n_latent, n_hidden)) / n_latent**0.5
    second = truth.standard_normal((n_hidden, n_vars)) * (truth.random((n_hidden, n_vars)) < 0.05)
    baseline = truth.normal(0.0, 1.5, n_vars)
    shares = truth.dirichlet(np.full(60, 0.5), size=50)
    rng = np.random.default_rng([seed, n_obs])

    def draw(of: np.ndarray, n: int) -> ad.AnnData:
        donor = rng.choice(of, n)
        blocks, labels = [], []
        for start in range(0, n, 5000):
            of_cells = donor[start : start + 5000]
            kinds = (
                (rng.random((len(of_cells), 1)) > shares[of_cells].cumsum(axis=1)).sum(axis=1).clip(max=59)
            )
            labels.append(kinds)
            u = types[kinds] + donors[of_cells] + 0.5 * rng.standard_normal((len(of_cells), n_latent))
            log_rate = baseline + np.maximum(u @ first, 0.0) @ second * 0.5
            rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))
            library = rng.lognormal(7.0, 0.5, (len(of_cells), 1))
            mean = library * rate / rate.sum(axis=1, keepdims=True)
            blocks.append(sp.csr_matrix(rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(np.float32)))
        columns = {"donor": donor.astype(str), "cell_type": np.concatenate(labels).astype(str)}
        obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)])
        var = pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
        return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var)

    return draw(np.arange(40), n_obs), draw(np.arange(40, 50), N_UNSEEN)


def real(name: str, n_donors: int, folder: Path, *, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the cells of some donors and of the others, at most 4,000."""
    adata = read(replace(SETS[name]), folder)
    names = adata.obs["donor"].astype(str)
    chosen = np.random.default_rng(seed).permutation(names.unique())[:n_donors]
    seen = names.isin(chosen).to_numpy()
    return adata[seen].copy(), adata[~seen][:N_UNSEEN].copy()


def cases(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, ad.AnnData, ad.AnnData]]:
    """Yield name, training cells and unseen cells."""
    if options.data is not None:
        for name, (n_donors, most) in {"kang": (6, 9000), "onek1k": (30, 5500)}.items():
            train, unseen = real(name, n_donors, options.data, seed=seed)
            order = np.random.default_rng(seed).permutation(train.n_obs)
            for n_obs in (*(n for n in options.sizes if n < 0.5 * most), most):
                yield SET_LABELS[name], train[np.sort(order[:n_obs])].copy(), unseen
    for n_obs in options.sizes:
        yield "simulated", *simulate(n_obs, options.genes, seed=seed)


def fit(name: str, train: ad.AnnData, unseen: ad.AnnData, *, seed: int) -> dict[str, float]:
    """Train a network; return the likelihood on unseen donors, and the time."""
    model = scr2mae.R2MAEModel(train.copy(), seed=seed, **NETWORKS[name])
    if name == "linear encoder":
        model.module.__class__ = LinearModule
    start = time.perf_counter()
    n_seen = {"mlp": 480_000}.get(name, 160_000)
    max_epochs = max(1, round(default_max_epochs(train.n_obs, n_seen) * EPOCHS.get(name, 1.0)))
    model.train(max_epochs, accelerator="cpu", enable_progress_bar=False)
    seconds = time.perf_counter() - start
    scored = model.get_masked_reconstruction(unseen, ratios=(RATIO,))
    return {"nll": float(scored["nll"].iloc[0]), "epochs": max_epochs, "seconds": round(seconds, 1)}


def draw(gaps: pd.DataFrame, path: Path) -> None:
    """Draw the likelihood above the default's against the number of cells, a panel per data set."""
    names = list(dict.fromkeys(gaps["data"]))
    fig, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names) + 2.0, 3.8), squeeze=False, layout="constrained"
    )
    for ax, data in zip(axes.flat, names, strict=True):
        rows = gaps[gaps["data"] == data].groupby(["network", "cells"])["gap"].mean()
        for i, name in enumerate(
            n for n in NETWORKS if n in rows.index.get_level_values(0) and n != "default"
        ):
            ax.plot(
                rows[name].index,
                rows[name],
                marker="o",
                color=OKABE_ITO[i % len(OKABE_ITO)],
                label=name,
                clip_on=False,
            )
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set(xscale="log", xlabel="training cells", title=data)
        ax.set_xticks(sizes := sorted(set(gaps[gaps["data"] == data]["cells"])), [f"{n:,}" for n in sizes])
        ax.set_yscale("symlog", linthresh=2.0)
        ax.set_yticks(ticks := [-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20], [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("above the default (nats / 1,000)")
    axes[0, -1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.savefig(path, dpi=150)


def main() -> None:
    """Measure, write the table and the figure."""
    parser = make_parser(__doc__, data=False, seeds=2)
    parser.add_argument("--data", type=Path, default=None, help="folder of real sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scale.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    for seed in range(options.seeds):
        for data, train, unseen in cases(options, seed):
            for name in options.networks:
                key = {"data": data, "cells": train.n_obs, "network": name, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append({**key, **fit(name, train, unseen, seed=seed)})
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(path, index=False)
    frame = pd.DataFrame(rows)
    reference = frame[frame["network"] == "default"].set_index(["data", "cells", "seed"])["nll"]
    matched = reference.reindex(pd.MultiIndex.from_frame(frame[["data", "cells", "seed"]])).to_numpy()
    gaps = frame.assign(gap=1000.0 * (frame["nll"] - matched))
    table = gaps.pivot_table("gap", "network", ["data", "cells"], sort=False).round(1)
    table.columns = [f"{data}, {cells:,}" for data, cells in table.columns]
    (options.out / "scale.md").write_text(table.to_markdown())
    draw(gaps, options.out / "scale.png")
    print(table.to_markdown())


if __name__ == "__main__":
    main()
