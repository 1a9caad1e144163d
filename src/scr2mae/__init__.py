"""Self-supervised single-cell embeddings with a masking ratio redrawn for every mini-batch.

Every public name resolves on first use (PEP 562), so ``import scr2mae``, ``scr2mae.theory`` and
``scr2mae --help`` load neither torch nor scvi-tools.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from scr2mae._utils.lazy import lazy_names

if TYPE_CHECKING:
    from scr2mae._paper import paper, schemes
    from scr2mae.model import R2MAEModel

__version__ = version("scr2mae")

_MODULES = (
    "benchmark",
    "data",
    "datasets",
    "extra",
    "masking",
    "metrics",
    "nn",
    "pl",
    "probe",
    "theory",
    "train",
)

__all__ = ["R2MAEModel", "paper", "schemes", *_MODULES]

__getattr__, __dir__ = lazy_names(
    __name__, modules=_MODULES, objects={"R2MAEModel": "model", "paper": "_paper", "schemes": "_paper"}
)
