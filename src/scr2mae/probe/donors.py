"""Predictions per donor: means over cells, their uncertainty, and a warning about donors of the fit."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scr2mae._utils.shorten import shorten
from scr2mae.data.columns import spelling
from scr2mae.metrics import group_means

Float = NDArray[np.float64]


def unit_means(
    values: Float, fold_values: Sequence[Float], units: NDArray[np.intp], *, n_units: int
) -> tuple[Float, Float]:
    """Return the mean of each unit, NaN without cells, and its variance over cells and over training donors.

    The variance over training donors is the delete-a-group jackknife of the same mean from probes fitted without the
    donors of a fold.
    """
    means = _average(values, units, n_units)
    n_cells = np.maximum(np.bincount(units, minlength=n_units), 1)[:, None]
    variance = np.maximum(_average(values**2, units, n_units) - means**2, 0) / n_cells
    if (n_folds := len(fold_values)) > 1:
        by_fold = np.stack([_average(each, units, n_units) for each in fold_values])
        variance = variance + (n_folds - 1) * by_fold.var(axis=0)
    return means, variance


def _average(values: Float, units: NDArray[np.intp], n_units: int) -> Float:
    means = np.full((n_units, values.shape[1]), np.nan)
    if len(units):
        names, found = group_means(values, units)
        means[names] = found
    return means


def conformal_width(errors: ArrayLike, confidence: float) -> float:
    """Return the half-width that covers the value of a new donor, from the errors on held-out donors.

    It is infinite if there are too few of them for this confidence.
    """
    ordered = np.sort(np.abs(np.asarray(errors, dtype=np.float64)))
    rank = int(np.ceil((len(ordered) + 1) * confidence - 1e-9))
    return float(ordered[rank - 1]) if rank <= len(ordered) else np.inf


def interval_width(errors: ArrayLike, confidence: float) -> float:
    """Return the half-width of :func:`conformal_width`; warn if it is infinite."""
    width, n_donors = conformal_width(errors, confidence), np.size(errors)
    if np.isinf(width):
        n_needed = int(np.ceil(confidence / (1 - confidence) - 1e-9))
        largest = np.floor(100 * n_donors / (n_donors + 1)) / 100
        warnings.warn(
            f"The intervals are infinite: confidence {confidence:g} needs {n_needed} held-out donors, the probe has "
            f"{n_donors}. Pass confidence={largest:g} or less, or fit the probe to more donors.",
            stacklevel=3,
        )
    return width


def warn_about_known_donors(column: pd.Series, known: Sequence[str]) -> None:
    """Warn if a donor of new cells is one of the fit, ignoring case, blanks and separators in names."""
    spellings = {spelling(name) for name in known}
    present = column.dropna().astype(str).unique()
    if shared := sorted(name for name in present if spelling(name) in spellings):
        warnings.warn(
            f"{len(shared)} donor(s) of the fit are among those predicted: {shorten(shared)}. Their predictions look better "
            "than those of new donors; the scores of the probe come from held-out donors.",
            stacklevel=4,
        )
