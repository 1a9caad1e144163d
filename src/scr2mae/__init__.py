"""Self-supervised single-cell embeddings with a masking ratio redrawn for every mini-batch.

Every public name resolves lazily (PEP 562), so ``import scr2mae``, ``scr2mae.theory`` and
``scr2mae --help`` load neither torch nor scvi-tools.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scr2mae._schemes import schemes
    from scr2mae.model import R2MAEModel

__version__ = version("scr2mae")

_OBJECTS = {"R2MAEModel": "scr2mae.model", "schemes": "scr2mae._schemes"}
_MODULES = (
    "benchmark",
    "curriculum",
    "data",
    "datasets",
    "extra",
    "likelihood",
    "masking",
    "metrics",
    "pl",
    "probe",
    "theory",
)

__all__ = ["R2MAEModel", "schemes", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        return getattr(import_module(_OBJECTS[name]), name)
    if name in _MODULES:
        return import_module(f"scr2mae.{name}")
    raise AttributeError(f"module 'scr2mae' has no attribute {name!r}; it has {sorted(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
