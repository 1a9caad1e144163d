"""New data for a trained model: genes aligned by name, and weights for new categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scr2mae._utils.compat import torch_device
from scr2mae._utils.model_folder import read_index
from scr2mae.data import MEASURED_COLUMN, align_genes
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import RAW_LAYER, as_csr, check_genes, get_counts, layer_names
from scr2mae.data.genes import check_overlap, select_genes
from scr2mae.data.panels import measured_positions
from scr2mae.data.setup import make_actual
from scr2mae.model.base import CellModel
from scr2mae.model.scvi_words import understands_scvi
from scr2mae.model.state import FORMAT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

__all__ = ["QueryMixin", "add_categories", "aligned", "known_rows"]

_SCVI_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


class QueryMixin(CellModel):
    """Gene panels and batches that the reference did not have."""

    @staticmethod
    def prepare_query_anndata(  # type: ignore[override]
        adata: AnnData,
        reference_model: CellModel | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
        *,
        min_shared: float = 0.1,
    ) -> AnnData | pd.Index | None:
        """Align the genes of new data with a reference by name, ignoring the version suffix of Ensembl ids.

        Parameters
        ----------
        adata
            New data.
        reference_model
            A model, or its folder.
        return_reference_var_names
            Return the reference's gene names and do nothing else.
        inplace
            Change ``adata`` instead of returning a new AnnData.
        min_shared
            Smallest fraction of the reference's genes that must be in ``adata``.

        Returns
        -------
        None, the new AnnData or the gene names. Missing genes become empty sparse columns, with False in
        ``var["scr2mae_measured"]``, and are treated as masked.

        Raises
        ------
        ValueError
            If gene names are not unique, or fewer than ``min_shared`` are shared.
        """
        registry = (
            getattr(reference_model, "registry", None) or read_index(reference_model, FORMAT)["registry"]
        )  # type: ignore[arg-type]
        genes = np.asarray(registry["field_registries"]["X"]["state_registry"]["column_names"]).astype(str)
        if return_reference_var_names:
            return pd.Index(genes)
        result = aligned(adata, genes, layer=registry["setup_args"]["layer"], min_shared=min_shared)
        if not inplace:
            return result
        adata._init_as_actual(result)
        return None

    @classmethod
    @understands_scvi
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: CellModel | str | Path,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Extend a model by the batches of new data; only the weights of these batches are trained.

        Parameters
        ----------
        adata
            New data, genes aligned by :meth:`prepare_query_anndata`, columns named as in the reference.
        reference_model
            A trained model, or its folder; it is not changed.
        accelerator, device
            Device of the new model.

        Returns
        -------
        The model. Cells of the reference have bitwise identical embeddings, even after training.

        Raises
        ------
        ValueError
            If genes are not aligned, or the reference was made without a ``batch_key``.
        """
        place = torch_device(accelerator, device)
        reference: Any = reference_model if isinstance(reference_model, cls) else cls.load(reference_model)  # type: ignore[arg-type]
        model = type(reference)._with_new_categories(adata, reference)
        model.to_device(place)
        return model

    @classmethod
    def _with_new_categories(cls, adata: AnnData, reference: CellModel) -> Self:
        """Register new data and copy a reference with room for their categories; only new rows are trainable."""
        check_anndata(adata)
        spec = reference.spec
        if not np.array_equal(adata.var_names.to_numpy().astype(str), spec.var_names):
            raise ValueError(
                "The genes of adata are not those of the reference, in its order; "
                f"call {cls.__name__}.prepare_query_anndata(adata, model), then {cls.__name__}.load_query_data(adata, model)."
            )
        if all(key is None for key, _ in spec.categorical):
            raise ValueError(
                "The reference was set up without batch_key or categorical covariates, so it has no batch weights to "
                "extend; embed the new data with reference.get_latent_representation(adata)."
            )
        make_actual(adata)
        setup = {"source_registry": reference.registry, "extend_categories": True}
        cls.setup_anndata(adata, **reference.registry["setup_args"], **setup)
        options: dict[str, Any] = reference.init_params_
        model = cls(adata, mask_ratio=reference.mask_ratio, curriculum=reference.curriculum, **options)
        pairs = zip(model.spec.categorical, spec.categorical, strict=True)
        model.n_new_categories_ = [len(new) - len(old) for (_, new), (_, old) in pairs]
        model.module = model.build_module()
        add_categories(reference.module, model.module)
        model.is_trained_ = reference.is_trained_
        model.alignment_ = reference.alignment_
        model.runs_ = list(reference.runs_)
        return model


