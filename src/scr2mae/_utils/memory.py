"""Free memory, and checks before a large array is made."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["check_array", "check_memory", "fits", "free_memory"]

logger = logging.getLogger(__name__)

_LARGE = 1e9  # bytes from which a size is logged
_USABLE_SHARE = 0.5  # of the free memory, for data that could also stay where they are
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device | None = None) -> int:
    """Return the free bytes of a CUDA device, else of the host, within the limit of its control group."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # Cached file pages count as used, but are released on demand.
        lines = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used -= next((int(value) for name, value in lines if name == "inactive_file"), 0)
    except (OSError, ValueError):  # no such group, or no limit
        return free
    return max(0, min(free, limit - used))


def fits(n_bytes: int, what: str, *, yes: str, no: str, device: torch.device | None = None) -> bool:
    """Return whether data take at most half of the free memory of a device or the host, and log what follows."""
    free = free_memory(device)
    is_small = n_bytes <= _USABLE_SHARE * free
    sizes = n_bytes / 1e9, free / 1e9
    logger.info("%s take %.2f GB, and %.2f GB are free: %s.", what, *sizes, yes if is_small else no)
    return is_small


def check_memory(n_bytes: int, what: str, *, advice: str) -> None:
    """Raise MemoryError if an object is larger than the free memory; log the size of a large one.

    Without the check, the system would grant the memory first and kill the process when it is used.
    """
    free = free_memory()
    sizes = f"{what} takes {n_bytes / 1e9:,.1f} GB of memory, of which {free / 1e9:,.1f} GB are free"
    if n_bytes > free:
        raise MemoryError(f"{sizes}; {advice}.")
    if n_bytes > _LARGE:
        logger.info("%s.", sizes)


def check_array(shape: Sequence[int], dtype: type, what: str, *, advice: str) -> None:
    """Apply :func:`check_memory` to an array that is about to be allocated."""
    size = " x ".join(f"{n:,}" for n in shape)
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    check_memory(n_bytes, f"{what} ({size}, {np.dtype(dtype)})", advice=advice)
