"""Time of whole calls of ``train()`` at the defaults, ten epochs, compared with scVI.

    python benchmarks/whole_run.py -o OUT [--rounds 3] [--paper-widths]

Both packages run in one process on the same simulated counts, by turns: this package at its defaults (mini-batches of 128),
scVI at its own (128 hidden units, 10 latent dimensions, mini-batches of 128). The ratio of each round is taken and the
median reported, for 5,000 and 2,000 genes. ``--paper-widths`` gives both the paper's network (1000 hidden units, 512 latent
dimensions, mini-batches of 400) and this package bfloat16 where the processor has it. ``jobs.py`` measures whole processes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import anndata as ad
import pandas as pd

from common_setup import make_parser, silence

SIDES = ("scr2mae", "scvi")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
PAPER_WIDTHS = {"n_hidden": 1000, "n_latent": 512, "n_layers": 2}


def run(side: str, adata: ad.AnnData, max_epochs: int, *, paper_widths: bool) -> None:
    """Build and train."""
    widths: dict[str, Any] = PAPER_WIDTHS if paper_widths else {}
    train: dict[str, Any] = {"batch_size": 400} if paper_widths else {}
    if side == "scr2mae":
        import scr2mae

        model = scr2mae.R2MAEModel(adata, **widths, **({"encoder": "mlp"} if paper_widths else {}))
        train |= {"precision": "auto"} if paper_widths else {}
    else:
        import scvi

        scvi.model.SCVI.setup_anndata(adata)
        model = scvi.model.SCVI(adata, **widths)
    model.train(max_epochs, **QUIET, **train)


def train_rates(options: argparse.Namespace) -> pd.DataFrame:
    """Return cells per second of training by side, genes and round."""
    from speed import Size, draw_counts

    rows = []
    for n_vars in options.genes:
        adata = draw_counts(Size(0, 0, 0, n_obs=options.cells, n_vars=n_vars))
        for side in SIDES:
            run(side, adata[:1000].copy(), 1, paper_widths=options.paper_widths)
        for number in range(options.rounds):
            for side in SIDES:
                copy = adata.copy()
                start = time.perf_counter()
                run(side, copy, options.epochs, paper_widths=options.paper_widths)
                rate = options.epochs * 0.9 * options.cells / (time.perf_counter() - start)
                rows.append({"genes": n_vars, "round": number, "side": side, "cells per second": rate})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure and print the ratios."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--genes", type=int, nargs="+", default=[5000, 2000])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--paper-widths", action="store_true")
    options = parser.parse_args()
    silence()
    options.out.mkdir(parents=True, exist_ok=True)
    frame = train_rates(options)
    frame.to_csv(options.out / "whole_run.csv", index=False)
    table = frame.pivot_table("cells per second", ["genes", "round"], "side")
    table["ratio"] = table["scr2mae"] / table["scvi"]
    print(table.round(2).to_markdown())
    print(table.groupby("genes").median().round(2).to_markdown())


if __name__ == "__main__":
    main()
