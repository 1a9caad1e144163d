"""Panels: the genes measured in each cell, for training on several studies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

__all__ = ["MEASURED_COLUMN", "Panels", "column_of", "measured_positions"]

MEASURED_COLUMN = "scr2mae_measured"
"""Column of ``adata.var``: False if a gene panel lacks a gene of the reference. In ``adata.varm``, a table with a column
per study."""

_BLOCK = 1 << 22


def column_of(study: str) -> str:
    """Return the column of a study in the table of measured genes; files cannot hold names with a slash."""
    return study.replace("/", "|")


def measured_positions(var: pd.DataFrame, position: np.ndarray) -> np.ndarray:
    """Return positions of genes in a table, with -1 also for those that its column of measured genes rules out."""
    if MEASURED_COLUMN not in var:
        return position
    return np.where((position >= 0) & var[MEASURED_COLUMN].to_numpy(dtype=bool)[position], position, -1)


@dataclass(frozen=True)
class Panels:
    """Panels of several studies, by classes of genes that the same panels measure.

    Neither the order of studies nor equal panels of two of them change the result of training.

    Attributes
    ----------
    of_cell
        Panel of each cell, int64, shape (n_obs,).
    classes
        Whether a panel measures the genes of a class, boolean, shape (n_panels, n_classes).
    gene_class
        Class of each gene, int64, shape (n_vars,).
    """

    of_cell: np.ndarray
    classes: np.ndarray
    gene_class: np.ndarray

    @classmethod
    def from_table(cls, measured: np.ndarray, studies: np.ndarray) -> Panels:
        """Return the panels of cells.

        Parameters
        ----------
        measured
            Boolean, shape (n_vars, n_studies).
        studies
            Study of each cell, int64, shape (n_obs,).

        Returns
        -------
        Different panels of studies that have cells, in an order that depends only on their genes.
        """
        used, inverse = np.unique(studies, return_inverse=True)
        tables, panel = np.unique(measured[:, used].T, axis=0, return_inverse=True)
        columns, gene_class = np.unique(tables, axis=1, return_inverse=True)
        return cls(panel.reshape(-1)[inverse.reshape(-1)], columns, gene_class.reshape(-1).astype(np.int64))

    @property
    def measured(self) -> np.ndarray:
        """Genes of each panel, boolean, shape (n_panels, n_vars)."""
        return self.classes[:, self.gene_class]

    def take(self, indices: np.ndarray | slice) -> Panels:
        """Return the panels of the given cells, with the same codes.

        Parameters
        ----------
        indices
            Positions of the cells, shape (n,), or a slice.

        Returns
        -------
        The panels.
        """
        return replace(self, of_cell=self.of_cell[indices])

    def first_unmeasured(self, counts: sparse.csr_matrix) -> tuple[int, np.ndarray] | None:
        """Find counts in genes that were not measured.

        Parameters
        ----------
        counts
            Counts of these cells, shape (n_obs, n_vars).

        Returns
        -------
        The first such gene and the rows that have counts of it, or None.
        """
        lengths = np.diff(counts.indptr)
        for start in range(0, len(counts.data), _BLOCK):
            stop = min(start + _BLOCK, len(counts.data))
            first, last = np.searchsorted(counts.indptr, [start, stop - 1], side="right") - 1
            bounds = np.clip(counts.indptr[first : last + 2], start, stop)
            panel = np.repeat(self.of_cell[first : last + 1], np.diff(bounds))
            genes = counts.indices[start:stop]
            wrong = ~self.classes[panel, self.gene_class[genes]] & (counts.data[start:stop] != 0)
            if wrong.any():
                gene = int(genes[int(wrong.argmax())])
                of_gene = (counts.indices == gene) & (counts.data != 0)
                rows = np.repeat(np.arange(len(lengths)), lengths)[of_gene]
                return gene, rows[~self.measured[self.of_cell[rows], gene]]
        return None
