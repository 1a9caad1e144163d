"""Counts that a trained model predicts: parameters of their distribution, and draws from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.memory import check_array
from scr2mae.model.base import CellModel, check_integer
from scr2mae.model.inference import InferenceMixin
from scr2mae.model.scvi_words import understands_scvi
from scr2mae.model.selection import batch_codes, gene_folds, gene_indices
from scr2mae.model.streaming import n_rows, stream
from scr2mae.nn.likelihood import log_mean_of_counts
from scr2mae.nn.panels import measured_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor


class PredictiveMixin(InferenceMixin, CellModel):
    """``get_likelihood_parameters``, ``get_pearson_residuals`` and ``posterior_predictive_sample``."""

    @understands_scvi
    @torch.inference_mode()
    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        batch_size: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Return mean and dispersion of the negative binomial of every count, given the embedding.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        ``mean`` and ``dispersions``, float32, shape ``(n_obs, n_vars)``; a count has variance ``mean + mean**2 / dispersion``.
        Exact, since the embedding is deterministic.
        """
        cells, rows = self._trained_cells(adata, indices)
        shape = n_rows(cells, rows), self.module.n_vars
        check_array(shape, np.float32, "The means", advice="predict some of the cells at a time by indices=")
        means = np.empty(shape, dtype=np.float32)
        for filled, tensors in stream(self.module, cells, rows, batch_size, desc="Predicting"):
            means[filled] = self._log_mean(tensors).exp().cpu().numpy()
        theta = self.module.log_theta.exp().cpu().numpy()
        return {"mean": means, "dispersions": np.broadcast_to(theta, shape).copy()}

    @understands_scvi
    @torch.inference_mode()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        transform_batch: str | int | None = None,
        n_samples: int = 1,
        gene_list: str | Sequence[str] | None = None,
        *,
        batch_size: int | None = None,
        n_folds: int | None = None,
        seed: int = 0,
    ) -> Any:
        """Draw counts from the negative binomial given the embedding, for predictive checks.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        transform_batch
            Batch to decode all cells as; None for each cell's own.
        n_samples
            Number of draws per count.
        gene_list
            Genes to return, or one of them; None for all.
        n_folds
            Number of folds of genes, each hidden from the encoder while its counts are drawn, so a draw does
            not depend on the count it is compared with. None hides nothing.
        seed
            Seed for the draws and the folds.

        Returns
        -------
        ``sparse.GCXS`` of counts, shape ``(n_obs, n_genes)``, or ``(n_obs, n_genes, n_samples)`` for several draws.
        ``scvi.criticism.PosteriorPredictiveCheck`` takes it.
        """
        import sparse

        check_integer("n_samples", n_samples, smallest=1)
        seed = check_integer("seed", seed, smallest=0)
        if n_folds is not None:
            check_integer("n_folds", n_folds, smallest=2)
        genes, codes = gene_indices(self.spec, gene_list), batch_codes(self.spec, transform_batch)
        cells, rows = self._trained_cells(adata, indices)
        measured = np.ones(self.module.n_vars, dtype=bool) if cells.measured is None else cells.measured
        folds = [] if n_folds is None else list(map(torch.from_numpy, gene_folds(measured, n_folds, seed)))
        rng = np.random.default_rng(seed)
        theta = self.module.log_theta.exp().cpu().numpy().astype(np.float64)[genes, None]
        drawn = []
        for _, tensors in stream(self.module, cells, rows, batch_size, desc="Drawing"):
            if codes[0] is not None:
                own = tensors[REGISTRY_KEYS.BATCH_KEY]
                tensors[REGISTRY_KEYS.BATCH_KEY] = torch.full_like(own, codes[0])
            mean = self._mean_in_folds(tensors, folds).cpu().numpy().astype(np.float64)[:, genes, None]
            rate = rng.gamma(theta, mean / theta, size=(*mean.shape[:2], n_samples))
            drawn.append(sparse.COO.from_numpy(rng.poisson(rate).astype(np.float32)))
        empty = sparse.COO.from_numpy(np.zeros((0, len(genes), n_samples), dtype=np.float32))
        counts = sparse.concatenate(drawn, axis=0) if drawn else empty
        return sparse.GCXS(counts[:, :, 0] if n_samples == 1 else counts, compressed_axes=(0,))

    @torch.inference_mode()
    def get_pearson_residuals(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        clip: float = 10.0,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Return counts less their predicted means, in standard deviations of the predicted distribution.

        The network sees the counts that it predicts. Single residuals are noisy; averaged over similar cells, they show
        genes that the network does not expect in these cells.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        clip
            Largest absolute value, above 0.

        Returns
        -------
        float32, shape ``(n_obs, n_vars)``; NaN for genes that were not measured.

        Raises
        ------
        ValueError
            If ``clip`` is not above 0.
        """
        if not clip > 0:
            raise ValueError(f"clip must be above 0, got {clip!r}.")
        cells, rows = self._trained_cells(adata, indices)
        shape = n_rows(cells, rows), self.module.n_vars
        check_array(shape, np.float32, "The residuals", advice="take some of the cells at a time by indices=")
        residuals = np.empty(shape, dtype=np.float32)
        inverse = (-self.module.log_theta).exp()
        for filled, tensors in stream(self.module, cells, rows, batch_size, desc="Predicting"):
            mean = self._log_mean(tensors).exp()
            scale = (mean + mean.square() * inverse).clamp(min=1e-12).rsqrt()
            found = ((tensors[REGISTRY_KEYS.X_KEY] - mean) * scale).clamp(-clip, clip)
            if (measured := measured_genes(tensors)) is not None:
                found = found.masked_fill(~measured, torch.nan)
            residuals[filled] = found.cpu().numpy()
        return residuals

    def _log_mean(self, tensors: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Return the log mean of the counts of a mini-batch, with the genes in ``mask`` hidden from the encoder."""
        _, generated = self.module(tensors, inference_kwargs={"mask": mask}, compute_loss=False)
        library = self.module.log_library(tensors)
        return log_mean_of_counts(generated["logits"], library, measured=measured_genes(tensors))

    def _mean_in_folds(self, tensors: dict[str, Tensor], folds: list[Tensor]) -> Tensor:
        """Return the means of counts, of the genes of each fold while they are hidden from the encoder."""
        mean = self._log_mean(tensors).exp()
        for fold in folds:
            hidden = fold.to(mean.device)
            mean[:, hidden] = self._log_mean(tensors, hidden).exp()[:, hidden]
        return mean
