"""Genes matched by name, and counts with their columns in that order."""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scr2mae._utils.once import is_news, warn_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = [
    "advise",
    "align_genes",
    "check_overlap",
    "has_nearly_all",
    "select_genes",
    "warn_about_genes",
]

logger = logging.getLogger(__name__)

_USUAL = 0.95  # share of the reference's genes below which to warn
_SPELLINGS = (
    ("case", r"$^", ""),
    ("'.', '-' and '_'", r"[._-]", "-"),
    ("a version or suffix at the end", r"[.-]\d+$", ""),
    ("blanks", r"\s+", ""),
    ("an id at the end", r"[ _|]ENS[A-Z]*\d+(\.\d+)?$", ""),
    ("a genome at the start", r"^(GRCh3[78]|hg19|hg38|GRCm3[89]|mm10)_+", ""),
)
_OTHER_FEATURES = {
    *("antibody capture", "peaks", "crispr guide capture", "multiplexing capture", "custom", "protein", "proteins"),
    *("adt", "hto", "atac", "prot", "crispr"),
}  # fmt: skip
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


def check_overlap(adata: AnnData, reference: np.ndarray, found: np.ndarray, *, min_shared: float) -> None:
    """Raise if a query shares too few genes with the reference; warn once below 95 %, with the likely cause.

    ``found`` says which genes of the reference the query has.
    """
    var = adata.var
    n_shared, n_vars = int(found.sum()), len(reference)
    report = f"the query has {n_shared} of the reference's {n_vars} genes ({n_shared / n_vars:.0%})"
    if n_shared == n_vars:
        return
    cause = advise(var, reference, n_shared)
    if n_shared == 0:
        cause = cause or (
            f"Compare adata.var_names, such as {var.index[:3].tolist()}, with the reference's, {reference[:3].tolist()} "
            "(symbols against Ensembl ids?)."
        )
        raise ValueError(f"No shared genes: {report}. {cause}")
    if n_shared < 2 or n_shared < min_shared * n_vars:
        raise ValueError(
            f"Too few shared genes: {report}, but min_shared={min_shared:g} requires more. {cause}"
        )
    absent = reference[~found][:5].tolist()
    if not has_nearly_all(found):
        warn_once(
            f"Few shared genes: {report}; absent genes are treated as masked, such as {absent}. Cells of the reference "
            f"compare best if they are embedded on the same genes. {cause}".rstrip(),
            adata,
            stacklevel=3,
        )
    elif is_news(report, adata):
        logger.info("Gene overlap: %s; absent genes are treated as masked, such as %s.", report, absent)


def has_nearly_all(found: np.ndarray) -> bool:
    """Return whether enough of the reference's genes are present to need no warning."""
    return bool(found.sum() >= _USUAL * len(found))


def advise(var: pd.DataFrame, reference: np.ndarray, n_shared: int) -> str:
    """Return how more genes would match: by another column of names, or by names spelled alike."""
    wanted = set(map(str, reference))
    n_equal = len(wanted & set(map(str, var.index)))
    best, advice = max(n_shared, n_equal) + len(reference) // 100, ""
    for column in var.columns:
        values = var[column]
        if isinstance(values, pd.DataFrame):  # several columns of this name
            continue
        if values.dtype != object and not isinstance(values.dtype, (pd.CategoricalDtype, pd.StringDtype)):
            continue
        if (n_found := len(wanted & set(values.astype(str)))) > best:
            best = n_found
            advice = (
                f"var[{column!r}] matches {n_found} of {len(reference)}: "
                f"adata.var_names = adata.var[{column!r}].astype(str)."
            )
    names = var.index.astype(str)
    for what, pattern, by in _SPELLINGS:
        ours = {re.sub(pattern, by, name).casefold(): name for name in names}
        theirs = {re.sub(pattern, by, name).casefold(): name for name in wanted}
        shared = ours.keys() & theirs.keys()
        if len(shared) > best:
            best = len(shared)
            example = next((name for name in sorted(shared) if ours[name] != theirs[name]), min(shared))
            advice = (
                f"But for {what}, {len(shared)} of {len(reference)} match, such as {ours[example]!r} and "
                f"{theirs[example]!r}; rename adata.var_names."
            )
    return advice


def warn_about_genes(var: pd.DataFrame) -> None:
    """Warn about names that are row numbers, and about features of several types."""
    names = var.index.astype(str)
    # Entrez ids are numbers too, but some of them are large.
    if len(names) and all(name.isdecimal() and len(name) <= 5 for name in names):
        warnings.warn(
            f"Gene names are row numbers, {names[0]!r} to {names[-1]!r}, which match those of any other file by position; set "
            f"adata.var_names (columns of var: {list(var.columns)}).",
            stacklevel=3,
        )
    for column in ("feature_types", "feature_type", "modality"):
        types = var.get(column)
        if not isinstance(types, pd.Series):
            continue
        counts = {kind: n for kind, n in types.value_counts().items() if n}
        # CELLxGENE has biotypes in feature_type.
        has_others = bool(_OTHER_FEATURES & {str(kind).casefold() for kind in counts})
        if not has_others and (column != "feature_types" or len(counts) < 2):
            continue
        shown = ", ".join(f"{n} {kind!r}" for kind, n in counts.items())
        warnings.warn(
            f"var[{column!r}] has {shown}; all are trained as genes. Keep one type: "
            f"adata[:, adata.var[{column!r}] == 'Gene Expression'].copy().",
            stacklevel=3,
        )
