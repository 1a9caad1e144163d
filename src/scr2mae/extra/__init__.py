"""Backbones for DNA, images and text, on the masking objects, curriculum and training plan of the cells.

Each needs its own optional dependencies: ``scr2mae[dna]``, ``scr2mae[vision]``, ``scr2mae[text]``, or ``scr2mae[extra]`` for
all. Importing this package loads none of them.
"""

from importlib import import_module
from typing import Any

_MODULES = ("dna", "text", "vision")

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"scr2mae.extra.{name}")
    raise AttributeError(f"module 'scr2mae.extra' has no attribute {name!r}; it has {sorted(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
