"""New data for a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scr2mae._utils.compat import torch_device
from scr2mae.model import surgery as query
from scr2mae.model.base import CellModel

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from anndata import AnnData

    from scr2mae.model import R2MAEModel


class QueryMixin(CellModel):
    """Gene panels and batches that the reference did not have."""

    @staticmethod
    def prepare_query_anndata(  # type: ignore[override]
        adata: AnnData,
        reference_model: R2MAEModel | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
        *,
        min_shared: float = 0.1,
    ) -> AnnData | pd.Index | None:
        """Align the genes of new data with a reference by name, Ensembl version suffixes aside.

        Parameters
        ----------
        adata
            New data.
        reference_model
            A model, or the folder of one.
        return_reference_var_names
            Return the reference's gene names and do nothing else.
        inplace
            Change ``adata``; else return a new AnnData.
        min_shared
            Smallest share of the reference's genes that must be there.

        Returns
        -------
        None, or what was asked for. Absent genes become empty sparse columns, False in
        ``var["scr2mae_measured"]``, and are treated as masked.

        Raises
        ------
        ValueError
            If gene names repeat, or fewer than ``min_shared`` are shared.
        """
        if return_reference_var_names:
            return pd.Index(query.reference_genes(reference_model))
        aligned = query.align_anndata(adata, reference_model, min_shared=min_shared)
        if not inplace:
            return aligned
        adata._init_as_actual(aligned)
        return None

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: R2MAEModel | str | Path,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Make a model that also knows the batches of new data; only their weights are left to train.

        Parameters
        ----------
        adata
            New data, genes aligned by :meth:`prepare_query_anndata`, columns named as in the reference.
        reference_model
            A trained model, or the folder of one; it is not changed.
        accelerator, device
            Where the new model goes.

        Returns
        -------
        The model; cells of the reference embed in it as before, bit for bit, before and after it is trained.

        Raises
        ------
        ValueError
            If genes are not aligned, or the reference was made without a ``batch_key``.
        """
        place = torch_device(accelerator, device)
        reference = reference_model if isinstance(reference_model, cls) else cls.load(reference_model)  # type: ignore[arg-type]
        model = query.add_categories(adata, reference)
        model.to_device(place)
        return model
