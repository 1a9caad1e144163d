"""Ridge regression with a penalty chosen by cross-validation over donors."""

from collections.abc import Callable
from functools import reduce
from itertools import combinations
from operator import add, sub
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scr2mae.probe.folds import Float, Folds, check_grid, is_partition, make_folds, to_dense

ALPHAS: tuple[float, ...] = tuple(np.logspace(0, 8, 20).tolist())
# Weights and intercepts for each penalty, fitted to the training cells of a fold or, if None, to all cells.
_FoldSolver = Callable[[int | None, Float], tuple[Float, Float]]


class RidgeProbe(RegressorMixin, BaseEstimator):
    """Ridge regression whose penalty is chosen by cross-validation over groups of cells.

    Each fold needs a single decomposition, in float64, for all penalties and targets.

    Parameters
    ----------
    alphas
        Penalties > 0 to choose from; by default ``logspace(0, 8, 20)``.
    cv
        Number of folds, at most the number of groups, or a scikit-learn splitter.

    Attributes
    ----------
    alpha_
        Penalty with the lowest mean squared error over folds, the first in ``alphas`` among ties; one per target,
        shape ``(n_targets,)``, if ``y`` has two dimensions.
    coef_
        Weights, shape ``(n_features,)`` or ``(n_targets, n_features)``.
    intercept_
        Intercept, not penalized; one per target if ``y`` has two dimensions.
    cv_mse_
        Mean squared errors, shape ``(n_folds, n_alphas)`` or ``(n_folds, n_alphas, n_targets)``.

    Notes
    -----
    Grid and criterion are those of Dong et al. (2025). Features are not scaled. The solution is that of
    :class:`sklearn.linear_model.Ridge`; sparse features stay sparse.
    """

    def __init__(self, alphas: ArrayLike | None = None, *, cv: Any = 5) -> None:
        self.alphas = alphas
        self.cv = cv

    def fit(self, X: Any, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose the penalty and fit on all cells.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        y
            Targets, shape ``(n_obs,)`` or ``(n_obs, n_targets)``.
        groups
            Donor of each cell, shape ``(n_obs,)``; all cells of a donor are in the same fold. By default
            folds are contiguous blocks of cells.

        Returns
        -------
        The fitted probe.

        Raises
        ------
        ValueError
            If there are fewer than two groups, or an entry is not finite.
        """
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True, copy=True
        )
        alphas = check_grid(self.alphas, ALPHAS, "alphas")
        Y = np.asarray(y, dtype=np.float64).reshape(X.shape[0], -1)  # (n_obs, n_targets)
        shift = np.zeros(X.shape[1])
        if isinstance(X, np.ndarray):
            # Avoid cancellation in sums of squares about a distant origin.
            shift = X.mean(axis=0)
            X -= shift
        folds = make_folds(self.cv, X, None, groups)
        solve = _solver(X, Y, folds)
        mse = np.stack(
            [_squared_error(X[test], Y[test], *solve(fold, alphas)) for fold, (_, test) in enumerate(folds)]
        )
        best = mse.mean(axis=0).argmin(axis=0)  # (n_targets,)
        chosen, which = np.unique(best, return_inverse=True)
        coef, intercept = solve(None, alphas[chosen])
        targets = np.arange(Y.shape[1])
        coef, intercept = coef[which, :, targets], intercept[which, targets]
        intercept = intercept - coef @ shift
        one = np.ndim(y) == 1
        self.alpha_ = float(alphas[best[0]]) if one else alphas[best]
        self.coef_ = coef[0] if one else coef
        self.intercept_ = float(intercept[0]) if one else intercept
        self.cv_mse_ = mse[:, :, 0] if one else mse
        return self

    def predict(self, X: Any) -> Float:
        """Return predicted targets, shape ``(n_obs,)`` or ``(n_obs, n_targets)``.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags


def _solver(X: Any, Y: Float, folds: Folds) -> _FoldSolver:
    """Choose the cheaper of the two solvers; moments of the held-out cells serve all folds in one pass."""
    primal = X.shape[0] >= X.shape[1]
    if primal and is_partition(folds, len(Y)):
        held_out = [_moments(X[test], Y[test]) for _, test in folds]
        total = reduce(_Moments.plus, held_out)
        return lambda fold, alphas: _solve(total if fold is None else total.minus(held_out[fold]), alphas)

    def solve(fold: int | None, alphas: Float) -> tuple[Float, Float]:
        rows = slice(None) if fold is None else folds[fold][0]
        return _solve(_moments(X[rows], Y[rows]), alphas) if primal else _solve_dual(X[rows], Y[rows], alphas)

    return solve


class _Moments(NamedTuple):
    """Sums over cells that a least-squares fit needs; they add and subtract over disjoint sets of cells."""

    n_obs: int
    sum_x: Float
    sum_y: Float
    gram: Float  # X'X, (n_features, n_features)
    cross: Float  # X'Y, (n_features, n_targets)

    def plus(self, other: "_Moments") -> "_Moments":
        return _Moments(*map(add, self, other))

    def minus(self, other: "_Moments") -> "_Moments":
        return _Moments(*map(sub, self, other))


def _moments(X: Any, Y: Float) -> _Moments:
    sum_x = np.asarray(X.sum(axis=0), dtype=np.float64).ravel()
    return _Moments(X.shape[0], sum_x, Y.sum(axis=0), to_dense(X.T @ X), np.asarray(X.T @ Y))


def _solve(moments: _Moments, alphas: Float) -> tuple[Float, Float]:
    """Minimize ``||y - Xw - b||² + alpha ||w||²`` for each penalty from one eigendecomposition.

    Returns weights, shape ``(n_alphas, n_features, n_targets)``, and intercepts, shape ``(n_alphas, n_targets)``.
    """
    mean_x, mean_y = moments.sum_x / moments.n_obs, moments.sum_y / moments.n_obs
    gram = moments.gram - np.outer(moments.sum_x, mean_x)
    cross = moments.cross - np.outer(moments.sum_x, mean_y)
    values, vectors = eigh(gram, overwrite_a=True, driver="evd")
    filtered = 1 / (np.maximum(values, 0.0) + alphas[:, None])  # (n_alphas, n_features)
    coef = vectors @ (filtered[:, :, None] * (vectors.T @ cross))
    return coef, mean_y - mean_x @ coef


def _solve_dual(X: Any, Y: Float, alphas: Float) -> tuple[Float, Float]:
    """Solve the same problem through the kernel of the cells, cheaper with fewer cells than features."""
    mean_x, mean_y = np.asarray(X.mean(axis=0)).ravel(), Y.mean(axis=0)
    kernel = to_dense(X @ X.T)
    # Centering rows and columns is equivalent to centering the features, and keeps a sparse X sparse.
    kernel = kernel - kernel.mean(axis=0)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    values, vectors = eigh(kernel, overwrite_a=True, driver="evd")
    filtered = 1 / (np.maximum(values, 0.0) + alphas[:, None])  # (n_alphas, n_obs)
    dual = vectors @ (filtered[:, :, None] * (vectors.T @ (Y - mean_y)))
    # The kernel is centered, so the dual weights sum to zero over cells and X need not be centered here.
    dual -= dual.mean(axis=1, keepdims=True)
    coef = np.stack([np.asarray(X.T @ d) for d in dual])
    return coef, mean_y - mean_x @ coef


def _squared_error(X: Any, Y: Float, coef: Float, intercept: Float) -> Float:
    """Return the mean squared error for each penalty and target, shape ``(n_alphas, n_targets)``."""
    n_alphas, n_features, n_targets = coef.shape
    flat = coef.transpose(1, 0, 2).reshape(n_features, -1)
    predicted = np.asarray(X @ flat).reshape(len(Y), n_alphas, n_targets) + intercept
    return np.square(predicted - Y[:, None, :]).mean(axis=0)


class UnitMoments:
    """Sums over cells with which many labelings of units (donors, samples) are predicted for held-out folds of units.

    ``units`` are codes of the cells' units, ``fold_of_unit`` the fold that holds each unit out. A labeling enters only
    through sums over units, so that thousands of them cost little more than one.
    """

    def __init__(self, X: Float, units: NDArray[np.intp], fold_of_unit: NDArray[np.intp]) -> None:
        X = np.asarray(X, dtype=np.float64)
        X = X - X.mean(axis=0)
        n_units = len(fold_of_unit)
        self.n_cells = np.bincount(units, minlength=n_units).astype(np.float64)
        self.sums = np.zeros((n_units, X.shape[1]))
        np.add.at(self.sums, units, X)
        self.folds = [np.flatnonzero(fold_of_unit == fold) for fold in np.unique(fold_of_unit)]
        self.grams = [X[rows].T @ X[rows] for rows in (np.isin(units, fold) for fold in self.folds)]

    def held_out(self, Y: Float, alphas: Float) -> Float:
        """Predict each column of labels, shape ``(n_units, n_labelings)``, by ridge regression without the unit's fold.

        Each labeling chooses its penalty across the other folds. Predictions are relative to the mean label of their
        training cells, which is lower the higher the label of the unit is, and would rank held-out units backwards.
        """
        moments = [self._of_fold(f, Y) for f in range(len(self.folds))]
        total = reduce(_Moments.plus, moments)
        squares = [self.n_cells[fold] @ Y[fold] ** 2 for fold in self.folds]
        errors = np.zeros((len(moments), len(alphas), Y.shape[1]))  # by the fold that is held out
        for f, g in combinations(range(len(moments)), 2):
            solution = _solve(total.minus(moments[f]).minus(moments[g]), alphas)
            errors[f] += _summed_error(moments[g], squares[g], *solution) / moments[g].n_obs
            errors[g] += _summed_error(moments[f], squares[f], *solution) / moments[f].n_obs
        predicted = np.empty_like(Y, dtype=np.float64)
        for f, fold in enumerate(self.folds):
            train = total.minus(moments[f])
            coef = _solve(train, alphas)[0][errors[f].argmin(axis=0), :, np.arange(Y.shape[1])].T
            means = self.sums[fold] / self.n_cells[fold, None] - train.sum_x / train.n_obs
            predicted[fold] = means @ coef
        return predicted

    def _of_fold(self, f: int, Y: Float) -> _Moments:
        fold = self.folds[f]
        n, sums = self.n_cells[fold], self.sums[fold]
        return _Moments(int(n.sum()), sums.sum(axis=0), n @ Y[fold], self.grams[f], sums.T @ Y[fold])


def _summed_error(moments: _Moments, squares: Float, coef: Float, intercept: Float) -> Float:
    """Return the summed squared error for each penalty and target from moments alone."""
    shifted = moments.sum_x @ coef  # (n_alphas, n_targets)
    error = squares - 2 * intercept * moments.sum_y + moments.n_obs * intercept**2 + 2 * intercept * shifted
    quadratic = (coef * (moments.gram @ coef)).sum(axis=1)
    return error - 2 * (coef * moments.cross).sum(axis=1) + quadratic
