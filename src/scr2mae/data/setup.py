"""Registration of an AnnData with scvi-tools, after checks with helpful errors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from scr2mae.data.backed import BackedCounts, is_streamable
from scr2mae.data.counts import as_csr, check_counts, check_genes, get_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["make_actual", "register"]

logger = logging.getLogger(__name__)


def make_actual(adata: AnnData) -> None:
    """Turn a view into an actual AnnData in place, as writing to it would."""
    if adata.is_view:
        logger.info("Got a view of an AnnData; copying its %d cells.", adata.n_obs)
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())


def _check_columns(adata: AnnData, keys: Sequence[str | None]) -> None:
    for key in keys:
        if key is not None and key not in adata.obs:
            raise KeyError(f"No {key!r} in adata.obs; choose one of {list(adata.obs)}.")


def _check_covariates(
    adata: AnnData, categorical: Sequence[str], continuous: Sequence[str], size_factor: str | None
) -> None:
    numeric = [*continuous, *([] if size_factor is None else [size_factor])]
    for key in [*categorical, *numeric]:
        if n_missing := int(adata.obs[key].isna().sum()):
            raise ValueError(
                f"adata.obs[{key!r}] has {n_missing} missing values (NaN); fill them or drop those cells."
            )
    for key in numeric:
        if adata.obs[key].dtype.kind not in "fiub":
            raise ValueError(f"adata.obs[{key!r}] must be numeric, got {adata.obs[key].dtype}.")
        if not np.isfinite(adata.obs[key].to_numpy(dtype=np.float64)).all():
            raise ValueError(f"adata.obs[{key!r}] must be finite; correct it or drop those cells.")
    if size_factor is not None and (adata.obs[size_factor] <= 0).any():
        raise ValueError(f"adata.obs[{size_factor!r}] must be positive.")


def _check_all_counts(counts: Any, adata: AnnData, layer: str | None, *, integers: bool) -> None:
    """Raise unless all values are counts; those on disk are read once, block by block."""
    if not is_streamable(counts):
        check_counts(as_csr(counts), adata, layer, integers=integers)
        return
    for _ in BackedCounts(counts, adata, layer, integers=integers).blocks():
        pass


def register(
    adata: AnnData,
    setup_method_args: dict[str, Any],
    *,
    source_registry: dict[str, Any] | None = None,
    **transfer_kwargs: Any,
) -> AnnDataManager:
    """Check an AnnData and register the fields that the network reads.

    ``setup_method_args`` is the result of ``BaseModelClass._get_setup_method_args`` and ``source_registry`` that of a
    reference, for new data; with ``extend_categories=True``, categories that the reference lacks are added. Donor and
    labels are only recorded in the setup arguments, so that data with different values, or without these
    columns, can be transferred.
    """
    arguments = setup_method_args["setup_args"]
    layer, batch_key = arguments["layer"], arguments["batch_key"]
    categorical = list(arguments["categorical_covariate_keys"] or [])
    continuous = list(arguments["continuous_covariate_keys"] or [])
    size_factor = arguments["size_factor_key"]
    make_actual(adata)
    check_genes(adata)
    counts = get_counts(adata, layer)
    bookkeeping = [arguments["labels_key"], arguments["donor_key"]] if source_registry is None else []
    _check_columns(adata, [batch_key, *categorical, *continuous, size_factor, *bookkeeping])
    _check_covariates(adata, [*([batch_key] if batch_key else []), *categorical], continuous, size_factor)
    _check_all_counts(counts, adata, layer, integers=arguments["check_counts"])
    fields: list[Any] = [
        # is_count_data=True would run a check of scvi-tools that fails on sparse arrays; counts are checked above.
        LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical or None),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous or None),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor, required=False),
    ]
    manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
    manager.register_fields(adata, source_registry=source_registry, **transfer_kwargs)
    return manager
