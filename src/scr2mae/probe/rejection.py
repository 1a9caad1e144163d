"""Cells unlike those of the reference, with the share of known cells that is rejected set over donors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from scr2mae.probe.folds import Folds

Float = NDArray[np.float64]
_N_QUANTILES = 501


@dataclass(frozen=True)
class Novelty:
    """Distance to the nearest class in units of the spread within classes (Lee et al. 2018)."""

    means: Float  # (n_classes, n_features)
    whitening: Float  # (n_features, n_features)

    def __call__(self, X: Float) -> Float:
        """Return the Mahalanobis distance of each cell, shape ``(n_obs,)``."""
        cells, means = X @ self.whitening, self.means @ self.whitening
        squared = (cells**2).sum(axis=1)[:, None] - 2 * cells @ means.T + (means**2).sum(axis=1)
        return np.sqrt(np.maximum(squared.min(axis=1), 0.0))


def fit_novelty(X: Float, codes: NDArray[np.intp]) -> Novelty:
    """Estimate the mean of each class and the covariance that classes share, shrunk as by Ledoit and Wolf."""
    classes, members = np.unique(codes, return_inverse=True)
    means = np.stack([X[members == c].mean(axis=0) for c in range(len(classes))])
    covariance = ledoit_wolf(X - means[members], assume_centered=True)[0]
    values, vectors = np.linalg.eigh(covariance)
    return Novelty(means, vectors / np.sqrt(np.maximum(values, values.max() * 1e-10)))


@dataclass(frozen=True)
class DepthCurve:
    """Reconstruction error expected at a cell's depth, so that shallow and deep cells can be compared."""

    coef: Float  # of the powers of the log depth, highest first
    spread: float

    def __call__(self, errors: Float, depth: Float) -> Float:
        """Return the deviation of each error in units of the residual spread, shape ``(n_obs,)``."""
        return (errors - np.polyval(self.coef, np.log1p(depth))) / self.spread


def fit_depth_curve(errors: Float, depth: Float) -> DepthCurve:
    """Fit a parabola of the log depth, or a constant if the depth hardly varies."""
    x = np.log1p(depth)
    coef = np.polyfit(x, errors, min(2, len(np.unique(x)) - 1))
    return DepthCurve(coef, max(float((errors - np.polyval(coef, x)).std()), 1e-12))


@dataclass(frozen=True)
class Rejection:
    """Rule by which cells become unknown: they lie beyond ``1 - rate`` of the held-out donors' cells.

    Each of the scores (distance, and reconstruction error if there is one) is turned into its quantile among held-out
    cells, donors weighing the same; the larger quantile is compared with ``threshold``.
    """

    rate: float
    novelty: Novelty
    distances: Float  # quantiles of the held-out distances
    curve: DepthCurve | None = None
    errors: Float | None = None
    threshold: float = 1.0  # of the larger quantile, for both scores together

    def __call__(self, X: Any, errors: Float | None = None, depth: Float | None = None) -> NDArray[np.bool_]:
        """Return which cells are unknown; without their errors, from the distance alone."""
        distance = _rank(self.novelty(_dense(X)), self.distances)
        if self.curve is None or self.errors is None or errors is None or depth is None:
            return distance > 1 - self.rate
        return np.maximum(distance, _rank(self.curve(errors, depth), self.errors)) > self.threshold


def fit_rejection(
    X: Any,
    codes: NDArray[np.intp],
    donors: NDArray[Any],
    folds: Folds,
    *,
    rate: float,
    errors: Float | None = None,
    depth: Float | None = None,
) -> tuple[Rejection, float]:
    """Fit the rule, and return the share of cells that it rejects in a donor that it has not seen, on average."""
    if not 0 < rate < 1:
        raise ValueError(f"Wanted reject to be a rate between 0 and 1, or None, got {rate!r}.")
    X = _dense(X)
    distances = _held_out(X, codes, folds)
    scores = [distances]
    if errors is not None and depth is not None:
        deviations = np.full(len(X), np.nan)
        for train, test in folds:
            deviations[test] = fit_depth_curve(errors[train], depth[train])(errors[test], depth[test])
        scores.append(deviations)
    tested = ~np.isnan(distances)
    shares = []
    for _, test in folds:
        others = tested.copy()
        others[test] = False
        if others.any():
            *grids, threshold = _thresholds([s[others] for s in scores], donors[others], rate)
            rejected = (
                np.max([_rank(s[test], g) for s, g in zip(scores, grids, strict=True)], axis=0) > threshold
            )
            shares += [rejected[donors[test] == donor].mean() for donor in np.unique(donors[test])]
    *grids, threshold = _thresholds([s[tested] for s in scores], donors[tested], rate)
    rule = Rejection(rate, fit_novelty(X, codes), grids[0], threshold=threshold)
    if errors is not None and depth is not None:
        rule = Rejection(rate, rule.novelty, grids[0], fit_depth_curve(errors, depth), grids[1], threshold)
    return rule, float(np.mean(shares)) if shares else float("nan")


def _held_out(X: Float, codes: NDArray[np.intp], folds: Folds) -> Float:
    distances = np.full(len(X), np.nan)
    for train, test in folds:
        distances[test] = fit_novelty(X[train], codes[train])(X[test])
    return distances


def _thresholds(scores: Iterable[Float], donors: NDArray[Any], rate: float) -> tuple[Any, ...]:
    """Return the quantiles of each score, and the quantile of the largest rank that leaves out ``rate``."""
    scores = list(scores)
    weights = 1 / np.unique(donors, return_counts=True)[1][np.unique(donors, return_inverse=True)[1]]
    levels = np.linspace(0, 1, _N_QUANTILES)
    grids = [_weighted_quantile(score, weights, levels) for score in scores]
    if len(scores) == 1:
        return grids[0], 1 - rate
    largest = np.max([_rank(score, grid) for score, grid in zip(scores, grids, strict=True)], axis=0)
    return *grids, float(_weighted_quantile(largest, weights, np.array([1 - rate]))[0])


def _weighted_quantile(values: Float, weights: Float, levels: Float) -> Float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return np.interp(levels, (cumulative - weights[order] / 2) / cumulative[-1], values[order])


def _rank(values: Float, quantiles: Float) -> Float:
    """Return the share of held-out cells below each value; above one beyond all of them."""
    rank = np.interp(values, quantiles, np.linspace(0, 1, len(quantiles)))
    return np.where(values > quantiles[-1], 2.0, rank)


def _dense(X: Any) -> Float:
    return np.asarray(X if isinstance(X, np.ndarray) else X.toarray(), dtype=np.float64)
