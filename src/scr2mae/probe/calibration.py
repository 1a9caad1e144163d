"""Calibrate probabilities on held-out donors, and tabulate their reliability."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from scr2mae.probe.linear import HeldOut, log_odds

Float = NDArray[np.float64]
Method = Literal["sigmoid", "isotonic"]
_SMALLEST = 1e-6  # an isotonic step of zero would make a class impossible


@dataclass(frozen=True)
class Calibration:
    """One increasing curve per class from log-odds to a probability; rows are then scaled to sum to one.

    ``curves[c]`` is ``(slope, intercept)`` of a sigmoid, or the corners ``(x, y)`` of an isotonic curve. With two
    classes the first follows from the second.
    """

    method: Method
    curves: tuple[tuple[Float, Float], ...]

    def __call__(self, odds: Float) -> Float:
        """Return probabilities from log-odds, both of shape ``(n_obs, n_classes)``."""
        if odds.shape[1] == 2:
            second = self._apply(0, odds[:, 1])
            return np.column_stack([1 - second, second])
        values = np.column_stack([self._apply(c, odds[:, c]) for c in range(odds.shape[1])])
        return values / values.sum(axis=1, keepdims=True)

    def _apply(self, c: int, odds: Float) -> Float:
        first, second = self.curves[c]
        if self.method == "sigmoid":
            return expit(first[0] * odds + second[0])
        return np.clip(np.interp(odds, first, second), _SMALLEST, 1 - _SMALLEST)


def fit_calibration(odds: Float, codes: NDArray[np.intp], method: Method) -> Calibration:
    """Fit a curve per class to log-odds, shape ``(n_obs, n_classes)``, of cells whose class is known."""
    if method not in get_args(Method):
        raise ValueError(f"Wanted calibration to be one of {get_args(Method)} or None, got {method!r}.")
    fit = _fit_sigmoid if method == "sigmoid" else _fit_isotonic
    classes = [1] if odds.shape[1] == 2 else range(odds.shape[1])
    return Calibration(method, tuple(fit(odds[:, c], codes == c) for c in classes))


def _fit_sigmoid(odds: Float, inside: NDArray[np.bool_]) -> tuple[Float, Float]:
    """Fit Platt's sigmoid: logistic regression on targets that are smoothed by their numbers."""
    n_inside, n_outside = int(inside.sum()), int((~inside).sum())
    target = np.where(inside, (n_inside + 1) / (n_inside + 2), 1 / (n_outside + 2))
    # A target t is the sum of a positive of weight t and a negative of weight 1 - t.
    X, y = np.tile(odds, 2)[:, None], np.repeat([1, 0], len(odds))
    # The penalty is negligible; without one, older versions of scikit-learn need another argument.
    model = LogisticRegression(C=1e10, max_iter=1000).fit(X, y, np.append(target, 1 - target))
    return np.maximum(model.coef_[0], 0.0), model.intercept_


def _fit_isotonic(odds: Float, inside: NDArray[np.bool_]) -> tuple[Float, Float]:
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(odds, inside.astype(float))
    return model.X_thresholds_.astype(np.float64), model.y_thresholds_.astype(np.float64)


def cross_calibrate(held_out: HeldOut, codes: NDArray[np.intp], method: Method) -> Float:
    """Calibrate the cells of each fold with curves fitted to the other folds' held-out cells; NaN where not tested."""
    odds = log_odds(held_out.outputs)
    probabilities = np.full_like(odds, np.nan)
    for fold in np.unique(held_out.fold[held_out.fold >= 0]):
        inside, others = held_out.fold == fold, (held_out.fold >= 0) & (held_out.fold != fold)
        if others.any():
            probabilities[inside] = fit_calibration(odds[others], codes[others], method)(odds[inside])
    return probabilities


def reliability(codes: NDArray[Any], probabilities: Float, *, n_bins: int = 10) -> pd.DataFrame:
    """Return one row per bin of the probability of the predicted class: mean probability, share correct, number."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    edges = np.linspace(0, 1, n_bins + 1)
    frame = pd.DataFrame({"bin": np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, n_bins - 1)})
    frame["probability"], frame["correct"] = confidence, correct
    table = frame.groupby("bin").agg(
        probability=("probability", "mean"), correct=("correct", "mean"), n=("correct", "size")
    )
    return table.reset_index()
