"""Integrate batches: decide when and on which cells to fit an alignment, and warn about its limits."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scr2mae._utils.once import warn_once
from scr2mae._utils.progress import log_lines_shown
from scr2mae.data.panels import MEASURED_COLUMN
from scr2mae.model.alignment import N_REFERENCE, Alignment, fit_alignment, sample_cells
from scr2mae.model.base import NOT_TRAINED, CellModel
from scr2mae.model.panels import batch_gene_codes, cell_gene_codes, lacks_few
from scr2mae.model.streaming import embed

if TYPE_CHECKING:
    from anndata import AnnData

    from scr2mae.data import Cells

logger = logging.getLogger(__name__)

_SHOWN = 5


class IntegrationMixin(CellModel):
    """``integrate``, and the choice of the alignment for cells."""

    def integrate(self, adata: AnnData | None = None, *, guard: bool = True, seed: int | None = None) -> None:
        """Align the batches in the embedding; :meth:`train` does it if the data have a ``batch_key``.

        Moves the latent vectors of each batch onto what the batches have in common: means of soft clusters,
        and the covariance around them. No weights change, and the decoder uses the vectors as they were. A
        query model aligns its new batches with the reference, whose cells do not move.

        Parameters
        ----------
        adata
            Cells of known batches; None for those that the model was trained on. Cells with fewer genes are
            aligned apart: pass the reference's cells on the genes of a panel to embed these genes aligned. To a
            query model, pass 300 or more cells of the reference to align its new batches with them, at most
            20,000; otherwise, the new batches are aligned with draws from the stored mixture of the reference.
        guard
            Whether to leave batches in place that have few clusters in common with the others, and all
            batches if each of them has a single label of the ``labels_key``. In both cases there is a
            warning.
        seed
            Seed of the sample of at most 20,000 cells and of the clusters; defaults to the model's seed.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the data were set up without ``batch_key``, a latent vector is not finite, or a query model
            gets cells of new batches alone.
        """
        self._check_if_trained(warn=False, message=NOT_TRAINED)
        is_query = self.module.is_query
        if not is_query and not self._can_integrate():
            raise ValueError("The data were set up without batch_key, so there are no batches to align.")
        seed = self.seed if seed is None else seed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Few shared genes", UserWarning)  # as asked for
            alignment = self._fit(adata, guard=guard, seed=seed)
        if adata is None or self.alignment_ is None or alignment is None:
            self.alignment_ = alignment
        else:
            self.alignment_ = self.alignment_.join(alignment)
        n_aligned = 0 if alignment is None else len(alignment.keys[alignment.strengths > 0, 0].unique())
        if n_aligned:
            with log_lines_shown():
                logger.info("The alignment of the embedding has %d batches.", n_aligned)

    def _fit(self, adata: AnnData | None, *, guard: bool, seed: int) -> Alignment | None:
        """Return the alignment of known batches, and for a query that of its new ones too."""
        is_query, alignment, reference = self.module.is_query, self.alignment_, None
        if is_query and adata is not None:
            adata = self._reference_cells(adata)
        if not is_query or (adata is not None and not self._keeps_rows_of(adata)):
            alignment = self._align_known_batches(adata, guard=guard, seed=seed)
        if is_query and alignment is None:
            raise ValueError(
                "The reference has no alignment; call its integrate() before load_query_data, "
                "or train the weights of new batches by train(max_epochs=...)."
            )
        if is_query:
            if adata is not None:
                reference = self._aligned_sample(alignment, adata, seed=seed)  # type: ignore[arg-type]
            alignment = self._align_new_batches(alignment, reference, seed=seed)  # type: ignore[arg-type]
        return alignment

    def _align_known_batches(self, adata: AnnData | None, *, guard: bool, seed: int) -> Alignment | None:
        """Fit an alignment; None if the batch determines the labels."""
        cells = self._cells(adata, on_disk=True)  # each is read once
        is_own = adata is None or adata is self.adata
        seen = np.arange(cells.n_obs) if self.split_ is None or not is_own else self.split_.train
        batches = cells.categories[:, 0]
        # A batch whose cells have different panels is aligned panel by panel.
        units, of_unit = np.unique(
            np.column_stack([batches, cell_gene_codes(cells, slice(None))]), axis=0, return_inverse=True
        )
        of_unit = of_unit.reshape(-1)
        seen = seen[sample_cells(of_unit[seen], seed=seed)]
        if guard and self._is_confounded(self.adata if adata is None else adata, batches):
            return None
        alignment = fit_alignment(
            self._raw_latent(cells, seen),
            of_unit[seen],
            n_covariates=cells.categories.shape[1],
            n_clusters=None
            if adata is None or self.alignment_ is None
            else self.alignment_.directions.shape[2],
            guard=guard,
            seed=seed,
        )
        alignment.keys[:, [0, -1]] = torch.from_numpy(units[alignment.keys[:, 0].numpy()])
        self._warn_about_low_overlap(alignment)
        # Batches without a training cell, such as held-out donors.
        unseen = np.flatnonzero(~np.isin(of_unit, of_unit[seen]))
        keys = np.full((len(unseen), cells.categories.shape[1] + 1), -1)
        keys[:, [0, -1]] = units[of_unit[unseen]]
        return self._extend(alignment, cells, unseen, keys, seed=seed)

    def _reference_cells(self, adata: AnnData) -> AnnData:
        """Return the cells without those of a query's new batches."""
        is_new = self._is_new(self._cells(adata, on_disk=True))
        if is_new.all():
            raise ValueError(
                f"Wanted cells of the reference, to align new batches with them, but all {len(is_new)} cells are of "
                "new batches. Call integrate() without cells."
            )
        return adata[~is_new] if is_new.any() else adata

    def _keeps_rows_of(self, adata: AnnData) -> bool:
        """Return whether the cells of a query's reference have all genes, so that its alignment stays as it was."""
        keys = np.unique(keys_of(self._cells(adata, on_disk=True), slice(None)), axis=0)
        return (
            self.alignment_ is not None and not keys[:, -1].any() and None not in self.alignment_.rows(keys)
        )

    def _aligned_sample(self, alignment: Alignment, adata: AnnData, *, seed: int) -> torch.Tensor | None:
        """Return aligned latent vectors of the reference, of as many cells of each batch up to a limit; None if too few."""
        cells = self._cells(adata, on_disk=True)
        at = sample_cells(cells.categories[:, 0], seed=seed)
        if len(at) < N_REFERENCE:
            return None
        return alignment.apply(self._raw_latent(cells, at).cpu(), keys_of(cells, at))

    def _align_new_batches(
        self, alignment: Alignment, reference: torch.Tensor | None, *, seed: int
    ) -> Alignment:
        """Align the query's cells with a new category of any covariate, each combination of categories as a batch."""
        cells = self._cells(None, on_disk=True)
        at = np.flatnonzero(self._is_new(cells))
        return self._extend(alignment, cells, at, keys_of(cells, at), reference, seed=seed)

    def _is_new(self, cells: Cells) -> np.ndarray:
        """Return which cells have a category that the reference of a query does not have."""
        sizes = np.array([len(categories) for _, categories in self.spec.categorical])
        return (cells.categories >= sizes - np.array(self.n_new_categories_)).any(axis=1)

    def _extend(
        self,
        alignment: Alignment,
        cells: Cells,
        indices: np.ndarray,
        keys: np.ndarray,
        reference: torch.Tensor | None = None,
        *,
        seed: int,
    ) -> Alignment:
        """Add a row for each different key of the given cells."""
        for key in np.unique(keys, axis=0):
            at = indices[(keys == key).all(axis=1)]
            at = at[sample_cells(np.zeros(len(at)), seed=seed)]
            Z = self._raw_latent(cells, at)
            alignment = alignment.extend(Z, tuple(key.tolist()), reference=reference, seed=seed)
        return alignment

    def _can_integrate(self) -> bool:
        """Return whether there is something to align: batches, or for a query a reference that was aligned."""
        if self.module.is_query:
            return self.alignment_ is not None
        return self.spec.categorical[0][0] is not None

    @torch.inference_mode()
    def _raw_latent(self, cells: Cells, indices: np.ndarray) -> torch.Tensor:
        """Return latent vectors where float64 exists: on the device, but for Apple's."""
        device = "cpu" if self.module.device.type == "mps" else self.module.device
        z = [z.to(device) for _, z in embed(self.module, cells, indices, None, "32-true")]
        return torch.cat(z) if z else torch.zeros(0, self.module.n_latent, device=device)

    def _embedded(self, tensors: dict[str, Any], integrated: bool | None) -> np.ndarray:
        """Return the embedding of a mini-batch."""
        inputs = self.module._get_inference_input(tensors)
        z = self.module.embedding(self.module.inference(**inputs)["z"].float())
        codes = inputs["categories"].cpu().numpy()
        keys = np.column_stack([codes, batch_gene_codes(tensors, len(codes))])
        if self.alignment_ is not None and keys[:, -1].any():
            keys = self.alignment_.nearest(keys, batch_gene_codes(tensors, len(codes), lacks_few))
        alignment = self._alignment_for(integrated, keys)
        return (z if alignment is None else alignment.apply(z, keys)).cpu().numpy()

    def _keys(self, cells: Cells, indices: np.ndarray | slice) -> np.ndarray:
        """Return the keys of cells in the alignment; those with nearly all genes are aligned like those with all."""
        keys = keys_of(cells, indices)
        if self.alignment_ is None or not keys[:, -1].any():
            return keys
        return self.alignment_.nearest(keys, cell_gene_codes(cells, indices, lacks_few))

    def _alignment_for(self, integrated: bool | None, keys: np.ndarray) -> Alignment | None:
        """Return the alignment for cells with the given keys, or None for the raw latent vectors."""
        if integrated is False or (integrated is None and self.alignment_ is None):
            return None
        if self.alignment_ is None:
            raise ValueError(
                "This model has no alignment of batches. Call model.integrate(), which needs data set up with "
                "batch_key, or pass integrated=False."
            )
        if integrated:
            unique = np.unique(keys, axis=0)
            rows = self.alignment_.rows(unique)
            if None in rows:
                code, genes = unique[rows.index(None)][[0, -1]]
                raise ValueError(
                    f"Cells of batch {self.spec.categorical[0][1][code]!r} have not been aligned"
                    f"{'' if genes == 0 else ' on these genes'}. Call train() of the model that load_query_data "
                    "returned, integrate() with cells of the reference on the same genes, or pass integrated=False."
                )
        return self.alignment_.to(self.module.device)

    def _warn_about_unaligned(self, alignment: Alignment, keys: np.ndarray, adata: AnnData) -> None:
        """Warn once if cells are embedded without the alignment that the model has."""
        unique, of_cell = np.unique(keys, axis=0, return_inverse=True)
        is_left = np.array([row is None for row in alignment.rows(unique)])
        if is_left.any():
            n_left = int(is_left[of_cell.reshape(-1)].sum())
            if (unique[is_left][:, -1] != 0).any():
                because = "on so few of its genes"
                # prepare_query_anndata has added the genes that were missing.
                measured = f"[query.var[{MEASURED_COLUMN!r}]]" if MEASURED_COLUMN in adata.var else ""
                advice = (
                    f"model.integrate(reference[:, reference.var_names.isin(query.var_names{measured})]), where reference "
                    "has the cells of the training"
                )
            else:
                because, advice = "for these batches", "train() of the model that load_query_data returns"
            warn_once(
                f"No alignment of batches for {n_left} cells: the model has none {because}, so they are embedded without it "
                "and do not compare with aligned cells. Embed all cells, also those of the reference, with integrated=False "
                f"(--no-integration), or in Python call {advice}.",
                adata,
                stacklevel=5,  # past three frames of decorators
            )

    def _is_confounded(self, adata: Any, batches: np.ndarray) -> bool:
        """Warn of columns of which each batch has a single value; return whether the labels are such a column."""
        labels_key = self.registry["setup_args"].get("labels_key")
        batch_key = self.spec.categorical[0][0]
        for key in [labels_key, *(key for key, _ in self.spec.categorical[1:])]:
            if key is None or key == batch_key or key not in adata.obs:
                continue
            values = pd.Series(adata.obs[key].to_numpy()).groupby(batches).agg(["nunique", "first"])
            if len(values) < 2 or (values["nunique"] > 1).any() or values["first"].nunique() < 2:
                continue
            names = [str(self.spec.categorical[0][1][code]) for code in values.index[:_SHOWN]]
            shown = ", ".join(f"{name}: {value}" for name, value in zip(names, values["first"], strict=False))
            about = f"Each of the {len(values)} batches has one value of obs[{key!r}] ({shown})"
            if key == labels_key:
                warnings.warn(
                    f"{about}, so aligning the batches would remove what it stands for; they were not aligned. "
                    "To align them nevertheless, call model.integrate(guard=False).",
                    stacklevel=5,
                )
                return True
            warnings.warn(
                f"{about}, so its effect is removed with that of the batches; integrated=False embeds with it.",
                stacklevel=5,
            )
        return False

    def _warn_about_low_overlap(self, alignment: Alignment) -> None:
        """Warn of batches that have few clusters in common with the others."""
        held = (alignment.strengths < 1).nonzero().squeeze(1)
        if len(alignment.strengths) < 2 or not len(held):
            return
        names = self.spec.categorical[0][1]
        shown = ", ".join(
            f"{names[int(alignment.keys[i, 0])]} {alignment.shared[i]:.2f} (moved by {alignment.strengths[i]:.0%})"
            for i in held[:_SHOWN]
        )
        warnings.warn(
            f"{len(held)} of {len(alignment.strengths)} batches have few clusters in common with the others and were "
            f"aligned in part or not at all; overlap, from 0 to 1: {shown}. If they have the same cell types, call "
            "model.integrate with guard=False, and the same cells.",
            stacklevel=5,
        )


def keys_of(cells: Cells, indices: np.ndarray | slice) -> np.ndarray:
    """Return codes of covariates and measured genes, (n_obs, n_covariates + 1), as in the keys of an alignment."""
    return np.column_stack([cells.categories[indices], cell_gene_codes(cells, indices)])
