"""Study designs: columns that are associated with the target or determine it."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.stats import chi2_contingency
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from scr2mae.data.columns import as_keys, find_column, warn_about_missing_text
from scr2mae.metrics import spearman
from scr2mae.probe.folds import Folds
from scr2mae.probe.inputs import Kind, Target, checked_obs, read_target

logger = logging.getLogger(__name__)
_COLUMNS = (
    *("column", "n_levels", "association", "n_determined", "n_units", "determines", "identifies", "missing"),
)


def design_table(
    adata: AnnData,
    *,
    target: str,
    kind: Kind,
    donor_key: str | Sequence[str],
    columns: Sequence[str],
    sample_key: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Compare the target with other columns over donors, and warn if one of them determines it.

    Parameters
    ----------
    adata
        Annotated data; only ``adata.obs`` is read.
    target, kind, donor_key, sample_key
        As in :func:`fit_probe`.
    columns
        Columns to compare with, such as batch, sex and study. Columns of numbers with more than ten values
        are compared as numbers, all others as categories.

    Returns
    -------
    One row per column, over units (donors; donor and class if the target varies within donors):

    - ``n_levels``, and ``association`` from 0 to 1: Cramér's V for two categories, the correlation ratio for a category
      and a number, the absolute Spearman correlation for two numbers
    - ``n_determined`` of ``n_units`` units are in a level with two or more units that all have the same class
    - ``determines``: all of them are, so that no score can tell the target from the column
    - ``identifies``: each unit has its own level, as sample IDs do
    - ``missing``: units without a value

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the labels do not suit the kind, or there are fewer than two donors with a label.
    """
    obs = checked_obs(adata, donor_key)
    described = read_target(obs, target, kind, donor_key=donor_key, sample_key=sample_key)
    rows = []
    for column in as_keys(columns, "columns"):
        warn_about_missing_text(find_column(adata.obs, column), column)
        values, y = _unit_values(described, find_column(adata.obs, column))
        row = _compare(values, y, kind)
        rows.append({"column": column, **row, "missing": len(np.unique(described.units)) - len(y)})
        if row["determines"]:
            warnings.warn(
                f"{column!r} determines {target!r}: all {row['n_units']} units of the same {column!r} have the same "
                f"{target!r}, so a score cannot tell one from the other. Add donors that break the tie, or hold out "
                "whole levels with holdout_key=.",
                stacklevel=2,
            )
    return pd.DataFrame(rows, columns=list(_COLUMNS)).set_index("column")


def _unit_values(target: Target, column: pd.Series) -> tuple[pd.Series, NDArray[Any]]:
    """Return the value of a column and the target of each unit; the most frequent value if a unit has several."""
    frame = pd.DataFrame({"unit": target.units, "value": column.iloc[target.rows].to_numpy(), "y": target.y})
    frame = frame.dropna(subset="value")
    by_unit = frame.groupby("unit", sort=True)
    n_values = by_unit["value"].nunique().to_numpy()
    if mixed := int((n_values > 1).sum()):
        logger.warning(
            "%d unit(s) have several values of %r; the most frequent one counts.", mixed, column.name
        )
    return by_unit["value"].agg(lambda values: values.mode().iloc[0]), by_unit["y"].first().to_numpy()


def _compare(values: pd.Series, y: NDArray[Any], kind: Kind) -> dict[str, Any]:
    """Return how strongly a column is associated with the target over units, and whether it determines it."""
    n_units, n_levels = len(y), int(values.nunique())
    is_number = pd.api.types.is_numeric_dtype(values) and n_levels > 10
    sizes = values.groupby(values.to_numpy()).transform("size").to_numpy()
    row = {"n_levels": n_levels, "association": np.nan, "n_determined": 0, "n_units": n_units}
    row |= {"determines": False, "identifies": n_units > 0 and n_levels == n_units and not is_number}
    if n_levels < 2 or row["identifies"]:
        return row
    if is_number:
        numbers = values.to_numpy(dtype=float)
        row["association"] = (
            abs(spearman(y, numbers)) if kind == "regression" else _correlation_ratio(y, numbers)
        )
        return row
    if kind == "regression":
        row["association"] = _correlation_ratio(values.to_numpy(), y.astype(float))
        return row
    n_classes = pd.Series(y).groupby(values.to_numpy()).transform("nunique").to_numpy()
    row["n_determined"] = int(((n_classes == 1) & (sizes > 1)).sum())
    row["determines"] = row["n_determined"] == n_units
    table = pd.crosstab(values.to_numpy(), y)
    statistic = chi2_contingency(table, correction=False).statistic
    row["association"] = float(np.sqrt(statistic / n_units / (min(table.shape) - 1)))
    return row


def _correlation_ratio(groups: NDArray[Any], numbers: NDArray[np.float64]) -> float:
    """Return the square root of the share of the variance that lies between groups."""
    total = float(np.square(numbers - numbers.mean()).sum())
    means = pd.Series(numbers).groupby(groups).transform("mean").to_numpy()
    return float(np.sqrt(np.square(means - numbers.mean()).sum() / total)) if total > 0 else np.nan


def covariate_features(obs: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Return covariates as features: standardized numbers, and one column per category, missing values included."""
    parts = []
    for name in columns:
        column = find_column(obs, name)
        if pd.api.types.is_numeric_dtype(column) and column.nunique() > 10:
            numbers = column.to_numpy(dtype=float)[:, None]
            numbers = np.where(np.isnan(numbers), np.nanmean(numbers), numbers)
            parts.append(StandardScaler().fit_transform(numbers))
        else:
            parts.append(
                OneHotEncoder(sparse_output=False).fit_transform(column.astype(str).to_numpy()[:, None])
            )
    return np.hstack(parts)


def level_folds(levels: NDArray[Any], donors: NDArray[Any]) -> Folds:
    """Hold out one level at a time, with all cells of its donors left out of the training cells."""
    folds = []
    for level in np.unique(levels):
        test = levels == level
        train = ~np.isin(donors, np.unique(donors[test]))
        folds.append((np.flatnonzero(train), np.flatnonzero(test)))
    return folds
