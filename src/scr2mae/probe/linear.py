"""Linear maps from features to class logits or numbers, fitted to all donors or to all but those of a fold."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from scr2mae.probe.inputs import Kind, Protocol
from scr2mae.probe.logistic import LogisticProbe
from scr2mae.probe.ridge import RidgeProbe

Float = NDArray[np.float64]
# Logit of a class that the training donors of a fold lack, relative to the lowest one.
_ABSENT = -20.0
# Bounds for the change of scale of a fold, which can be without any signal.
_RATIOS = 1e-2, 1e2


_N_FOLDS = 5


def fit_estimator(
    X: Any,
    y: NDArray[Any],
    donors: NDArray[Any],
    kind: Kind,
    scaled: bool,
    *,
    protocol: Protocol = "stratified",
) -> tuple[Any, Any]:
    """Fit a probe whose penalty is chosen across donors; return it and its scaler, or None."""
    scaler = None
    if scaled:
        # The intercept is free, so centering changes nothing; without it, sparse features stay sparse.
        scaler = StandardScaler(with_mean=False).fit(X)
        X = scaler.transform(X)
    # The paper's folds of donors ignore the classes.
    cv: Any = GroupKFold(min(_N_FOLDS, len(np.unique(donors)))) if protocol == "paper" else _N_FOLDS
    estimator: Any = LogisticProbe(cv=cv) if kind == "classification" else RidgeProbe(cv=cv)
    return estimator.fit(X, y, groups=donors), scaler


class LinearMap(NamedTuple):
    """Weights, shape ``(n_features, n_outputs)``, intercepts, and the chosen penalty; one output per class."""

    coef: Float
    intercept: Float
    penalty: float

    def __call__(self, X: Any) -> Float:
        """Return logits or numbers, shape ``(n_obs, n_outputs)``."""
        return np.asarray(X @ self.coef) + self.intercept


def fit_map(
    X: Any,
    y: NDArray[Any],
    donors: NDArray[Any],
    *,
    kind: Kind,
    classes: NDArray[Any] | None,
    scaled: bool = False,
) -> LinearMap:
    """Fit a probe and return it as one map; outputs are in the order of ``classes``, some of which may be absent."""
    estimator, scaler = fit_estimator(X, y, donors, kind, scaled)
    coef = np.atleast_2d(estimator.coef_).T  # (n_features, n_outputs)
    if scaler is not None:
        coef = coef / np.where(scaler.scale_ > 0, scaler.scale_, 1.0)[:, None]
    intercept = np.atleast_1d(estimator.intercept_)
    if classes is None:
        return LinearMap(coef, intercept, estimator.alpha_)
    if len(estimator.classes_) == 2:
        coef, intercept = np.hstack([-coef / 2, coef / 2]), np.append(-intercept / 2, intercept / 2)
    at = np.searchsorted(classes, estimator.classes_)
    all_coef = np.zeros((len(coef), len(classes)))
    all_intercept = np.full(len(classes), intercept.min() + _ABSENT)
    all_coef[:, at], all_intercept[at] = coef, intercept
    return LinearMap(all_coef, all_intercept, estimator.C_)


@dataclass(frozen=True)
class HeldOut:
    """Outputs for each cell by a map fitted without its donor: NaN where no fold tested the cell."""

    outputs: Float  # (n_obs, n_outputs), on the scale of the map that is kept
    plain: Float  # the same, as each fold's own penalty scales them
    fold: NDArray[np.intp]  # (n_obs,), -1 where no fold tested the cell
    maps: tuple[LinearMap, ...]


def hold_out(
    X: Any,
    y: NDArray[Any],
    donors: NDArray[Any],
    folds: Iterable[tuple[NDArray[np.intp], NDArray[np.intp]]],
    *,
    kind: Kind,
    classes: NDArray[Any] | None,
    scaled: bool = False,
    like: LinearMap | None = None,
) -> HeldOut:
    """Fit a map to the training cells of each fold and apply it to its test cells.

    Each fold chooses its penalty, which scales its logits; with ``like``, they are brought to the scale of that map, so
    that they can be pooled and calibrated together.
    """
    plain = np.full((len(y), 1 if classes is None else len(classes)), np.nan)
    outputs, fold, maps = plain.copy(), np.full(len(y), -1, dtype=np.intp), []
    for i, (train, test) in enumerate(folds):
        # Two donors to choose the penalty and two classes to tell apart.
        if len(np.unique(donors[train])) < 2 or len(np.unique(y[train])) < 2:
            continue
        each = fit_map(X[train], y[train], donors[train], kind=kind, classes=classes, scaled=scaled)
        plain[test], fold[test] = each(X[test]), i
        if like is not None and classes is not None:
            scales = [_logit_scale(m, X[train], y[train], classes) for m in (like, each)]
            ratio = float(np.clip(scales[0] / scales[1], *_RATIOS))
            each = each._replace(coef=each.coef * ratio, intercept=each.intercept * ratio)
        outputs[test] = each(X[test])
        maps.append(each)
    return HeldOut(outputs, plain, fold, tuple(maps))


def _logit_scale(each: LinearMap, X: Any, y: NDArray[Any], classes: NDArray[Any]) -> float:
    """Return the root mean square of the centered logits of the classes that are present."""
    logits = each(X)[:, np.isin(classes, y)]
    return max(float(np.sqrt(np.square(logits - logits.mean(axis=1, keepdims=True)).mean())), 1e-12)


def log_odds(logits: Float) -> Float:
    """Return the log-odds of each class against all others, shape ``(n_obs, n_classes)``."""
    rest = np.stack([logsumexp(np.delete(logits, j, axis=1), axis=1) for j in range(logits.shape[1])], axis=1)
    return logits - rest
