"""From AnnData to mini-batches: registered fields, counts, splits, loaders.

Names resolve on first use, so that preparing files does not load PyTorch.
"""

from typing import TYPE_CHECKING

from scr2mae._utils.lazy import lazy_names

if TYPE_CHECKING:
    from scr2mae.data.cells import MEASURED_COLUMN, Cells, CellSpec, read_cells
    from scr2mae.data.genes import align_genes
    from scr2mae.data.loaders import BatchSampler, CellDataModule, CellLoader
    from scr2mae.data.splits import Split, split_cells
    from scr2mae.data.store import open_store

__all__ = [
    "MEASURED_COLUMN",
    "BatchSampler",
    "CellDataModule",
    "CellLoader",
    "CellSpec",
    "Cells",
    "Split",
    "align_genes",
    "open_store",
    "read_cells",
    "split_cells",
]

_SUBMODULES = {
    "cells": ["MEASURED_COLUMN", "CellSpec", "Cells", "read_cells"],
    "genes": ["align_genes"],
    "loaders": ["BatchSampler", "CellDataModule", "CellLoader"],
    "splits": ["Split", "split_cells"],
    "store": ["open_store"],
}
__getattr__, __dir__ = lazy_names(
    __name__, objects={name: module for module, names in _SUBMODULES.items() for name in names}
)
