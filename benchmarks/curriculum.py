"""Compare curricula with plain schemes by reconstruction of masked genes, and measure the cost of a step.

    python benchmarks/curriculum.py --data DATA/kang_pbmc_ifnb_8donors.h5ad --donor-key donor -o OUT

Writes ``curriculum.csv`` (Pearson over masked genes of held-out cells by scheme, seed and ratio), ``curriculum.png`` and
``curriculum_cost.csv`` (time of a training step with a curriculum over one without, in one run).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import scr2mae
from common_setup import make_parser, select_genes, silence
from scr2mae.nn.curriculum import Curriculum
from scr2mae.nn.module import R2MAEModule

SCHEMES = ("mae", "r2mae", "cl", "cl_k0", "r2mae_cl", "r2mae_cl_k0")
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7)
COLORS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00")
DASHES = ("-", "-", "--", "-", "-.", ":")


def reconstruction(adata: ad.AnnData, options: argparse.Namespace) -> pd.DataFrame:
    """Return Pearson and NLL of masked genes on held-out cells for each scheme, seed and ratio."""
    rows = []
    for seed in range(options.seeds):
        for name in SCHEMES:
            scheme = scr2mae.schemes(seed=seed)[name]
            model = scr2mae.R2MAEModel(
                adata, mask_ratio=scheme.mask_ratio, curriculum=scheme.curriculum, seed=seed
            )
            start = time.perf_counter()
            model.train(options.max_epochs, enable_progress_bar=False, accelerator="cpu", seed=seed)
            frame = model.get_masked_reconstruction(indices=model.validation_indices, ratios=RATIOS)
            rows.append(frame.reset_index().assign(scheme=name, seed=seed))
            print(
                f"{name} seed {seed}: {time.perf_counter() - start:.0f} s, Pearson {frame['pearson'].round(3).tolist()}",
                flush=True,
            )
    return pd.concat(rows)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw one line per scheme: mean over seeds, with bars of one standard deviation."""
    fig, ax = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for name, color, dash in zip(SCHEMES, COLORS, DASHES, strict=True):
        by = frame[frame["scheme"] == name].groupby("ratio")["pearson"]
        ax.errorbar(
            100 * by.mean().index, by.mean(), by.std(), color=color, linestyle=dash, marker="o", ms=4, capsize=3, label=name
        )  # fmt: skip
    ax.set(xlabel="Masked genes (%)", ylabel="Pearson over masked genes\n(cells of held-out donors)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    fig.savefig(path, dpi=150)


def step_times(n_steps: int, *, n_vars: int = 5000, batch_size: int = 400) -> pd.DataFrame:
    """Return seconds of alternating training steps with and without a curriculum; width 1000 / 512, ten ratios."""
    rng = np.random.default_rng(0)
    counts = torch.tensor(rng.poisson(rng.gamma(0.3, 0.5, size=(batch_size, n_vars))), dtype=torch.float32)
    tensors = {"X": counts, "batch": torch.zeros(batch_size, 1, dtype=torch.long)}
    sides = {}
    for name, curriculum in (("plain", None), ("curriculum", Curriculum())):
        module = R2MAEModule(n_vars, n_hidden=1000, n_latent=512, curriculum=curriculum).train()
        sides[name] = (module, torch.optim.Adam(module.parameters(), fused=True), 0 if curriculum else None)
    rows = []
    for step in range(n_steps):
        for name, (module, optimizer, column) in sides.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            module.training_loss(tensors, ratio=0.3, seed=0, step=step, ratio_index=column).loss.backward()
            optimizer.step()
            rows.append({"side": name, "step": step, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows)


def main() -> None:
    """Run both parts."""
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--donor-key")
    parser.add_argument("--n-top-genes", type=int, default=2000)
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--steps", type=int, default=20, help="steps timed on each side")
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    times = step_times(options.steps)
    times.to_csv(options.out / "curriculum_cost.csv", index=False)
    wide = times[times["step"] >= 3].pivot_table(index="step", columns="side", values="seconds")
    print(
        f"step with curriculum / plain step: median of pairs {(wide['curriculum'] / wide['plain']).median():.2f}",
        flush=True,
    )
    adata = ad.read_h5ad(options.data)
    adata = select_genes(adata, options.n_top_genes)
    scr2mae.R2MAEModel.setup_anndata(adata, donor_key=options.donor_key)
    frame = reconstruction(adata, options)
    frame.to_csv(options.out / "curriculum.csv", index=False)
    draw(frame, options.out / "curriculum.png")
    print(frame.pivot_table(index="scheme", columns="ratio", values="pearson").round(3).to_markdown())


if __name__ == "__main__":
    main()
