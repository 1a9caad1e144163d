"""What a piece of work costs: seconds and peak memory."""

import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

_STATM = Path("/proc/self/statm")
_INTERVAL = 0.02
_PACKAGES = ("scr2mae", "scvi-tools", "torch", "scikit-learn", "scipy", "numpy")


class Meter:
    """Measure a block.

    Attributes
    ----------
    seconds
        Wall-clock time.
    peak_memory_mb
        Largest memory of the process while the block ran, data included. On Linux it is sampled fifty times a second;
        elsewhere it is the peak since the process began, NaN on Windows.
    peak_gpu_memory_mb
        Largest memory that PyTorch held on the CUDA device; NaN without one.
    """

    def __enter__(self) -> Self:
        self._done = threading.Event()
        self._peak = _memory_mb()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()
        return self

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._peak = max(self._peak, _memory_mb())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._watch.join()
        self.peak_memory_mb = max(self._peak, _memory_mb())
        self.peak_gpu_memory_mb = (
            torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else np.nan
        )


def _memory_mb() -> float:
    if _STATM.exists():
        import resource

        return int(_STATM.read_text().split()[1]) * resource.getpagesize() / 1e6
    if sys.platform == "win32":
        return np.nan
    import resource

    # Kilobytes everywhere but on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def versions() -> dict[str, str]:
    """Versions of the packages that a number may depend on."""
    return {package: version(package) for package in _PACKAGES}
