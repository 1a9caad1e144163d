"""Find and validate columns of ``adata.obs``: types that can be saved, and missing values stored as text."""

from __future__ import annotations

import re
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae._utils.once import warn_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    Key = str | Sequence[str]

__all__ = [
    "as_keys",
    "check_categories",
    "check_complete",
    "check_new_categories",
    "check_positive",
    "find_column",
    "find_model_column",
    "has_columns",
    "key_name",
    "read_numbers",
    "spelling",
    "warn_about_missing_text",
]

_MISSING_AS_TEXT = ("nan", "-nan", "nat", "none", "<na>", "na", "n/a", "#n/a", "null", "")
_SHOWN = 5
_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")


def as_keys(keys: Key | None, argument: str) -> list[str]:
    """Return names of columns as a list; one name may be given as it is, none twice."""
    listed = [] if keys is None else [keys] if isinstance(keys, str) else list(keys)
    if wrong := [key for key in listed if not isinstance(key, str)]:
        raise TypeError(f"{argument} takes names of columns, got {wrong[0]!r}; name columns of adata.obs.")
    if twice := sorted({key for key in listed if listed.count(key) > 1}):
        raise ValueError(f"{argument} names {twice} more than once; name each column once.")
    return listed


def key_name(key: Key) -> str:
    """Return the name of a column, or of several that are joined."""
    return " / ".join(as_keys(key, "The key"))


def find_column(obs: pd.DataFrame, key: Key) -> pd.Series:
    """Return a column of ``adata.obs``, or several joined as text: ``["study", "donor"]`` gives "s1 / d1".

    A value is missing where one of its parts is.
    """
    if isinstance(key, str):
        return _one_column(obs, key)
    parts = [_one_column(obs, each) for each in as_keys(key, "A key of several columns")]
    if not parts:
        raise ValueError(f"A key needs the name of at least one column; choose from {list(obs)}.")
    if len(parts) == 1:
        return parts[0]
    known = np.logical_and.reduce([part.notna().to_numpy() for part in parts])
    joined = parts[0].astype(str).astype(object)
    for part in parts[1:]:
        joined = joined + " / " + part.astype(str).astype(object)
    return joined.where(known).rename(key_name(key))


def find_model_column(obs: pd.DataFrame, key: str, known: np.ndarray | Sequence[Any] = ()) -> pd.Series:
    """Return a column that a model was set up with; ``known`` are its categories."""
    if key not in obs:
        values = f"for example one of {np.asarray(known)[:_SHOWN].tolist()}" if len(known) else "a number"
        raise KeyError(
            f"No {key!r} in adata.obs, but the model was set up with this column; set adata.obs[{key!r}] for each cell: "
            f"{values}. The columns are {list(obs)}."
        )
    return _one_column(obs, key)


def has_columns(obs: pd.DataFrame, key: Key) -> bool:
    """Return whether ``adata.obs`` has the column of a key, or all of them."""
    return all(name in obs for name in as_keys(key, "The key"))


def _one_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column of obs; raise if there is none or more than one."""
    if key not in obs:
        raise KeyError(f"No {key!r} in adata.obs; choose one of {list(obs)}.")
    column = obs[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(
            f"adata.obs has {column.shape[1]} columns named {key!r}; keep one of them, for example by "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]."
        )
    return column


def _values(column: pd.Series) -> Any:
    """Return the distinct values of a column, unused categories included."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.categories
    return column.dropna().unique()


