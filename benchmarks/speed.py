"""Speed of this package compared with scVI: training, embedding, memory, time to the first step.

    python benchmarks/speed.py -o OUT [--sizes large small ...] [--rounds 3] [--data FILE.h5ad] [--compile] [--gpu [--dry-run]]

Both sides run in one process on the same counts, genes, threads and batches, by turns, so that what else the machine does
falls on both; the ratio of each round is taken and their median reported. Memory and time to the first step are measured
in a process of their own for each side. Counts are drawn to a density unless ``--data`` names a file of raw counts.
``--processor-time`` gives rates per second of processor time, which other load changes less. ``OUT/speed.csv`` gets every
round, ``OUT/speed.md`` the tables. This package averages weights over the end of a run: at every step at first, at every
eighth after some 300, which a round does not reach; so it is also measured without, as scVI is.
``--compile`` compares compiled steps of this package with eager ones instead, in the same way. ``--gpu`` measures training,
compiled and not, embedding and scVI on a GPU, and the share of a training call in which the device computes, copies, or
waits for the host. ``--dry-run`` does the same on the CPU with few cells, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import psutil
import torch
from scipy import sparse
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Iterable

SIDES = ("scr2mae", "scr2mae without average", "scr2mae float32", "scr2mae float32 without average", "scvi")
GPU_SIDES = ("scr2mae", "scr2mae compiled", "scvi")
COMPILED_SIDES = ("scr2mae", "scr2mae compiled", "scr2mae float32", "scr2mae float32 compiled")


@dataclass(frozen=True)
class Size:
    """Size of the data and the networks."""

    n_hidden: int
    n_latent: int
    n_layers: int
    batch_size: int = 400
    n_vars: int = 5000
    n_obs: int = 8000
    density: float = 0.12
    equal_decoder: bool = False


SIZES = {
    "large": Size(1000, 512, 2),
    "large, equal decoder": Size(1000, 512, 2, equal_decoder=True),
    "small": Size(128, 10, 1, n_obs=16_000),
    "small, equal decoder": Size(128, 10, 1, n_obs=16_000, equal_decoder=True),
    "defaults": Size(256, 64, 1, batch_size=128, n_vars=2000),
    "few cells": Size(128, 10, 1, batch_size=128, n_vars=765, n_obs=700, density=0.2),
}
GPU_SIZES = {
    "paper, batch 400": Size(1000, 512, 2, n_obs=400_000),
    "paper, batch 4096": Size(1000, 512, 2, batch_size=4096, n_obs=400_000),
    "small, batch 400": Size(128, 10, 1, n_obs=400_000),
    "small, batch 4096": Size(128, 10, 1, batch_size=4096, n_obs=400_000),
}
DRY_SIZES = {label: replace(size, n_obs=2000, n_vars=60, batch_size=100) for label, size in GPU_SIZES.items()}


def draw_counts(size: Size, seed: int = 0) -> ad.AnnData:
    """Return negative binomial counts of a density, with different gene means; blocks repeat after 20,000 cells."""
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(0.0, 1.5, size.n_vars)
    low, high = 1e-6, 1e2
    for _ in range(60):
        scale = (low * high) ** 0.5
        low, high = (scale, high) if (1 - np.exp(-rate * scale)).mean() < size.density else (low, scale)
    n_distinct = min(size.n_obs, 20_000)
    blocks = []
    for start in range(0, n_distinct, 1000):
        depth = rng.gamma(4.0, 0.25, (min(1000, n_distinct - start), 1))
        blocks.append(sparse.csr_matrix(rng.poisson(scale * rate * depth).astype(np.float32)))
    blocks *= -(-size.n_obs // n_distinct)
    return ad.AnnData(sparse.vstack(blocks, format="csr")[: size.n_obs])


def read_counts(options: argparse.Namespace, size: Size) -> ad.AnnData:
    """Return counts of a size: simulated, or the first genes and cells of a file."""
    if options.data is None:
        return draw_counts(size)
    adata = ad.read_h5ad(options.data)
    return ad.AnnData(sparse.csr_matrix(adata.X[: size.n_obs, : size.n_vars], dtype=np.float32))


class Clock(pl.Callback):
    """Time of the first step, and cells per second from the third step; only these steps wait for the device."""

    read = staticmethod(time.perf_counter)  # or time.process_time

    def __init__(self, device: str) -> None:
        self.device = device
        self.first = self.start = self.end = 0.0
        self.n_before = self.n_steps = 0

    def now(self) -> float:
        """Return the time when the device has finished."""
        if self.device == "gpu":
            torch.cuda.synchronize()
        return Clock.read()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the time of the first call, and of the first call after two steps."""
        if not self.first:
            self.first = self.now()
        if self.n_before == 0 and trainer.global_step >= 2:
            self.start, self.n_before = self.now(), trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the end."""
        self.end, self.n_steps = self.now(), trainer.global_step - self.n_before


class Side:
    """A model of one side, with the same calls for training and embedding."""

    def __init__(self, name: str, adata: ad.AnnData, size: Size, device: str) -> None:
        self.name, self.size, self.device = name, size, device
        widths: dict[str, Any] = {
            "n_hidden": size.n_hidden, "n_latent": size.n_latent, "n_layers": size.n_layers,
        }  # fmt: skip
        if name == "scvi":
            import scvi

            scvi.settings.verbosity = 40
            adata = adata.copy()
            scvi.model.SCVI.setup_anndata(adata)
            self.model: Any = scvi.model.SCVI(adata, **widths)
        else:
            import scr2mae

            widths["encoder"] = "mlp"  # whose layers are those of scVI
            if size.equal_decoder:
                widths["n_layers_decoder"] = size.n_layers
            self.model = scr2mae.R2MAEModel(adata.copy(), **widths)
        self.precision = "32-true" if "float32" in name else "auto"
        self.plan_kwargs: dict[str, Any] = {"compile": True} if name.endswith("compiled") else {}
        if name.endswith("without average"):
            self.plan_kwargs["averaging"] = None

    def train(self, max_epochs: int = 1, *, together: int = 16) -> tuple[float, float, float]:
        """Train; return seconds to the first step or execution, cells per second from the third, seconds of the call."""
        clock = Clock(self.device)
        kwargs: dict[str, Any] = {}
        if self.name != "scvi":
            # As many as without a callback.
            kwargs = {
                "precision": self.precision,
                "plan_kwargs": self.plan_kwargs,
                "steps_per_execution": together,
            }
        start = Clock.read()
        self.model.train(
            max_epochs,
            batch_size=self.size.batch_size,
            train_size=1.0,
            accelerator=self.device,
            callbacks=[clock],
            enable_progress_bar=False,
            **kwargs,
        )
        whole = Clock.read() - start
        n_batches = -(-self.size.n_obs // self.size.batch_size)
        n_seen = clock.n_steps * self.size.n_obs / n_batches
        return clock.first - start, n_seen / (clock.end - clock.start), whole

    def embed(self, *, reduced: bool) -> float:
        """Embed all cells; return cells per second."""
        kwargs = {"precision": "auto"} if reduced else {}
        start = Clock.read()
        self.model.get_latent_representation(**kwargs)
        return self.size.n_obs / (Clock.read() - start)

    def shares(self) -> dict[str, float]:
        """Return what :func:`device_shares` says of a training call."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device == "gpu" else [])]
        with profile(activities=activities, acc_events=True) as profiler:
            whole = self.train()[2]
        return device_shares(profiler.events(), whole)

    def n_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.module.parameters() if p.requires_grad)

    def mflop(self) -> float:
        """Million floating-point operations per cell in the matrix products of a step, forward and backward."""
        module = self.model.module
        n_obs = min(self.size.batch_size, self.size.n_obs)
        x = torch.from_numpy(self.model.adata.X[:n_obs].toarray()).to(module.device)
        tensors = {
            "X": x,
            "batch": torch.zeros(n_obs, 1, device=x.device),
            "labels": torch.zeros(n_obs, 1, device=x.device),
        }
        module.train()
        with FlopCounterMode(display=False) as counter:
            if self.name == "scvi":
                loss = module(tensors)[2].loss
            else:
                loss = module.training_loss(tensors, ratio=0.3, seed=0, step=0).loss
            loss.backward()
        module.zero_grad(set_to_none=True)
        module.eval()
        return counter.get_total_flops() / n_obs / 1e6


