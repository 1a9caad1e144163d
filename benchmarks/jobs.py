"""Whole jobs in processes from cold: from counts on disk to a trained model and an embedding on disk.

    python benchmarks/jobs.py -o OUT [--sizes 1000 10000 100000 1000000] [--sides scr2mae scvi pca] [--most-hours 1]
    python benchmarks/jobs.py -o OUT --several [--sizes 4000] [--epochs 5] [--at-once 2 4]

Each side runs with its own defaults in a process of its own, by turns: this package, scVI, and 50 principal components as
scanpy computes them. Counts are simulated with the sparsity of real ones (``--genes``, 2,000 by default), and repeat after
20,000 cells. A side whose time would exceed ``--most-hours``, by its growth so far, is not run; its training is then
extrapolated from the cells per second of its largest run, and marked. ``OUT/jobs.csv`` has seconds per part and peak memory,
``OUT/jobs.md`` the tables, with the exponent of growth of each part between the two largest runs.

``--several`` compares several processes of one thread instead: two that train one model together and embed a half each, with
one process of two threads and with gradients that are summed in bfloat16, four of each as well, and independent trainings
at once with one after the other. It writes ``OUT/several.csv`` and ``OUT/several.md``: seconds from the first start to the
last end, and processor seconds of all processes, which other load on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common_setup import make_parser

if TYPE_CHECKING:
    from collections.abc import Callable

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
        epochs = len(model.history["elbo_train" if side == "scvi" else "train_loss"])
    del adata.X
    adata.write_h5ad(out / f"{side}.h5ad")
    parts.end("write")
    return {**parts.seconds, "epochs": epochs}


def write_cells(options: argparse.Namespace, n_obs: int) -> Path:
    """Write simulated counts, unless they are there, and return their path."""
    from speed import Size, draw_counts

    cells = options.out / f"cells_{n_obs}.h5ad"
    if not cells.exists():
        draw_counts(Size(0, 0, 0, n_obs=n_obs, n_vars=options.genes)).write_h5ad(cells)
    return cells


def run(side: str, cells: Path, out: Path) -> dict[str, Any]:
    """Do a whole job in a new process; return seconds by part and in all, epochs, and peak memory in GB."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "-o", str(out), "--work", side, str(cells)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
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


def share(cells: Path, epochs: int, batch_size: int, *, bfloat16: bool) -> dict[str, Any]:
    """Train in this process, alone or as a rank, and embed its part of the cells; return starts, ends and processor seconds."""
    import anndata as ad
    from lightning.pytorch.strategies import DDPStrategy
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    import scr2mae

    rank, n_ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    adata = ad.read_h5ad(cells)
    scr2mae.R2MAEModel.setup_anndata(adata)
    part = np.array_split(np.arange(adata.n_obs), n_ranks)[rank]
    row: dict[str, Any] = {}

    def timed(name: str, function: Callable[[], Any]) -> None:
        start, used = time.time(), time.process_time()
        function()
        row[name] = [start, time.time(), time.process_time() - used]

    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}
    if bfloat16:
        quiet["strategy"] = DDPStrategy(broadcast_buffers=False, ddp_comm_hook=bf16_compress_hook)
    if n_ranks == 1:  # no step of the measured run is the first of its process; ranks count theirs
        scr2mae.R2MAEModel(adata[:1000].copy()).train(1, **quiet)
    model = scr2mae.R2MAEModel(adata)
    timed("train", lambda: model.train(epochs, batch_size=batch_size // n_ranks, **quiet))
    timed("embed", lambda: [model.get_latent_representation(indices=part) for _ in range(10)])
    return row


def start(
    options: argparse.Namespace, cells: Path, n_threads: int, n_ranks: int = 1, *, bfloat16: bool = False
) -> subprocess.Popen[str]:
    """Start :func:`share` in new processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    command = [*(launcher if n_ranks > 1 else []), __file__, "-o", str(options.out)]
    return subprocess.Popen(
        [sys.executable, *command, "--share", str(cells), "--epochs", str(options.epochs)]
        + ["--bfloat16"] * bfloat16,
        env={**os.environ, **dict.fromkeys(names, str(n_threads))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def collect(processes: list[subprocess.Popen[str]]) -> dict[str, float]:
    """Wait for processes; return seconds from the first start to the last end, and processor seconds, of each part."""
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    if any(process.returncode for process in processes):
        raise RuntimeError("A process failed; run its command by itself to see why.")
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    found = {}
    for part in ("train", "embed"):
        starts, ends, used = zip(*(row[part] for row in rows), strict=True)
        found |= {f"{part}, s": max(ends) - min(starts), f"{part}, processor s": sum(used)}
    return found


def several(options: argparse.Namespace, cells: Path) -> pd.DataFrame:
    """Return seconds of one process of two threads, of two of one thread, and of trainings at once and one by one."""
    rows = {
        "one process, two threads": collect([start(options, cells, 2)]),
        "two processes, one thread each": collect([start(options, cells, 1, n_ranks=2)]),
        "two processes, gradients in bfloat16": collect([start(options, cells, 1, n_ranks=2, bfloat16=True)]),
        "one process, four threads": collect([start(options, cells, 4)]),
        "four processes, one thread each": collect([start(options, cells, 1, n_ranks=4)]),
        "one process, one thread": collect([start(options, cells, 1)]),
    }
    for n in options.at_once:
        rows[f"{n} trainings at once, one thread each"] = collect(
            [start(options, cells, 1) for _ in range(n)]
        )
    return pd.DataFrame(rows).T


def main() -> None:
    """Measure all jobs and write the tables."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--most-hours", type=float, default=1.0)
    parser.add_argument(
        "--several", action="store_true", help="processes of one thread instead of whole jobs"
    )
    parser.add_argument("--epochs", type=int, default=5, help="of --several")
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[2], help="independent trainings of --several"
    )
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bfloat16", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.share:
        print(json.dumps(share(options.share, options.epochs, batch_size=128, bfloat16=options.bfloat16)))
        return
    if options.work:
        row = work(options.work[0], Path(options.work[1]), options.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**row, "memory, GB": peak}))
        return
    if options.several:
        frame = several(options, write_cells(options, options.sizes[0]))
        frame.to_csv(options.out / "several.csv")
        (options.out / "several.md").write_text(frame.round(2).to_markdown())
        print(frame.round(2).to_markdown())
        return
    rows: list[dict[str, Any]] = []
    for n_obs in sorted(options.sizes):
        cells = write_cells(options, n_obs)
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
