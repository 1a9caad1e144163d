"""The default network: a fixed linear path beside the hidden layers."""

from __future__ import annotations

from typing import Any

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from scr2mae.nn.layers import CovariateMLP, SparseRows, batch_norm
from scr2mae.nn.module import R2MAEModule
from scr2mae.nn.panel_start import panel_frequencies, panel_theta
from scr2mae.nn.panels import MEASURED_KEY, CellPanels
from scr2mae.nn.projection import LinearPath, measure_counts

__all__ = ["LinearMLPModule"]

_N_COMPONENTS = 50  # principal components per block, scanpy's default
_DEEP_WEIGHT = 0.5  # of the hidden layers' block; the leading block of components has weight 1
_START_LR = 10.0  # learning rate of biases and dispersions, relative to that of the other weights


class LinearMLPModule(R2MAEModule):
    """Masked autoencoder whose encoder projects the visible counts onto fixed principal components.

    The scores are the input of the hidden layers; the latent vector combines their batch-normalized output with the
    leading scores of both blocks. :meth:`start_from` fits components, and start values of decoder biases and
    dispersions, to training cells.

    Of ``n_latent`` dimensions, 5 in 16 hold scores of log-normalized counts and as many scores of Pearson residuals, at
    most 50 each; the hidden layers fill the others. The arguments are those of
    :class:`scr2mae.nn.module.R2MAEModule`.

    Attributes
    ----------
    linear
        Fixed projection onto the components of both blocks; its buffers are saved with the weights.
    n_shown
        Number of components per block in the latent vector.
    """

    def _build_encoder(self, n_hidden: int, n_layers: int, **covariates: Any) -> None:
        """Build the fixed path, the hidden layers on its scores, and the normalization of their output."""
        self.linear = LinearPath(self.n_vars, _N_COMPONENTS)
        self.n_shown = min(self.linear.n_components, 5 * self.n_latent // 16)
        n_deep = self.n_latent - 2 * self.n_shown
        self.encoder = CovariateMLP(2 * self.linear.n_components, n_hidden, n_layers, **covariates)
        self.to_latent = nn.Linear(n_hidden, n_deep)
        self.norm_deep = batch_norm(n_deep, affine=False)

    @property
    def needs_start(self) -> bool:
        """Whether :meth:`start_from` has not been called."""
        return not self.linear.is_fitted

    @torch.no_grad()
    def start_from(
        self, counts: Tensor, log_library: Tensor, *, seed: int, panels: CellPanels | None = None
    ) -> None:
        """Fit the linear path, and initialize biases and dispersions from the counts.

        Parameters
        ----------
        counts
            Raw counts of training cells, shape (n_obs, n_vars).
        log_library
            From :meth:`log_library`, shape (n_obs, 1).
        seed
            Seed of the singular value decomposition.
        panels
            Measured genes of each cell; None if no panel lacks a gene.
        """
        library = log_library.exp()
        if panels is None:
            frequencies, theta = measure_counts(counts, library)
        else:
            is_total = not self.use_size_factor
            frequencies = panel_frequencies(counts, log_library, panels, is_total=is_total)
            self.linear.frequencies.copy_(frequencies)
            library = self._full_log_library(log_library, None, panels).exp()
            theta = panel_theta(counts, library, frequencies, panels)
        self.linear.fit(counts, library, frequencies, seed=seed, panels=panels)
        log_frequencies = frequencies.log()
        self.to_logits.bias.copy_(log_frequencies - log_frequencies.mean())
        self.log_theta.copy_(theta.log())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups; measured start values move ten times faster and do not decay.

        Parameters
        ----------
        weight_decay
            Weight decay of the run.

        Returns
        -------
        Two groups.
        """
        measured = [self.to_logits.bias, self.log_theta]
        others = [p for p in self.parameters() if all(p is not each for each in measured)]
        return [
            {"params": others, "weight_decay": weight_decay},
            {"params": measured, "weight_decay": 0.0, "lr_scale": _START_LR},
        ]

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: Any) -> dict[str, Any]:
        """Add the library and the panels to the input."""
        inputs = super()._get_inference_input(tensors)
        return {
            **inputs,
            "log_library": self.log_library(tensors),
            "measured": tensors.get(MEASURED_KEY),
            "panels": CellPanels.of(tensors),
        }

    def inference(
        self,
        counts: Tensor,
        categories: Tensor | None = None,
        continuous: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        log_library: Tensor | None = None,
        measured: Tensor | None = None,
        panels: CellPanels | None = None,
    ) -> dict[str, Tensor]:
        """Embed cells; only the genes in ``mask`` are masked, in training mode too.

        Parameters
        ----------
        counts, categories, continuous, mask
            As in :meth:`scr2mae.nn.module.R2MAEModule.inference`.
        log_library
            From :meth:`log_library`, shape (n_obs, 1); None for the total count.
        measured
            Boolean, shape (n_vars,), False for genes that a panel lacks; None if it lacks none.
        panels
            Measured genes of each cell in place of ``measured``; None if all cells have the same.

        Returns
        -------
        ``{"z": shape (n_obs, n_latent)}``, the decoder's input.
        """
        if log_library is None:
            log_library = counts.float().sum(dim=1, keepdim=True).clamp(min=1.0).log()
        visible = measured if mask is None else ~mask if measured is None else measured & ~mask
        full = self._full_log_library(log_library, measured, panels)
        scores = self.linear(counts, full, visible, panels)
        return {"z": self._latent(scores, categories, continuous)}

    def embed_sparse(self, rows: SparseRows, tensors: dict[str, Tensor]) -> Tensor:
        """Return latent vectors of cells given by their non-zeros, shape (n_obs, n_latent).

        Parameters
        ----------
        rows
            Raw counts.
        tensors
            Their mini-batch, for covariates, size factors and measured genes.

        Returns
        -------
        As ``z`` of :meth:`inference`.
        """
        cell = torch.repeat_interleave(rows.lengths())
        total = torch.zeros(len(rows.starts), device=cell.device).index_add_(0, cell, rows.values)
        counts = {**tensors, REGISTRY_KEYS.X_KEY: total.unsqueeze(1)}
        measured = tensors.get(MEASURED_KEY)
        panels = CellPanels.of(tensors)
        log_library = self._full_log_library(self.log_library(counts), measured, panels)
        scores = self.linear.forward_sparse(rows, log_library, measured, panels)
        return self._latent(scores, **self._covariates(tensors))

    def _full_log_library(
        self, log_library: Tensor, measured: Tensor | None, panels: CellPanels | None
    ) -> Tensor:
        """Return the library that a cell would have if the panel lacked no gene."""
        if self.use_size_factor:
            return log_library
        if panels is not None:
            shares = panels.sums(self.linear.frequencies).clamp(min=1e-12)
            return log_library - shares.log()[panels.of_cell].unsqueeze(1)
        if measured is None:
            return log_library
        return log_library - (self.linear.frequencies * measured).sum().log()

    def _latent(self, scores: Tensor, categories: Tensor | None, continuous: Tensor | None) -> Tensor:
        """Put the hidden layers' output and the leading scores side by side."""
        deep = self.norm_deep(self.to_latent(self.encoder(scores, categories, continuous)))
        scale = _DEEP_WEIGHT * self.linear.spread * deep.shape[1] ** -0.5
        blocks = [block[:, : self.n_shown] for block in scores.chunk(2, dim=1)]
        return torch.cat([scale * deep, *blocks], dim=1)

    def embedding(self, z: Tensor) -> Tensor:
        """Scale latent vectors to the length ``sqrt(n_latent)``.

        The length of a cell's scores is mostly its depth; directions transfer better to other donors.

        Parameters
        ----------
        z
            From :meth:`inference`, shape (n_obs, n_latent).

        Returns
        -------
        Same shape.
        """
        return nn.functional.normalize(z, dim=1) * self.n_latent**0.5
