"""Cost of a block of code, and package versions."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import psutil
import torch

_INTERVAL = 0.02  # seconds between two samples of the memory
_PACKAGES = ("scr2mae", "scvi-tools", "torch", "scikit-learn", "scipy", "numpy")


@dataclass
class Cost:
    """Wall-clock time, peak memory of the process and peak memory of PyTorch on the CUDA device, NaN without one."""

    seconds: float = np.nan
    peak_memory_mb: float = 0.0
    peak_gpu_memory_mb: float = np.nan


@contextmanager
def measure() -> Iterator[Cost]:
    """Measure the cost of a block; memory is sampled fifty times per second."""
    cost, done, process = Cost(), threading.Event(), psutil.Process()

    def sample() -> None:
        cost.peak_memory_mb = max(cost.peak_memory_mb, process.memory_info().rss / 1e6)

    def watch() -> None:
        while not done.wait(_INTERVAL):
            sample()

    sample()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        sample()
        if torch.cuda.is_available():
            cost.peak_gpu_memory_mb = torch.cuda.max_memory_allocated() / 1e6


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {package: version(package) for package in _PACKAGES}
