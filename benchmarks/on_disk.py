"""Training from a disk against training from memory: throughput, and memory against the number of cells.

    python benchmarks/on_disk.py -o OUT [--cells 100000 400000] [--formats h5ad zarr]

Counts of 2,000 genes at 6 % density are written once; each line of the table is a process of its own, which trains 150
steps and embeds 60,000 cells. ``OUT/on_disk.csv`` and ``OUT/on_disk.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from scipy import sparse

from speed import Clock, PeakMemory

N_VARS, BATCH_SIZE, N_STEPS, N_EMBEDDED = 2000, 400, 150, 60_000


def write_counts(path: Path, n_obs: int) -> None:
    """Write counts, a block of 5,000 drawn cells again and again."""
    rng = np.random.default_rng(0)
    rate = rng.lognormal(-3.3, 1.2, N_VARS) * rng.gamma(4.0, 0.25, (5000, 1))
    block = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    counts = sparse.vstack([block] * -(-n_obs // 5000), format="csr")[:n_obs]
    adata = ad.AnnData(counts, obs=pd.DataFrame(index=np.arange(n_obs).astype(str)))
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(path)


def read_counts(path: Path, counts_on: str) -> ad.AnnData:
    """Open the counts where they are, or load them."""
    if counts_on == "memory":
        return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path, backed="r")
    group: Any = zarr.open_group(path, mode="r")
    return ad.AnnData(ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"]))


def measure(path: Path, counts_on: str) -> dict[str, float]:
    """Train and embed; cells a second, and the most memory that the process took, imports and counts included; MB."""
    from scr2mae import R2MAEModel

    memory, clock = PeakMemory(), Clock("cpu")
    memory.start()
    adata = read_counts(path, counts_on)
    model = R2MAEModel(adata)
    model.train(
        1,
        batch_size=BATCH_SIZE,
        train_size=1.0,
        counts_on=counts_on,
        accelerator="cpu",
        limit_train_batches=N_STEPS,
        callbacks=[clock],
        enable_progress_bar=False,
    )
    start = time.perf_counter()
    model.get_latent_representation(indices=np.arange(min(N_EMBEDDED, adata.n_obs)))
    embedded = time.perf_counter() - start
    memory.stop()
    times = clock.times[2:]
    return {
        "train_cells_s": BATCH_SIZE * (len(times) - 1) / (times[-1] - times[0]),
        "embed_cells_s": min(N_EMBEDDED, adata.n_obs) / embedded,
        "peak_mb": memory.peak / 2**20,
    }


def main() -> None:
    """Write the counts, measure each line alone, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--formats", nargs="+", choices=["h5ad", "zarr"], default=["h5ad", "zarr"])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    if options.alone:
        print(json.dumps(measure(Path(options.alone[0]), options.alone[1])))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for suffix in options.formats:
        for n_obs in options.cells:
            path = options.out / f"counts_{n_obs}.{suffix}"
            if not path.exists():
                write_counts(path, n_obs)
            for counts_on in ("memory", "disk"):
                command = [sys.executable, __file__, "-o", str(options.out), "--alone", str(path), counts_on]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row = json.loads(done.stdout.strip().splitlines()[-1])
                rows.append({"format": suffix, "cells": n_obs, "counts": counts_on, **row})
                print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.out / "on_disk.csv", index=False)
    (options.out / "on_disk.md").write_text(frame.round(0).to_markdown(index=False) + "\n")
    print(frame.round(0).to_markdown(index=False))


if __name__ == "__main__":
    main()
