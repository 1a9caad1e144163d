"""Score the imputation of genes that a study has not measured on the studies that have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scr2mae.model.inference import InferenceMixin
from scr2mae.model.selection import gene_folds
from scr2mae.model.streaming import stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scr2mae.data import Cells

_SCALE = 1e4


class ImputationMixin(InferenceMixin):
    """``get_imputation_scores``: the cross-check of imputed genes."""

    @torch.inference_mode()
    def get_imputation_scores(
        self,
        study: str,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        n_folds: int = 5,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Score the imputation of each gene for cells measured like those of a study.

        A gene that the study has not measured is predicted in cells of the studies that have, from the genes
        that they share with the study. A gene that it has measured is hidden in its own cells, with some of
        the others. Imputed values of the study (:meth:`get_normalized_expression`) have about this error, as
        far as its cells resemble the others.

        Parameters
        ----------
        study
            Study that genes are imputed for.
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; ``indices=model.validation_indices`` for cells that
            training did not see.
        n_folds
            Number of parts in which measured genes are hidden.
        seed
            Seed of the parts.

        Returns
        -------
        One row per gene: ``measured`` (by the study), ``n_obs`` (cells it was scored in), ``pearson`` (correlation over these
        cells between predicted and measured log-normalized expression) and ``mae`` (mean absolute difference of the two).
        NaN where no study has measured the gene, or it does not vary.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the model does not know the study.
        ValueError
            If the model has no studies, or the cells are of a single panel.
        """
        known = self.spec.studies
        if known is None:
            raise ValueError("The model was set up without study_key, so no study lacks a gene of another.")
        if study not in known.measured:
            raise KeyError(f"No study {study!r}; the model knows {list(known.measured)}.")
        cells, rows = self._trained_cells(adata, indices)
        if cells.panels is None:
            raise ValueError(
                "These cells have one panel; pass cells of studies that have measured other genes."
            )
        rows = np.arange(cells.n_obs) if rows is None else rows
        own = known.measured[study]
        sums = _Sums(self.module.n_vars)
        for panel, measured in enumerate(cells.panels.measured):
            chosen = rows[cells.panels.of_cell[rows] == panel]
            visible, lacking = measured & own, measured & ~own
            if not len(chosen) or not visible.any():
                continue
            if np.array_equal(measured, own):
                for part in gene_folds(own, n_folds, seed):
                    self._predict(cells, chosen, own & ~part, part, sums, batch_size)
            elif lacking.any():
                self._predict(cells, chosen, visible, lacking, sums, batch_size)
        return pd.DataFrame(
            {"measured": own, **sums.scores()}, index=pd.Index(self.spec.var_names, name="gene")
        )

    def _predict(
        self,
        cells: Cells,
        rows: np.ndarray,
        visible: np.ndarray,
        wanted: np.ndarray,
        sums: _Sums,
        batch_size: int | None,
    ) -> None:
        """Predict the wanted genes of cells from the visible ones, and add what was predicted and measured."""
        if not visible.any() or not wanted.any():
            return
        module = self.module
        panel = replace(cells, panels=None, measured=visible)
        genes, seen = np.flatnonzero(wanted), torch.from_numpy(visible).to(module.device)
        for _, tensors in stream(module, panel, rows, batch_size, desc="Imputing"):
            counts: Any = tensors[REGISTRY_KEYS.X_KEY]
            hidden = {**tensors, REGISTRY_KEYS.X_KEY: counts * seen}
            inputs = module._get_inference_input(hidden)
            z = module.inference(**inputs)["z"]
            logits = module.generative(z, inputs["categories"], inputs["continuous"])["logits"].float()
            log_rho = logits - logits.masked_fill(~seen, -torch.inf).logsumexp(dim=1, keepdim=True)
            library = hidden[REGISTRY_KEYS.X_KEY].sum(dim=1, keepdim=True).clamp(min=1)
            predicted = (_SCALE * log_rho.exp()).log1p()[:, genes]
            measured = (_SCALE * counts / library).log1p()[:, genes]
            sums.add(genes, predicted.double().cpu().numpy(), measured.double().cpu().numpy())


class _Sums:
    """Moments of predicted and measured values per gene, over cells."""

    def __init__(self, n_vars: int) -> None:
        self._n = np.zeros(n_vars, dtype=np.int64)
        self._moments = np.zeros((6, n_vars))

    def add(self, genes: np.ndarray, p: np.ndarray, m: np.ndarray) -> None:
        """Add values (n_obs, n_genes) of the given genes."""
        self._n[genes] += len(p)
        values = p, m, p * p, m * m, p * m, np.abs(p - m)
        self._moments[:, genes] += np.stack([each.sum(axis=0) for each in values])

    def scores(self) -> dict[str, np.ndarray]:
        """Return the number of cells, the correlation and the mean absolute difference."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p, m, pp, mm, pm, mae = self._moments / self._n
            variances = np.maximum(pp - p * p, 0) * np.maximum(mm - m * m, 0)
            pearson = np.where(variances > 1e-12, (pm - p * m) / np.sqrt(variances), np.nan)
        return {"n_obs": self._n, "pearson": pearson, "mae": mae}
