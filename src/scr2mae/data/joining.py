"""Join studies over the union of their genes, and find cells that several studies contain."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from scr2mae._utils.files import as_path
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import as_csr, check_genes, find_invalid_count, get_counts, place_of
from scr2mae.data.genes import advise, select_genes
from scr2mae.data.panels import MEASURED_COLUMN, column_of, measured_positions
from scr2mae.data.prepare.join import align_sources, join_obs, join_var, measured_table
from scr2mae.data.store import open_store, read_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find_copies", "join_studies"]

logger = logging.getLogger(__name__)

_USUAL = 0.5  # common genes, as a share of the smaller panel, below which to warn


@dataclass(frozen=True)
class _Study:
    """AnnData with the interface of a source on disk."""

    label: str
    adata: AnnData

    @property
    def path(self) -> str:
        return f"Study {self.label!r}"

    @property
    def var(self) -> pd.DataFrame:
        return self.adata.var

    def read_obs(self) -> pd.DataFrame:
        obs = self.adata.obs.copy()
        return obs.set_axis(obs.index.astype(str))


def join_studies(
    studies: Mapping[str, AnnData | str | os.PathLike[str]],
    *,
    study_key: str = "study",
    layer: str | None = None,
    prefix: str | tuple[str, ...] = (),
) -> AnnData:
    """Join studies over the union of their genes, and keep which genes each of them has measured.

    Parameters
    ----------
    studies
        AnnData of raw counts, or an ``.h5ad`` file or ``.zarr`` folder, by the name of the study. Genes are
        matched by name, ignoring versions of Ensembl ids.
    study_key
        Column of ``obs`` for the name of the study.
    layer
        Layer of raw counts; None for ``X``.
    prefix
        Columns of ``obs``, such as the donor, whose values are prefixed with the study, if equal names in two studies
        are different people.

    Returns
    -------
    AnnData in memory with the counts in ``X`` (CSR), the columns of all studies in ``obs``, the annotation of the first
    study that has a gene in ``var``, and a boolean table ``varm["scr2mae_measured"]`` with a column per study. Genes that a
    study lacks are empty and False there. :meth:`scr2mae.R2MAEModel.setup_anndata` detects both.

    Raises
    ------
    TypeError
        If ``studies`` is not a dict of AnnData or paths by name.
    ValueError
        If values are not counts, gene names of a study repeat, or ``obs`` has the column already.

    See Also
    --------
    scr2mae.datasets.prepare : the same for files that do not fit in memory, by ``join="outer"``.

    Examples
    --------
    >>> import scr2mae
    >>> blood = scr2mae.datasets.simulate_donors(n_donors=2, n_cells_per_donor=5, n_genes=20)
    >>> joined = scr2mae.data.join_studies({"a": blood[:, :15].copy(), "b": blood[:, 5:].copy()})
    >>> joined.shape, joined.varm["scr2mae_measured"].sum().to_dict()
    ((20, 20), {'a': 15, 'b': 15})
    """
    if not isinstance(studies, Mapping) or not studies:
        raise TypeError(
            f"studies must be a dict of AnnData by the name of the study, got {type(studies).__name__}."
        )
    if "" in studies or any(not isinstance(name, str) for name in studies):
        raise TypeError(f"Names of studies must be text, got {list(studies)}.")
    tables = [_Study(name, _read(adata)) for name, adata in studies.items()]
    for table in tables:
        check_genes(table.adata, at_least=1)
    names, columns = align_sources(tables, join="outer")
    _warn_about_overlap(tables, names, columns)
    measured = measured_table(tables, names, columns)
    blocks = []
    for table, column in zip(tables, columns, strict=True):
        counts = as_csr(get_counts(table.adata, layer))
        if (found := find_invalid_count(counts)) is not None:
            advice = f"Put the raw counts of this study in {place_of(layer)}"
            if layer is None:
                advice += ", or pass layer= if those of every study are in a layer: join_studies(studies, layer='counts')"
            raise ValueError(
                f"Expected raw counts in {place_of(layer)} of study {table.label!r}, got {found.value:g} ({found.reason}) at "
                f"cell {table.adata.obs_names[found.row]!r}, gene {table.adata.var_names[found.column]!r}. {advice}."
            )
        column = measured_positions(table.var, column)
        measured[column_of(table.label)] = column >= 0
        blocks.append(select_genes(counts, column))
    keys = (prefix,) if isinstance(prefix, str) else tuple(prefix)
    obs, n_renamed = join_obs(tables, study_key, keys)
    if n_renamed:
        logger.warning("%d names of cells occur more than once; they get their study as a suffix.", n_renamed)
    var = join_var(tables, names, columns).drop(columns=MEASURED_COLUMN, errors="ignore")
    return AnnData(X=sparse.vstack(blocks, format="csr"), obs=obs, var=var, varm={MEASURED_COLUMN: measured})


def _read(adata: Any) -> AnnData:
    if isinstance(adata, (str, os.PathLike)):
        path = as_path(adata)
        adata = open_store(path) if path.is_dir() else read_file(path)
    check_anndata(adata, "A study")
    return adata


def _warn_about_overlap(tables: list[_Study], names: pd.Index, columns: list[np.ndarray]) -> None:
    """Warn about a study that shares few genes with the others, with the likely cause."""
    has = np.stack([column >= 0 for column in columns])
    for i, table in enumerate(tables if len(tables) > 1 else []):
        others = np.delete(has, i, axis=0)
        n_shared = int((has[i] & others.any(axis=0)).sum())
        n_usual = min(int(has[i].sum()), int(others.sum(axis=1).max()))
        if n_shared < _USUAL * n_usual:
            cause = advise(table.var, names.to_numpy()[others.any(axis=0)], n_shared)
            warnings.warn(
                f"{table.path} shares {n_shared} of its {len(table.var)} genes with the other studies. {cause}".strip(),
                stacklevel=3,
            )


def find_copies(adata: AnnData, study_key: str = "study", *, min_genes: int = 20) -> np.ndarray:
    """Find cells that also occur in an earlier study, even if studies have measured different genes.

    Parameters
    ----------
    adata
        Joined studies, as :func:`join_studies` returns them. Studies come in the order of their first cells:
        put your own first, so that copies are found among the public cells.
    study_key
        Column of ``obs`` with the study.
    min_genes
        Smallest number of genes, measured by both studies, that must have a count in the cell: fewer could be
        equal by chance.

    Returns
    -------
    Boolean, shape ``(n_obs,)``, True for a cell whose counts of the genes that two studies have in common equal those of a
    cell in the earlier one. ``adata[~find_copies(adata)]`` has each cell once.

    Raises
    ------
    KeyError
        If there is no such column.

    Examples
    --------
    >>> import scr2mae
    >>> blood = scr2mae.datasets.simulate_donors(n_donors=2, n_cells_per_donor=5, n_genes=90)
    >>> joined = scr2mae.data.join_studies({"mine": blood[:6, :60].copy(), "public": blood[4:].copy()})
    >>> scr2mae.data.find_copies(joined).nonzero()[0].tolist()
    [6, 7]
    """
    from scr2mae.data.studies import Studies, study_codes

    names, codes = study_codes(adata, study_key)
    found = Studies(study_key).resolve(adata, np.arange(adata.n_vars))
    measured = np.ones((adata.n_vars, len(names)), dtype=bool) if found is None else found[0]
    counts = as_csr(get_counts(adata, None))
    weights = np.random.default_rng(0).random(adata.n_vars) + 0.5
    order = [code for _, code in sorted((int(np.argmax(codes == code)), code) for code in range(len(names)))]
    is_copy = np.zeros(adata.n_obs, dtype=bool)
    for i, later in enumerate(order):
        cells = np.flatnonzero(codes == later)
        for earlier in order[:i]:
            shared = measured[:, later] & measured[:, earlier]
            is_copy[cells] |= np.isin(
                _prints(counts[cells], weights * shared, min_genes),
                _prints(counts[codes == earlier], weights * shared, min_genes),
            )
    return is_copy


def _prints(counts: sparse.csr_matrix, weights: np.ndarray, min_genes: int) -> np.ndarray:
    """Return a number per cell, equal for equal counts; all different for cells with few genes."""
    n_genes = (counts != 0) @ (weights > 0).astype(np.float64)
    values = np.round(counts.astype(np.float64) @ weights, 6)
    few = np.flatnonzero(n_genes < min_genes)
    values[few] = np.nan  # equals nothing, itself included
    return values
