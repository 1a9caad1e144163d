"""Contributions of genes to directions of the embedding, by integrated gradients."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae.model.inference import InferenceMixin
from scr2mae.model.streaming import n_rows, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

__all__ = ["AttributionMixin", "GroupAttributions"]

_BATCH_SIZE = 256  # each cell needs a gradient over all genes per direction


class GroupAttributions(NamedTuple):
    """Means over the cells of each group: attributions (n_groups, n_directions, n_vars), log1p counts (n_groups, n_vars)."""

    attributions: np.ndarray
    expression: np.ndarray


class AttributionMixin(InferenceMixin):
    """``get_gene_attributions``."""

    def get_gene_attributions(
        self,
        directions: np.ndarray,
        groups: np.ndarray,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        n_steps: int = 16,
        batch_size: int | None = None,
    ) -> GroupAttributions:
        """Attribute directions of the embedding to genes by integrated gradients, averaged over groups of cells.

        Parameters
        ----------
        directions
            Weights of the latent dimensions, shape ``(n_latent, n_directions)``.
        groups
            Code of the group of each cell, such as its donor, from 0, shape ``(n_obs,)``.
        adata, indices
            As in :meth:`get_latent_representation`.
        n_steps
            Number of points on the path from the mean profile, at the cell's depth, to the cell.
        batch_size
            Cells per mini-batch.

        Returns
        -------
        ``attributions``, shape ``(n_groups, n_directions, n_vars)``, and ``expression``, the mean ``log1p`` counts of each
        group, shape ``(n_groups, n_vars)``. The attributions of a cell sum to the change of its embedding along the
        direction from the mean profile, with the depth and the covariates of the cell.

        Raises
        ------
        ValueError
            If the shapes do not fit.

        Notes
        -----
        Sundararajan et al. (2017), on a straight line in ``log1p`` counts, with the midpoint rule; exact where the encoder
        is linear in them. The mean profile is that of the shares of the library, so that depth has no part in it. Genes
        that a panel lacks contribute nothing.
        """
        cells, rows = self._trained_cells(adata, indices)
        weights = torch.as_tensor(np.asarray(directions), dtype=torch.float32, device=self.module.device)
        codes = torch.as_tensor(np.asarray(groups), dtype=torch.int64, device=self.module.device)
        n_obs, n_vars = n_rows(cells, rows), self.module.n_vars
        n_latent = self.module.n_latent
        if weights.dim() != 2 or weights.shape[0] != n_latent or codes.shape != (n_obs,) or n_steps < 1:
            raise ValueError(
                f"Wanted directions of shape ({n_latent}, n_directions), {n_obs} groups and n_steps >= 1, got "
                f"{tuple(weights.shape)}, {tuple(codes.shape)} and {n_steps}."
            )
        keys = self._keys(cells, slice(None) if rows is None else rows)
        alignment = self._alignment_for(None, keys)
        options: dict[str, Any] = {"batch_size": batch_size or _BATCH_SIZE, "desc": "Attributing"}
        n_groups = int(codes.max()) + 1
        expression = torch.zeros(n_groups, n_vars, dtype=torch.float64, device=self.module.device)
        size = torch.bincount(codes, minlength=n_groups).double()
        profile = torch.zeros(n_vars, dtype=torch.float64, device=self.module.device)
        for filled, tensors in stream(self.module, cells, rows, **options):
            counts = tensors[REGISTRY_KEYS.X_KEY].double()
            expression.index_add_(0, codes[filled], counts.log1p())
            profile += (counts / self.module.log_library(tensors).exp()).sum(dim=0) / n_obs
        total = torch.zeros(
            n_groups, weights.shape[1], n_vars, dtype=torch.float64, device=self.module.device
        )
        for filled, tensors in stream(self.module, cells, rows, **options):
            inputs = self.module._get_inference_input(tensors)
            x = inputs.pop("counts").float().log1p()
            start = (profile.float() * self.module.log_library(tensors).exp()).log1p()
            align = None if alignment is None else partial(alignment.apply, keys=keys[filled])
            slopes = _mean_gradients(self.module, start, x - start, inputs, weights, n_steps, align)
            total.index_add_(0, codes[filled], (slopes * (x - start)).transpose(0, 1).double())
        divisor = size.clamp(min=1)
        return GroupAttributions(
            (total / divisor[:, None, None]).cpu().numpy(), (expression / divisor[:, None]).cpu().numpy()
        )


def _mean_gradients(
    module: Any,
    start: torch.Tensor,
    change: torch.Tensor,
    covariates: dict[str, Any],
    weights: torch.Tensor,
    n_steps: int,
    align: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """Return gradients averaged over the path, shape (n_directions, n_obs, n_vars)."""
    total = change.new_zeros(weights.shape[1], *change.shape)
    with torch.enable_grad():
        for step in range(n_steps):
            x = (start + (step + 0.5) / n_steps * change).requires_grad_()
            z = module.embedding(module.inference(x.expm1(), **covariates)["z"])
            outputs = ((z if align is None else align(z)) @ weights).sum(dim=0)
            for i, output in enumerate(outputs):
                total[i] += torch.autograd.grad(output, x, retain_graph=i + 1 < len(outputs))[0]
    return total / n_steps
