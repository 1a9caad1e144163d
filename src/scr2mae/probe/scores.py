"""Rows of scores with their intervals over donors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scr2mae.metrics import balanced_accuracy, macro_auroc, macro_f1, spearman
from scr2mae.probe.inputs import Kind
from scr2mae.probe.intervals import (
    Codes,
    Float,
    WeightedScore,
    donor_interval,
    weighted_accuracy_and_f1,
    weighted_auroc,
    weighted_spearman,
)

METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("balanced_accuracy", "macro_f1", "macro_auroc"),
    "regression": ("spearman",),
}


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the interval over donors."""

    n_draws: int
    confidence: float
    seed: int


def undefined(kind: Kind, note: str) -> Iterator[dict[str, Any]]:
    """Rows that say why there is no score."""
    for metric in METRICS[kind]:
        yield {"metric": metric, "value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "note": note}


def score_classes(
    truth: Codes, probability: Float, donors: Codes, bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """Score class probabilities.

    Parameters
    ----------
    truth
        Codes of the true classes, the columns of ``probability``, shape ``(n_units,)``.
    probability
        Shape ``(n_units, n_classes)``.
    donors
        Donor codes, shape ``(n_units,)``.
    bootstrap
        Settings of the interval.
    """
    if len(present := np.unique(truth)) < 2:
        yield from undefined(
            "classification", f"the test donors carry {len(present)} of the classes; two are needed"
        )
        return
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    accuracy, f1 = weighted_accuracy_and_f1(truth, predicted, donors, n_classes=n_classes)
    yield _record("balanced_accuracy", balanced_accuracy(truth, predicted), accuracy, donors, bootstrap)
    yield _record("macro_f1", macro_f1(truth, predicted), f1, donors, bootstrap)
    area = macro_auroc(truth, probability, classes=np.arange(n_classes))
    yield _record("macro_auroc", area, weighted_auroc(truth, probability, donors), donors, bootstrap)


def score_numbers(
    truth: Float, predicted: Float, donors: Codes, bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """Score predicted numbers; arguments as for :func:`score_classes`, with values in place of codes."""
    for name, values in (("target", truth), ("prediction", predicted)):
        if np.ptp(values) == 0:
            yield from undefined("regression", f"the {name} is constant over the {len(values)} test units")
            return
    weighted = weighted_spearman(truth, predicted, donors)
    yield _record("spearman", spearman(truth, predicted), weighted, donors, bootstrap)


def _record(
    metric: str, value: float, weighted: WeightedScore, donors: Codes, bootstrap: Bootstrap
) -> dict[str, Any]:
    low, high = donor_interval(
        weighted,
        int(donors.max()) + 1,
        n_draws=bootstrap.n_draws,
        confidence=bootstrap.confidence,
        seed=bootstrap.seed,
    )
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "note": ""}
