"""Train on numerically difficult counts at ten times the learning rate and check for non-finite values.

    python benchmarks/numerics.py --steps 10000

prints, for each kind of counts, the number of steps made and skipped, and of losses, weights, embeddings and decoded
expression values that are not finite; it exits with 1 if there is any, or if a step was skipped.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from common_setup import make_parser, silence
from scr2mae import R2MAEModel

BATCH_SIZE = 64
N_OBS = 640


def plain(rng: np.random.Generator, n_vars: int = 60) -> np.ndarray:
    return rng.poisson(rng.gamma(0.5, 1.0, (N_OBS, n_vars)))


def one_gene(rng: np.random.Generator) -> np.ndarray:
    counts = np.zeros((N_OBS, 60))
    counts[:, 7] = rng.poisson(3.0, N_OBS) + 1
    return counts


def a_million(rng: np.random.Generator) -> np.ndarray:
    return plain(rng) * 1e6


def mostly_empty_cells(rng: np.random.Generator) -> np.ndarray:
    counts = plain(rng)
    counts[rng.permutation(N_OBS)[: int(0.9 * N_OBS)]] = 0
    return counts


def one_and_a_million(rng: np.random.Generator) -> np.ndarray:
    """Return cells with one count and cells with 60 million."""
    counts = np.zeros((N_OBS, 60))
    counts[np.arange(N_OBS), rng.integers(60, size=N_OBS)] = 1
    counts[::2] = 1e6
    return counts


def two_genes(rng: np.random.Generator) -> np.ndarray:
    return plain(rng, 2)


def thirty_thousand_genes(rng: np.random.Generator) -> sp.csr_matrix:
    draw = lambda n: rng.integers(1, 1_000_000, n)  # noqa: E731
    return sp.random(N_OBS, 30_000, 0.02, "csr", np.float32, rng, draw)


KINDS = {
    "plain counts": plain,
    "all zeros but one gene": one_gene,
    "counts of a million": a_million,
    "90 % empty cells": mostly_empty_cells,
    "one count beside sixty million": one_and_a_million,
    "two genes": two_genes,
    "30,000 genes up to a million": thirty_thousand_genes,
}


@dataclass
class Found:
    """Steps made and skipped, values that are not finite, and seconds."""

    steps: int
    skipped: int
    bad: int
    seconds: float


def not_finite(*arrays: np.ndarray) -> int:
    """Count the values that are not finite."""
    return int(sum((~np.isfinite(array)).sum() for array in arrays))


def try_out(kind: str, steps: int, lr: float, precision: str) -> Found:
    """Train on one kind of counts."""
    counts = sp.csr_matrix(KINDS[kind](np.random.default_rng(0)), dtype=np.float32)
    model = R2MAEModel(AnnData(counts), n_hidden=16, n_latent=4)
    start = time.perf_counter()
    epochs = -(-steps // (N_OBS // BATCH_SIZE))
    model.train(
        epochs,
        batch_size=BATCH_SIZE,
        train_size=1.0,
        accelerator="cpu",
        precision=precision,
        enable_progress_bar=False,
        plan_kwargs={"lr": lr},
    )
    curves = model.history
    values = [curve.to_numpy() for curve in curves.values()]
    values += [value.numpy() for value in model.module.state_dict().values()]
    values += [
        model.get_latent_representation(),
        model.get_normalized_expression(indices=np.arange(64), return_numpy=True),
    ]
    return Found(
        steps=len(curves["train_loss_step"]),
        skipped=model.runs_[-1]["skipped_steps"],
        bad=not_finite(*values),
        seconds=time.perf_counter() - start,
    )


if __name__ == "__main__":
    parser = make_parser(__doc__, data=False, out=False)
    parser.add_argument("--steps", type=int, default=10_000, help="steps per kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate (default: %(default)s)")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    silence()
    print(f"{'counts':34}{'steps':>8}{'skipped':>9}{'not finite':>12}{'seconds':>9}", flush=True)
    total = 0
    for kind in given.kinds:
        found = try_out(kind, given.steps, given.lr, given.precision)
        total += found.bad + found.skipped
        print(f"{kind:34}{found.steps:>8}{found.skipped:>9}{found.bad:>12}{found.seconds:>9.0f}", flush=True)
    sys.exit(total > 0)
