"""Reject cells unlike the reference, at a rate of known cells that holds across donors."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors

from scr2mae.probe.folds import Folds, to_dense

Float = NDArray[np.float64]
_N_QUANTILES = 501
_N_NEIGHBORS = 5  # the cell among them; ten reach into other cell types where a donor has few cells
_LARGEST_MEDIAN = 2.0  # of the surprise of a donor, relative to the usual one; new donors have somewhat more


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


def surprise(residuals: Float, X: Float) -> Float:
    """Return how far each cell and its nearest neighbors in ``X`` are from what a network predicts, shape ``(n_obs,)``.

    Standardized residuals of each gene are averaged over the neighbors, which leaves what they have in common; the mean
    of the squares over genes, times the number of neighbors, is near 1 if they have nothing in common.
    """
    k = min(_N_NEIGHBORS, len(X))
    near = NearestNeighbors(n_neighbors=k).fit(X).kneighbors_graph(X)
    return np.asarray(np.nanmean((near @ residuals) ** 2, axis=1) / k)


class Surprises(NamedTuple):
    """Surprise of cells, its median over the cells of their donor, and the number of genes that were measured.

    A network fits the donors that it was trained on better than new ones; values relative to the donor's own median are
    comparable, unless most of its cells are unusual; the median is therefore capped.
    """

    values: Float
    medians: Float
    n_genes: int

    def relative(self, usual: float) -> Float:
        """Divide by the donor's median, or by the limit that follows from the usual median."""
        return self.values / np.minimum(self.medians, _LARGEST_MEDIAN * usual)


@dataclass(frozen=True)
class Rejection:
    """Rule that marks cells as unknown if they lie beyond ``1 - rate`` of the held-out donors' cells.

    Each of the scores (distance, and surprise if there is one) is converted to its quantile among held-out cells, with
    equal weight per donor; the larger quantile is compared with ``threshold``.
    """

    rate: float
    novelty: Novelty
    distances: Float  # quantiles of the held-out distances
    threshold: float = 1.0  # of the larger quantile, for both scores together
    surprises: Float | None = None  # quantiles of the relative surprise
    usual: float = 1.0  # median of the donors' medians
    n_genes: int = 0  # that were measured; surprise on another number of genes is not comparable

    def __call__(self, X: Any, found: Surprises | None = None) -> NDArray[np.bool_]:
        """Return which cells are unknown; without their surprise on as many genes, from the distance alone."""
        distance = _rank(self.novelty(_as_float(X)), self.distances)
        if self.surprises is None or found is None or found.n_genes != self.n_genes:
            return distance > 1 - self.rate
        return np.maximum(distance, _rank(found.relative(self.usual), self.surprises)) > self.threshold


def fit_rejection(
    X: Any,
    codes: NDArray[np.intp],
    donors: NDArray[Any],
    folds: Folds,
    *,
    rate: float,
    found: Surprises | None = None,
) -> tuple[Rejection, float]:
    """Fit the rule, and return the mean share of cells that it rejects in an unseen donor."""
    if not 0 < rate < 1:
        raise ValueError(f"Wanted reject to be a rate between 0 and 1, or None, got {rate!r}.")
    X = _as_float(X)
    distances = _held_out(X, codes, folds)
    scores = [distances]
    if found is not None:
        usual = float(np.median(found.medians[np.unique(donors, return_index=True)[1]]))
        scores.append(found.relative(usual))
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
    rule = Rejection(rate, fit_novelty(X, codes), grids[0], threshold)
    if found is not None:
        rule = replace(rule, surprises=grids[1], usual=usual, n_genes=found.n_genes)
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


def _as_float(X: Any) -> Float:
    return np.asarray(to_dense(X), dtype=np.float64)
