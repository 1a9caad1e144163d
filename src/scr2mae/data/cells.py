"""Cells as the network reads them: counts in the reference's gene order, covariates as codes."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import REGISTRY_KEYS

from scr2mae.data.backed import BackedCounts, is_streamable
from scr2mae.data.counts import as_csr, check_counts, check_genes, get_counts, take_rows
from scr2mae.data.genes import align_genes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MEASURED_COLUMN", "CellSpec", "Cells", "align_genes", "encode_categories", "read_cells"]

logger = logging.getLogger(__name__)

MEASURED_COLUMN = "scr2mae_measured"
"""Column of ``adata.var``: False where a gene panel lacks a gene of the reference."""


@dataclass(frozen=True)
class CellSpec:
    """What a model reads of an AnnData, and how; made from the registry that scvi-tools keeps.

    Attributes
    ----------
    var_names
        The reference's genes, shape (n_vars,).
    layer
        Where the counts are; None for ``X``.
    categorical
        Column and categories of the batch, then of each further categorical covariate; the batch's
        column is None where there is one batch only.
    continuous
        Columns of the continuous covariates.
    size_factor_key
        Column that replaces the library size, or None.
    integers
        Whether fractional counts are refused.
    """

    var_names: np.ndarray
    layer: str | None
    categorical: tuple[tuple[str | None, np.ndarray], ...]
    continuous: tuple[str, ...]
    size_factor_key: str | None
    integers: bool

    @classmethod
    def from_registry(cls, registry: dict[str, Any]) -> CellSpec:
        """Read the specification from an :class:`scvi.data.AnnDataManager` registry.

        Parameters
        ----------
        registry
            As ``model.registry``.

        Returns
        -------
        What the model reads.
        """
        arguments, fields = registry["setup_args"], registry["field_registries"]

        def state(key: str) -> dict[str, Any]:
            return fields.get(key, {}).get("state_registry", {})

        further = state(REGISTRY_KEYS.CAT_COVS_KEY)
        categorical = [
            (arguments["batch_key"], np.asarray(state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]))
        ]
        categorical += [(key, np.asarray(further["mappings"][key])) for key in further.get("field_keys", [])]
        return cls(
            var_names=np.asarray(state(REGISTRY_KEYS.X_KEY)["column_names"]).astype(str),
            layer=arguments["layer"],
            categorical=tuple(categorical),
            continuous=tuple(arguments["continuous_covariate_keys"] or ()),
            size_factor_key=arguments["size_factor_key"],
            integers=arguments["check_counts"],
        )


@dataclass(frozen=True)
class Cells:
    """Cells ready for the network.

    Attributes
    ----------
    counts
        CSR float32, shape (n_obs, n_vars), columns in the reference's order; in memory or on disk.
    measured
        Boolean, shape (n_vars,); None where every gene was measured.
    categories
        Codes, int64, shape (n_obs, n_covariates), the batch first.
    continuous
        float32, shape (n_obs, n_continuous).
    size_factor
        float32, shape (n_obs,), or None for the total count.
    """

    counts: sparse.csr_matrix | BackedCounts
    measured: np.ndarray | None
    categories: np.ndarray
    continuous: np.ndarray
    size_factor: np.ndarray | None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.counts.shape[0]

    @property
    def on_disk(self) -> bool:
        """Whether the counts are read when they are needed."""
        return isinstance(self.counts, BackedCounts)

    def rows(self, where: np.ndarray | slice) -> sparse.csr_matrix:
        """Return the counts of the cells at some positions, in memory.

        Parameters
        ----------
        where
            Positions, shape (n,), or a slice.

        Returns
        -------
        Shape (n, n_vars), in this order.
        """
        if isinstance(self.counts, BackedCounts):
            return self.counts[where]
        return take_rows(self.counts, where)

    def take(self, where: np.ndarray | slice) -> Cells:
        """Cells at some positions, with their counts in memory.

        Parameters
        ----------
        where
            Positions, shape (n,), or a slice.

        Returns
        -------
        These cells, in this order.
        """
        return replace(
            self,
            counts=self.rows(where),
            categories=self.categories[where],
            continuous=self.continuous[where],
            size_factor=None if self.size_factor is None else self.size_factor[where],
        )

    def covariates(self, where: np.ndarray | slice) -> dict[str, np.ndarray]:
        """All but the counts of the cells at some positions, under scvi-tools' keys.

        Parameters
        ----------
        where
            Positions, shape (n,), or a slice.

        Returns
        -------
        Codes of the batch (n, 1), and further covariates where there are any.
        """
        arrays = {REGISTRY_KEYS.BATCH_KEY: self.categories[where, :1]}
        if self.categories.shape[1] > 1:
            arrays[REGISTRY_KEYS.CAT_COVS_KEY] = self.categories[where, 1:]
        if self.continuous.shape[1]:
            arrays[REGISTRY_KEYS.CONT_COVS_KEY] = self.continuous[where]
        if self.size_factor is not None:
            arrays[REGISTRY_KEYS.SIZE_FACTOR_KEY] = self.size_factor[where, None]
        return arrays

    def batch(self, where: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Dense mini-batch of the cells at some positions, as NumPy arrays under scvi-tools' keys.

        Parameters
        ----------
        where
            Positions, shape (n,), or a slice.

        Returns
        -------
        Counts (n, n_vars), codes of the batch (n, 1), and further covariates where there are any.
        """
        return {REGISTRY_KEYS.X_KEY: self.rows(where).toarray(), **self.covariates(where)}


