"""Alignment of published accuracy curves with theory curves (appendix C.2, figure 1F)."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from scr2mae._utils.files import as_path

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

_INTERCEPT = (0.15, 0.30)  # ratios of the line extrapolated to zero
_SLOPE = (0.4, 0.8)  # ratios between which all curves have the same slope


def align_errors(ratios: ArrayLike, errors: ArrayLike, *, slope: float = 1.0) -> NDArray[np.float64]:
    """Shift and scale an error curve over the masking ratio so that curves of different tasks can be compared.

    Parameters
    ----------
    ratios
        Masking ratios, ascending, shape ``(n_ratios,)``, spanning 0.15 to 0.8. Values in between are interpolated.
    errors
        Errors in any unit, shape ``(n_ratios,)``: one minus an accuracy, or a theoretical risk.
    slope
        Common slope of the line from ratio 0.4 to ratio 0.8 after scaling.

    Returns
    -------
    Errors shifted so that the line through their values at 0.15 and 0.30 passes through the origin, then scaled to
    the slope; shape ``(n_ratios,)``.

    Raises
    ------
    ValueError
        If the shapes disagree, the ratios do not ascend over 0.15 to 0.8, an error is not finite, or the error does
        not change between 0.4 and 0.8.
    """
    x, error = np.asarray(ratios, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if x.ndim != 1 or x.shape != error.shape:
        raise ValueError(
            f"ratios and errors must be vectors of equal length, got {x.shape} and {error.shape}."
        )
    if not (np.diff(x) > 0).all() or x.size < 2 or x[0] > _INTERCEPT[0] or x[-1] < _SLOPE[1]:
        raise ValueError("ratios must ascend and span 0.15 to 0.8; sort them and add the missing ends.")
    if not np.isfinite(error).all():
        raise ValueError("The curve contains values that are not finite; remove those ratios.")
    low, high = np.interp(_INTERCEPT, x, error)
    intercept = low - (high - low) / (_INTERCEPT[1] - _INTERCEPT[0]) * _INTERCEPT[0]
    start, end = np.interp(_SLOPE, x, error)
    rise = (end - start) / (_SLOPE[1] - _SLOPE[0])
    if abs(rise) < 1e-12:
        raise ValueError(
            "The error is the same at ratios 0.4 and 0.8, so the curve cannot be scaled to the common slope."
        )
    return (error - intercept) * slope / rise


def align_accuracy(ratios: ArrayLike, accuracies: ArrayLike, *, slope: float = 1.0) -> NDArray[np.float64]:
    """Convert an accuracy curve over the masking ratio to an aligned error curve; see `align_errors`.

    Parameters
    ----------
    ratios, slope
        As in `align_errors`.
    accuracies
        Accuracies in [0, 1], shape ``(n_ratios,)``.

    Returns
    -------
    Aligned errors, shape ``(n_ratios,)``.

    Raises
    ------
    ValueError
        As in `align_errors`, or if an accuracy lies outside [0, 1].
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"accuracies must lie in [0, 1], got {values.min():g} to {values.max():g}; divide percentages by 100."
        )
    return align_errors(ratios, 1 - values, slope=slope)


def read_accuracies(path: str | Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Read published accuracies from a CSV file.

    Parameters
    ----------
    path
        File with the columns ``task``, ``ratio`` and ``accuracy``, one row per point, accuracies in [0, 1].

    Returns
    -------
    Ascending ratios and accuracies per task.

    Raises
    ------
    ValueError
        If a column is missing or the file has no rows.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    with as_path(path).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = {"task", "ratio", "accuracy"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {reader.fieldnames}.")
        for row in reader:
            points.setdefault(row["task"], []).append((float(row["ratio"]), float(row["accuracy"])))
    if not points:
        raise ValueError(f"{path} has no rows.")
    return {task: tuple(np.array(sorted(rows)).T) for task, rows in points.items()}
