"""Panels in a mini-batch: which genes were measured in each cell, and masks, sums and products over these genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from scr2mae._utils.splitmix import hash_integers
from scr2mae.masking import mask_words
from scr2mae.nn.likelihood import log_mean_of_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MEASURED_KEY",
    "PANEL_KEYS",
    "CellPanels",
    "cell_means",
    "log_means",
    "measured_genes",
    "scored_rows",
]

MEASURED_KEY = "measured"
"""Optional entry of a mini-batch: boolean (n_vars,), False for genes that the panel of all its cells lacks."""

PANEL_KEYS = ("panel", "panel_classes", "gene_class")
"""Optional entries of a mini-batch with several panels: the fields of :class:`CellPanels`."""


_CLASS_STREAM = 4  # of random words; masking.py has the others
_LOG_ZERO = -1e4  # its exponential is zero, and so is its product with a count of zero


class CellPanels(NamedTuple):
    """Panels by classes of genes: the genes of a class are measured by the same panels."""

    of_cell: Tensor  # int64, (n_obs,)
    classes: Tensor  # boolean, (n_panels, n_classes)
    gene_class: Tensor  # int64, (n_vars,)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> CellPanels | None:
        """Return the panels of a mini-batch; None if all cells have the same."""
        return cls(*(tensors[key] for key in PANEL_KEYS)) if PANEL_KEYS[0] in tensors else None

    def measured(self, genes: Tensor | None = None) -> Tensor:
        """Return which of the genes were measured in each cell, boolean, (n_obs, n_genes)."""
        gene_class = self.gene_class if genes is None else self.gene_class.index_select(0, genes)
        return self.classes.index_select(1, gene_class).index_select(0, self.of_cell)

    def sums(self, values: Tensor) -> Tensor:
        """Sum values (n_vars,) or (n_vars, k) over the genes of each panel; (n_panels,) or (n_panels, k)."""
        return self.classes[:, self.gene_class].to(values.dtype) @ values

    def products(self, columns: Tensor, n_rows: int, genes: Tensor | None = None) -> Tensor:
        """Return ``R_p' C_p`` over the genes of each panel, (n_panels, ..., n_rows, k).

        ``columns`` C have shape (..., n_genes, k), for the given genes or all; R are the first ``n_rows`` of the k.
        """
        measured = self.classes[:, self.gene_class if genes is None else self.gene_class[genes]]
        if columns.device.type != "cpu" or torch.compiler.is_compiling():
            rows = [columns[..., :n_rows] * own.unsqueeze(1) for own in measured]
            return torch.stack([each.mT @ columns for each in rows])
        # Sum over the fewer genes: those that a panel has, or those that it lacks.
        is_small = 2 * measured.sum(dim=1) < measured.shape[1]
        counted = measured ^ ~is_small.unsqueeze(1)
        parts = columns.index_select(-2, counted.nonzero()[:, 1]).split(counted.sum(dim=1).tolist(), dim=-2)
        found = torch.stack([part[..., :n_rows].mT @ part for part in parts])
        total = columns[..., :n_rows].mT @ columns
        return torch.where(is_small.view(-1, *[1] * total.ndim), found, total - found)

    def means(
        self, values: Tensor, genes: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Average values (n_obs, n_genes) over the measured genes of each cell, (n_obs,), and the averages over cells.

        Cells have equal weight, whatever their panel; a cell without any of the genes is left out. Without ``genes``, the
        values are of all genes, and only those in ``mask`` count.
        """
        kept = self.classes.index_select(1, self.gene_class if genes is None else self.gene_class[genes])
        if genes is None and mask is not None:
            kept = kept & mask
        n_kept = kept.sum(dim=1).index_select(0, self.of_cell)
        of_cells = (values * kept.to(values.dtype).index_select(0, self.of_cell)).sum(dim=1) / n_kept.clamp(
            min=1
        )
        return of_cells, of_cells.sum() / (n_kept > 0).sum().clamp(min=1)

    def exposure(self) -> Tensor:
        """Return the share of the loss that each gene has if all measured genes are scored, float32, (n_vars,)."""
        n_cells = self.of_cell.bincount(minlength=len(self.classes)).float()
        sizes = self.gene_class.bincount(minlength=self.classes.shape[1])
        n_genes = (self.classes * sizes).sum(dim=1).clamp(min=1)  # per panel
        return ((n_cells / n_genes) @ self.classes.float())[self.gene_class] / n_cells.sum()

    def draw_mask(self, ratio: float, *, seed: int, step: int) -> Tensor:
        """Mask a share of the genes of each class, so of each panel up to one gene per class; boolean, (n_vars,).

        With a single class this is :func:`scr2mae.masking.draw_mask`.
        """
        is_used = self.classes.any(dim=0)
        sizes = self.gene_class.bincount(minlength=len(is_used))
        n_measured = (sizes * is_used).cumsum(0)
        total = torch.minimum((ratio * n_measured[-1].double()).round().clamp(min=1), n_measured[-1] - 1)
        # Rounded up or down by chance, so that a class of one gene is masked as often as the others.
        chance = (hash_integers(seed, _CLASS_STREAM, step) >> 11) / (1 << 53)
        # In this order, the last of the ends is the total.
        ends = (total * n_measured / n_measured[-1] + chance).floor()
        n_masked = ends.diff(prepend=ends.new_zeros(1))
        order = mask_words(len(self.gene_class), seed=seed, step=step, device=ends.device).argsort()
        of_class = self.gene_class.index_select(0, order)
        of_class, by_class = of_class.sort(stable=True)  # by class, then by word
        ends = (sizes.cumsum(0) - sizes + n_masked).index_select(0, of_class)
        is_masked = torch.arange(len(order), device=order.device) < ends
        return torch.empty_like(is_masked).scatter_(0, order.index_select(0, by_class), is_masked)


def measured_genes(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the measured genes, boolean, (n_vars,) or, if panels differ, (n_obs, n_vars); None for all."""
    panels = CellPanels.of(tensors)
    return tensors.get(MEASURED_KEY) if panels is None else panels.measured()


def log_means(
    tensors: Mapping[str, Tensor], logits: Tensor, log_library: Tensor, genes: Tensor | None = None
) -> Tensor:
    """Return log means of counts, (n_obs, n_genes), with the softmax over the measured genes of each cell.

    If panels differ, the mean of what was not measured is zero.
    """
    panels = CellPanels.of(tensors)
    if panels is None:
        log_mean = log_mean_of_counts(logits, log_library, measured=tensors.get(MEASURED_KEY))
    else:
        lacking = torch.where(panels.classes, 0.0, _LOG_ZERO).index_select(1, panels.gene_class)
        log_mean = log_softmax(logits.float() + lacking.index_select(0, panels.of_cell), dim=1) + log_library
    return log_mean if genes is None else log_mean.index_select(1, genes)


def cell_means(
    tensors: Mapping[str, Tensor], values: Tensor, genes: Tensor | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average values (n_obs, n_genes) over genes, (n_obs,), and over all, by :meth:`CellPanels.means` if panels differ."""
    panels = CellPanels.of(tensors)
    return (values.mean(dim=1), values.mean()) if panels is None else panels.means(values, genes, mask)


def scored_rows(tensors: Mapping[str, Tensor], *, per_cell: bool) -> Tensor | None:
    """Return which genes a curriculum balances, or with several panels the share of each in the loss; None for all."""
    panels = CellPanels.of(tensors)
    if panels is None:
        return tensors.get(MEASURED_KEY)
    return panels.measured() if per_cell else panels.exposure()