def check_overlap(n_shared: int, n_vars: int, *, min_shared: float) -> None:
    """Refuse a query that shares too few genes with the reference; warn below half.

    Raises
    ------
    ValueError
        If no gene is shared, or fewer than ``min_shared`` of the reference's.
    """
    report = f"the query has {n_shared} of the reference's {n_vars} genes ({n_shared / n_vars:.0%})"
    if n_shared == 0:
        raise ValueError(
            f"No shared genes: {report}. Compare adata.var_names with the reference's "
            "(symbols against Ensembl ids?)."
        )
    if n_shared < 2 or n_shared < min_shared * n_vars:
        raise ValueError(f"Too few shared genes: {report}, min_shared={min_shared:g} asks for more.")
    if n_shared < 0.5 * n_vars:
        warnings.warn(
            f"Few shared genes: {report}; absent genes are treated as masked.", UserWarning, stacklevel=3
        )
    elif n_shared < n_vars:
        logger.info("Gene overlap: %s; absent genes are treated as masked.", report)


def reorder_columns(counts: sparse.csr_matrix, position: np.ndarray) -> sparse.csr_matrix:
    """Put columns in the reference's order, absent ones empty.

    Parameters
    ----------
    counts
        Shape (n_obs, n_query_vars).
    position
        For each reference gene its column in ``counts``, or -1; shape (n_vars,).

    Returns
    -------
    CSR of shape (n_obs, n_vars), never dense in between.
    """
    present = np.flatnonzero(position >= 0)
    shared = counts[:, position[present]]
    return sparse.csr_matrix(
        (shared.data, present[shared.indices].astype(shared.indices.dtype), shared.indptr),
        shape=(counts.shape[0], len(position)),
    )


def encode_categories(adata: AnnData, key: str | None, categories: np.ndarray) -> np.ndarray:
    """Codes of a categorical column in the reference's categories, int64, shape (n_obs,).

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If an entry is missing or is no category of the reference.
    """
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    if key not in adata.obs:
        raise KeyError(f"No {key!r} in adata.obs; choose one of {list(adata.obs)}.")
    column = adata.obs[key]
    if column.isna().any():
        raise ValueError(
            f"adata.obs[{key!r}] has {int(column.isna().sum())} missing values; fill them or drop those cells."
        )
    codes = pd.Index(categories).get_indexer(pd.Index(column.to_numpy()))
    if (codes < 0).any():
        unseen = pd.unique(column.to_numpy()[codes < 0]).tolist()
        raise ValueError(
            f"adata.obs[{key!r}] holds {unseen[:5]}, which the model has not seen; it knows {categories.tolist()[:20]}. "
            "Use R2MAEModel.load_query_data to learn new batches."
        )
    return codes.astype(np.int64)


