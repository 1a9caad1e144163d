"""Whole jobs in processes from cold: from counts on disk to a trained model and an embedding on disk.

    python benchmarks/jobs.py -o OUT [--sizes 1000 10000 100000 1000000] [--sides scr2mae scvi pca] [--most-hours 1]

Each side runs with its own defaults in a process of its own, by turns: this package, scVI, and 50 principal components as
scanpy computes them. Counts are simulated with the sparsity of real ones (``--genes``, 2,000 by default), and repeat after
20,000 cells. A side whose time would exceed ``--most-hours``, by its growth so far, is not run; its training is then
extrapolated from the cells per second of its largest run, and marked. ``OUT/jobs.csv`` has seconds per part and peak memory,
``OUT/jobs.md`` the tables, with the exponent of growth of each part between the two largest runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_setup import make_parser

SIDES = ("scr2mae", "scvi", "pca")
PARTS = ("import", "read", "set up", "train", "embed", "write")


class Parts:
    """Seconds of each part of a job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """Give the time since the last part to this one."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def work(side: str, cells: Path, out: Path) -> dict[str, Any]:
    """Do a whole job in this process; return seconds by part and epochs."""
    parts, epochs = Parts(), 0
    import anndata as ad

    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    if side == "scr2mae":
        import scr2mae

        model_class: Any = scr2mae.R2MAEModel
    elif side == "scvi":
        import scvi

        model_class = scvi.model.SCVI
    else:
        import scanpy as sc
    parts.end("import")
    adata = ad.read_h5ad(cells)
    parts.end("read")
    if side == "pca":
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        parts.end("set up")
        sc.pp.pca(adata, n_comps=50)
        parts.end("train")
        parts.end("embed")
    else:
        model_class.setup_anndata(adata)
        model = model_class(adata)
        parts.end("set up")
        model.train(**quiet)
        parts.end("train")
        adata.obsm["X_embedding"] = model.get_latent_representation()
        parts.end("embed")
        model.save(out / f"{side}_model", overwrite=True)
        epochs = len(model.history["train_loss_epoch" if side == "scvi" else "train_loss"])
    del adata.X
    adata.write_h5ad(out / f"{side}.h5ad")
    parts.end("write")
    return {**parts.seconds, "epochs": epochs}


def run(side: str, cells: Path, out: Path) -> dict[str, Any]:
    """Do a whole job in a new process; return seconds by part and in all, epochs, and peak memory in GB."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "-o", str(out), "--work", side, str(cells)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row = json.loads(done.stdout.strip().splitlines()[-1])
    return {**row, "all": time.perf_counter() - start}


def extrapolate(row: dict[str, Any], n_obs: int, epochs: int) -> dict[str, Any]:
    """Return the row that a larger job would have at the same cells per second; nothing else is known."""
    per_cell = row["train"] / (row["epochs"] * row["cells"])
    seconds = per_cell * epochs * n_obs
    return {"cells": n_obs, "epochs": epochs, "train": seconds, "all": seconds, "extrapolated": True}


def scvi_epochs(n_obs: int) -> int:
    """Return the epochs that scVI takes by default."""
    from scvi.model._utils import get_max_epochs_heuristic

    return get_max_epochs_heuristic(n_obs)


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the exponent of growth of each part and of the memory, between the two largest runs of a side."""
    rows = {}
    for side, runs in frame[~frame["extrapolated"]].groupby("side", sort=False):
        if len(runs) > 1:
            small, large = (runs.sort_values("cells").iloc[i] for i in (-2, -1))
            columns = [part for part in (*PARTS, "all", "memory, GB") if small[part] > 0 and large[part] > 0]
            growth = np.log(large["cells"] / small["cells"])
            rows[side] = {column: np.log(large[column] / small[column]) / growth for column in columns}
    return pd.DataFrame(rows).T


def main() -> None:
    """Measure all jobs and write the tables."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--most-hours", type=float, default=1.0)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.work:
        row = work(options.work[0], Path(options.work[1]), options.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**row, "memory, GB": peak}))
        return
    from speed import Size, draw_counts

    rows: list[dict[str, Any]] = []
    for n_obs in sorted(options.sizes):
        cells = options.out / f"cells_{n_obs}.h5ad"
        if not cells.exists():
            draw_counts(Size(0, 0, 0, n_obs=n_obs, n_vars=options.genes)).write_h5ad(cells)
        for side in options.sides:
            before = [row for row in rows if row["side"] == side]
            epochs = scvi_epochs(n_obs) if side == "scvi" else 0
            if side == "scvi" and before:
                guess = extrapolate(before[-1], n_obs, epochs)
                if before[-1]["extrapolated"] or guess["train"] > 3600 * options.most_hours:
                    reference = next(row for row in reversed(before) if not row["extrapolated"])
                    rows.append({"side": side, **extrapolate(reference, n_obs, epochs)})
                    continue
            row = {"side": side, "cells": n_obs, "extrapolated": False, **run(side, cells, options.out)}
            rows.append(row)
            print({key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "jobs.csv", index=False)
    table = frame.set_index(["cells", "side"])[[*PARTS, "all", "memory, GB", "epochs", "extrapolated"]]
    tables = [table.round(1).to_markdown()]
    if len(options.sizes) > 1:
        tables.append(exponents(frame).round(2).to_markdown())
    (options.out / "jobs.md").write_text("\n\n".join(tables))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
