"""Kill writers at random times, fill their disk, run two at once; then check the files and continue.

Each operation is run once to measure its time. In each round it starts from an old state and is killed by SIGKILL after a
delay drawn uniformly from that time. Then its files are checked: they must be those of the old or the new state, complete,
and must not prevent the next run of the same command, whose result is compared with that of a run that was not killed.
Processes are forks of one that has loaded all modules, so that the delays fall into the work and not into the imports.

    python benchmarks/faults.py --rounds 56 --seed 0

prints a table and exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch

from scr2mae import R2MAEModel, benchmark, datasets
from scr2mae._utils.files import is_leftover
from scr2mae.cli import main

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
LONGEST = 600  # seconds until an operation that hangs is ended
TRAIN: dict[str, Any] = {
    "batch_size": 32,
    "accelerator": "cpu",
    "precision": "32-true",
    "enable_progress_bar": False,
}


# --- processes


def _child(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
    """Fork; return the process id and a pipe that sends "ready", if the function calls that, and the result."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    code = 1
    try:
        warnings.simplefilter("ignore")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            said = ("returned", function(lambda: os.write(writing, b"r"), *args))
        except BaseException as error:
            said = ("raised", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}")
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(said, pipe)
        code = 0
    finally:
        os._exit(code)


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Run in a fork and return the result; raise a LostError if it raised or was killed."""
    process, reading = _child(lambda ready, *rest: function(*rest), *args)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    if not said:
        raise LostError(f"ended with status {status}")
    kind, value = pickle.loads(said)  # written by this program
    if kind == "raised":
        raise LostError(value)
    return value


def run(work: Callable[..., None], folder: Path, delay: float | None) -> tuple[bool, float]:
    """Run in a fork and kill it ``delay`` seconds after it is ready; return whether it was killed, and its time."""
    process, reading = _child(work, folder)
    os.read(reading, 1)
    start = time.perf_counter()
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        passed = time.perf_counter() - start
        if passed > (LONGEST if delay is None else delay):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(reading)
            if delay is None:
                raise LostError(f"still running after {LONGEST} s")
            return True, passed
        time.sleep(0.0005)
    with os.fdopen(reading, "rb") as pipe:
        kind, value = pickle.loads(pipe.read())
    if kind == "raised":
        raise LostError(value)
    return False, time.perf_counter() - start


class LostError(Exception):
    """Raised if data were lost or the next run failed."""


def expect(holds: bool, what: str) -> None:
    """Raise a LostError unless something holds."""
    if not holds:
        raise LostError(what)


# --- data and models


def digest(*arrays: Any) -> str:
    """Return a hash of the content of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def digest_model(model: R2MAEModel) -> str:
    """Return a hash of the weights of a model."""
    return digest(*(value.numpy() for value in model.module.state_dict().values()))


def make_model(data: Path, seed: int = 0) -> R2MAEModel:
    """Create an untrained model of the simulated counts."""
    adata = anndata.read_h5ad(data / "counts.h5ad")
    R2MAEModel.setup_anndata(adata, donor_key="donor")
    return R2MAEModel(adata, n_hidden=256, n_latent=16, seed=seed)


def make_data(data: Path) -> None:
    """Write counts, an old and a new model, embeddings by the old one, and a prepared store."""
    adata = datasets.simulate_donors(n_donors=8, n_cells_per_donor=40, n_genes=800, seed=0)
    adata.write_h5ad(data / "counts.h5ad")
    more = datasets.simulate_donors(n_donors=3, n_cells_per_donor=40, n_genes=800, seed=1)
    more.write_h5ad(data / "more.h5ad")
    for name, seed in (("old", 0), ("new", 1)):
        model = make_model(data, seed)
        model.train(1, **TRAIN)
        model.save(data / name)
    for suffix in ("h5ad", "zarr"):
        _embed(data, data / f"embedded.{suffix}", "old")
    code = main(["prepare", str(data / "counts.h5ad"), "-o", str(data / "store.zarr"), "-q"])
    expect(code == 0, "no old store")


# --- operations: the work, and what must hold afterwards


@dataclass(frozen=True)
class Operation:
    """An operation that writes files.

    Attributes
    ----------
    name
        Its name in the table.
    lay
        Creates the old state in an empty folder.
    work
        Takes a function, to be called when all is loaded, and the folder.
    check
        Takes the folder and the result of a run that was not killed (None for that run itself); returns the result.
    """

    name: str
    lay: Callable[[Path], None]
    work: Callable[[Callable[[], Any], Path], None]
    check: Callable[[Path, Any], Any]


def nothing(folder: Path) -> None:
    """Leave the folder empty."""


