"""Several files as one: genes matched by name, tables of cells and genes joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae.data.genes import align_genes
from scr2mae.data.prepare.sources import Source
from scr2mae.data.prepare.tables import concat_tables, unique_names

__all__ = ["align_sources", "join_obs", "join_var", "report_genes", "select_columns"]

logger = logging.getLogger(__name__)


def align_sources(sources: Sequence[Source], *, join: str) -> tuple[pd.Index, list[np.ndarray]]:
    """Match the genes of all files by name, Ensembl versions aside.

    Parameters
    ----------
    sources
        The files; names are written, and ordered, as in the first that has them.
    join
        ``"inner"`` for the genes that all have, ``"outer"`` for those that any has.

    Returns
    -------
    The names, shape (n_vars,); and for each file the column of each gene, -1 where it is absent, int64, shape
    (n_vars,).

    Raises
    ------
    ValueError
        If no gene is left, or a gene is in one file in two versions.
    """
    names = sources[0].var.index.to_numpy(dtype=object)
    columns = [np.arange(len(names))]
    for source in sources[1:]:
        own = source.var.index.to_numpy(dtype=object)
        try:
            position = align_genes(own, names)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
        if join == "inner":
            shared = position >= 0
            if not shared.any():
                raise ValueError(
                    f"{source.path} shares no gene with the files before it: it has {own[:3].tolist()}, they have "
                    f"{names[:3].tolist()}. Symbols against Ensembl ids? Give all files the same kind of var_names."
                )
            names, columns = names[shared], [column[shared] for column in [*columns, position]]
        else:
            new = np.setdiff1d(np.arange(len(own)), position)
            absent = np.full(len(new), -1)
            names = np.concatenate([names, own[new]])
            columns = [np.concatenate([column, absent]) for column in columns]
            columns.append(np.concatenate([position, new]))
    return pd.Index(names), columns


def select_columns(block: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """Take columns by number; -1 gives an empty one.

    Parameters
    ----------
    block
        CSR, shape (n_rows, n_file_vars).
    columns
        Distinct but for -1, shape (n_vars,).

    Returns
    -------
    CSR of shape (n_rows, n_vars), indices sorted.
    """
    present = np.flatnonzero(columns >= 0)
    if len(columns) == block.shape[1] and np.array_equal(columns, np.arange(len(columns))):
        return block
    target = np.full(block.shape[1], -1, dtype=np.int32)
    target[columns[present]] = present
    moved = target[block.indices]
    kept = moved >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[block.indptr]
    selected = sp.csr_matrix((block.data[kept], moved[kept], indptr), shape=(block.shape[0], len(columns)))
    selected.sort_indices()
    return selected


def report_genes(sources: Sequence[Source], columns: Sequence[np.ndarray], join: str) -> None:
    """Log what the alignment keeps and drops; warn where it drops most of a file."""
    if len(sources) == 1:
        return
    n_vars = len(columns[0])
    for source, column in zip(sources, columns, strict=True):
        own, found = len(source.var), int((column >= 0).sum())
        level = logging.WARNING if 2 * found < own or 2 * found < n_vars else logging.INFO
        logger.log(
            level,
            "%s: %d of its %d genes are kept, %d dropped, %d filled with zeros (join=%r).",
            source.path,
            found,
            own,
            own - found,
            n_vars - found,
            join,
        )


def join_obs(sources: Sequence[Source], file_key: str | None) -> tuple[pd.DataFrame, int]:
    """Read the cells of all files, in the order of the files.

    Returns
    -------
    The table, with a column of the files' labels where ``file_key`` is given; and how many names were changed
    because they occur more than once.
    """
    tables, labels = [source.read_obs() for source in sources], [source.label for source in sources]
    obs = concat_tables(tables, labels, what="obs")
    obs.index, n_renamed = unique_names(tables, labels)
    if file_key is not None:
        if file_key in obs:
            raise ValueError(f"obs has a column {file_key!r} already; choose another file_key, or None.")
        codes = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        obs[file_key] = pd.Categorical.from_codes(codes, categories=pd.Index(labels))
    return obs, n_renamed


def join_var(sources: Sequence[Source], names: pd.Index, columns: Sequence[np.ndarray]) -> pd.DataFrame:
    """Annotation of each gene from the first file that has it."""
    tables, described = [], np.zeros(len(names), dtype=bool)
    for source, column in zip(sources, columns, strict=True):
        first = (column >= 0) & ~described
        described |= first
        if first.any():  # genes come in the order of the files, so the tables need no sorting
            tables.append((source.label, source.var.iloc[column[first]]))
    labels, parts = [label for label, _ in tables], [table for _, table in tables]
    return concat_tables(parts, labels, what="var").set_axis(names)
