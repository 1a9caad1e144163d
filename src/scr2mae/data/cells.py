"""Cells as the network reads them: counts in the reference's gene order, covariates as codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import REGISTRY_KEYS

from scr2mae._utils.once import warn_once
from scr2mae._utils.shorten import shorten
from scr2mae.data.backed import BackedCounts, is_streamable
from scr2mae.data.columns import (
    check_complete,
    check_new_categories,
    check_positive,
    find_model_column,
    read_numbers,
)
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import as_csr, check_counts, check_genes, get_counts, take_rows
from scr2mae.data.genes import align_genes, check_overlap, select_genes
from scr2mae.data.panels import Panels, measured_positions
from scr2mae.data.studies import STUDY_KEY, MeasuredCheck, Studies
from scr2mae.nn.panels import MEASURED_KEY, PANEL_KEYS

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CellSpec", "Cells", "read_cells"]


@dataclass(frozen=True)
class CellSpec:
    """The fields that a model reads from an AnnData, from the registry that scvi-tools keeps.

    Attributes
    ----------
    var_names
        Genes of the reference, shape (n_vars,).
    layer
        Layer of the counts; None for ``X``.
    categorical
        Column and categories of the batch, then of each further categorical covariate; the column of
        the batch is None if there is only one batch.
    continuous
        Columns of the continuous covariates.
    size_factor_key
        Column that replaces the library size, or None.
    integers
        Whether to raise on fractional counts.
    studies
        Column of the study and the genes that each study has measured, or None.
    """

    var_names: np.ndarray
    layer: str | None
    categorical: tuple[tuple[str | None, np.ndarray], ...]
    continuous: tuple[str, ...]
    size_factor_key: str | None
    integers: bool
    studies: Studies | None = None

    @classmethod
    def from_registry(cls, registry: dict[str, Any]) -> CellSpec:
        """Read the specification from an :class:`scvi.data.AnnDataManager` registry.

        Parameters
        ----------
        registry
            A registry such as ``model.registry``.

        Returns
        -------
        The specification.
        """
        arguments, fields = registry["setup_args"], registry["field_registries"]

        def state(key: str) -> dict[str, Any]:
            return fields.get(key, {}).get("state_registry", {})

        further = state(REGISTRY_KEYS.CAT_COVS_KEY)
        categorical = [
            (arguments["batch_key"], np.asarray(state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]))
        ]
        categorical += [(key, np.asarray(further["mappings"][key])) for key in further.get("field_keys", [])]
        var_names = np.asarray(state(REGISTRY_KEYS.X_KEY)["column_names"]).astype(str)
        return cls(
            var_names=var_names,
            layer=arguments["layer"],
            categorical=tuple(categorical),
            continuous=tuple(arguments["continuous_covariate_keys"] or ()),
            size_factor_key=arguments["size_factor_key"],
            integers=arguments["check_counts"],
            studies=Studies.from_state(arguments, state(STUDY_KEY), len(var_names)),
        )


@dataclass(frozen=True)
class Cells:
    """Cells ready for the network.

    Attributes
    ----------
    counts
        CSR float32, shape (n_obs, n_vars), columns in the reference's order; in memory or on disk.
    measured
        Boolean, shape (n_vars,); None if every gene was measured, or panels differ.
    categories
        Codes, int64, shape (n_obs, n_covariates), the batch first.
    continuous
        float32, shape (n_obs, n_continuous).
    size_factor
        float32, shape (n_obs,), or None for the total count.
    panels
        Measured genes of each cell, where panels differ, or None.
    """

    counts: sparse.csr_matrix | BackedCounts
    measured: np.ndarray | None
    categories: np.ndarray
    continuous: np.ndarray
    size_factor: np.ndarray | None
    panels: Panels | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.counts.shape[0]

    @property
    def on_disk(self) -> bool:
        """Whether the counts are read from disk when they are needed."""
        return isinstance(self.counts, BackedCounts)

    def rows(self, indices: np.ndarray | slice) -> sparse.csr_matrix:
        """Return the counts of the given cells, in memory.

        Parameters
        ----------
        indices
            Positions of the cells, shape (n,), or a slice.

        Returns
        -------
        Shape (n, n_vars), in the given order.
        """
        if isinstance(self.counts, BackedCounts):
            return self.counts[indices]
        return take_rows(self.counts, indices)

    def to_memory(self, indices: np.ndarray | slice) -> Cells:
        """Return the given cells, with their counts in memory.

        Parameters
        ----------
        indices
            As in :meth:`rows`.

        Returns
        -------
        The cells, in the given order.
        """
        return replace(
            self,
            counts=self.rows(indices),
            categories=self.categories[indices],
            continuous=self.continuous[indices],
            size_factor=None if self.size_factor is None else self.size_factor[indices],
            panels=None if self.panels is None else self.panels.take(indices),
        )

    def covariates(self, indices: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return the covariates of the given cells under scvi-tools' keys.

        Parameters
        ----------
        indices
            As in :meth:`rows`.

        Returns
        -------
        Batch codes (n, 1), and further covariates if there are any.
        """
        arrays = {REGISTRY_KEYS.BATCH_KEY: self.categories[indices, :1]}
        if self.categories.shape[1] > 1:
            arrays[REGISTRY_KEYS.CAT_COVS_KEY] = self.categories[indices, 1:]
        if self.continuous.shape[1]:
            arrays[REGISTRY_KEYS.CONT_COVS_KEY] = self.continuous[indices]
        if self.size_factor is not None:
            arrays[REGISTRY_KEYS.SIZE_FACTOR_KEY] = self.size_factor[indices, None]
        return arrays

    def measured_genes(self, indices: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return which genes were measured in the given cells, under the keys of a mini-batch.

        Parameters
        ----------
        indices
            As in :meth:`rows`.

        Returns
        -------
        Nothing if all genes were measured, ``measured`` for one panel, three arrays for several.
        """
        if self.panels is not None:
            fields = self.panels.of_cell[indices], self.panels.classes, self.panels.gene_class
            return dict(zip(PANEL_KEYS, fields, strict=True))
        return {} if self.measured is None else {MEASURED_KEY: self.measured}

    def collate(self, indices: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return the given cells as a dense mini-batch of NumPy arrays under scvi-tools' keys.

        Parameters
        ----------
        indices
            As in :meth:`rows`.

        Returns
        -------
        Counts (n, n_vars), batch codes (n, 1), and further covariates if there are any.
        """
        return {REGISTRY_KEYS.X_KEY: self.rows(indices).toarray(), **self.covariates(indices)}


def read_cells(adata: AnnData, spec: CellSpec, *, min_shared: float = 0.1, on_disk: bool = False) -> Cells:
    """Read the cells of an AnnData as a model needs them; the AnnData is neither changed nor registered.

    Parameters
    ----------
    adata
        Raw counts; genes in any order, some may be absent.
    spec
        Specification of the model.
    min_shared
        Smallest fraction of the reference's genes that must be present.
    on_disk
        Whether to leave counts that are on disk there; they are then validated as they are read.

    Returns
    -------
    The cells; counts in memory as CSR, or on disk.

    Raises
    ------
    KeyError
        If a layer or a column is absent.
    ValueError
        If the counts are not raw counts, too few genes are shared, or a covariate is missing or unseen.
    """
    check_anndata(adata)
    check_genes(adata)
    gene_indices, measured = _match_genes(adata, spec, min_shared=min_shared)
    panels, check = _find_panels(adata, spec, gene_indices)
    if panels is not None and len(panels.classes) == 1:
        measured, panels = panels.measured[0], None
        measured = None if measured.all() else measured
    elif panels is not None:
        measured = None
    stored = get_counts(adata, spec.layer, is_query=True)
    counts: sparse.csr_matrix | BackedCounts
    checks: dict[str, Any] = {"integers": spec.integers, "is_query": True}
    if on_disk and is_streamable(stored):
        counts = BackedCounts(stored, adata, spec.layer, gene_indices=gene_indices, check=check, **checks)
    else:
        counts = as_csr(stored)
        check_counts(counts, adata, spec.layer, **checks)
        counts = counts if gene_indices is None else select_genes(counts, gene_indices)
        if check is not None:
            check(counts)
    size_factor = None
    if spec.size_factor_key is not None:
        size_factor = _numbers(adata, spec.size_factor_key, "size_factor_key")
        check_positive(size_factor, spec.size_factor_key)
    elif not isinstance(counts, BackedCounts):
        _warn_about_empty_cells(counts, adata)
    is_same = gene_indices is None
    codes = [_encode_categories(adata, key, known, is_same=is_same) for key, known in spec.categorical]
    continuous = [_numbers(adata, key, "continuous_covariate_keys") for key in spec.continuous]
    return Cells(
        counts=counts,
        measured=measured,
        categories=np.stack(codes, axis=1),
        continuous=np.stack(continuous, axis=1) if continuous else np.zeros((adata.n_obs, 0), np.float32),
        size_factor=size_factor,
        panels=panels,
    )


def _find_panels(
    adata: AnnData, spec: CellSpec, gene_indices: np.ndarray | None
) -> tuple[Panels | None, MeasuredCheck | None]:
    """Return what the study of each cell has measured, and the check of its counts; None without studies."""
    if spec.studies is None:
        return None, None
    position = np.arange(adata.n_vars) if gene_indices is None else gene_indices
    found = spec.studies.resolve(adata, position)
    if found is None:
        return None, None
    panels = Panels.from_table(*found)
    return panels, MeasuredCheck(adata, spec.studies.key, panels, spec.var_names)


def _match_genes(
    adata: AnnData, spec: CellSpec, *, min_shared: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the column of each reference gene, or None if they are the same, and which were measured, or None for all."""
    is_same = np.array_equal(adata.var_names.to_numpy().astype(str), spec.var_names)
    indices = np.arange(adata.n_vars) if is_same else align_genes(adata.var_names, spec.var_names)
    indices = measured_positions(adata.var, indices)
    measured = indices >= 0
    if is_same and measured.all():
        return None, None
    if not is_same:
        check_overlap(adata, spec.var_names, measured, min_shared=min_shared)
    return indices, None if measured.all() else measured


def _numbers(adata: AnnData, key: str, argument: str) -> np.ndarray:
    return read_numbers(find_model_column(adata.obs, key), key, argument)


def _encode_categories(
    adata: AnnData, key: str | None, categories: np.ndarray, *, is_same: bool
) -> np.ndarray:
    """Return the codes of a column in the reference's categories, int64, shape (n_obs,); zeros without a column."""
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    column = find_model_column(adata.obs, key, categories)
    check_complete(column, key)
    check_new_categories(column, key, categories, adata)
    codes = pd.Index(categories).get_indexer(pd.Index(column.to_numpy()))
    if (codes < 0).any():
        unseen = pd.unique(column.to_numpy()[codes < 0]).tolist()
        first = "" if is_same else "R2MAEModel.prepare_query_anndata(adata, model), since genes differ, then "
        raise ValueError(
            f"adata.obs[{key!r}] holds [{shorten(map(repr, unseen))}], which the model has not seen; its categories are "
            f"{categories.tolist()[:20]}. To learn new batches, call {first}R2MAEModel.load_query_data(adata, model). "
            "Then call train() of the model that it returns; the command line has no command for it."
        )
    return codes.astype(np.int64)


def _warn_about_empty_cells(counts: sparse.csr_matrix, adata: AnnData) -> None:
    if n_empty := int((np.asarray(counts.sum(axis=1)) == 0).sum()):
        warn_once(
            f"{n_empty} of {counts.shape[0]} cells have no counts; their library size is set to 1.",
            adata,
            stacklevel=3,
        )
