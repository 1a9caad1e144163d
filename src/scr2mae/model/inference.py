"""What a trained model says of cells: embedding, expression, errors, loss weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae.model import embed
from scr2mae.model.base import CellModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class EmbeddingMixin(CellModel):
    """``get_latent_representation`` and the other outputs."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        *,
        precision: str | int | None = "32-true",
        out: Any = None,
    ) -> np.ndarray:
        """Embed cells; nothing is masked, and each embedding depends on its cell alone.

        Parameters
        ----------
        adata
            Raw counts; None for the model's own. Genes may come in any order and some may be absent: they are
            treated as masked.
        indices
            Positions of the cells to embed, or a boolean mask; None for all.
        batch_size
            Cells at a time.
        precision
            ``"32-true"``, or ``"bf16-mixed"``: several times faster where the processor multiplies bfloat16 in hardware, and
            within 3 % of each dimension's standard deviation; ``"auto"`` chooses it there.
        out
            Array that receives the embedding, slice by slice: of zarr, HDF5 or NumPy, shape ``(n_obs, n_latent)``. None
            makes a new one in memory.

        Returns
        -------
        float32, shape ``(n_obs, n_latent)``; ``out`` where it is given.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If too few genes are shared, or a batch is unknown.
        MemoryError
            If there is no room for the embedding, and no ``out``.
        """
        cells, where = self._trained_cells(adata, indices)
        return embed.latent(
            self.module, cells, indices=where, batch_size=batch_size, precision=precision, out=out
        )

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        transform_batch: str | int | Sequence[str | int] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1.0,
        batch_size: int | None = None,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Decode cells to expression, for all genes of the reference, measured in the cell or not.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        transform_batch
            Batch, or batches to average over, that cells are decoded as; None for their own.
        gene_list
            Genes to return; None for all.
        library_size
            What a cell's genes add up to, or ``"observed"`` (also ``"latent"``, scvi-tools' word) for the cell's own
            depth: measured genes then add up to its library size and imputed genes come on top.
        return_numpy
            Return an array; else a frame with cell and gene names.

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
            If ``library_size`` is another word.
        MemoryError
            If there is no room for the result.
        """
        is_known = library_size in ("observed", "latent")
        if not is_known and (isinstance(library_size, str) or not 0 < library_size < np.inf):
            raise ValueError(
                f"library_size must be a number above 0, 'observed' or 'latent', got {library_size!r}."
            )
        spec = self.spec
        genes = embed.gene_positions(spec, gene_list)
        codes = embed.batch_codes(spec, transform_batch)
        cells, where = self._trained_cells(adata, indices)
        values = embed.normalized_expression(
            self.module,
            cells,
            genes=genes,
            batches=codes,
            library_size=None if isinstance(library_size, str) else float(library_size),
            indices=where,
            batch_size=batch_size,
        )
        if return_numpy:
            return values
        names = (self.adata if adata is None else adata).obs_names
        return pd.DataFrame(
            values, index=names if where is None else names[where], columns=spec.var_names[genes]
        )

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """Mean negative log-likelihood of a cell's measured counts, in nats, nothing masked.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        ``{"reconstruction_loss": mean over cells of the sum over genes}``, as scvi-tools reports it.
        """
        cells, where = self._trained_cells(adata, indices)
        error = embed.reconstruction_error(self.module, cells, indices=where, batch_size=batch_size)
        return {"reconstruction_loss": float(error.mean())}

    def get_masked_reconstruction(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7),
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Hide genes and measure how well the others predict them (the paper's Tables 7 and 8).

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`; ``indices=model.validation_indices`` for unseen cells.
        ratios
            Shares of the genes to hide.
        seed
            Which genes are hidden: the same for every model and cell.

        Returns
        -------
        One row a ratio: ``pearson`` (mean over cells of the correlation over hidden genes between predicted and
        observed log-normalized expression) and ``nll`` (mean negative log-likelihood of a hidden count, nats).
        """
        cells, where = self._trained_cells(adata, indices)
        rows = []
        for ratio in ratios:
            pearson, nll = embed.masked_reconstruction(
                self.module, cells, ratio=ratio, seed=seed, indices=where, batch_size=batch_size
            )
            rows.append({"ratio": ratio, "pearson": float(np.nanmean(pearson)), "nll": float(nll.mean())})
        return pd.DataFrame(rows).set_index("ratio")

    def get_curriculum_weights(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Loss weight of each gene at each masking ratio, averaged over cells.

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
            If the model was made without a curriculum.
        """
        if self.curriculum is None:
            raise ValueError("This model has no curriculum; make it with curriculum='cl' or 'cl_k0'.")
        cells, where = self._trained_cells(adata, indices)
        weights = embed.curriculum_weights(self.module, cells, indices=where, batch_size=batch_size)
        schedule = self._ratio_schedule(self.seed)
        values = getattr(schedule, "values", range(self.curriculum.n_ratios))
        return pd.DataFrame(weights, index=self.spec.var_names, columns=pd.Index(values, name="ratio"))
