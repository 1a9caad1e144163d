"""Genes matched by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["align_genes"]

_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+$")


def _strip_versions(names: Sequence[str] | np.ndarray) -> np.ndarray:
    """Drop the version of Ensembl ids, ``ENSG00000141510.18`` to ``ENSG00000141510``."""
    return np.array([_ENSEMBL_VERSION.sub(r"\1", str(name)) for name in names], dtype=object)


def align_genes(names: Sequence[str] | np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Find the reference's genes by name, Ensembl versions aside.

    Parameters
    ----------
    names
        Gene names of a query, unique.
    reference
        Gene names of the reference, shape (n_vars,).

    Returns
    -------
    For each reference gene its position in ``names``, -1 where it is absent; int64, shape (n_vars,).

    Raises
    ------
    ValueError
        If two of the query's genes are versions of one reference gene.
    """
    exact = pd.Index(np.asarray(names, dtype=object))
    position = exact.get_indexer(pd.Index(reference.astype(object)))
    open_reference = np.flatnonzero(position < 0)
    open_names = np.setdiff1d(np.arange(len(exact)), position)
    stripped = pd.Index(_strip_versions(exact[open_names]))
    wanted = pd.Index(_strip_versions(reference[open_reference]))
    twice = {*stripped[stripped.duplicated()], *wanted[wanted.duplicated()]} & set(stripped) & set(wanted)
    if twice:
        raise ValueError(
            f"{sorted(twice)[:5]} occur in several versions, so they cannot be matched by name; keep one of each."
        )
    wanted_known = ~wanted.duplicated()
    found = stripped[~stripped.duplicated()].get_indexer(wanted[wanted_known])
    kept = open_names[~stripped.duplicated()]
    position[open_reference[wanted_known]] = np.where(found >= 0, kept[found], -1) if len(kept) else -1
    return position
