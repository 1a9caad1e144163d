"""Scores of predictions, with bootstrap intervals over whole donors.

A draw gives each donor a weight, the number of times that it was drawn. Each score is rewritten as a function of donor
weights, from sums over cells that are computed once. With equal weights it is the plain score.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from scr2mae.metrics import balanced_accuracy, macro_auroc, macro_f1, spearman
from scr2mae.probe.inputs import Kind

Float = NDArray[np.float64]
Codes = NDArray[np.intp]
# Maps weights, shape (n_draws, n_donors), to scores, shape (n_draws,); NaN for draws without a defined score.
WeightedScore = Callable[[Float], Float]
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
    truth: Codes, probability: Float, donors: Codes, interval: Interval, *, all_predicted: bool = False
) -> Iterator[dict[str, Any]]:
    """Score class probabilities, shape ``(n_units, n_classes)``, whose columns are the codes in ``truth``.

    F1 is averaged over the classes present; with ``all_predicted`` also over those that are only predicted, as
    scikit-learn does by default.
    """
    if len(present := np.unique(truth)) < 2:
        note = f"the test donors have {len(present)} of the classes; two are needed"
        yield from undefined("classification", note)
        return
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    accuracy, f1 = weighted_accuracy_and_f1(
        truth, predicted, donors, n_classes=n_classes, all_predicted=all_predicted
    )
    plain_f1 = f1_score(truth, predicted, average="macro") if all_predicted else macro_f1(truth, predicted)
    area = macro_auroc(truth, probability, classes=np.arange(n_classes))
    yield _record("balanced_accuracy", balanced_accuracy(truth, predicted), accuracy, donors, interval)
    yield _record("macro_f1", float(plain_f1), f1, donors, interval)
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


def check_interval(n_draws: int, confidence: float) -> None:
    """Raise unless :func:`donor_interval` can use these settings of the bootstrap."""
    if n_draws < 0 or not 0 < confidence < 1:
        raise ValueError(
            f"Wanted n_bootstrap >= 0 and confidence between 0 and 1, got {n_draws} and {confidence}."
        )


def donor_interval(
    score: WeightedScore, n_donors: int, *, n_draws: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval over draws of donors with replacement, the same draws for equal seeds.

    Draws without a defined score are left out; both ends are NaN with fewer than two donors or no defined draw.
    """
    values = np.array([])
    if n_donors > 1 and n_draws > 0:
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(n_donors, np.full(n_donors, 1 / n_donors), size=n_draws)
        values = score(weights.astype(np.float64))
        values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def weighted_accuracy_and_f1(
    y_true: Codes, y_pred: Codes, donors: Codes, *, n_classes: int, all_predicted: bool = False
) -> tuple[WeightedScore, WeightedScore]:
    """Return balanced accuracy and macro F1, averaged over the classes in a draw; NaN with fewer than two."""

    def count(rows: NDArray[np.bool_] | slice, classes: Codes) -> Float:
        table = np.zeros((int(donors.max()) + 1, n_classes))
        np.add.at(table, (donors[rows], classes[rows]), 1.0)
        return table

    true, predicted = count(slice(None), y_true), count(slice(None), y_pred)
    hit = count(y_true == y_pred, y_true)

    def accuracy(weights: Float) -> Float:
        return _mean_present(weights @ hit, weights @ true, weights @ true)

    def f1(weights: Float) -> Float:
        either = weights @ (true + predicted)
        return _mean_present(2 * (weights @ hit), either, either if all_predicted else weights @ true)

    return accuracy, f1


def _mean_present(numerator: Float, denominator: Float, n_true: Float) -> Float:
    """Return the mean of the ratios over the classes (columns) that have true cells."""
    present = n_true > 0
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=present)
    n_present = present.sum(axis=1)
    # The recall of a single class is meaningless: always predicting that class would be perfect.
    return np.divide(ratio.sum(axis=1), n_present, out=np.full(len(ratio), np.nan), where=n_present > 1)


def weighted_auroc(y_true: Codes, scores: Float, donors: Codes) -> WeightedScore:
    """Return the macro AUROC of the classes in a draw against the rest, from scores of shape ``(n_obs, n_classes)``.

    The area is the fraction of pairs, one cell of the class and one of the rest, that are ranked correctly. Counted
    once per pair of donors, it is a ratio of quadratic forms in the donor weights.
    """
    n_donors = int(donors.max()) + 1
    classes = np.unique(y_true)
    tables = [_ranked_pairs(y_true == c, scores[:, c], donors, n_donors) for c in classes]

    def auroc(weights: Float) -> Float:
        areas = np.full((len(weights), len(tables)), np.nan)
        for j, (wins, n_inside, n_outside) in enumerate(tables):
            n_pairs = (weights @ n_inside) * (weights @ n_outside)
            won = ((weights @ wins) * weights).sum(axis=1)
            np.divide(won, n_pairs, out=areas[:, j], where=n_pairs > 0)
        defined = ~np.isnan(areas)
        n_defined = defined.sum(axis=1)
        total = np.where(defined, areas, 0.0).sum(axis=1)
        return np.divide(total, n_defined, out=np.full(len(areas), np.nan), where=n_defined > 0)

    return auroc


def _ranked_pairs(
    inside: NDArray[np.bool_], score: Float, donors: Codes, n_donors: int
) -> tuple[Float, Float, Float]:
    """Return pairs won per pair of donors, ties as half, and the cells of the class and of the rest per donor."""
    wins = np.zeros((n_donors, n_donors))
    own, owner = score[inside], donors[inside]
    for other in np.unique(donors[~inside]):
        rest = np.sort(score[~inside & (donors == other)])
        below = np.searchsorted(rest, own, side="left") + np.searchsorted(rest, own, side="right")
        wins[:, other] = np.bincount(owner, weights=below / 2, minlength=n_donors)
    n_inside = np.bincount(owner, minlength=n_donors).astype(np.float64)
    return wins, n_inside, np.bincount(donors[~inside], minlength=n_donors).astype(np.float64)


def weighted_spearman(y_true: Float, y_pred: Float, donors: Codes) -> WeightedScore:
    """Return Spearman's correlation: the weighted correlation of weighted mid-ranks."""
    codes = [np.unique(y, return_inverse=True)[1] for y in (y_true, y_pred)]

    def one(weights: Float) -> float:
        w = weights[donors]
        deviations = []
        for code in codes:
            count = np.bincount(code, weights=w)
            rank = (np.cumsum(count) - count / 2)[code]
            deviations.append(rank - np.average(rank, weights=w))
        a, b = deviations
        norm = float(np.sqrt((w @ (a * a)) * (w @ (b * b))))
        return float(w @ (a * b)) / norm if norm > 0 else float("nan")

    return lambda weights: np.array([one(w) for w in weights])
