"""Cells whose studies have measured different genes: codes of gene sets, and iteration by panel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from scr2mae.data.genes import has_nearly_all
from scr2mae.nn.panels import MEASURED_KEY, CellPanels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from scr2mae.data import Cells

__all__ = ["batch_gene_codes", "by_panel", "cell_gene_codes", "gene_code", "lacks_few", "n_unmeasured"]


def gene_code(measured: np.ndarray | None) -> int:
    """Return a number for a set of measured genes; 0 for all."""
    return 0 if measured is None or measured.all() else crc32(np.packbits(measured).tobytes())


def lacks_few(measured: np.ndarray | None) -> bool:
    """Return whether a set of measured genes has nearly all."""
    return measured is None or has_nearly_all(measured)


def cell_gene_codes(
    cells: Cells, indices: np.ndarray | slice, code: Callable[[np.ndarray | None], int] = gene_code
) -> np.ndarray:
    """Return the code of the measured genes of each given cell, (n,); ``code`` computes it."""
    if cells.panels is None:
        return np.full(len(cells.categories[indices]), code(cells.measured))
    return np.array([code(row) for row in cells.panels.measured])[cells.panels.of_cell[indices]]


def batch_gene_codes(
    tensors: Mapping[str, Tensor], n_obs: int, code: Callable[[np.ndarray | None], int] = gene_code
) -> np.ndarray:
    """Return the code of the measured genes of each cell of a mini-batch, (n_obs,); ``code`` computes it."""
    panels = CellPanels.of(tensors)
    if panels is None:
        measured = tensors.get(MEASURED_KEY)
        return np.full(n_obs, code(None if measured is None else measured.cpu().numpy()))
    rows = panels.classes[:, panels.gene_class].cpu().numpy()
    return np.array([code(row) for row in rows])[panels.of_cell.cpu().numpy()]


def by_panel(cells: Cells, indices: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray, Cells]]:
    """Yield positions in the selection, indices and cells of each panel, which is then in ``measured``."""
    indices = np.arange(cells.n_obs) if indices is None else indices
    if cells.panels is None:
        yield np.arange(len(indices)), indices, cells
        return
    codes, measured = cells.panels.of_cell[indices], cells.panels.measured
    for code in np.unique(codes):
        at = np.flatnonzero(codes == code)
        own = None if measured[code].all() else measured[code]
        yield at, indices[at], replace(cells, panels=None, measured=own)


def n_unmeasured(cells: Cells, indices: np.ndarray | None) -> int | np.ndarray:
    """Return the number of genes that were not measured, one per cell if panels differ."""
    if cells.panels is None:
        return 0 if cells.measured is None else int((~cells.measured).sum())
    of_cell = cells.panels.of_cell if indices is None else cells.panels.of_cell[indices]
    return (~cells.panels.measured).sum(axis=1)[of_cell]