def _numeric(adata: AnnData, key: str) -> np.ndarray:
    """Read a numeric column; float32, shape (n_obs,)."""
    if key not in adata.obs:
        raise KeyError(f"No {key!r} in adata.obs; choose one of {list(adata.obs)}.")
    try:
        values = adata.obs[key].to_numpy(dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"adata.obs[{key!r}] must be numeric, got {adata.obs[key].dtype}.") from error
    if not np.isfinite(values).all():
        raise ValueError(
            f"adata.obs[{key!r}] holds missing or infinite values; fill them or drop those cells."
        )
    return values


def _gene_positions(
    adata: AnnData, spec: CellSpec, *, min_shared: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the reference's genes are in ``adata`` and which were measured; None and None where both are the same."""
    same = np.array_equal(adata.var_names.to_numpy().astype(str), spec.var_names)
    position = np.arange(adata.n_vars) if same else align_genes(adata.var_names, spec.var_names)
    measured = position >= 0
    if MEASURED_COLUMN in adata.var:
        measured &= np.asarray(adata.var[MEASURED_COLUMN], dtype=bool)[position]
    if same and measured.all():
        return None, None
    if not same:
        check_overlap(int(measured.sum()), len(measured), min_shared=min_shared)
    return np.where(measured, position, -1), None if measured.all() else measured


def _read_counts(
    adata: AnnData, spec: CellSpec, position: np.ndarray | None, *, on_disk: bool
) -> sparse.csr_matrix | BackedCounts:
    """Return counts in the reference's gene order."""
    stored = get_counts(adata, spec.layer)
    if on_disk and is_streamable(stored):
        return BackedCounts(stored, adata, spec.layer, integers=spec.integers, position=position)
    counts = as_csr(stored)
    check_counts(counts, adata, spec.layer, integers=spec.integers)
    return counts if position is None else reorder_columns(counts, position)


def read_cells(adata: AnnData, spec: CellSpec, *, min_shared: float = 0.1, on_disk: bool = False) -> Cells:
    """Read an AnnData as a model's registry describes it; neither changes nor registers it.

    Parameters
    ----------
    adata
        Raw counts; genes in any order, some may be absent.
    spec
        The model's specification.
    min_shared
        Smallest share of the reference's genes that must be there.
    on_disk
        Leave counts that are on disk there; they are then checked as they are read.

    Returns
    -------
    The cells; counts in memory as CSR, or on disk.

    Raises
    ------
    KeyError
        If a layer or a column is absent.
    ValueError
        If the counts are no counts, too few genes are shared, or a covariate is missing or unseen.
    """
    check_genes(adata)
    position, measured = _gene_positions(adata, spec, min_shared=min_shared)
    counts = _read_counts(adata, spec, position, on_disk=on_disk)
    size_factor = None
    if spec.size_factor_key is not None:
        size_factor = _numeric(adata, spec.size_factor_key)
        if (size_factor <= 0).any():
            raise ValueError(f"adata.obs[{spec.size_factor_key!r}] must be positive.")
    elif not isinstance(counts, BackedCounts):
        _warn_of_empty_cells(counts)
    codes = [encode_categories(adata, key, categories) for key, categories in spec.categorical]
    continuous = [_numeric(adata, key) for key in spec.continuous]
    return Cells(
        counts=counts,
        measured=measured,
        categories=np.stack(codes, axis=1),
        continuous=np.stack(continuous, axis=1) if continuous else np.zeros((adata.n_obs, 0), np.float32),
        size_factor=size_factor,
    )


def _warn_of_empty_cells(counts: sparse.csr_matrix) -> None:
    if n_empty := int((np.asarray(counts.sum(axis=1)) == 0).sum()):
        warnings.warn(
            f"{n_empty} of {counts.shape[0]} cells have no counts; their library size is set to 1.",
            UserWarning,
            stacklevel=3,
        )
