"""From AnnData to mini-batches: registered fields, counts, splits, loaders."""

from scr2mae.data.cells import MEASURED_COLUMN, Cells, CellSpec, align_genes, read_cells
from scr2mae.data.loaders import BatchSampler, CellDataModule, CellLoader
from scr2mae.data.splits import Split, split_cells

__all__ = [
    "MEASURED_COLUMN",
    "BatchSampler",
    "CellDataModule",
    "CellLoader",
    "CellSpec",
    "Cells",
    "Split",
    "align_genes",
    "read_cells",
    "split_cells",
]