def aligned(
    adata: AnnData, genes: np.ndarray, *, layer: str | None, min_shared: float | None = None
) -> AnnData:
    """Return a copy with the given genes in their order, missing ones as empty sparse columns.

    ``min_shared`` is the smallest fraction of them that must be there; None checks nothing.
    """
    check_anndata(adata)
    check_genes(adata)
    position = measured_positions(adata.var, align_genes(adata.var_names, genes))
    measured = position >= 0
    n_shared = int(measured.sum())
    if min_shared is not None:
        check_overlap(adata, genes, measured, min_shared=min_shared)
    found = adata.var.iloc[position[measured]].set_axis(genes[measured])
    # Plain booleans would become a column of mixed type, which cannot be written to a file.
    booleans = {name: "boolean" for name, dtype in found.dtypes.items() if pd.api.types.is_bool_dtype(dtype)}
    var = found.astype(booleans if not measured.all() else {}).reindex(
        pd.Index(genes, name=adata.var_names.name)
    )
    var[MEASURED_COLUMN] = measured
    varm = {}
    if MEASURED_COLUMN in adata.varm:  # genes of each study; none has measured absent genes
        table = pd.DataFrame(adata.varm[MEASURED_COLUMN]).astype(bool).iloc[position]
        varm[MEASURED_COLUMN] = table.set_axis(var.index).mul(measured, axis=0)
    layers = {name: adata.layers[name] for name in layer_names(adata)}
    if layer == RAW_LAYER:
        layers.setdefault(RAW_LAYER, get_counts(adata, RAW_LAYER, is_query=True))
    report = {"n_reference_genes": len(genes), "n_shared_genes": n_shared, "n_query_genes": adata.n_vars}
    return AnnData(
        X=None if adata.X is None else select_genes(as_csr(adata.X), position),
        obs=adata.obs.copy(),
        var=var,
        obsm=dict(adata.obsm),
        varm=varm,
        obsp=dict(adata.obsp),
        uns={
            **{k: v for k, v in adata.uns.items() if k not in _SCVI_UNS},
            "scr2mae": {**adata.uns.get("scr2mae", {}), "gene_overlap": report},
        },
        layers={name: select_genes(as_csr(matrix), position) for name, matrix in layers.items()},
        raw=None if adata.raw is None or adata.isbacked else adata.raw.to_adata(),
    )


def known_rows(state: Mapping[str, torch.Tensor], table: str, *, like: torch.Tensor) -> torch.Tensor:
    """Return the rows of the categories that a network has weights for, (n_categories, n_out).

    A constant covariate has no table, since its only category adds nothing.
    """
    rows = [state[key] for key in (f"{table}.reference", f"{table}.new") if key in state]
    return torch.cat(rows) if rows else like.new_zeros(1, like.shape[1])


def add_categories(reference: torch.nn.Module, extended: torch.nn.Module) -> None:
    """Copy weights into a network that has more categories and is otherwise the same.

    Rows of the reference's categories keep their place and value; a new category starts as the mean of those.
    """
    old, new = reference.state_dict(), extended.state_dict()
    for table in sorted({name.rpartition(".")[0] for name in new if ".tables." in name}):
        known = known_rows(old, table, like=new[f"{table}.reference"])
        new[f"{table}.reference"] = known.clone()
        if f"{table}.new" in new:
            new[f"{table}.new"] = known.mean(dim=0).expand_as(new[f"{table}.new"]).clone()
    for name in new:
        if ".tables." not in name:
            new[name] = old[name].clone()
    extended.load_state_dict(new)
