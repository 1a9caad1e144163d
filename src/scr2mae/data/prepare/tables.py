"""Tables of several files under one another, each column of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

__all__ = ["concat_tables", "unique_names"]


def concat_tables(tables: Sequence[pd.DataFrame], labels: Sequence[str], *, what: str) -> pd.DataFrame:
    """Put tables under one another; columns that one of them lacks are missing there.

    Parameters
    ----------
    tables
        One per file.
    labels
        Names of the files, for the message.
    what
        What the tables are, for the message: ``"obs"``.

    Returns
    -------
    Columns in the order of first appearance, categories likewise. Whole numbers become floats and truth values
    nullable where some are missing.

    Raises
    ------
    ValueError
        If a column holds text in one file and numbers or truth values in another.
    """
    if len(tables) == 1:
        return tables[0].copy()
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    joined = {}
    for column in columns:
        parts = [table.get(column) for table in tables]
        # A column of nothing but missing values is of any kind.
        parts = [None if part is None or part.isna().all() else part for part in parts]
        _check_kinds(parts, column, labels, what)
        joined[column] = _concat(parts, [len(table) for table in tables])
    index = pd.Index(np.concatenate([table.index.to_numpy(dtype=object) for table in tables]))
    return pd.DataFrame(joined, index=index)


def _kind(column: pd.Series) -> str:
    if isinstance(column.dtype, pd.CategoricalDtype):
        inner = _kind(column.cat.categories.to_series())
        return "text" if inner == "text" else f"categories that are {inner}"
    if pd.api.types.is_bool_dtype(column.dtype):
        return "truth values"
    return "numbers" if pd.api.types.is_numeric_dtype(column.dtype) else "text"


def _check_kinds(parts: Sequence[pd.Series | None], column: str, labels: Sequence[str], what: str) -> None:
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


def _concat(parts: Sequence[pd.Series | None], lengths: Sequence[int]) -> np.ndarray | pd.Categorical:
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
    if kind == "truth values" and missing:
        filled = [
            pd.Series([pd.NA] * n, dtype="boolean") if part is None else part.astype("boolean")
            for part, n in zip(parts, lengths, strict=True)
        ]
        return pd.concat(filled, ignore_index=True).array
    if missing:
        return np.concatenate(
            [
                np.full(n, np.nan) if part is None else part.to_numpy(dtype=np.float64, na_value=np.nan)
                for part, n in zip(parts, lengths, strict=True)
            ]
        )
    return np.concatenate([part.to_numpy() for part in present])


def _concat_categories(parts: Sequence[pd.Series | None], lengths: Sequence[int]) -> pd.Categorical:
    """Unite categories; their order is kept as an order only where all files agree on it."""
    columns: list[Any] = [None if part is None else part.astype("category").cat for part in parts]
    given = [column for column in columns if column is not None]
    categories = given[0].categories
    ordered = all(column.ordered and column.categories.equals(categories) for column in given)
    for column in given[1:]:
        categories = categories.append(column.categories.difference(categories, sort=False))
    codes = np.full(sum(lengths), -1, dtype=np.int32)
    start = 0
    for column, n in zip(columns, lengths, strict=True):
        if column is not None:
            own = column.codes.to_numpy()
            codes[start : start + n] = np.append(categories.get_indexer(column.categories), -1)[own]
        start += n
    return pd.Categorical.from_codes(codes, categories=categories, ordered=ordered)


def unique_names(tables: Sequence[pd.DataFrame], labels: Sequence[str]) -> tuple[pd.Index, int]:
    """Name the rows of all tables; names that occur twice get the file's label, and then a number if need be.

    Returns
    -------
    The names, and how many were changed.
    """
    names = np.concatenate([table.index.to_numpy(dtype=object) for table in tables])
    twice = pd.Index(names).duplicated(keep=False)
    if twice.any():
        of_file = np.repeat(np.array(labels, dtype=object), [len(table) for table in tables])
        names[twice] = names[twice] + "-" + of_file[twice]
    index = pd.Index(names)
    return (index if index.is_unique else make_index_unique(index)), int(twice.sum())