def operations(data: Path) -> list[Operation]:
    """Return all operations."""

    def copy(source: str, target: str) -> Callable[[Path], None]:
        return lambda folder: shutil.copytree(data / source, folder / target)

    embedded, store = data / "embedded.zarr", data / "store.zarr"
    return [
        Operation("train with checkpoints", nothing, *_training(data)),
        Operation("save over a model", copy("old", "model"), *_saving(data, True)),
        Operation("save a first model", nothing, *_saving(data, False)),
        Operation("embed to h5ad", nothing, *_embedding(data, "h5ad", None)),
        Operation(
            "embed over a zarr store", copy("embedded.zarr", "out.zarr"), *_embedding(data, "zarr", embedded)
        ),
        Operation("benchmark", nothing, *_benchmarking(data)),
        Operation("prepare a zarr store", nothing, *_preparing(data, None)),
        Operation("prepare over a zarr store", copy("store.zarr", "store.zarr"), *_preparing(data, store)),
    ]


def _training(data: Path) -> tuple[Any, Any]:
    def train(folder: Path, ready: Callable[[], Any] = lambda: None) -> None:
        model = make_model(data)
        run = folder / "run"
        resume = run if (run / "last.ckpt").exists() else None
        ready()
        model.train(4, checkpoint_dir=run, checkpoint_every_n_steps=3, resume=resume, **TRAIN)
        model.save(folder / "model", overwrite=True)

    def check(folder: Path, whole: Any) -> Any:
        if (folder / "model" / "model.json").exists():
            found = digest_model(R2MAEModel.load(folder / "model"))
            expect(whole in (None, found), "the saved model differs")
        if (folder / "run" / "last.ckpt").exists():
            torch.load(folder / "run" / "last.ckpt", weights_only=True)
        train(folder)
        found = digest_model(R2MAEModel.load(folder / "model"))
        expect(whole in (None, found), "the resumed run ended with other weights")
        return found

    return lambda ready, folder: train(folder, ready), check


def _saving(data: Path, overwrite: bool) -> tuple[Any, Any]:
    def work(ready: Callable[[], Any], folder: Path) -> None:
        model = R2MAEModel.load(data / "new")
        ready()
        model.save(folder / "model", overwrite=overwrite)

    def check(folder: Path, whole: Any) -> Any:
        old, new = (digest_model(R2MAEModel.load(data / name)) for name in ("old", "new"))
        place = folder / "model"
        if overwrite or (place / "model.json").exists():
            model = R2MAEModel.load(place)
            allowed = [old, new] if overwrite else [new]
            expect(digest_model(model) in allowed, "neither the old model nor the new one")
            z = model.get_latent_representation(anndata.read_h5ad(data / "counts.h5ad"))
            expect(bool(np.isfinite(z).all()), "the model does not embed")
            json.loads((place / "run.json").read_text())
            R2MAEModel.load(data / "new").save(place, overwrite=True)
        else:  # the folder has no model, so overwrite=True must not be required
            R2MAEModel.load(data / "new").save(place)
        expect(digest_model(R2MAEModel.load(place)) == new, "the next save differs")
        expect(not [item for item in place.iterdir() if is_leftover(item)], "a part was left by two saves")
        expect(len(list(place.glob("weights-*"))) == 1, "unused weights were left by two saves")
        return new

    return work, check


def _embed(data: Path, output: Path, model: str) -> None:
    paths = [str(data / "counts.h5ad"), "--model", str(data / model), "-o", str(output)]
    code = main(["embed", *paths, "--accelerator", "cpu", "--batch-size", "16", "--force", "-q"])
    expect(code == 0, f"scr2mae embed ended with {code}")


def _read_embedding(path: Path) -> str:
    read = anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad
    return digest(read(path).obsm["X_r2mae"])


def _embedding(data: Path, suffix: str, before: Path | None) -> tuple[Any, Any]:
    def work(ready: Callable[[], Any], folder: Path) -> None:
        ready()
        _embed(data, folder / f"out.{suffix}", "new")

    def check(folder: Path, whole: Any) -> Any:
        output = folder / f"out.{suffix}"
        expect(before is None or output.exists(), "the old embedding is gone")
        if output.exists() and whole is not None:
            allowed = [whole] if before is None else [whole, _read_embedding(before)]
            expect(_read_embedding(output) in allowed, "neither the old embedding nor the new one")
        _embed(data, output, "new")
        return _read_embedding(output)

    return work, check


