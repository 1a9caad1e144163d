"""Scores of held-out predictions in one table: accuracy, calibration error, rate of unknown cells."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scr2mae.metrics import calibration_error, group_means
from scr2mae.probe.inputs import Target
from scr2mae.probe.scores import donor_interval, score_classes, score_numbers, undefined

Float = NDArray[np.float64]
COLUMNS = ("method", "level", "unit", "metric", "value", "ci_low", "ci_high", "n_units", "note")


def score_table(
    method: str,
    target: Target,
    truth: NDArray[Any],
    predicted: Float,
    *,
    n_bootstrap: int,
    confidence: float,
    seed: int,
    raw: Float | None = None,
) -> pd.DataFrame:
    """Score held-out probabilities or numbers by cell and by unit; NaN rows were not held out by any fold.

    ``truth`` holds codes of classes or numbers; ``raw`` are probabilities before calibration.
    """
    classify = target.kind == "classification"
    kept = ~np.isnan(predicted[:, 0])
    if not kept.any():
        note = "no fold leaves two donors and two values to fit to"
        fields = {"method": method, "level": "cell", "unit": "cell", "n_units": 0}
        empty = [fields | record for record in undefined(target.kind, note)]
        return pd.DataFrame.from_records(empty, columns=list(COLUMNS))
    interval: Any = partial(donor_interval, n_draws=n_bootstrap, confidence=confidence, seed=seed)
    score: Any = score_classes if classify else score_numbers
    donors = np.unique(target.donors[kept], return_inverse=True)[1]
    rows: list[dict[str, Any]] = []
    for level, unit in target.levels:
        y, p, groups = truth[kept], predicted[kept], donors
        before = None if raw is None else raw[kept]
        if level == "donor":
            units = target.units[kept]
            first = np.unique(units, return_index=True)[1]
            y, groups, p = y[first], donors[first], group_means(p, units)[1]
            before = None if before is None else group_means(before, units)[1]
        fields = {"method": method, "level": level, "unit": unit, "n_units": len(y)}
        rows += [fields | record for record in score(y, p if classify else p[:, 0], groups, interval)]
        if level == "donor" and classify and "_and_" in str(unit):
            rows.append(
                fields | {"metric": "paired_accuracy", "value": paired_accuracy(y, p, groups), "note": ""}
            )
        if classify:
            for name, values in (("calibration_error", p), ("calibration_error_before", before)):
                if values is not None:
                    rows.append(fields | {"metric": name, "value": calibration_error(y, values), "note": ""})
    return pd.DataFrame.from_records(rows, columns=list(COLUMNS))


def paired_accuracy(codes: NDArray[np.intp], probabilities: Float, donors: NDArray[Any]) -> float:
    """Return the share of pairs of a donor's units from different classes that the log-odds rank correctly."""
    logs = np.log(np.clip(probabilities, 1e-12, None))
    first, second = np.triu_indices(len(codes), k=1)
    pairs = (donors[first] == donors[second]) & (codes[first] != codes[second])
    a, b = first[pairs], second[pairs]
    gap = (logs[a, codes[a]] - logs[a, codes[b]]) - (logs[b, codes[a]] - logs[b, codes[b]])
    return float(np.mean((gap > 0) + 0.5 * (gap == 0))) if len(gap) else float("nan")


def unit_table(target: Target, predicted: Float, classes: NDArray[Any] | None) -> pd.DataFrame | None:
    """Return one row per unit: donor, truth, number of cells and mean held-out prediction; None without units."""
    if target.unit is None:
        return None
    kept = ~np.isnan(predicted[:, 0])
    units = target.units[kept]
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    frame = pd.DataFrame(
        {
            "donor": target.donors[kept][first],
            "truth": target.y[kept][first],
            "n_cells": sizes,
        }
    )
    means = group_means(predicted[kept], units)[1]
    if classes is None:
        return frame.assign(prediction=means[:, 0])
    frame["prediction"] = classes[means.argmax(axis=1)]
    frame["probability"] = means.max(axis=1)
    for j, name in enumerate(classes):
        frame[f"p_{name}"] = means[:, j]
    return frame
