"""Join several files: match genes by name, concatenate tables of cells and genes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from scr2mae.data.donors import donor_columns, warn_about_donors, warn_about_origin, warn_about_shared_names
from scr2mae.data.genes import align_genes, warn_about_genes
from scr2mae.data.panels import column_of

__all__ = ["Source", "align_sources", "check_cells", "join_obs", "join_var", "measured_table", "report_genes"]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Cells to join: a file, or an AnnData in memory."""

    @property
    def path(self) -> Path | str:
        """Name in messages."""

    @property
    def label(self) -> str:
        """Short name, unique among the sources."""

    @property
    def var(self) -> pd.DataFrame:
        """Genes."""

    def read_obs(self) -> pd.DataFrame:
        """Return a table of the cells that may be changed."""


def align_sources(sources: Sequence[Source], *, join: str) -> tuple[pd.Index, list[np.ndarray]]:
    """Match the genes of all files by name, ignoring versions of Ensembl ids.

    Returns the names, spelled and ordered as in the first file that has them, and for each file the column of each gene,
    -1 if absent. ``join`` is ``"inner"`` for genes that all files have or ``"outer"`` for genes that any file has.
    """
    for source in sources:
        warn_about_genes(source.var)
    names = sources[0].var.index.to_numpy(dtype=object)
    columns = [np.arange(len(names))]
    for source in sources[1:]:
        own = source.var.index.to_numpy(dtype=object)
        try:
            found = align_genes(own, names)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error
        if join == "inner":
            shared = found >= 0
            if not shared.any():
                raise ValueError(
                    f"{source.path} shares no gene with the files before it: it has {own[:3].tolist()}, they have "
                    f"{names[:3].tolist()}. Symbols against Ensembl ids? Give all files the same kind of var_names."
                )
            names, columns = names[shared], [column[shared] for column in [*columns, found]]
        else:
            new = np.setdiff1d(np.arange(len(own)), found)
            absent = np.full(len(new), -1)
            names = np.concatenate([names, own[new]])
            columns = [np.concatenate([column, absent]) for column in columns]
            columns.append(np.concatenate([found, new]))
    return pd.Index(names), columns


def report_genes(sources: Sequence[Source], columns: Sequence[np.ndarray], join: str) -> None:
    """Log how many genes of each file are kept and dropped; warn if most of a file is dropped."""
    if len(sources) == 1:
        return
    n_vars = len(columns[0])
    for source, column in zip(sources, columns, strict=True):
        own, found = len(source.var), int((column >= 0).sum())
        level = logging.WARNING if 2 * found < own or 2 * found < n_vars else logging.INFO
        logger.log(
            level,
            "%s: %d of its %d genes are kept, %d dropped, %d not measured (join=%r).",
            *(source.path, found, own, own - found, n_vars - found, join),
        )


def check_cells(sources: Sequence[Source], prefix: Sequence[str]) -> pd.Index:
    """Warn about doubtful or ambiguous donors; return the names of all cells as they are in the files."""
    tables, labels = [source.read_obs() for source in sources], [source.label for source in sources]
    _prefixed(tables, labels, prefix)
    warn_about_shared_names(tables, labels)
    for key in dict.fromkeys(key for table in tables for key in donor_columns(table)):
        values = [table[key].to_numpy(dtype=object) for table in tables if key in table]
        warn_about_donors(np.concatenate(values), key)
    primary = [table[["is_primary_data"]] for table in tables if "is_primary_data" in table]
    if primary:
        warn_about_origin(None, None, pd.concat(primary))
    return pd.Index(np.concatenate([table.index.to_numpy(dtype=object) for table in tables]))


def _prefixed(tables: Sequence[pd.DataFrame], labels: Sequence[str], prefix: Sequence[str]) -> None:
    """Put the label of the file before the values of some columns, in place."""
    for key in prefix:
        if not any(key in table for table in tables):
            raise KeyError(f"prefix={key!r}: no file has this column of obs; choose from {list(tables[0])}.")
    for table, label in zip(tables, labels, strict=True):
        for key in (key for key in prefix if key in table):
            known = table[key].notna()
            named = (f"{label}:" + table[key].astype(str).astype(object)).where(known)
            table[key] = named.astype("category")


def join_obs(
    sources: Sequence[Source], file_key: str | None, prefix: Sequence[str] = ()
) -> tuple[pd.DataFrame, int]:
    """Read the cells of all files in order, labeled in ``obs[file_key]``, and count the names made unique."""
    tables, labels = [source.read_obs() for source in sources], [source.label for source in sources]
    _prefixed(tables, labels, prefix)
    obs = _concat_tables(tables, labels, what="obs")
    file = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    names = np.concatenate([table.index.to_numpy(dtype=object) for table in tables])
    repeated = pd.Index(names).duplicated(keep=False)
    names[repeated] = names[repeated] + "-" + np.array(labels, dtype=object)[file[repeated]]
    obs.index = pd.Index(names)
    if not obs.index.is_unique:
        obs.index = make_index_unique(obs.index)
    if file_key is not None:
        if file_key in obs:
            raise ValueError(f"obs already has a column {file_key!r}; choose another file_key, or None.")
        obs[file_key] = pd.Categorical.from_codes(file, categories=pd.Index(labels))
    return obs, int(repeated.sum())


