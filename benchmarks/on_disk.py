"""Training from disk compared with training from memory: throughput, and memory by number of cells.

    python benchmarks/on_disk.py -o OUT [--cells 100000 400000] [--formats h5ad zarr]
    python benchmarks/on_disk.py -o OUT --chain [--cells 250000 1000000] [--epochs 2]
    python benchmarks/on_disk.py -o OUT --draw --cells 1000000

Counts of 2,000 genes at 6 % density are written once as h5ad, and ``datasets.prepare`` makes zarr stores of them. Each line of a
table is a process of its own. It trains 150 steps on nine tenths of the cells, drawn at random, validates on 8,000 of the
others, and embeds 60,000 neighbors and 10,000 cells from all over. ``OUT/on_disk.{csv,md}`` and ``OUT/prepare.{csv,md}``.

``--chain`` runs the command line from a file of counts to the scores of a probe, at the defaults: ``scr2mae prepare``,
``train`` from disk, ``embed`` and ``probe``, for cells of 100 donors and ten types. For each command, a process from cold,
``OUT/chain.{csv,md}`` has seconds, processor seconds, the peak of the memory of its processes, and how much of it the table of
cells (``obs``) takes when it is read. The counts and the stores
are deleted after each size. ``--draw`` instead prints how long ``pl.embedding`` takes with that many points in two dimensions,
colored by none, by types and by a number, with the writing of a file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
from anndata.io import sparse_dataset
from scipy import sparse

from common_setup import make_parser, silence
from speed import Clock, PeakMemory

N_VARS, BATCH_SIZE, N_STEPS, N_EMBEDDED, N_VALIDATED = 2000, 400, 150, 60_000, 8000
N_DONORS, N_TYPES, BLOCK = 100, 10, 5000


def write_counts(path: Path, n_obs: int) -> None:
    """Write counts that repeat a block of 5,000 random cells."""
    rng = np.random.default_rng(0)
    rate = rng.lognormal(-3.3, 1.2, N_VARS) * rng.gamma(4.0, 0.25, (5000, 1))
    block = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    counts = sparse.vstack([block] * -(-n_obs // 5000), format="csr")[:n_obs]
    ad.AnnData(counts, obs=pd.DataFrame(index=np.arange(n_obs).astype(str))).write_h5ad(path)


def write_donors(path: Path, n_obs: int) -> None:
    """Write counts of ten cell types and 100 donors that repeat a block of random cells; memory does not grow."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-3.3, 1.2, N_VARS) * rng.lognormal(0, 0.3, (N_TYPES, N_VARS))
    of_block = rng.integers(N_TYPES, size=BLOCK)
    counts = rng.poisson(rates[of_block] * rng.gamma(4.0, 0.25, (BLOCK, 1)))
    block = sparse.csr_matrix(counts.astype(np.float32))
    obs = pd.DataFrame(index=np.arange(n_obs).astype(str))
    obs["donor"] = pd.Categorical.from_codes(
        rng.integers(N_DONORS, size=n_obs), [f"d{i}" for i in range(N_DONORS)]
    )
    types = np.resize(of_block, n_obs)
    obs["cell_type"] = pd.Categorical.from_codes(types, [f"t{i}" for i in range(N_TYPES)])
    ad.AnnData(sparse.csr_matrix((n_obs, N_VARS), dtype=np.float32), obs=obs).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        ad.io.write_elem(file, "X", block[: min(BLOCK, n_obs)])
        for start in range(BLOCK, n_obs, BLOCK):
            sparse_dataset(file["X"]).append(block[: n_obs - start])


def watch(command: list[str]) -> dict[str, float]:
    """Run a command; return seconds, processor seconds, and the peak memory of it and what it starts, in MB."""
    start, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        try:
            together = [process, *process.children(recursive=True)]
            peak = max(peak, sum(each.memory_info().rss for each in together))
        except psutil.NoSuchProcess:
            pass  # ended between the listing and the reading
        time.sleep(0.2)  # listing processes takes milliseconds
    _, status, used = ended
    if status:
        raise RuntimeError(f"{command} failed.")
    return {
        "seconds": time.perf_counter() - start,
        "processor_s": used.ru_utime + used.ru_stime,
        "peak_mb": max(peak, 1024 * used.ru_maxrss) / 2**20,
    }


def run_chain(out: Path, n_obs: int, epochs: int) -> list[dict[str, Any]]:
    """Run the commands one after the other; return one row per command."""
    folder = out / f"chain_{n_obs}"
    folder.mkdir(parents=True)
    counts, store, model, embedding = (
        str(folder / name) for name in ("counts.h5ad", "store.zarr", "model", "embedding.zarr")
    )
    donor = ["--donor-key", "donor"]
    probed = ["--use-rep", "X_r2mae", "--target", "cell_type:classification", *donor]
    commands = {
        "prepare": [counts, "-o", store, "--n-top-genes", str(N_VARS), "--quiet"],
        "train": [store, "-o", model, "--counts-on", "disk", "--max-epochs", str(epochs), *donor, "--quiet"],
        "embed": [store, "--model", model, "-o", embedding, "--quiet"],
        "probe": [embedding, *probed, "--quiet"],
    }
    rows = []
    try:
        write_donors(Path(counts), n_obs)
        of_obs = alone(out, Path(counts), "obs")
        for name, arguments in commands.items():
            found = watch([sys.executable, "-m", "scr2mae.cli", name, *arguments])
            rows.append({"command": name, "cells": n_obs, **found, **of_obs})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(out / f"chain_{n_obs}.csv", index=False)
    finally:
        shutil.rmtree(folder)
    return rows


