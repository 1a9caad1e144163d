"""New data for a trained model: gene panels aligned by name, new batches by surgery."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scr2mae._utils.model_folder import read_index
from scr2mae.data import MEASURED_COLUMN, align_genes
from scr2mae.data.counts import as_csr, check_genes, layer_names
from scr2mae.data.genes import check_overlap, select_genes
from scr2mae.data.setup import make_actual
from scr2mae.model.state import FORMAT

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from scr2mae.model import R2MAEModel

__all__ = ["add_categories", "align_anndata", "reference_genes", "transplant"]

logger = logging.getLogger(__name__)

_SCVI_UNS = ("_scvi_uuid", "_scvi_manager_uuid")


def reference_genes(reference: Any) -> np.ndarray:
    """Gene names of a model, given as a model or as its folder; shape (n_vars,)."""
    has_registry = hasattr(reference, "registry")
    registry = reference.registry if has_registry else read_index(reference, FORMAT)["registry"]
    return np.asarray(registry["field_registries"]["X"]["state_registry"]["column_names"]).astype(str)


def align_anndata(adata: AnnData, reference: Any | str | Path, *, min_shared: float = 0.1) -> AnnData:
    """Put the genes of an AnnData in a reference's order, absent ones as empty sparse columns.

    Parameters
    ----------
    adata
        Raw counts in ``X`` and layers.
    reference
        A model or its folder.
    min_shared
        Smallest share of the reference's genes that must be there.

    Returns
    -------
    A new AnnData of shape (n_obs, n_vars of the reference), with ``var["scr2mae_measured"]`` and the overlap in
    ``uns["scr2mae"]``.

    Raises
    ------
    ValueError
        If gene names repeat or too few are shared.
    """
    check_genes(adata)
    genes = reference_genes(reference)
    position = align_genes(adata.var_names, genes)
    measured = position >= 0
    if MEASURED_COLUMN in adata.var:
        measured &= adata.var[MEASURED_COLUMN].to_numpy(dtype=bool)[position]
        position = np.where(measured, position, -1)
    n_shared = int(measured.sum())
    check_overlap(n_shared, len(genes), min_shared=min_shared)
    found = adata.var.iloc[position[measured]].set_axis(genes[measured])
    # Plain booleans would become a column of mixed type, which cannot be written to a file.
    booleans = {name: "boolean" for name, dtype in found.dtypes.items() if pd.api.types.is_bool_dtype(dtype)}
    var = found.astype(booleans if not measured.all() else {}).reindex(
        pd.Index(genes, name=adata.var_names.name)
    )
    var[MEASURED_COLUMN] = measured
    report = {"n_reference_genes": len(genes), "n_shared_genes": n_shared, "n_query_genes": adata.n_vars}
    return AnnData(
        X=None if adata.X is None else select_genes(as_csr(adata.X), position),
        obs=adata.obs.copy(),
        var=var,
        obsm=dict(adata.obsm),
        obsp=dict(adata.obsp),
        uns={
            **{k: v for k, v in adata.uns.items() if k not in _SCVI_UNS},
            "scr2mae": {**adata.uns.get("scr2mae", {}), "gene_overlap": report},
        },
        layers={name: select_genes(as_csr(adata.layers[name]), position) for name in layer_names(adata)},
        raw=adata.raw.to_adata() if adata.raw is not None else None,
    )


def _grow_table(old: dict[str, Tensor], new: dict[str, Tensor], prefix: str) -> None:
    """Fill one category table of a grown network from the reference's rows."""
    rows = [old[key] for key in (f"{prefix}.reference", f"{prefix}.new") if key in old]
    # A covariate that was constant had no table: its one category adds nothing, now as then.
    reference = torch.cat(rows) if rows else torch.zeros_like(new[f"{prefix}.reference"])
    new[f"{prefix}.reference"] = reference.clone()
    if f"{prefix}.new" in new:
        new[f"{prefix}.new"] = reference.mean(dim=0).expand_as(new[f"{prefix}.new"]).clone()


def transplant(reference: torch.nn.Module, grown: torch.nn.Module) -> None:
    """Copy a network's weights into one with more categories.

    Rows of the reference's categories keep their place and value; a new category starts as the mean of those.

    Parameters
    ----------
    reference
        The trained network.
    grown
        A network that differs by its number of categories only; changed in place.
    """
    old, new = reference.state_dict(), grown.state_dict()
    tables = {name.rpartition(".")[0] for name in new if ".tables." in name}
    for prefix in sorted(tables):
        _grow_table(old, new, prefix)
    for name in new:
        if ".tables." not in name:
            new[name] = old[name].clone()
    grown.load_state_dict(new)


def add_categories(adata: AnnData, reference: R2MAEModel) -> R2MAEModel:
    """Make a model of the reference's class that also knows the categories of new data.

    Parameters
    ----------
    adata
        New data, genes aligned; registered here.
    reference
        A trained model, left as it is.

    Returns
    -------
    The model, on the CPU, with everything frozen but the rows of new categories.

    Raises
    ------
    ValueError
        If genes are not aligned, or the reference has no categorical covariate.
    """
    cls, spec = type(reference), reference.spec
    if not np.array_equal(adata.var_names.to_numpy().astype(str), spec.var_names):
        raise ValueError(
            "The genes of adata are not those of the reference, in its order; "
            f"call {cls.__name__}.prepare_query_anndata(adata, reference_model) first."
        )
    if all(key is None for key, _ in spec.categorical):
        raise ValueError(
            "The reference was set up without batch_key or categorical covariates, so it has no batch weights to "
            "extend; embed the new data with reference.get_latent_representation(adata)."
        )
    make_actual(adata)
    cls.setup_anndata(
        adata, **reference.registry["setup_args"], source_registry=reference.registry, extend_categories=True
    )
    options: dict[str, Any] = reference.init_params_
    model = cls(adata, mask_ratio=reference.mask_ratio, curriculum=reference.curriculum, **options)
    grown = zip(model.spec.categorical, spec.categorical, strict=True)
    model.n_new_categories_ = [len(new) - len(old) for (_, new), (_, old) in grown]
    model.module = model.build_module()
    transplant(reference.module, model.module)
    model.is_trained_ = reference.is_trained_
    model.runs_ = list(reference.runs_)
    return model
