"""The network and its loss: masked counts in, negative binomial over the masked genes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn

from scr2mae.masking import draw_mask
from scr2mae.nn.curriculum import scale_gradient
from scr2mae.nn.layers import CovariateMLP, CovariateShift, Linear, Standardize, linear
from scr2mae.nn.likelihood import nb_log_prob, shapes_are_free
from scr2mae.nn.panels import MEASURED_KEY, PANEL_KEYS, CellPanels, cell_means, log_means, scored_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scr2mae.nn.curriculum import Curriculum

__all__ = ["MEASURED_KEY", "R2MAEModule"]


class R2MAEModule(BaseModuleClass):
    """Masked autoencoder of counts (Dong et al. 2025, section 4 and appendix C).

    Encoder: ``log1p(masked counts)`` and covariates, hidden layers with batch normalization and ReLU, a linear map to
    the latent space; deterministic. Decoder: latent and covariates, hidden layers, a softmax over genes times the
    library size of the unmasked cell; one dispersion per gene.

    Parameters
    ----------
    n_vars
        Number of genes, >= 2.
    n_hidden, n_latent
        Width of the hidden layers and of the latent space.
    n_layers, n_layers_decoder
        Number of hidden layers of the encoder, >= 1, and of the decoder; 0 for a linear decoder.
    n_categories
        Number of categories of the batch and of each further categorical covariate.
    n_new_categories
        Number of those categories that a query has added (see :meth:`R2MAEModel.load_query_data`).
    n_continuous
        Number of continuous covariates.
    use_size_factor
        Whether to replace the total count by the size factor of the mini-batch, which data modules of scvi-tools
        include even if the model has none.
    curriculum
        Settings of learned loss weights, or None for equal weights.
    """

    def __init__(
        self,
        n_vars: int,
        *,
        n_hidden: int,
        n_latent: int,
        n_layers: int = 2,
        n_layers_decoder: int = 1,
        n_categories: Sequence[int] = (),
        n_new_categories: Sequence[int] | None = None,
        n_continuous: int = 0,
        use_size_factor: bool = False,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        self.n_vars = n_vars
        self.use_size_factor = use_size_factor
        covariates: dict[str, Any] = {
            "n_categories": n_categories,
            "n_new_categories": n_new_categories,
            "n_continuous": n_continuous,
        }
        self.n_latent = n_latent
        self._build_encoder(n_hidden, n_layers, **covariates)
        self.decoder: nn.Module = (
            CovariateMLP(n_latent, n_hidden, n_layers_decoder, **covariates)
            if n_layers_decoder
            else CovariateShift(n_latent, **covariates)
        )
        self.to_logits = nn.Linear(n_hidden if n_layers_decoder else n_latent, n_vars)
        self.log_theta = nn.Parameter(torch.zeros(n_vars))
        self.curriculum = None if curriculum is None else curriculum.for_cells(n_vars)
        self.standardize = Standardize(n_continuous) if n_continuous else None
        self.is_query = n_new_categories is not None
        if self.is_query:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.endswith(".new"))

    def _build_encoder(self, n_hidden: int, n_layers: int, **covariates: Any) -> None:
        self.encoder = CovariateMLP(self.n_vars, n_hidden, n_layers, **covariates)
        self.to_latent: nn.Linear = Linear(n_hidden, self.n_latent)

    @property
    def needs_start(self) -> bool:
        """Whether the network takes start values from training cells and has none yet."""
        return False

    def train(self, mode: bool = True) -> R2MAEModule:
        """Switch to training mode; a query keeps the running statistics of its reference."""
        return super().train(mode and not self.is_query)

    def _covariates(self, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Return codes of the categories and standardized continuous covariates."""
        batch, further = tensors[REGISTRY_KEYS.BATCH_KEY], tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        # Data modules without a batch send None.
        batch = (
            torch.zeros_like(tensors[REGISTRY_KEYS.X_KEY][:, :1]).long() if batch is None else batch.long()
        )
        continuous = tensors.get(REGISTRY_KEYS.CONT_COVS_KEY)
        if continuous is not None and self.standardize is not None:
            continuous = self.standardize(continuous.float())
        return {
            "categories": batch if further is None else torch.cat([batch, further.long()], dim=1),
            "continuous": continuous,
        }

    def log_library(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the log of the size factor if the model uses one, else of the total count, at least log 1.

        Parameters
        ----------
        tensors
            Mini-batch.

        Returns
        -------
        Natural logarithms, shape (n_obs, 1).
        """
        if self.use_size_factor:
            return tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].float().log()
        return tensors[REGISTRY_KEYS.X_KEY].float().sum(dim=1, keepdim=True).clamp(min=1.0).log()

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: Any) -> dict[str, Any]:
        return {"counts": tensors[REGISTRY_KEYS.X_KEY], **self._covariates(tensors)}

    def inference(
        self,
        counts: Tensor,
        categories: Tensor | None = None,
        continuous: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Embed cells; only the genes in ``mask`` are masked, in training mode too.

        Parameters
        ----------
        counts
            Raw counts, shape (n_obs, n_vars).
        categories
            Codes of batch and covariates, shape (n_obs, n_covariates).
        continuous
            Continuous covariates, shape (n_obs, n_continuous).
        mask
            Boolean, shape (n_vars,); None masks no gene.

        Returns
        -------
        ``{"z": shape (n_obs, n_latent)}``.
        """
        x = counts.float().log1p()
        if mask is not None:
            x = x * ~mask
        return {"z": self.to_latent(self.encoder(x, categories, continuous))}

    def embedding(self, z: Tensor) -> Tensor:
        """Return latent vectors as users get them.

        Parameters
        ----------
        z
            From :meth:`inference`, shape (n_obs, n_latent).

        Returns
        -------
        Same shape.
        """
        return z

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        return {"z": inference_outputs["z"], **self._covariates(tensors)}

    def generative(
        self, z: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Decode latent vectors to logits over genes.

        Parameters
        ----------
        z
            Embeddings, shape (n_obs, n_latent).
        categories, continuous
            As in :meth:`inference`.

        Returns
        -------
        ``{"logits": shape (n_obs, n_vars)}``.
        """
        h = self.decoder(z, categories, continuous)
        # The bias holds most of the differences between genes; added after the product, it stays float32 under autocast.
        return {"logits": linear(h, self.to_logits.weight) + self.to_logits.bias}

    def element_nll(
        self,
        tensors: dict[str, Tensor],
        logits: Tensor,
        *,
        genes: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log-likelihood of each count, in nats.

        Parameters
        ----------
        tensors
            Mini-batch.
        logits
            Decoder output, shape (n_obs, n_vars).
        genes
            Indices of the genes to score, shape (k,); None for all.
        weights
            Factor of each element, shape (n_vars,) or (n_obs, n_vars).

        Returns
        -------
        Shape (n_obs, k).
        """
        counts = tensors[REGISTRY_KEYS.X_KEY]
        log_theta: Tensor = self.log_theta
        log_mean = log_means(tensors, logits, self.log_library(tensors), genes)
        if genes is not None:
            counts, log_theta = counts.index_select(1, genes), log_theta.index_select(0, genes)
        nll = -nb_log_prob(counts, log_mean, log_theta)
        if weights is None:
            return nll
        return nll * (weights if genes is None else weights.index_select(-1, genes))

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        *,
        mask: Tensor | None = None,
    ) -> LossOutput:
        """Score the outputs of a forward pass; the interface of scvi-tools.

        Parameters
        ----------
        tensors
            Mini-batch.
        inference_outputs, generative_outputs
            From :meth:`inference` and :meth:`generative`.
        mask
            Boolean, shape (n_vars,), True for the genes to score; None for all measured genes.

        Returns
        -------
        Mean over cells and scored genes, in nats per count.
        """
        scored = tensors.get(MEASURED_KEY) if mask is None else mask
        genes = None if scored is None else scored.nonzero().squeeze(1)
        nll = self.element_nll(tensors, generative_outputs["logits"], genes=genes)
        of_cells, mean = cell_means(tensors, nll, genes)
        return LossOutput(loss=mean, n_obs_minibatch=nll.shape[0], reconstruction_loss=of_cells)

    def curriculum_weights(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the weights of each gene at each ratio, computed from the uncorrupted counts of a mini-batch.

        Parameters
        ----------
        tensors
            Mini-batch.

        Returns
        -------
        Positive, mean one, shape (n_vars, n_ratios), or (n_obs, n_vars, n_ratios) with one matrix per cell.

        Raises
        ------
        ValueError
            If the network has no curriculum.
        """
        if self.curriculum is None:
            raise ValueError(
                "This network has no curriculum; build the model with curriculum='cl' or the like."
            )
        counts = tensors[REGISTRY_KEYS.X_KEY].float()
        valid = scored_rows(tensors, per_cell=self.curriculum.per_cell)
        with torch.autocast(counts.device.type, enabled=False):  # balancing compares what differs little
            return self.curriculum(counts.log1p(), valid=valid)

    def draw_gene_mask(self, tensors: dict[str, Tensor], ratio: float, *, seed: int, step: int) -> Tensor:
        """Mask ``round(ratio * n)`` of the n measured genes; of each panel up to one gene per class, if panels differ.

        Parameters
        ----------
        tensors
            Mini-batch; its device and measured genes are used.
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`.

        Returns
        -------
        Boolean, shape (n_vars,), True for masked genes.
        """
        device, measured = tensors[REGISTRY_KEYS.X_KEY].device, tensors.get(MEASURED_KEY)
        if (panels := CellPanels.of(tensors)) is not None:
            return panels.draw_mask(ratio, seed=seed, step=step)
        if measured is None:
            return draw_mask(self.n_vars, ratio, seed=seed, step=step, device=device)
        mask = torch.zeros(self.n_vars, dtype=torch.bool, device=device)
        mask[measured] = draw_mask(int(measured.sum()), ratio, seed=seed, step=step, device=device)
        return mask

    def masked_nll(
        self,
        tensors: dict[str, Tensor],
        mask: Tensor,
        genes: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Encode, decode and score the masked genes: the part of a training step that can be compiled.

        Inputs and output are tensors, and nothing waits for the device.

        Parameters
        ----------
        tensors
            Mini-batch.
        mask
            Boolean, shape (n_vars,), True for masked genes.
        genes
            Indices of the masked genes, shape (k,). None evaluates the likelihood of all genes and drops that of the
            others, so that no shape depends on the number of masked genes.
        weights
            Factor of each gene, shape (n_vars,), or of each cell's genes, shape (n_obs, n_vars).

        Returns
        -------
        Mean over cells and masked genes, in nats per count; a scalar.
        """
        inputs = self._get_inference_input(tensors)
        z = self.inference(**inputs, mask=mask)["z"]
        logits = self.generative(z, inputs["categories"], inputs["continuous"])["logits"]
        nll = self.element_nll(tensors, logits, genes=genes, weights=weights)
        if PANEL_KEYS[0] in tensors:
            return cell_means(tensors, nll, genes, mask)[1]
        return nll.mean() if genes is not None else (nll * (mask / mask.sum())).sum(dim=1).mean()

    def training_loss(
        self,
        tensors: dict[str, Tensor],
        *,
        ratio: float,
        seed: int,
        step: int,
        ratio_index: int | None = None,
        grad_scale: float = 1.0,
        compiled: Callable[..., Tensor] | None = None,
    ) -> LossOutput:
        """Mask a fraction of the genes, the same ones in all cells of the mini-batch, and score them.

        Parameters
        ----------
        tensors
            Mini-batch.
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`.
        ratio_index
            Column of the curriculum's weights for this ratio; None for no weights.
        grad_scale
            Factor of the gradient that reaches the curriculum's network.
        compiled
            Compiled :meth:`masked_nll`, with the network as its first argument; None for the eager one.

        Returns
        -------
        Mean over cells and masked genes, in nats per count.
        """
        mask = self.draw_gene_mask(tensors, ratio, seed=seed, step=step)
        weights = None
        if ratio_index is not None:
            weights = scale_gradient(self.curriculum_weights(tensors), grad_scale)[..., ratio_index]
        genes = mask.nonzero().squeeze(1) if compiled is None or shapes_are_free(mask.device) else None
        if compiled is not None and genes is not None:
            torch._dynamo.maybe_mark_dynamic(genes, 0)  # one graph for any number of masked genes
        score = R2MAEModule.masked_nll if compiled is None else compiled
        loss = score(self, tensors, mask, genes, weights)
        return LossOutput(loss=loss, n_obs_minibatch=len(tensors[REGISTRY_KEYS.X_KEY]))
