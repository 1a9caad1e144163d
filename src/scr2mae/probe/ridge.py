"""Ridge regression along a path of penalties, chosen on donors that it was not fitted to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scr2mae.probe.folds import Float, Folds, check_grid, is_partition, make_folds, to_dense

ALPHAS: tuple[float, ...] = tuple(np.logspace(0, 8, 20).tolist())
# Weights and intercepts of every penalty, fitted to the training cells of a fold or, at None, to all cells.
_Solve = Callable[[int | None, Float], tuple[Float, Float]]


class RidgeProbe(RegressorMixin, BaseEstimator):
    """Ridge regression whose penalty is chosen by cross-validation over groups of cells.

    Every fold costs one decomposition for all penalties and targets, in float64.

    Parameters
    ----------
    alphas
        Penalties > 0 to choose from; by default ``logspace(0, 8, 20)``.
    cv
        Number of folds, lowered to the number of groups where there are fewer, or a scikit-learn splitter.

    Attributes
    ----------
    alpha_
        Penalty of lowest mean squared error, averaged over folds; one a target, shape ``(n_targets,)``, where
        ``y`` has two dimensions. Ties take the first in ``alphas``.
    coef_
        Weights, shape ``(n_features,)`` or ``(n_targets, n_features)``.
    intercept_
        Intercept, not penalized; one a target where ``y`` has two dimensions.
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
            Donor of each cell, shape ``(n_obs,)``: cells of a donor share a fold. Without it folds are
            contiguous runs of cells.

        Returns
        -------
        The probe itself.

        Raises
        ------
        ValueError
            If there are not two groups, or an entry is not finite.
        """
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True, copy=True
        )
        alphas = check_grid(self.alphas, ALPHAS, "alphas")
        Y = np.asarray(y, dtype=np.float64).reshape(X.shape[0], -1)  # (n_obs, n_targets)
        shift = np.zeros(X.shape[1])
        if isinstance(X, np.ndarray):
            # Sums of squares about a far-off origin would cancel.
            shift = X.mean(axis=0)
            X -= shift
        folds = make_folds(self.cv, X, None, groups)
        solve = self._primal(X, Y, folds) if X.shape[0] >= X.shape[1] else self._dual(X, Y, folds)
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

    @staticmethod
    def _primal(X: Any, Y: Float, folds: Folds) -> _Solve:
        """Solve from moments: those of the cells that train in a fold, or of all cells."""
        if is_partition(folds, len(Y)):
            # One pass over the cells serves all folds.
            held_out = [Moments.of(X[test], Y[test]) for _, test in folds]
            total = reduce(add, held_out)
            return lambda fold, alphas: ridge_path(total if fold is None else total - held_out[fold], alphas)

        def solve(fold: int | None, alphas: Float) -> tuple[Float, Float]:
            rows = slice(None) if fold is None else folds[fold][0]
            return ridge_path(Moments.of(X[rows], Y[rows]), alphas)

        return solve

    @staticmethod
    def _dual(X: Any, Y: Float, folds: Folds) -> _Solve:
        def solve(fold: int | None, alphas: Float) -> tuple[Float, Float]:
            rows = slice(None) if fold is None else folds[fold][0]
            return ridge_path_dual(X[rows], Y[rows], alphas)

        return solve

    def predict(self, X: Any) -> Float:
        """Predict targets, shape ``(n_obs,)`` or ``(n_obs, n_targets)``.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.

        Returns
        -------
        In the units of the targets that were fitted.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags


@dataclass(frozen=True)
class Moments:
    """Sums over cells that a least-squares fit needs; they add and subtract over disjoint sets of cells.

    ``gram`` is X'X, shape ``(n_features, n_features)``; ``cross`` X'Y, shape ``(n_features, n_targets)``.
    """

    n_obs: int
    sum_x: Float
    sum_y: Float
    gram: Float
    cross: Float

    @classmethod
    def of(cls, X: Any, Y: Float) -> "Moments":
        """Sum over the rows of ``X``, dense or sparse, and ``Y``, shape ``(n_obs, n_targets)``."""
        return cls(
            n_obs=X.shape[0],
            sum_x=np.asarray(X.sum(axis=0), dtype=np.float64).ravel(),
            sum_y=Y.sum(axis=0),
            gram=to_dense(X.T @ X),
            cross=np.asarray(X.T @ Y),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            n_obs=self.n_obs + other.n_obs,
            sum_x=self.sum_x + other.sum_x,
            sum_y=self.sum_y + other.sum_y,
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
        )

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(
            n_obs=self.n_obs - other.n_obs,
            sum_x=self.sum_x - other.sum_x,
            sum_y=self.sum_y - other.sum_y,
            gram=self.gram - other.gram,
            cross=self.cross - other.cross,
        )

    def centered(self) -> tuple[Float, Float, Float, Float]:
        """Means of X and Y, and the Gram and cross matrices about them."""
        mean_x, mean_y = self.sum_x / self.n_obs, self.sum_y / self.n_obs
        gram = self.gram - np.outer(self.sum_x, mean_x)
        return mean_x, mean_y, gram, self.cross - np.outer(self.sum_x, mean_y)


def ridge_path(moments: Moments, alphas: Float) -> tuple[Float, Float]:
    """Solve ridge regression with a free intercept for every penalty from one eigendecomposition.

    Parameters
    ----------
    moments
        Sums over the training cells.
    alphas
        Penalties > 0 of ``||y - Xw - b||² + alpha ||w||²``, shape ``(n_alphas,)``.

    Returns
    -------
    Weights, shape ``(n_alphas, n_features, n_targets)``, and intercepts, shape ``(n_alphas, n_targets)``.
    """
    mean_x, mean_y, gram, cross = moments.centered()
    values, vectors = eigh(gram, overwrite_a=True, driver="evd")
    filtered = 1 / (np.maximum(values, 0.0) + alphas[:, None])  # (n_alphas, n_features)
    coef = vectors @ (filtered[:, :, None] * (vectors.T @ cross))
    return coef, mean_y - mean_x @ coef


def ridge_path_dual(X: Any, Y: Float, alphas: Float) -> tuple[Float, Float]:
    """Solve what :func:`ridge_path` solves through the cells' kernel: cheaper with fewer cells than features."""
    mean_x, mean_y = np.asarray(X.mean(axis=0)).ravel(), Y.mean(axis=0)
    kernel = to_dense(X @ X.T)
    # Centring rows and columns equals centering the features, and keeps a sparse X sparse.
    kernel = kernel - kernel.mean(axis=0)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    values, vectors = eigh(kernel, overwrite_a=True, driver="evd")
    filtered = 1 / (np.maximum(values, 0.0) + alphas[:, None])  # (n_alphas, n_obs)
    dual = vectors @ (filtered[:, :, None] * (vectors.T @ (Y - mean_y)))
    # The dual weights sum to zero over cells, as the kernel is centered, so X needs no centering here.
    dual -= dual.mean(axis=1, keepdims=True)
    coef = np.stack([np.asarray(X.T @ d) for d in dual])
    return coef, mean_y - mean_x @ coef


def _squared_error(X: Any, Y: Float, coef: Float, intercept: Float) -> Float:
    """Mean squared error of every penalty and target, shape ``(n_alphas, n_targets)``."""
    n_alphas, n_features, n_targets = coef.shape
    flat = coef.transpose(1, 0, 2).reshape(n_features, -1)
    predicted = np.asarray(X @ flat).reshape(len(Y), n_alphas, n_targets) + intercept
    return np.square(predicted - Y[:, None, :]).mean(axis=0)