def join_var(sources: Sequence[Source], names: pd.Index, columns: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return the annotation of each gene in the first file that has it."""
    tables, labels, described = [], [], np.zeros(len(names), dtype=bool)
    for source, column in zip(sources, columns, strict=True):
        first = (column >= 0) & ~described
        described |= first
        if first.any():  # genes come in the order of the files, so the tables need no sorting
            tables.append(source.var.iloc[column[first]])
            labels.append(source.label)
    return _concat_tables(tables, labels, what="var").set_axis(names)


def measured_table(sources: Sequence[Source], names: pd.Index, columns: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return which genes each source has, a boolean column per source."""
    return pd.DataFrame(
        {column_of(each.label): column >= 0 for each, column in zip(sources, columns, strict=True)},
        index=names,
    )


def _concat_tables(tables: Sequence[pd.DataFrame], labels: Sequence[str], *, what: str) -> pd.DataFrame:
    """Concatenate tables; values of columns that a table lacks are missing.

    Columns and categories come in order of first appearance. With missing values, integers become floats and booleans
    nullable. Raises if a column has different kinds of values in two tables, which ``labels`` and ``what`` name.
    """
    if len(tables) == 1:
        return tables[0].copy()
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    joined = {}
    for column in columns:
        parts = [table.get(column) for table in tables]
        # A column of nothing but missing values fits any kind.
        parts = [None if part is None or part.isna().all() else part for part in parts]
        _check_kinds(parts, column, labels, what)
        joined[column] = _concat(parts, [len(table) for table in tables])
    return pd.DataFrame(
        joined, index=np.concatenate([table.index.to_numpy(dtype=object) for table in tables])
    )


def _kind(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype):
        inner = _kind(column.cat.categories.to_series())
        return "text" if inner == "text" else f"categories that are {inner}"
    if pd.api.types.is_bool_dtype(column.dtype):
        return "booleans"
    return "numbers" if pd.api.types.is_numeric_dtype(column.dtype) else "text"


def _check_kinds(parts: Sequence[pd.Series | None], column: str, labels: Sequence[str], what: str) -> None:
    """Raise if the files disagree about the kind of a column."""
    found: dict[str, str] = {}
    for part, label in zip(parts, labels, strict=True):
        if part is not None:
            found.setdefault(_kind(part), label)
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise ValueError(
            f"{what}[{column!r}] holds {one} in {first} and {other} in {second}; "
            "make them one kind, or rename or drop the column in one of the files."
        )


def _concat(parts: Sequence[pd.Series | None], lengths: Sequence[int]) -> Any:
    """Concatenate a column of several files, of which some may lack it."""
    present = [part for part in parts if part is not None]
    if not present:
        return np.full(sum(lengths), np.nan)
    kind = _kind(present[0])
    missing = len(present) < len(parts) or any(part.isna().any() for part in present)
    categorical = any(isinstance(part.dtype, pd.CategoricalDtype) for part in present)
    if categorical or (kind == "text" and missing):
        return _concat_categories(parts, lengths)
    if kind == "text":
        return np.concatenate([part.to_numpy(dtype=object) for part in present])
    if not missing:
        return np.concatenate([part.to_numpy() for part in present])
    if kind == "booleans":
        filled = [
            pd.Series([pd.NA] * n, dtype="boolean") if part is None else part.astype("boolean")
            for part, n in zip(parts, lengths, strict=True)
        ]
        return pd.concat(filled, ignore_index=True).array
    return np.concatenate(
        [
            np.full(n, np.nan) if part is None else part.to_numpy(dtype=np.float64, na_value=np.nan)
            for part, n in zip(parts, lengths, strict=True)
        ]
    )


def _concat_categories(parts: Sequence[pd.Series | None], lengths: Sequence[int]) -> pd.Categorical:
    """Take the union of the categories; they stay ordered only if all files agree on their order."""
    columns: list[Any] = [None if part is None else part.astype("category").cat for part in parts]
    present = [column for column in columns if column is not None]
    categories = present[0].categories
    ordered = all(column.ordered and column.categories.equals(categories) for column in present)
    for column in present[1:]:
        categories = categories.append(column.categories.difference(categories, sort=False))
    codes = [
        np.full(n, -1)
        if column is None
        else np.append(categories.get_indexer(column.categories), -1)[column.codes.to_numpy()]
        for column, n in zip(columns, lengths, strict=True)
    ]
    return pd.Categorical.from_codes(np.concatenate(codes), categories=categories, ordered=ordered)
