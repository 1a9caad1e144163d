"""Records of scores with their intervals over donors."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scr2mae.metrics import balanced_accuracy, macro_auroc, macro_f1, spearman
from scr2mae.probe.inputs import Kind
from scr2mae.probe.intervals import (
    Codes,
    Float,
    WeightedScore,
    weighted_accuracy_and_f1,
    weighted_auroc,
    weighted_spearman,
)

# Maps a score and the number of donors to the ends of its interval.
Interval = Callable[[WeightedScore, int], tuple[float, float]]

_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("balanced_accuracy", "macro_f1", "macro_auroc"),
    "regression": ("spearman",),
}


def undefined(kind: Kind, note: str) -> Iterator[dict[str, Any]]:
    """Yield records of NaN scores with the reason."""
    for metric in _METRICS[kind]:
        yield {"metric": metric, "value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "note": note}


def score_classes(
    truth: Codes, probability: Float, donors: Codes, interval: Interval
) -> Iterator[dict[str, Any]]:
    """Score class probabilities, shape ``(n_units, n_classes)``, whose columns are the codes in ``truth``."""
    if len(present := np.unique(truth)) < 2:
        note = f"the test donors have {len(present)} of the classes; two are needed"
        yield from undefined("classification", note)
        return
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    accuracy, f1 = weighted_accuracy_and_f1(truth, predicted, donors, n_classes=n_classes)
    area = macro_auroc(truth, probability, classes=np.arange(n_classes))
    yield _record("balanced_accuracy", balanced_accuracy(truth, predicted), accuracy, donors, interval)
    yield _record("macro_f1", macro_f1(truth, predicted), f1, donors, interval)
    yield _record("macro_auroc", area, weighted_auroc(truth, probability, donors), donors, interval)


def score_numbers(
    truth: Float, predicted: Float, donors: Codes, interval: Interval
) -> Iterator[dict[str, Any]]:
    """Score predicted numbers, shape ``(n_units,)``."""
    for name, values in (("target", truth), ("prediction", predicted)):
        if np.ptp(values) == 0:
            yield from undefined("regression", f"the {name} is constant over the {len(values)} test units")
            return
    weighted = weighted_spearman(truth, predicted, donors)
    yield _record("spearman", spearman(truth, predicted), weighted, donors, interval)


def _record(
    metric: str, value: float, weighted: WeightedScore, donors: Codes, interval: Interval
) -> dict[str, Any]:
    low, high = interval(weighted, int(donors.max()) + 1)
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "note": ""}