def _benchmarking(data: Path) -> tuple[Any, Any]:
    def score(folder: Path) -> pd.DataFrame:
        return benchmark.run(
            anndata.read_h5ad(data / "counts.h5ad")[:, :300].copy(),
            targets={"cell_type": "classification"},
            donor_key="donor",
            methods=["pca", "r2mae"],
            seeds=(0,),
            n_splits=1,
            ratios=(0.3,),
            scale=False,
            model_kwargs={"n_hidden": 16, "n_latent": 4},
            train_kwargs={"max_epochs": 1, "batch_size": 64, "precision": "32-true"},
            n_pcs=4,
            accelerator="cpu",
            out=folder / "bench",
            enable_progress_bar=False,
        ).results

    def work(ready: Callable[[], Any], folder: Path) -> None:
        ready()
        score(folder)

    def check(folder: Path, whole: Any) -> Any:
        for path in (folder / "bench").rglob("*.json"):
            if not is_leftover(path):
                json.loads(path.read_text())
        values = score(folder)[["method", "metric", "level", "value"]].to_numpy().tolist()
        expect(whole in (None, values), "the resumed benchmark has other scores")
        n_rows = len(pd.read_csv(folder / "bench" / "results.csv"))
        expect(n_rows == len(values), "the table is incomplete")
        return values

    return work, check


def _preparing(data: Path, before: Path | None) -> tuple[Any, Any]:
    def prepare(folder: Path) -> None:
        inputs = [str(data / name) for name in ("counts.h5ad", "more.h5ad")]
        code = main(
            ["prepare", *inputs, "-o", str(folder / "store.zarr"), "--n-top-genes", "300", "--force", "-q"]
        )
        expect(code == 0, f"scr2mae prepare ended with {code}")

    def read(path: Path) -> str:
        adata = anndata.read_zarr(path)
        return digest(adata.X.data, adata.X.indices, adata.X.indptr, "".join(adata.obs_names).encode())

    def work(ready: Callable[[], Any], folder: Path) -> None:
        ready()
        prepare(folder)

    def check(folder: Path, whole: Any) -> Any:
        store = folder / "store.zarr"
        expect(before is None or store.exists(), "the old store is gone")
        if store.exists() and whole is not None:
            allowed = [whole] if before is None else [whole, read(before)]
            expect(read(store) in allowed, "neither the old store nor the new one")
        prepare(folder)
        return read(store)

    return work, check


# --- faults


@dataclass
class Count:
    """Rounds of an operation: all, those with a fault, those that kept the data and those that lost some."""

    rounds: int = 0
    struck: int = 0
    survived: int = 0
    lost: int = 0
    seconds: float = 0.0

    def round(self, function: Callable[[], None], what: str) -> None:
        """Count a round and whether all files are complete after it."""
        self.rounds += 1
        try:
            function()
            self.survived += 1
        except LostError as error:
            self.lost += 1
            print(f"LOST in {what}: {error}", file=sys.stderr)


def _undisturbed(operation: Operation, place: Path) -> tuple[Any, float]:
    """Run an operation without a fault; return its result and its time."""
    folder = _empty(place)
    operation.lay(folder)
    _, seconds = run(operation.work, folder, None)
    return call(operation.check, folder, None), seconds


def kill(operation: Operation, rounds: int, rng: random.Random, place: Path) -> Count:
    """Kill the operation in each round."""
    count = Count()
    whole, count.seconds = _undisturbed(operation, place)

    def once(delay: float) -> None:
        folder = _empty(place)
        operation.lay(folder)
        count.struck += run(operation.work, folder, delay)[0]
        call(operation.check, folder, whole)

    for i in range(rounds):
        # One delay from each of ``rounds`` equal parts of the time, so that a short series covers all of it.
        delay = count.seconds * (i + rng.random()) / rounds
        count.round(
            lambda delay=delay: once(delay),
            f"{operation.name}, killed after {delay:.3f} s of {count.seconds:.3f} s",
        )
    return count


def fill_disk(operation: Operation, place: Path, sizes: list[int], limit: Callable[[int], Any]) -> Count:
    """Simulate a disk that is full after some bytes: expect a clear error and the old state unchanged."""
    count = Count()
    whole, _ = _undisturbed(operation, place)

    def once(size: int) -> None:
        folder = _empty(place)
        operation.lay(folder)
        with limit(size) as restrict:
            try:
                call(lambda: (restrict(), operation.work(lambda: None, folder)))
            except LostError as error:
                message = str(error)
                count.struck += 1
                clear = "Cannot write" in message or "Not enough room" in message or "ended with 1" in message
                expect(clear, f"no clear error: {message}")
        call(operation.check, folder, whole)

    for size in sizes:
        count.round(lambda size=size: once(size), f"{operation.name}, disk full after {size} bytes")
    return count


@contextlib.contextmanager
def file_size_limit(size: int) -> Any:
    """Limit the size of files, to simulate a full disk if none can be mounted."""
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def small_disk(place: Path) -> Callable[[int], Any] | None:
    """Mount a disk in memory with a given free size; None if mounting is not permitted."""
    if shutil.which("mount") is None:
        return None
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None

    @contextlib.contextmanager
    def limit(size: int) -> Any:
        used = sum(path.stat().st_blocks * 512 for path in place.rglob("*"))
        try:
            _remount(place, used + size)
            yield lambda: None
        finally:
            _remount(place, 64 << 20)

    return limit


