"""Start values of the default network where studies have measured different genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from scr2mae.nn.panels import CellPanels

__all__ = ["panel_components", "panel_frequencies", "panel_theta"]

_ROUNDS = 8  # more change scores by less than a hundredth of their spread
_N_SCALINGS = 100


def panel_frequencies(counts: Tensor, log_library: Tensor, panels: CellPanels, *, is_total: bool) -> Tensor:
    """Return frequencies f of all genes, (n_vars,), by the maximum likelihood of ``x_ng ~ Poisson(s_n f_g)``.

    The scale ``s_n`` of a cell is its library over the share of f that its panel has measured, found by alternating, or
    with a size factor (``is_total=False``) the library itself. Half a cell with the mean non-zero count is added to each
    gene, as in :func:`scr2mae.nn.projection.measure_counts`.
    """
    n_panels = len(panels.classes)
    library = log_library.double().exp().squeeze(1)
    exposure = torch.zeros(n_panels, dtype=torch.float64).index_add_(0, panels.of_cell, library)
    total = counts.sum(dim=0, dtype=torch.float64)
    mean_non_zero = (total.sum() / counts.count_nonzero().clamp(min=1)).clamp(min=1.0)
    total += 0.5 * mean_non_zero
    measured = panels.classes[:, panels.gene_class].double()  # (n_panels, n_vars)
    # A gene that no study has measured counts as never detected.
    measured = torch.where(measured.any(dim=0), measured, 1.0)
    frequencies = total / total.sum()
    for _ in range(_N_SCALINGS if is_total else 1):
        share = measured @ frequencies if is_total else torch.ones(n_panels, dtype=torch.float64)
        rates = total / ((exposure / share.clamp(min=1e-12)) @ measured).clamp(min=1e-12)
        frequencies = rates / rates.sum()
    return frequencies.float()


def panel_theta(counts: Tensor, library: Tensor, frequencies: Tensor, panels: CellPanels) -> Tensor:
    """Return dispersions from moments over the cells in which a gene was measured, (n_vars,).

    ``library`` (n_obs, 1) is that of all genes.
    """
    squares, excess = torch.zeros((2, counts.shape[1]), dtype=torch.float64)
    for x, n, of_cell in zip(
        counts.split(1024), library.split(1024), panels.of_cell.split(1024), strict=True
    ):
        measured = panels._replace(of_cell=of_cell).measured()
        mean = n * frequencies * measured
        squares += mean.square().sum(dim=0, dtype=torch.float64)
        excess += (((x - mean).square() - mean) * measured).sum(dim=0, dtype=torch.float64)
    mean_non_zero = (counts.sum(dtype=torch.float64) / counts.count_nonzero().clamp(min=1)).clamp(min=1.0)
    excess += 0.5 * mean_non_zero**2
    return (squares / excess.clamp(min=1e-8)).clamp(1e-4, 1e3).float()


def panel_components(
    features: Tensor, panels: CellPanels, components: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit principal axes to features (n_obs, n_vars), some of which were not measured.

    Alternates between replacing unmeasured features by conditional means given the rest and improving the axes by one
    subspace iteration. ``components`` returns the initial axes, those of complete features.

    Returns centers (n_vars,), axes (n_vars, k), variances of the scores (k,) and the mean squared residual per gene.
    """
    measured = panels.measured()
    n_measured = measured.sum(dim=0)
    center = (features * measured).sum(dim=0) / n_measured.clamp(min=1)
    x = torch.where(measured, features - center, 0.0)
    axes = components(x)
    varies = n_measured.bool() & x.any(dim=0)
    for _ in range(_ROUNDS):
        scores = _scores(x, axes, measured, panels)
        x = torch.where(measured, x, scores @ axes.T)
        axes = torch.linalg.qr(x.T @ (x @ axes)).Q * varies.unsqueeze(1)
    scores = x @ axes
    variances, rotation = torch.linalg.eigh((scores.T @ scores / len(x)).double())
    axes = axes @ rotation.flip(1).float()
    noise = _residual(x, axes, measured) * measured.sum() / (measured * varies).sum().clamp(min=1)
    return center, axes, variances.flip(0).clamp(min=0).float(), noise


def _residual(x: Tensor, axes: Tensor, measured: Tensor) -> Tensor:
    """Return the mean squared residual of the measured features."""
    rest = torch.where(measured, x - (x @ axes) @ axes.T, 0.0)
    return rest.square().sum() / measured.sum().clamp(min=1)


def _scores(x: Tensor, axes: Tensor, measured: Tensor, panels: CellPanels) -> Tensor:
    """Return conditional means of the scores given the measured features, (n_obs, k)."""
    variances = (x @ axes).square().mean(dim=0)
    ratio = (_residual(x, axes, measured) / variances.clamp(min=1e-6 * variances.max() + 1e-9)).clamp(
        min=1e-6
    )
    seen = torch.where(measured, x, 0.0) @ axes
    scores = torch.empty_like(seen)
    for panel, gram in enumerate(panels.products(axes, axes.shape[1])):
        rows = panels.of_cell == panel
        scores[rows] = torch.linalg.solve(gram + ratio.diag(), seen[rows].T).T
    return scores
