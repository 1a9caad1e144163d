"""Fixed linear path of the encoder: principal components, and start values measured on the training cells."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from scr2mae.nn.panel_start import panel_components

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scr2mae.nn.layers import SparseRows
    from scr2mae.nn.panels import CellPanels

__all__ = ["LinearPath", "measure_counts"]

# Measured on seven sets: residuals at full weight lose cell types.
_WEIGHTS = {"logged": 1.0, "residual": 0.5}
_CLIP = 5.0  # residuals beyond five standard deviations come from single cells
_THETA = 100.0  # overdispersion of the residuals, as in Lause et al. (2021)


class _PanelProducts(NamedTuple):
    """Products of the components over the genes of each panel."""

    columns: Tensor  # axes, then centers less the features of a count of zero, (2, n_vars, k + 1)
    scale: Tensor  # (2,)
    noise: Tensor  # (2, k)
    whole: Tensor  # of axes and columns, over all genes of a panel, (n_panels, 2, k, k + 1)

    def of_visible(self, visible: Tensor | None, panels: CellPanels) -> Tensor:
        """Return the products over the visible genes of each panel, by the visible or the hidden ones if these are fewer."""
        if visible is None:
            return self.whole
        n_rows = self.whole.shape[-2]
        if visible.device.type != "cpu" or torch.compiler.is_compiling():
            return panels.products(self.columns * visible.unsqueeze(1), n_rows)
        is_few = 2 * int(visible.count_nonzero()) < len(visible)
        genes = (visible if is_few else ~visible).nonzero().squeeze(1)
        part = panels.products(self.columns.index_select(1, genes), n_rows, genes)
        return part if is_few else self.whole - part


class LinearPath(nn.Module):
    """Scores of a cell on principal components that are fitted once and do not learn.

    With ``y = counts / library * median library``, frequencies ``f`` of the genes and ``m = f * median library``, the
    two blocks are the leading components of ``log1p(y)`` and, at half the weight, of Pearson residuals
    ``clip((y - m) / sqrt(m + m^2 / 100))``.

    If only some genes are visible, masked in training or measured by a panel, scores are their conditional mean given
    those genes, under probabilistic principal components with axes W, variances L and the mean noise s per gene:
    ``(W_v' W_v + s / L)^-1 (1 + s / L) W_v' x_v``, which is ``W' x`` if all are visible.
    """

    spread = 3.0  # root mean square length of the first block's scores; suits the decoder's learning rate
    frequencies: Tensor
    median_library: Tensor

    def __init__(self, n_vars: int, n_components: int) -> None:
        super().__init__()
        self.n_components = min(n_components, n_vars)
        self._kept: tuple[list[tuple[int, int]], tuple[Tensor, Tensor], _PanelProducts] | None = None
        self.register_buffer("frequencies", torch.full((n_vars,), 1.0 / n_vars))
        self.register_buffer("median_library", torch.zeros(()))
        for name in _WEIGHTS:
            self.register_buffer(f"{name}_center", torch.zeros(n_vars))
            self.register_buffer(f"{name}_axes", torch.zeros(n_vars, self.n_components))
            self.register_buffer(f"{name}_noise", torch.ones(self.n_components))  # relative to the variances

    @property
    def is_fitted(self) -> bool:
        """Whether components have been fitted."""
        return bool(self.median_library > 0)

    def forward(
        self,
        counts: Tensor,
        log_library: Tensor,
        visible: Tensor | None = None,
        panels: CellPanels | None = None,
    ) -> Tensor:
        """Map counts (n_obs, n_vars) and log libraries of all genes (n_obs, 1) to scores (n_obs, 2 * n_components)."""
        # Scores are small differences of large sums, which half precision would round away.
        with torch.autocast(counts.device.type, enabled=False):
            features = self._features(counts.float() * self._factor(log_library), slice(None))
            if panels is not None:
                differences = [
                    partial(_product, x, z) for x, z in zip(features, self._at_zero(), strict=True)
                ]
                return self._panel_scores(differences, visible, panels)
            centers, axes, solved = self._blocks(visible)
            scores = [x @ w - center @ w for x, center, w in zip(features, centers, axes, strict=True)]
            return self._join(scores, solved)

    def forward_sparse(
        self,
        rows: SparseRows,
        log_library: Tensor,
        visible: Tensor | None = None,
        panels: CellPanels | None = None,
    ) -> Tensor:
        """Map rows given by their non-zeros, as :meth:`forward` does."""
        factor = self._factor(log_library).squeeze(1).repeat_interleave(rows.lengths())
        genes = rows.columns.long()
        features = self._features(rows.values * factor, genes)
        if panels is not None:
            zeros = self._at_zero()
            blocks = [rows._replace(values=x - at[genes]) for x, at in zip(features, zeros, strict=True)]
            return self._panel_scores([block.matmul for block in blocks], visible, panels)
        centers, axes, solved = self._blocks(visible)
        scores = []
        for x, zero, center, w in zip(features, self._at_zero(), centers, axes, strict=True):
            shifted = rows._replace(values=x - zero[genes])  # what zeros add is the same for every cell
            scores.append(shifted.matmul(w) - (center - zero) @ w)
        return self._join(scores, solved)

    def _factor(self, log_library: Tensor) -> Tensor:
        return (-log_library.float()).exp() * self.median_library

    def _features(self, y: Tensor, genes: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Transform normalized counts of the given genes, which are overwritten."""
        mean = self.frequencies[genes] * self.median_library
        scale = (mean + mean.square() / _THETA).rsqrt()
        residual = (y * scale).sub_(mean * scale).clamp_(-_CLIP, _CLIP)
        return y.log1p_(), residual

    def _at_zero(self) -> tuple[Tensor, Tensor]:
        return self._features(torch.zeros_like(self.frequencies), slice(None))

    def _panel_scores(
        self, products: Sequence[Callable[[Tensor], Tensor]], visible: Tensor | None, panels: CellPanels
    ) -> Tensor:
        """Return conditional means of the scores of cells with different panels.

        ``products`` multiply the features, less those of a count of zero, by axes: genes that were not measured add nothing.
        """
        known = self._panel_products(panels)
        found = known.of_visible(visible, panels)
        gram = found[..., :-1] / known.scale[:, None, None] + known.noise.diag_embed()
        # Symmetric and, due to the noise, invertible; a check would make a GPU's host wait.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(gram).L)  # (n_panels, 2, k, k)
        cell = torch.arange(len(panels.of_cell), device=gram.device)
        scores = []
        for i, product in enumerate(products):
            axes = known.columns[i, :, :-1]
            centered = product(axes if visible is None else axes * visible.unsqueeze(1))
            centered = centered - found[:, i, :, -1].index_select(0, panels.of_cell)
            of_panels = centered @ inverse[:, i]  # (n_panels, n_obs, k)
            scores.append(of_panels[panels.of_cell, cell] * (1 + known.noise[i]))
        return torch.cat(scores, dim=1)

    def _panel_products(self, panels: CellPanels) -> _PanelProducts:
        """Return products that do not depend on cells and masks, cached on a CPU until panels or components change."""
        is_kept = panels.of_cell.device.type == "cpu" and not torch.compiler.is_compiling()
        versions = [(b.data_ptr(), b._version) for b in self.buffers(recurse=False)] if is_kept else []
        if is_kept and self._kept is not None:
            of_versions, of_panels, known = self._kept
            if of_versions == versions and all(map(torch.equal, of_panels, panels[1:])):
                return known
        centers, axes, _ = self._blocks(None)
        shifts = torch.stack([center - zero for center, zero in zip(centers, self._at_zero(), strict=True)])
        columns = torch.cat([axes, shifts.unsqueeze(2)], dim=2)
        scale = axes.square().sum(dim=1).amax(dim=1).clamp(min=1e-12)
        noise = torch.stack([getattr(self, f"{name}_noise") for name in _WEIGHTS])
        known = _PanelProducts(columns, scale, noise, panels.products(columns, self.n_components))
        if is_kept:
            self._kept = versions, panels[1:], known
        return known

    def _blocks(self, visible: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Return centers, axes with zeros for hidden genes, and the matrix from products with them to conditional means."""
        centers, axes, noise = (
            [getattr(self, f"{name}_{part}") for name in _WEIGHTS] for part in ("center", "axes", "noise")
        )
        if visible is None:
            return centers, torch.stack(axes), None
        stacked = torch.stack(axes)
        scale = stacked.square().sum(dim=1).amax(dim=1).clamp(min=1e-12)
        seen = stacked * visible.unsqueeze(1)
        gram = seen.mT @ seen / scale[:, None, None]  # of axes of length one
        added = torch.stack(noise).diag_embed()
        # A check for singular matrices would make the host wait for a GPU; the noise makes them invertible.
        solved, _ = torch.linalg.solve_ex(
            gram + added, torch.eye(self.n_components, device=gram.device) + added
        )
        return centers, seen, solved

    @staticmethod
    def _join(scores: list[Tensor], solved: Tensor | None) -> Tensor:
        if solved is not None:
            scores = [s @ each for s, each in zip(scores, solved, strict=True)]
        return torch.cat(scores, dim=1)

    def fit(
        self,
        counts: Tensor,
        library: Tensor,
        frequencies: Tensor,
        *,
        seed: int,
        panels: CellPanels | None = None,
    ) -> None:
        """Fit to counts (n_obs, n_vars) with libraries of all genes (n_obs, 1); deterministic for a seed."""
        self.frequencies.copy_(frequencies)
        self.median_library.copy_(library.median())
        counts, library = counts.to(self.frequencies.device), library.to(self.frequencies.device)
        for i, (name, weight) in enumerate(_WEIGHTS.items()):
            features = self._features(counts * (self.median_library / library), slice(None))[i]
            if panels is not None:
                components = partial(_components, n_components=self.n_components, seed=seed)
                center, axes, variances, noise = panel_components(features, panels, components)
            else:
                center = features.mean(dim=0)
                axes = _components(features.sub_(center), self.n_components, seed=seed)
                variances = (features @ axes).square().mean(dim=0)
                varies = features.any(dim=0).sum().clamp(min=1)
                noise = (features.square().mean(dim=0).sum() - variances.sum()).clamp(min=1e-6) / varies
            getattr(self, f"{name}_center").copy_(center)
            getattr(self, f"{name}_axes").copy_(
                axes * (weight * self.spread / variances.sum().sqrt().clamp(min=1e-6))
            )
            getattr(self, f"{name}_noise").copy_(noise / variances.clamp(min=1e-6 * variances.max() + 1e-9))


def _product(x: Tensor, zero: Tensor, axes: Tensor) -> Tensor:
    """Return ``(x - zero) axes`` without a copy of x."""
    return x @ axes - zero @ axes


# Many small factorizations: threads that wait for each other cost fifty times the time on a busy machine.
@threadpool_limits.wrap(limits=1, user_api="blas")
def _components(centered: Tensor, n_components: int, *, seed: int) -> Tensor:
    """Return the leading principal axes, shape (n_vars, n_components); zeros where the rank is lower."""
    axes = torch.zeros(centered.shape[1], n_components)
    n_found = min(n_components, centered.shape[0] - 1)
    if n_found > 0 and bool(centered.any()):
        *_, found = randomized_svd(centered.cpu().numpy(), n_found, n_iter=4, random_state=seed)
        axes[:, :n_found] = torch.from_numpy(np.ascontiguousarray(found.T))
        axes[~centered.cpu().any(dim=0)] = 0.0  # exactly zero for constant genes
    return axes.to(centered.device)


def measure_counts(counts: Tensor, library: Tensor) -> tuple[Tensor, Tensor]:
    """Return frequencies and dispersions theta of the genes, both of shape (n_vars,), as a start for training.

    Half a cell with the mean non-zero count c is added to each gene's statistics. A gene that is rare but high where
    it is detected, as without unique molecular identifiers, starts with a wide distribution: with the mean
    ``m_g = library * f_g``, ``theta_g = sum m_g^2 / (sum (x_g - m_g)^2 + c^2 / 2 - sum m_g)``.
    """
    total = counts.sum(dtype=torch.float64)
    mean_non_zero = (total / counts.count_nonzero().clamp(min=1)).clamp(min=1.0)
    of_genes = counts.sum(dim=0, dtype=torch.float64) + 0.5 * mean_non_zero
    frequencies = (of_genes / of_genes.sum()).float()
    squares, excess = torch.zeros((2, counts.shape[1]), dtype=torch.float64)
    for x, n in zip(counts.split(1024), library.split(1024), strict=True):
        mean = n * frequencies
        squares += mean.square().sum(dim=0, dtype=torch.float64)
        excess += ((x - mean).square() - mean).sum(dim=0, dtype=torch.float64)
    excess += 0.5 * mean_non_zero**2
    return frequencies, (squares / excess.clamp(min=1e-8)).clamp(1e-4, 1e3).float()
