"""From AnnData to mini-batches: registered fields, counts, splits, loaders.

Names resolve on first use, so that preparing files does not load PyTorch.
"""

from typing import TYPE_CHECKING

from scr2mae._utils.lazy import lazy_names

if TYPE_CHECKING:
    from scr2mae.data.cells import Cells, CellSpec, read_cells
    from scr2mae.data.embeddings import add_embedding
    from scr2mae.data.genes import align_genes
    from scr2mae.data.joining import find_copies, join_studies
    from scr2mae.data.loaders import BatchSampler, CellDataModule, CellLoader
    from scr2mae.data.panels import MEASURED_COLUMN, Panels
    from scr2mae.data.splits import Split, split_cells
    from scr2mae.data.store import open_store

__all__ = [
    "MEASURED_COLUMN",
    "BatchSampler",
    "CellDataModule",
    "CellLoader",
    "CellSpec",
    "Cells",
    "Panels",
    "Split",
    "add_embedding",
    "align_genes",
    "find_copies",
    "join_studies",
    "open_store",
    "read_cells",
    "split_cells",
]

_SUBMODULES = {
    "cells": ["CellSpec", "Cells", "read_cells"],
    "embeddings": ["add_embedding"],
    "genes": ["align_genes"],
    "joining": ["find_copies", "join_studies"],
    "loaders": ["BatchSampler", "CellDataModule", "CellLoader"],
    "panels": ["MEASURED_COLUMN", "Panels"],
    "splits": ["Split", "split_cells"],
    "store": ["open_store"],
}
__getattr__, __dir__ = lazy_names(
    __name__, objects={name: module for module, names in _SUBMODULES.items() for name in names}
)
