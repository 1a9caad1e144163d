"""Means over the cells of a donor, and how uncertain they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
