"""What a large array will take, said before it is made."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check_memory", "free_memory"]

logger = logging.getLogger(__name__)

_WORTH_SAYING = 1e9  # bytes
_GROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that can be had: of the machine, or of what a container or a batch system allows, if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        # Pages of files count as used until somebody needs the room.
        lines = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        used -= next((int(value) for name, value in lines if name == "inactive_file"), 0)
    except (OSError, ValueError):  # no such group, or no limit
        return free
    return max(0, min(free, limit - used))


def check_memory(shape: Sequence[int], dtype: type, *, what: str, instead: str) -> None:
    """Say how large an array will be, if it is large; refuse one for which there is no room.

    Left to the system, memory would be granted first and the process killed when the array is filled.

    Parameters
    ----------
    shape, dtype
        Of the array.
    what
        What it is, for the message.
    instead
        What to do where there is no room.

    Raises
    ------
    MemoryError
        If it takes more than is free.
    """
    needed, free = math.prod(shape) * np.dtype(dtype).itemsize, free_memory()
    size = " x ".join(f"{n:,}" for n in shape)
    if needed > free:
        raise MemoryError(
            f"{what} ({size}, {np.dtype(dtype)}) takes {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free; "
            f"{instead}."
        )
    if needed > _WORTH_SAYING:
        logger.info(
            "%s (%s) takes %.1f GB of memory, of which %.1f GB are free.",
            what,
            size,
            needed / 1e9,
            free / 1e9,
        )