def draw(out: Path, n_obs: int) -> None:
    """Print the seconds in which points are drawn and written."""
    import scr2mae

    rng = np.random.default_rng(0)
    of_type = rng.integers(N_TYPES, size=n_obs)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(of_type.astype(str)), "depth": rng.lognormal(7, 0.5, n_obs)}
    )
    obs.index = obs.index.astype(str)
    points = rng.normal(0, 4, (N_TYPES, 2))[of_type] + rng.standard_normal((n_obs, 2))
    adata = ad.AnnData(obs=obs, obsm={"points": points.astype(np.float32)})
    for color in (None, "cell_type", "depth"):
        for suffix in ("png", "pdf"):
            start = time.perf_counter()
            figure = scr2mae.pl.embedding(adata, "points", color=color).figure
            figure.savefig(path := out / f"points_{color}.{suffix}")
            seconds = time.perf_counter() - start
            print(
                f"{n_obs} points by {color}: {seconds:.1f} s, {path.stat().st_size / 1e6:.2f} MB of {suffix}"
            )


def measure_obs(path: Path) -> dict[str, float]:
    """Return by how much the memory of the process grows when the table of cells is read, in MB."""
    process = psutil.Process()
    before = process.memory_info().rss
    with h5py.File(path) as file:
        _obs = ad.io.read_elem(file["obs"])
    return {"obs_mb": (process.memory_info().rss - before) / 2**20}


def measure_prepare(store: Path) -> dict[str, float]:
    """Convert the h5ad file to a store; return cells per second and peak memory of the process in MB."""
    from scr2mae.data import open_store
    from scr2mae.datasets import prepare

    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    prepare(store.with_suffix(".h5ad"), store, n_top_genes=N_VARS, progressbar=False, overwrite=True)
    seconds = time.perf_counter() - start
    memory.stop()
    return {"cells_s": open_store(store).n_obs / seconds, "peak_mb": memory.peak / 2**20}


def read_counts(path: Path, counts_on: str) -> ad.AnnData:
    """Open the counts on disk, or load them."""
    from scr2mae.data import open_store

    if counts_on == "disk":
        return open_store(path)
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def measure(path: Path, counts_on: str) -> dict[str, float]:
    """Train and embed; return cells per second and peak memory of the process in MB, with imports and counts."""
    from scr2mae import R2MAEModel

    memory, clock = PeakMemory(), Clock("cpu")
    memory.start()
    adata = read_counts(path, counts_on)
    model = R2MAEModel(adata, encoder="mlp")
    model.train(
        1,
        batch_size=BATCH_SIZE,
        limit_val_batches=N_VALIDATED // BATCH_SIZE,
        counts_on=counts_on,
        accelerator="cpu",
        limit_train_batches=N_STEPS,
        callbacks=[clock],
        enable_progress_bar=False,
    )
    start = time.perf_counter()
    model.get_latent_representation(indices=np.arange(min(N_EMBEDDED, adata.n_obs)))
    embedded = time.perf_counter() - start
    scattered = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[: N_EMBEDDED // 6])
    start = time.perf_counter()
    model.get_latent_representation(indices=scattered)
    embedded_scattered = time.perf_counter() - start
    memory.stop()
    return {
        "train_cells_s": BATCH_SIZE * clock.n_steps / (clock.end - clock.start),
        "embed_cells_s": min(N_EMBEDDED, adata.n_obs) / embedded,
        "embed_scattered_cells_s": len(scattered) / embedded_scattered,
        "peak_mb": memory.peak / 2**20,
    }


def alone(out: Path, path: Path, what: str) -> dict[str, float]:
    """Measure in a new process, so that its memory is that of this measurement."""
    command = [sys.executable, __file__, "-o", str(out), "--alone", str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV and Markdown, and print them."""
    frame = pd.DataFrame(rows)
    frame.to_csv(path.with_suffix(".csv"), index=False)
    table = frame.round(0).to_markdown(index=False, intfmt=",", floatfmt=",.0f")
    path.with_suffix(".md").write_text(table + "\n")
    print(table, flush=True)


def main() -> None:
    """Write the counts, measure each line in its own process and write the tables."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--cells", type=int, nargs="+")
    parser.add_argument(
        "--chain", action="store_true", help="the commands of the command line, one after the other"
    )
    parser.add_argument("--draw", action="store_true", help="time pl.embedding")
    parser.add_argument("--epochs", type=int, default=2, help="of --chain")
    parser.add_argument("--formats", nargs="+", choices=["h5ad", "zarr"], default=["h5ad", "zarr"])
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    silence()
    if options.alone:
        path, what = Path(options.alone[0]), options.alone[1]
        others = {"prepare": measure_prepare, "obs": measure_obs}
        print(json.dumps(others[what](path) if what in others else measure(path, what)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.draw:
        for n_obs in options.cells or [1_000_000]:
            draw(options.out, n_obs)
        return
    if options.chain:
        sizes = options.cells or [250_000, 1_000_000]
        chain = [row for n_obs in sizes for row in run_chain(options.out, n_obs, options.epochs)]
        write_table(chain, options.out / "chain")
        return
    prepared, rows = [], []
    sizes = options.cells or [100_000, 400_000]
    for n_obs in sizes:
        path = options.out / f"counts_{n_obs}.h5ad"
        if not path.exists():
            write_counts(path, n_obs)
        if "zarr" in options.formats:
            prepared.append({"cells": n_obs, **alone(options.out, path.with_suffix(".zarr"), "prepare")})
    for suffix in options.formats:
        for n_obs in sizes:
            for counts_on in ("memory", "disk"):
                row = alone(options.out, options.out / f"counts_{n_obs}.{suffix}", counts_on)
                rows.append({"format": suffix, "cells": n_obs, "counts": counts_on, **row})
    if prepared:
        write_table(prepared, options.out / "prepare")
    write_table(rows, options.out / "on_disk")


if __name__ == "__main__":
    main()
