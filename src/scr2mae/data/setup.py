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
from scvi.model.base import BaseModelClass

from scr2mae.data.backed import BackedCounts, is_streamable
from scr2mae.data.cells import CellSpec
from scr2mae.data.columns import (
    as_keys,
    check_categories,
    check_new_categories,
    check_positive,
    find_column,
    find_model_column,
    key_name,
    read_numbers,
    warn_about_missing_text,
)
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import (
    RAW_LAYER,
    as_csr,
    check_counts,
    check_genes,
    get_counts,
    named_layer,
    raw_counts,
    warn_about_binary,
)
from scr2mae.data.genes import warn_about_genes
from scr2mae.data.studies import StudyField, register_studies

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from scipy import sparse

    from scr2mae.data.studies import MeasuredCheck

__all__ = ["check_foreign_setup", "is_current", "make_actual", "register"]

_CATEGORICAL = ("batch_key", "categorical_covariate_keys")
_SEVERAL = ("categorical_covariate_keys", "continuous_covariate_keys")
_FIELDS = ("layer", "batch_key", "labels_key", "size_factor_key", *_SEVERAL)
_NUMERIC = ("continuous_covariate_keys", "size_factor_key")

logger = logging.getLogger(__name__)


def make_actual(adata: AnnData) -> None:
    """Turn a view into an actual AnnData in place, as writing to it would."""
    if adata.is_view:
        logger.info("Got a view of an AnnData; copying its %d cells.", adata.n_obs)
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())


def is_current(manager: AnnDataManager, adata: AnnData) -> bool:
    """Return whether cells and genes are those of the setup; a filter in place may have removed some since."""
    fields = manager.registry["field_registries"][REGISTRY_KEYS.X_KEY]
    genes = np.asarray(fields["state_registry"]["column_names"]).astype(str)
    n_obs = fields["summary_stats"]["n_cells"]
    return n_obs == adata.n_obs and np.array_equal(genes, adata.var_names.to_numpy().astype(str))


def check_foreign_setup(adata: AnnData, cls: type[BaseModelClass]) -> None:
    """Raise if an AnnData was set up for another class, or in another session, with a batch that would be lost."""
    uuid = adata.uns.get("_scvi_uuid")
    for other in _subclasses(BaseModelClass):
        manager = getattr(other, "_setup_adata_manager_store", {}).get(uuid)
        if manager is None:
            continue
        given = manager.registry["setup_args"]
        known = {name: value for name, value in given.items() if value and name in _FIELDS}
        if known:
            call = ", ".join(f"{name}={value!r}" for name, value in known.items())
            raise ValueError(
                f"This AnnData was set up by {other.__name__}.setup_anndata({call}), which {cls.__name__} does not read; call "
                f"{cls.__name__}.setup_anndata(adata, {call})."
            )
        return
    if uuid is not None and "_scvi_batch" in adata.obs and adata.obs["_scvi_batch"].nunique() > 1:
        raise ValueError(
            "This AnnData was set up in another session with a batch, in obs['_scvi_batch'], but not which column that was; "
            f"call {cls.__name__}.setup_anndata(adata, batch_key=...), or delete that column."
        )


def _subclasses(cls: type) -> Iterator[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _check_obs(adata: AnnData, arguments: dict[str, Any], *, is_new: bool) -> None:
    """Check the columns named in a setup; labels and donors only in the first, since they are not inputs."""
    for argument in ("batch_key", "labels_key", "size_factor_key"):
        if not isinstance(arguments[argument], (str, type(None))):
            raise TypeError(f"{argument} takes the name of one column, got {arguments[argument]!r}.")
    for argument in _CATEGORICAL:
        for key in as_keys(arguments[argument], argument):
            check_categories(find_column(adata.obs, key), key, argument)
    for argument in _NUMERIC:
        for key in as_keys(arguments[argument], argument):
            values = read_numbers(find_column(adata.obs, key), key, argument)
            if argument == "size_factor_key":
                check_positive(values, key)
    for argument in ("labels_key", "donor_key") if is_new else ():
        if arguments[argument] is not None:
            column = find_column(adata.obs, arguments[argument])
            warn_about_missing_text(column, key_name(arguments[argument]))


def _check_all_counts(
    counts: Any,
    adata: AnnData,
    layer: str | None,
    *,
    check: MeasuredCheck | None,
    **options: Any,
) -> None:
    """Raise unless all values are counts of measured genes; those on disk are read once, block by block."""
    largest = 0.0
    for block in _blocks(counts, adata, layer, check=check, **options):
        largest = max(largest, block.data.max(initial=0))
    warn_about_binary(largest, layer, adata)


def _blocks(
    counts: Any, adata: AnnData, layer: str | None, *, check: MeasuredCheck | None = None, **options: Any
) -> Iterator[sparse.csr_matrix]:
    """Yield checked counts: all of those in memory, and those on disk block by block."""
    if is_streamable(counts):
        yield from BackedCounts(counts, adata, layer, check=check, **options).blocks()
        return
    checked = as_csr(counts)
    check_counts(checked, adata, layer, **options)
    if check is not None:
        check(checked)
    yield checked


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
    for argument in _SEVERAL:
        arguments[argument] = as_keys(arguments[argument], argument) or None
    if arguments["donor_key"] is not None and not isinstance(arguments["donor_key"], str):
        arguments["donor_key"] = as_keys(arguments["donor_key"], "donor_key")
    arguments["layer"] = layer = named_layer(arguments["layer"], use_raw=arguments.pop("use_raw", False))
    check_anndata(adata)
    make_actual(adata)
    check_genes(adata)
    warn_about_genes(adata.var)
    is_query = source_registry is not None
    is_raw = layer == RAW_LAYER and not (is_query and adata.raw is None)
    counts = raw_counts(adata) if is_raw else get_counts(adata, layer, is_query=is_query)
    if layer == RAW_LAYER and not is_query and (n_more := adata.raw.n_vars - adata.n_vars):
        logger.info(
            "Taking the counts of %d genes from adata.raw and leaving out %d that adata lacks; adata.raw.to_adata() and "
            "scr2mae prepare keep all.",
            *(adata.n_vars, n_more),
        )
    options = {"integers": arguments["check_counts"], "is_query": is_query}
    reference = None if source_registry is None else CellSpec.from_registry(source_registry)
    covariates = {} if reference is None else {key: known for key, known in reference.categorical if key}
    for key, known in covariates.items():
        find_model_column(adata.obs, key, known)
    numbers = [] if reference is None else [*reference.continuous, reference.size_factor_key]
    for name in filter(None, numbers):
        find_model_column(adata.obs, name)
    _check_obs(adata, arguments, is_new=not is_query)
    for key, known in covariates.items():
        check_new_categories(find_column(adata.obs, key), key, known, adata)
    studies, check = register_studies(
        adata,
        arguments,
        known=None if reference is None else reference.studies,
        is_new=not is_query,
        read_blocks=lambda: _blocks(counts, adata, layer, **options),
    )
    _check_all_counts(counts, adata, layer, check=check, **options)
    if layer == RAW_LAYER:
        adata.layers[RAW_LAYER] = counts
    fields: list[Any] = [
        # is_count_data=True would run a check of scvi-tools that fails on sparse arrays; counts are checked above.
        LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, arguments["batch_key"]),
        CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, arguments["categorical_covariate_keys"]),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, arguments["continuous_covariate_keys"]),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, arguments["size_factor_key"], required=False),
    ]
    if arguments["study_key"] is not None:
        fields.append(StudyField(arguments["study_key"], studies))
    manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
    manager.register_fields(adata, source_registry=source_registry, **transfer_kwargs)
    return manager
