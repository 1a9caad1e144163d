"""From AnnData to mini-batches: registered fields, counts, splits, loaders."""

from scr2mae.data.cells import MEASURED_COLUMN, Cells, CellSpec, align_genes, read_cells
from scr2mae.data.loaders import BatchSampler, CellDataModule, CellLoader, dense_tensors, sparse_tensors
from scr2mae.data.placement import stays_on_disk
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
    "dense_tensors",
    "open_store",
    "read_cells",
    "sparse_tensors",
    "split_cells",
    "stays_on_disk",
]
