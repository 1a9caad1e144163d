"""Panels in a mini-batch: which genes were measured in each cell, and masks, sums and products over these genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

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
        """Sum values (n_vars, ...) over the genes of each panel; (n_panels, ...)."""
        of_class = values.new_zeros(self.classes.shape[1], *values.shape[1:])
        of_class.index_add_(0, self.gene_class, values)
        return torch.tensordot(self.classes.to(values.dtype), of_class, dims=1)

    def products(self, columns: Tensor, n_rows: int, visible: Tensor | None = None) -> Tensor:
        """Return ``R_p' C_p`` over the visible genes of each panel, (n_panels, ..., n_rows, k).

        ``columns`` C have shape (..., n_vars, k); R are the first ``n_rows`` of the k.
        """
        if columns.device.type == "cpu" and not torch.compiler.is_compiling():
            order = self.gene_class.argsort(stable=True)
            order = order if visible is None else order[visible[order]]
            sizes = self.gene_class[order].bincount(minlength=self.classes.shape[1]).tolist()
            parts = columns.index_select(-2, order).split(sizes, dim=-2)
            of_class = torch.stack([part[..., :n_rows].mT @ part for part in parts])
            return torch.tensordot(self.classes.to(columns.dtype), of_class, dims=1)
        measured = self.classes[:, self.gene_class]
        measured = (measured if visible is None else measured & visible).to(columns.dtype)
        rows = columns[..., :n_rows]
        return torch.stack([(rows * genes.unsqueeze(1)).mT @ columns for genes in measured])

    def log_total(self, logits: Tensor) -> Tensor:
        """Return the log of the sum of ``exp(logits)`` over the measured genes of each cell, (n_obs, 1)."""
        largest = logits.detach().amax(dim=1, keepdim=True)
        measured = self.classes[:, self.gene_class].to(logits.dtype)
        of_panels = (logits - largest).exp() @ measured.T  # (n_obs, n_panels)
        total = of_panels.gather(1, self.of_cell.unsqueeze(1))
        return total.clamp(min=torch.finfo(logits.dtype).tiny).log() + largest

    def means(
        self, values: Tensor, genes: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Average values (n_obs, n_genes) over the measured genes of each cell, (n_obs,), and these over cells.

        A cell so counts as one, whatever its panel; a cell without any of the genes counts as none. Without ``genes``, the
        values are of all genes, of which those in ``mask`` count.
        """
        kept = self.measured(genes)
        if genes is None and mask is not None:
            kept = kept & mask
        n_kept = kept.sum(dim=1)
        of_cells = (values * kept).sum(dim=1) / n_kept.clamp(min=1)
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
        ends = (total / n_measured[-1] * n_measured + chance).floor()
        ends = torch.where(n_measured == n_measured[-1], total, ends)
        n_masked = ends.diff(prepend=ends.new_zeros(1))
        order = mask_words(len(self.gene_class), seed=seed, step=step, device=ends.device).argsort()
        order = order[self.gene_class[order].argsort(stable=True)]  # by class, then by word
        of_class = self.gene_class[order]
        rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[of_class]
        mask = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        mask[order] = rank < n_masked[of_class]
        return mask


def measured_genes(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return the measured genes, boolean, (n_vars,) or, if panels differ, (n_obs, n_vars); None for all."""
    panels = CellPanels.of(tensors)
    return tensors.get(MEASURED_KEY) if panels is None else panels.measured()


def log_means(tensors: Mapping[str, Tensor], logits: Tensor, log_library: Tensor) -> Tensor:
    """Return log means of all counts, (n_obs, n_vars), with the softmax over the measured genes of each cell."""
    panels = CellPanels.of(tensors)
    if panels is None:
        return log_mean_of_counts(logits, log_library, measured=tensors.get(MEASURED_KEY))
    logits = logits.float()
    return logits - panels.log_total(logits) + log_library


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
