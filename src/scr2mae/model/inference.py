"""Outputs of a trained model: embedding, expression, reconstruction errors, loss weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.memory import check_array
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson
from scr2mae.model.base import NOT_TRAINED
from scr2mae.model.integration import IntegrationMixin
from scr2mae.model.panels import by_panel, n_unmeasured
from scr2mae.model.scvi_words import understands_scvi
from scr2mae.model.selection import batch_codes, gene_indices
from scr2mae.model.streaming import cell_indices, embed, gathered, loader_batches, n_rows, stream
from scr2mae.nn.likelihood import log_mean_of_counts
from scr2mae.nn.panels import MEASURED_KEY, measured_genes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData

    from scr2mae.data import Cells
    from scr2mae.nn.module import R2MAEModule

_ALIGNED_AT_ONCE = 16_384  # cells


class InferenceMixin(IntegrationMixin):
    """``get_latent_representation`` and the other outputs."""

    @understands_scvi
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        integrated: bool | None = None,
        batch_size: int | None = None,
        precision: str | int | None = "32-true",
        out: Any = None,
        dataloader: Iterable[dict[str, Any]] | None = None,
    ) -> np.ndarray:
        """Embed cells; nothing is masked, and each embedding depends only on that cell.

        Parameters
        ----------
        adata
            Raw counts; None for the model's own. Genes may come in any order, and missing genes are treated as masked.
        indices
            Indices of the cells to embed, or a boolean mask; None for all.
        batch_size
            Cells per mini-batch.
        integrated
            Whether to align batches (:meth:`integrate`); None aligns those for which the model has an
            alignment on the genes of ``adata``.
        precision
            ``"32-true"``, or ``"bf16-mixed"``: faster for wide networks on hardware with native bfloat16 support;
            differences stay within 3 % of each dimension's standard deviation. ``"auto"`` selects it on such hardware.
        out
            Zarr, HDF5 or NumPy array of shape ``(n_obs, n_latent)`` to which the embedding is written in slices; if
            None, a new array is allocated.
        dataloader
            Mini-batches under scvi-tools' keys, in the model's genes and codes, instead of an AnnData.

        Returns
        -------
        float32, shape ``(n_obs, n_latent)``; ``out``, if given.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If too few genes are shared, a batch is unknown or not aligned, or ``out`` has the wrong shape.
        MemoryError
            If the embedding does not fit in memory and ``out`` is not given.
        """
        if dataloader is not None:
            batches = self._given_batches(dataloader, adata, indices, batch_size, out)
            return np.concatenate([self._embedded(tensors, integrated) for tensors in batches])
        cells, rows = self._trained_cells(adata, indices)
        shape = n_rows(cells, rows), self.module.n_latent
        if out is None:
            advice = "pass out=, an array of zarr or HDF5 on disk, or embed some of the cells at a time by indices="
            check_array(shape, np.float32, "The embedding", advice=advice)
            out = np.empty(shape, dtype=np.float32)
        elif tuple(out.shape) != shape:
            raise ValueError(
                f"out must have shape {shape}, cells by latent dimensions; got {tuple(out.shape)}."
            )
        keys = self._keys(cells, slice(None) if rows is None else rows)
        alignment = self._alignment_for(integrated, keys)
        if integrated is None and alignment is not None:
            self._warn_about_unaligned(alignment, keys, self.adata if adata is None else adata)
        embedded = embed(self.module, cells, rows, batch_size, precision)
        if alignment is not None:  # faster on large batches of cells
            embedded = (
                (filled, alignment.apply(z, keys[filled]))
                for filled, z in gathered(embedded, _ALIGNED_AT_ONCE)
            )
        for filled, z in embedded:
            out[filled] = z.cpu().numpy()
        return out

    @understands_scvi
    @torch.inference_mode()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        transform_batch: str | int | Sequence[str | int] | None = None,
        gene_list: str | Sequence[str] | None = None,
        library_size: float | str = 1.0,
        *,
        batch_size: int | None = None,
        return_numpy: bool = False,
        dataloader: Iterable[dict[str, Any]] | None = None,
    ) -> pd.DataFrame | np.ndarray:
        """Return decoded expression for all reference genes, whether measured in the cell or not.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        transform_batch
            Batch to decode all cells as; results are averaged over several batches. None for each cell's own.
        gene_list
            Genes to return, or one of them; None for all.
        library_size
            Sum of a cell's values over all genes, or ``"observed"`` (``"latent"``, the scvi-tools name, is also
            accepted) for the cell's own depth: measured genes then sum to its library size, and imputed genes are added
            to that total.
        return_numpy
            Return an array instead of a DataFrame with cell and gene names.

        Returns
        -------
        Shape ``(n_obs, n_genes)``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If a gene or a batch is unknown.
        ValueError
            If ``library_size`` is any other string or not positive.
        MemoryError
            If the result does not fit in memory.
        """
        is_observed = library_size in ("observed", "latent")
        if not is_observed and (isinstance(library_size, str) or not 0 < library_size < np.inf):
            raise ValueError(
                f"library_size must be a number above 0, 'observed' or 'latent', got {library_size!r}."
            )
        spec = self.spec
        genes, batches = gene_indices(spec, gene_list), batch_codes(spec, transform_batch)
        options: dict[str, Any] = {"genes": genes, "batches": batches}
        options["scale"] = None if is_observed else float(library_size)
        if dataloader is not None:
            given = self._given_batches(dataloader, adata, indices, batch_size)
            values = np.concatenate([self._decode(each, **options) for each in given])
            return values if return_numpy else pd.DataFrame(values, columns=spec.var_names[genes])
        cells, rows = self._trained_cells(adata, indices)
        shape = n_rows(cells, rows), len(genes)
        advice = "name some of the genes by gene_list=, or decode some of the cells at a time by indices="
        check_array(shape, np.float32, "The decoded expression", advice=advice)
        values = np.empty(shape, dtype=np.float32)
        for filled, tensors in stream(self.module, cells, rows, batch_size, desc="Decoding"):
            values[filled] = self._decode(tensors, **options)
        if return_numpy:
            return values
        names = (self.adata if adata is None else adata).obs_names
        names = names if rows is None else names[rows]
        return pd.DataFrame(values, index=names, columns=spec.var_names[genes])

    def _decode(
        self, tensors: dict[str, Any], *, genes: np.ndarray, batches: list[int | None], scale: float | None
    ) -> np.ndarray:
        """Decode a mini-batch, averaged over batches; values of a cell sum to ``scale``, or to its own depth if None."""
        module, columns = self.module, torch.as_tensor(genes, device=self.module.device)
        z = module.inference(**module._get_inference_input(tensors))["z"]
        total: Any = 0.0
        for code in batches:
            decoded_as = dict(tensors)
            if code is not None:
                own = tensors[REGISTRY_KEYS.BATCH_KEY]
                decoded_as[REGISTRY_KEYS.BATCH_KEY] = torch.full_like(own, code)
            logits = module.generative(**module._get_generative_input(decoded_as, {"z": z}))["logits"]
            rho = logits.float().softmax(dim=-1)
            factor: Any = scale
            if factor is None:
                measured = measured_genes(tensors)
                seen = rho if measured is None else rho * measured
                factor = module.log_library(tensors).exp() / seen.sum(dim=1, keepdim=True)
            total = total + rho[:, columns] * factor
        return (total / len(batches)).cpu().numpy()

    @understands_scvi
    @torch.inference_mode()
    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, Any]] | None = None,
        return_mean: bool = True,
    ) -> dict[str, Any]:
        """Compute the mean negative log-likelihood of a cell's measured counts, in nats, with nothing masked.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        return_mean
            Whether to average over cells.

        Returns
        -------
        ``{"reconstruction_loss": mean over cells of the sum over genes}``, as scvi-tools reports it. Without the mean,
        one sum per cell, shape ``(n_obs,)``, ``library_size`` of the same shape, and ``n_missing``, the number of
        the model's genes that were not measured, one per cell if panels differ.
        """
        n_missing: Any = 0
        if dataloader is not None:
            given = self._given_batches(dataloader, adata, indices, batch_size)
            errors, library = np.concatenate([self._errors(tensors) for tensors in given], axis=1)
        else:
            cells, rows = self._trained_cells(adata, indices)
            n_missing = n_unmeasured(cells, rows)
            errors, library = np.empty((2, n_rows(cells, rows)))
            for filled, tensors in stream(self.module, cells, rows, batch_size, desc="Scoring"):
                errors[filled], library[filled] = self._errors(tensors)
        if return_mean:
            return {"reconstruction_loss": float(errors.mean())}
        return {"reconstruction_loss": errors, "library_size": library, "n_missing": n_missing}

    def _errors(self, tensors: dict[str, Any]) -> np.ndarray:
        """Return the negative log-likelihood and the library size of each cell of a mini-batch, shape (2, n_obs)."""
        _, generated = self.module(tensors, compute_loss=False)
        nll = self.module.element_nll(tensors, generated["logits"])
        if (measured := measured_genes(tensors)) is not None:
            nll = nll[:, measured] if measured.dim() == 1 else nll * measured
        library = self.module.log_library(tensors).exp().squeeze(1)
        return np.stack([nll.double().sum(dim=1).cpu().numpy(), library.double().cpu().numpy()])

    def get_masked_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7),
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mask genes and measure how well they are predicted from the others (the paper's Tables 7 and 8).

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; ``indices=model.validation_indices`` for unseen cells.
        ratios
            Fractions of the genes to mask.
        seed
            Seed of the masks, which are the same for every model and cell.

        Returns
        -------
        One row per ratio: ``pearson`` (mean over cells of the correlation over masked genes between predicted and
        observed log-normalized expression) and ``nll`` (mean negative log-likelihood of a masked count, nats).
        """
        cells, rows = self._trained_cells(adata, indices)
        scores = []
        for ratio in ratios:
            pearson, nll = masked_scores(
                self.module, cells, ratio=ratio, seed=seed, indices=rows, batch_size=batch_size
            )
            scores.append(
                {"ratio": ratio, "pearson": float(np.nanmean(pearson)), "nll": float(np.nanmean(nll))}
            )
        return pd.DataFrame(scores).set_index("ratio")

    @torch.inference_mode()
    def get_curriculum_weights(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Compute the loss weight of each gene at each masking ratio, averaged over cells.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        Genes by ratios; rows sum to the number of ratios, columns to the number of genes.

        Raises
        ------
        ValueError
            If the model was created without a curriculum.
        """
        if self.curriculum is None:
            raise ValueError("This model has no curriculum; create it with curriculum='cl' or 'cl_k0'.")
        cells, rows = self._trained_cells(adata, indices)
        total: Any = 0.0  # a mean of balanced matrices is balanced
        for filled, tensors in stream(self.module, cells, rows, batch_size, desc="Weighing"):
            weights = self.module.curriculum_weights(tensors)
            weights = weights if weights.dim() == 2 else weights.mean(dim=0)
            total = total + weights * (filled.stop - filled.start)
        mean = (total / n_rows(cells, rows)).cpu().numpy()
        schedule = self._ratio_schedule(self.seed)
        values = getattr(schedule, "values", range(self.curriculum.n_ratios))
        return pd.DataFrame(mean, index=self.spec.var_names, columns=pd.Index(values, name="ratio"))

    def _given_batches(
        self, dataloader: Iterable[dict[str, Any]], adata: Any, indices: Any, batch_size: Any, out: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Check the mini-batches of a caller against the model and yield them on its device."""
        if any(each is not None for each in (adata, indices, batch_size, out)):
            raise ValueError("dataloader= has its own cells; leave out adata, indices, batch_size and out.")
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        self.module.eval()
        return loader_batches(self.module, dataloader, self.spec)

    def _trained_cells(self, adata: AnnData | None, indices: Any) -> tuple[Cells, np.ndarray | None]:
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        self.module.eval()
        cells = self._cells(adata, on_disk=True)  # each is read once
        return cells, cell_indices(indices, cells.n_obs)


@torch.inference_mode()
def masked_scores(
    module: R2MAEModule,
    cells: Cells,
    *,
    ratio: float,
    seed: int = 0,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a fraction of the measured genes, the same for all cells, and score their prediction per cell, shape (n_obs,).

    Return the Pearson correlation over masked genes between ``log1p(1e4 rho)`` and ``log1p(1e4 x / library)``
    (NaN where the counts do not vary), and the mean negative log-likelihood in nats. Each panel masks a
    fraction of its own genes.
    """
    pearson, nll = np.full((2, n_rows(cells, indices)), np.nan)
    if cells.panels is not None:
        for at, chosen, part in by_panel(cells, indices):
            found = masked_scores(module, part, ratio=ratio, seed=seed, indices=chosen, batch_size=batch_size)
            pearson[at], nll[at] = found
        return pearson, nll
    measured = np.ones(module.n_vars, dtype=bool) if cells.measured is None else cells.measured
    if measured.sum() < 2:
        return pearson, nll
    mask = np.zeros(module.n_vars, dtype=bool)
    mask[measured] = draw_mask(int(measured.sum()), ratio, seed=seed, step=0).numpy()
    masked = torch.as_tensor(mask, device=module.device)
    genes = masked.nonzero().squeeze(1)
    for rows, tensors in stream(module, cells, indices, batch_size, desc=f"Masking {ratio:.0%}"):
        _, generated = module(tensors, inference_kwargs={"mask": masked}, compute_loss=False)
        nll[rows] = module.element_nll(tensors, generated["logits"], genes=genes).mean(dim=1).cpu().numpy()
        library = module.log_library(tensors).exp()
        log_rho = log_mean_of_counts(
            generated["logits"], torch.zeros_like(library), measured=tensors.get(MEASURED_KEY)
        )
        pearson[rows] = masked_pearson(
            log_rho.exp().cpu().numpy(),
            tensors[REGISTRY_KEYS.X_KEY].cpu().numpy(),
            mask,
            library=library.squeeze(1).cpu().numpy(),
        )
    return pearson, nll