def device_shares(events: Iterable[Any], whole: float) -> dict[str, float]:
    """Return the fractions of ``whole`` seconds in which a GPU computes and copies, and the rest, when it waits for the host."""
    seconds = {"kernels": 0.0, "copies": 0.0}
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kind = "copies" if event.name.startswith(("Memcpy", "Memset")) else "kernels"
            seconds[kind] += event.time_range.elapsed_us() / 1e6
    shares = {kind: value / whole for kind, value in seconds.items()}
    return {**shares, "host": 1 - sum(shares.values())}


class PeakMemory(threading.Thread):
    """Peak resident memory of this process while the thread runs, minus that at its start, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process()
        self.first = self.peak = self.process.memory_info().rss
        self.done = threading.Event()

    def run(self) -> None:
        """Sample every few milliseconds."""
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def stop(self) -> float:
        """Return the peak."""
        self.done.set()
        self.join()
        return (self.peak - self.first) / 2**20


def measure_alone(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds from imports to the first step, and memory above imports and counts, of one side alone."""
    import scvi  # noqa: F401

    import scr2mae.model  # noqa: F401

    size = Size(**json.loads(options.alone_size))
    adata = read_counts(options, size)
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    side = Side(options.alone, adata, size, device_of(options))
    built = time.perf_counter() - start
    first = side.train(together=1)[0]
    result = {"first_step_s": built + first, "memory_mb": memory.stop()}
    if device_of(options) == "gpu":
        result["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def device_of(options: argparse.Namespace) -> str:
    """Return the accelerator."""
    return "gpu" if options.gpu and not options.dry_run else "cpu"


def alone(name: str, size: Size, options: argparse.Namespace) -> dict[str, float]:
    """Run :func:`measure_alone` in a new process."""
    command = [
        sys.executable,
        __file__,
        "-o",
        str(options.out),
        "--alone",
        name,
        "--alone-size",
        json.dumps(asdict(size)),
    ]
    command += ["--threads", str(options.threads)] + [
        f"--{name}" for name in ("gpu", "dry-run") if getattr(options, name.replace("-", "_"))
    ]
    command += ["--data", str(options.data)] if options.data else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(label: str, size: Size, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all sides in alternating rounds; one row per side, round and quantity."""
    device = device_of(options)
    adata = read_counts(options, size)
    size = Size(**{**asdict(size), "n_obs": adata.n_obs, "n_vars": adata.n_vars})
    rows: list[dict[str, Any]] = []

    def add(side: str, quantity: str, value: float, round_: int = 0) -> None:
        rows.append({"size": label, "side": side, "quantity": quantity, "round": round_, "value": value})

    names = options.sides or (GPU_SIDES if options.gpu else COMPILED_SIDES if options.compile else SIDES)
    sides = [Side(name, adata, size, device) for name in names]
    once = [side for side in sides if not side.name.endswith("without average")]
    epochs = max(1, -(-options.steps * size.batch_size // size.n_obs))
    for i in range(options.rounds):
        for side in sides:
            _, rate, whole = side.train(epochs)
            add(side.name, "train_cells_s", rate, i)
            add(side.name, "train_call_s", whole, i)
        for side in once if options.gpu or not options.compile else ():
            add(side.name, "embed_cells_s", side.embed(reduced=side.name == "scr2mae"), i)
    for side in once if options.gpu else ():
        for name, share in side.shares().items():
            add(side.name, f"share_{name}", share)
    for side in once:
        add(side.name, "parameters", side.n_parameters())
        add(side.name, "train_mflop_cell", side.mflop())
    names = tuple(side.name for side in once)
    del sides, once
    for name in names:
        for quantity, value in alone(name, size, options).items():
            add(name, quantity, value)
    return rows


def summarize(rows: pd.DataFrame) -> str:
    """Return Markdown tables: each quantity by size and side, and ratios per round to scVI or to eager steps."""
    parts = []
    for label, of_size in rows.groupby("size", sort=False):
        wide = of_size.pivot_table(index=["quantity", "round"], columns="side", values="value", sort=False)
        lines = {}
        for quantity, group in wide.groupby(level="quantity", sort=False):
            lines[quantity] = {name: f"{group[name].median():,.4g}" for name in group}
            for name in group:
                other = "scvi" if "scvi" in group else name.removesuffix(" compiled")
                counted = not quantity.startswith("share_") and group[name].notna().any()
                if other != name and counted:
                    ratio = group[name] / group[other]
                    lines[quantity][f"{name} / {other}"] = (
                        f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
                    )
        parts.append(f"**{label}**\n\n{pd.DataFrame(lines).T.to_markdown()}\n")
    return "\n".join(parts)


def machine() -> str:
    """Return processor, versions and date in a line."""
    import scvi

    import scr2mae

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    versions = f"scr2mae {scr2mae.__version__}, scvi-tools {scvi.__version__}, torch {torch.__version__}"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}; {versions}; Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Measure the sizes and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES, *GPU_SIZES])
    parser.add_argument("--sides", nargs="+", choices=sorted({*SIDES, *GPU_SIDES, *COMPILED_SIDES}))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="steps a round, at least")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--processor-time", action="store_true", help="rates per processor second, for a busy machine"
    )
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="with --gpu: on the CPU, with few cells")
    parser.add_argument("--compile", action="store_true", help="compiled steps against eager ones")
    parser.add_argument("--alone", choices={*SIDES, *COMPILED_SIDES}, help=argparse.SUPPRESS)
    parser.add_argument("--alone-size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.processor_time:
        Clock.read = staticmethod(time.process_time)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "scr2mae"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if options.alone:
        print(json.dumps(measure_alone(options)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = (DRY_SIZES if options.dry_run else GPU_SIZES) if options.gpu else SIZES
    rows: list[dict[str, Any]] = []
    for label in options.sizes or sizes:
        rows += measure(label, {**SIZES, **GPU_SIZES, **sizes}[label], options)
        frame = pd.DataFrame(rows)
        frame.to_csv(options.out / "speed.csv", index=False)
        (options.out / "speed.md").write_text(f"{machine()}\n\n{summarize(frame)}")
        print(summarize(frame[frame["size"] == label]), flush=True)
    print(machine())


if __name__ == "__main__":
    main()