def _remount(place: Path, size: int) -> None:
    options = f"remount,size={-(-size // 4096) * 4096}"
    subprocess.run(["mount", "-o", options, str(place)], check=True, capture_output=True)


def race(data: Path, rounds: int, place: Path) -> Count:
    """Let two processes save into one folder at the same time: the folder must hold a complete model at all times."""
    count = Count()
    new, old = (call(lambda name=name: digest_model(R2MAEModel.load(data / name))) for name in ("new", "old"))

    def save_often(ready: Callable[[], Any], name: str, target: Path) -> None:
        model = R2MAEModel.load(data / name)
        for _ in range(5):
            model.save(target, overwrite=True)

    def once() -> None:
        target = _empty(place) / "model"
        children = [_child(save_often, name, target) for name in ("new", "old")]
        for process, reading in children:
            with os.fdopen(reading, "rb") as pipe:
                kind, value = pickle.loads(pipe.read())
            os.waitpid(process, 0)
            expect(kind == "returned", f"a save failed: {value}")
        expect(call(lambda: digest_model(R2MAEModel.load(target))) in (new, old), "the model is incomplete")
        left = sorted(map(str, target.iterdir()))
        expect(len(left) == 3, f"more than a model is left: {left}")
        count.struck += 1

    for _ in range(rounds):
        count.round(once, "two processes saving to one folder")
    return count


def _empty(place: Path) -> Path:
    """Return a new folder; earlier ones are deleted, so that a small disk has room."""
    for earlier in place.iterdir():
        shutil.rmtree(earlier)
    return Path(tempfile.mkdtemp(dir=place))


# --- the table


def _warm(chosen: list[Operation], data: Path) -> list[str]:
    """Run everything once in a fork and return the modules that it imported, so that later forks have them."""
    before = set(sys.modules)
    with tempfile.TemporaryDirectory() as place:
        for operation in chosen:
            folder = Path(tempfile.mkdtemp(dir=place))
            operation.lay(folder)
            operation.work(lambda: None, folder)
    return sorted(set(sys.modules) - before)


def measure(rounds: int, seed: int, wanted: str) -> Iterator[tuple[str, Count]]:
    """Divide the rounds among the operations; with five or more each, also test full disks and two processes."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="scr2mae-faults-") as top:
        data, place, disk = (Path(top) / name for name in ("data", "place", "disk"))
        for folder in (data, place, disk):
            folder.mkdir()
        call(make_data, data)
        chosen = [each for each in operations(data) if wanted in each.name]
        for name in call(_warm, chosen, data):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        for i, operation in enumerate(chosen):
            share = (rounds + len(chosen) - 1 - i) // len(chosen)
            yield operation.name, kill(operation, share, rng, place)
        if rounds >= 5 * len(chosen):
            yield "two processes save to one folder", race(data, 5, place)
            yield from _full_disks(chosen, place, disk)


def _full_disks(chosen: list[Operation], place: Path, disk: Path) -> Iterator[tuple[str, Count]]:
    limit = small_disk(disk)
    try:
        for operation in chosen:
            if limit is not None:
                sizes = [4096, 65_536, 524_288]
                yield f"{operation.name}, disk full", fill_disk(operation, disk, sizes, limit)
            else:
                sizes = [512, 4096, 65_536]
                yield f"{operation.name}, file limit", fill_disk(operation, place, sizes, file_size_limit)
    finally:
        if limit is not None:
            subprocess.run(["umount", str(disk)], check=False)


HEADER = f"{'operation':38}{'seconds':>9}{'rounds':>8}{'struck':>8}{'survived':>10}{'losses':>8}"


def row(name: str, count: Count) -> str:
    """Format a row of the table."""
    seconds = f"{count.seconds:.2f}" if count.seconds else ""
    return f"{name:38}{seconds:>9}{count.rounds:>8}{count.struck:>8}{count.survived:>10}{count.lost:>8}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=56, help="total number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the delays (default: %(default)s)")
    parser.add_argument("--only", default="", help="only operations whose name contains this")
    given = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # a fork does not inherit a pool of threads
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    print(f"{HEADER}\n{'-' * len(HEADER)}", flush=True)
    total = Count()
    for operation_name, found in measure(given.rounds, given.seed, given.only):
        print(row(operation_name, found), flush=True)
        for field in ("rounds", "struck", "survived", "lost"):
            setattr(total, field, getattr(total, field) + getattr(found, field))
    print(row("all", total))
    sys.exit(total.lost > 0)