def _kind(value: Any) -> str:
    """Return the kind of a value in words, for error messages."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, np.bool_)):
        return "booleans"
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, (np.float16, np.longdouble)
    )
    return "numbers" if is_number else type(value).__name__


def _kinds(values: Any) -> dict[str, Any]:
    """Return the kinds of values with an example of each."""
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(_kind(value), value.item() if isinstance(value, np.generic) else value)
    return found


def check_complete(column: pd.Series, key: str) -> None:
    """Raise if a value of a column is missing."""
    if n_missing := int(column.isna().sum()):
        raise ValueError(
            f"adata.obs[{key!r}] has {n_missing} missing values (NaN); fill them or drop those cells."
        )


def check_categories(column: pd.Series, key: str, argument: str) -> None:
    """Raise unless the values of a column are all text, all booleans or all finite numbers, none missing.

    These are the kinds that a saved model can keep and compare with those of new data.
    """
    check_complete(column, key)
    kinds = _kinds(_values(column))
    other = {name: value for name, value in kinds.items() if name not in ("text", "numbers", "booleans")}
    convert = f"convert it: adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)"
    if other:
        name, value = next(iter(other.items()))
        raise ValueError(
            f"adata.obs[{key!r}] ({argument}) holds values of type {name}, such as {str(value)!r}; expected text, "
            f"numbers or booleans, which can be saved; {convert}."
        )
    if len(kinds) > 1:
        shown = " and ".join(f"{name} such as {value!r}" for name, value in kinds.items())
        raise ValueError(f"adata.obs[{key!r}] ({argument}) mixes {shown}; {convert}.")
    if "numbers" in kinds and not np.isfinite(np.asarray(_values(column), dtype=np.float64)).all():
        raise ValueError(f"adata.obs[{key!r}] ({argument}) must be finite; correct it or drop those cells.")
    warn_about_missing_text(column, key)


def check_new_categories(
    column: pd.Series, key: str, known: np.ndarray, adata: AnnData | None = None
) -> None:
    """Raise if a column of new data is text where the reference has numbers, or the reverse, as for 0 and "0"."""
    _warn_about_spellings(column, key, known, adata)
    ours, theirs = _kinds(_values(column)), _kinds(known)
    if not ours or not theirs or set(ours) & set(theirs):
        return
    (own, value), (wanted, example) = next(iter(ours.items())), next(iter(theirs.items()))
    kind = {"text": "str", "numbers": type(example).__name__.rstrip("0123456789"), "booleans": "bool"}
    raise ValueError(
        f"adata.obs[{key!r}] holds {own} such as {value!r}, the model has {wanted} such as {example!r}; convert it: "
        f"adata.obs[{key!r}] = adata.obs[{key!r}].astype({kind.get(wanted, 'str')})."
    )


def spelling(name: str) -> str:
    """Return a form shared by names that differ in case, blanks, separators, leading zeros or number format."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).strip().casefold()
    try:
        return repr(float(text))
    except ValueError:
        return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"[\s_-]+", "-", text))


def _warn_about_spellings(column: pd.Series, key: str, known: np.ndarray, adata: AnnData | None) -> None:
    """Warn if a new category differs from one of the reference only in case, blanks or the like."""
    of_reference = {spelling(name): str(name) for name in known if isinstance(name, str)}
    new = [
        name for name in _values(column) if isinstance(name, str) and name not in set(of_reference.values())
    ]
    alike = [
        f"{name!r} and {of_reference[spelling(name)]!r}" for name in new if spelling(name) in of_reference
    ]
    if alike:
        warn_once(
            f"adata.obs[{key!r}] and the reference spell {len(alike)} categories differently: {'; '.join(alike[:5])}. They "
            "are taken as different; rename those of adata if they are the same.",
            adata,
            stacklevel=3,
        )


def warn_about_missing_text(column: pd.Series, key: str) -> None:
    """Warn if text such as "nan" stands for missing values, since it would count as a value."""
    values = _values(column)
    found = [
        value for value in values if isinstance(value, str) and value.strip().casefold() in _MISSING_AS_TEXT
    ]
    counts: Any = column.value_counts() if found else {}
    if shown := [f"{int(counts[value])} cells {value!r}" for value in found if counts[value]]:
        warnings.warn(
            f"adata.obs[{key!r}] has {' and '.join(shown)}, text that stands for missing values, such as astype(str) "
            f"makes; each counts as a value of its own. Drop those cells, or fill the gaps before astype(str).",
            stacklevel=3,
        )


def read_numbers(column: pd.Series, key: str, argument: str) -> np.ndarray:
    """Return a numeric column, finite and without gaps; float32, shape (n_obs,)."""
    check_complete(column, key)
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or column.dtype.kind == "m":
        raise ValueError(
            f"adata.obs[{key!r}] must be numeric, got dates or times, {column.dtype} ({argument}); convert it, for "
            f"example to days: (adata.obs[{key!r}] - adata.obs[{key!r}].min()) / pd.Timedelta(days=1)."
        )
    if column.dtype == object and set(_kinds(_values(column))) <= {"numbers", "booleans"}:
        column = pd.to_numeric(column)
    if column.dtype.kind not in "fiub":
        raise ValueError(
            f"adata.obs[{key!r}] must be numeric, got {column.dtype}, such as {column.iloc[0]!r} ({argument}); "
            f"convert it: adata.obs[{key!r}] = pd.to_numeric(adata.obs[{key!r}].astype(str))."
        )
    with np.errstate(over="ignore"):
        values = column.to_numpy(dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"adata.obs[{key!r}] must be finite; correct it or drop those cells.")
    return values


def check_positive(values: np.ndarray, key: str) -> None:
    """Raise unless all numbers of a column are above zero."""
    if (values <= 0).any():
        raise ValueError(f"adata.obs[{key!r}] must be positive.")
