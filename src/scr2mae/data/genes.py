"""Genes matched by name, and counts with their columns in that order."""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["align_genes", "check_overlap", "select_genes"]

logger = logging.getLogger(__name__)

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+$")


def _strip_versions(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Drop the version of Ensembl ids, ``ENSG00000141510.18`` to ``ENSG00000141510``."""
    return np.array([_ENSEMBL_VERSION.sub(r"\1", str(name)) for name in names], dtype=object)


def align_genes(names: Sequence[str] | np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Find the genes of a reference by name, ignoring versions of Ensembl ids.

    Parameters
    ----------
    names
        Gene names of a query, unique.
    reference
        Gene names of the reference, shape (n_vars,).

    Returns
    -------
    Index in ``names`` of each reference gene, -1 if absent; int64, shape (n_vars,).

    Raises
    ------
    ValueError
        If two genes of the query are versions of the same reference gene.
    """
    exact = pd.Index(np.asarray(names, dtype=object))
    indices = exact.get_indexer(pd.Index(reference.astype(object)))
    open_reference = np.flatnonzero(indices < 0)
    open_names = np.setdiff1d(np.arange(len(exact)), indices)
    stripped = pd.Index(_strip_versions(exact[open_names]))
    wanted = pd.Index(_strip_versions(reference[open_reference]))
    twice = {*stripped[stripped.duplicated()], *wanted[wanted.duplicated()]} & set(stripped) & set(wanted)
    if twice:
        raise ValueError(
            f"{sorted(twice)[:5]} occur in several versions, so they cannot be matched by name; keep one of each."
        )
    wanted_once = ~wanted.duplicated()
    found = stripped[~stripped.duplicated()].get_indexer(wanted[wanted_once])
    kept = open_names[~stripped.duplicated()]
    indices[open_reference[wanted_once]] = np.where(found >= 0, kept[found], -1) if len(kept) else -1
    return indices


def select_genes(counts: sparse.csr_matrix, indices: np.ndarray) -> sparse.csr_matrix:
    """Return the given columns, with an empty one for each -1; sparse throughout, entries of a row sorted."""
    if np.array_equal(indices, np.arange(counts.shape[1])):
        return counts
    present = np.flatnonzero(indices >= 0)
    found = counts[:, indices[present]]
    columns = present[found.indices].astype(found.indices.dtype)
    selected = sparse.csr_matrix((found.data, columns, found.indptr), shape=(counts.shape[0], len(indices)))
    selected.sort_indices()
    return selected


def check_overlap(n_shared: int, n_vars: int, *, min_shared: float) -> None:
    """Raise if a query shares too few genes with the reference; warn below half."""
    report = f"the query has {n_shared} of the reference's {n_vars} genes ({n_shared / n_vars:.0%})"
    if n_shared == 0:
        raise ValueError(
            f"No shared genes: {report}. Compare adata.var_names with the reference's "
            "(symbols against Ensembl ids?)."
        )
    if n_shared < 2 or n_shared < min_shared * n_vars:
        raise ValueError(f"Too few shared genes: {report}, but min_shared={min_shared:g} requires more.")
    if n_shared < 0.5 * n_vars:
        warnings.warn(
            f"Few shared genes: {report}; absent genes are treated as masked.", UserWarning, stacklevel=3
        )
    elif n_shared < n_vars:
        logger.info("Gene overlap: %s; absent genes are treated as masked.", report)
