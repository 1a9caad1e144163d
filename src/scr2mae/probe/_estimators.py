"""Linear probes as scikit-learn estimators that choose their penalty on donors they were not fitted to."""

import warnings
from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from scr2mae.metrics import balanced_accuracy
from scr2mae.probe._solvers import Float, Moments, MultinomialPath, ridge_path, ridge_path_dual

ALPHAS: tuple[float, ...] = tuple(np.logspace(0, 8, 20).tolist())
CS: tuple[float, ...] = tuple(np.logspace(-6, 2, 10).tolist())

Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]
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
        Intercept, not penalised; one a target where ``y`` has two dimensions.
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

        Raises
        ------
        ValueError
            If there are not two groups, or an entry is not finite.
        """
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, multi_output=True, y_numeric=True, copy=True
        )
        alphas = _grid(self.alphas, ALPHAS, "alphas")
        Y = np.asarray(y, dtype=np.float64).reshape(X.shape[0], -1)  # (n_obs, n_targets)
        shift = np.zeros(X.shape[1])
        if isinstance(X, np.ndarray):
            # Sums of squares about a far-off origin would cancel.
            shift = X.mean(axis=0)
            X -= shift
        folds = _folds(self.cv, X, None, groups)
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
        if _is_partition(folds, len(Y)):
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
        """Predict targets, shape ``(n_obs,)`` or ``(n_obs, n_targets)``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags


class LogisticProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression whose penalty is chosen by cross-validation over groups of cells.

    Each fold solves the whole grid from strong to weak penalty, every fit starting from the last, by L-BFGS
    preconditioned with the second moment of the features.

    Parameters
    ----------
    Cs
        Inverse penalties > 0 to choose from; by default ``logspace(-6, 2, 10)``.
    cv
        Number of folds, lowered to the number of groups where there are fewer, or a scikit-learn splitter.
        Folds are stratified by class as far as the groups allow.
    tol
        Largest entry of the gradient at convergence, in coordinates where the average curvature is one.
    max_iter
        Steps a fit.

    Attributes
    ----------
    C_
        Inverse penalty of best balanced accuracy, averaged over folds. Ties take the smallest.
    classes_
        Sorted classes, shape ``(n_classes,)``.
    coef_
        Weights, shape ``(n_classes, n_features)``, or ``(1, n_features)`` with two classes.
    intercept_
        Intercepts, not penalised, shape ``(n_classes,)`` or ``(1,)``.
    cv_scores_
        Balanced accuracies, shape ``(n_folds, n_Cs)``, in the order of ``Cs``.
    n_iter_
        Steps of the final fit.

    Notes
    -----
    Grid and criterion are those of Dong et al. (2025). Features are not scaled. The objective is that of
    :class:`sklearn.linear_model.LogisticRegression` with an L2 penalty; sparse features stay sparse. A class
    that a fold does not train on counts as missed there, at every penalty alike.
    """

    def __init__(
        self, Cs: ArrayLike | None = None, *, cv: Any = 5, tol: float = 1e-4, max_iter: int = 1000
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose the penalty and fit on all cells.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        y
            Classes, shape ``(n_obs,)``.
        groups
            Donor of each cell, shape ``(n_obs,)``: cells of a donor share a fold.

        Raises
        ------
        ValueError
            If there are not two classes or not two groups, or an entry of ``X`` is not finite.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Wanted at least two classes, got one class only: {self.classes_.tolist()}.")
        Cs = _grid(self.Cs, CS, "Cs")
        order = np.argsort(Cs)  # strong penalties first: their solutions lie close to the start
        scores = np.stack(
            [
                self._score_fold(X, codes, train, test, Cs[order])
                for train, test in _folds(self.cv, X, codes, groups)
            ]
        )
        self.C_ = float(Cs[order][scores.mean(axis=0).argmax()])
        self.cv_scores_ = np.empty_like(scores)
        self.cv_scores_[:, order] = scores
        path = MultinomialPath(X, codes, tol=self.tol, max_iter=self.max_iter)
        coef, intercept = path.solve(_penalty(self.C_, len(codes), len(self.classes_)))
        if len(self.classes_) == 2:
            coef, intercept = coef[:, 1:] - coef[:, :1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_, self.n_iter_ = coef.T, intercept, path.n_iter
        return self

    def _score_fold(
        self, X: Any, codes: NDArray[np.intp], train: NDArray[np.intp], test: NDArray[np.intp], Cs: Float
    ) -> Float:
        present, inner = np.unique(codes[train], return_inverse=True)
        if len(present) == 1:
            return np.full(len(Cs), balanced_accuracy(codes[test], np.full(len(test), present[0])))
        path = MultinomialPath(X[train], inner, tol=self.tol, max_iter=self.max_iter)
        X_test, scores = X[test], []
        for C in Cs:
            coef, intercept = path.solve(_penalty(C, len(train), len(present)))
            predicted = present[np.argmax(X_test @ coef + intercept, axis=1)]
            scores.append(balanced_accuracy(codes[test], predicted))
        return np.array(scores)

    def decision_function(self, X: Any) -> Float:
        """Logits, shape ``(n_obs, n_classes)``, or of the second class, shape ``(n_obs,)``, with two."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        raw = np.asarray(X @ self.coef_.T) + self.intercept_
        return raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the most probable class, shape ``(n_obs,)``."""
        raw = self.decision_function(X)
        return self.classes_[(raw > 0).astype(np.intp) if raw.ndim == 1 else raw.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Float:
        """Predict class probabilities, shape ``(n_obs, n_classes)``."""
        raw = self.decision_function(X)
        if raw.ndim == 1:
            raw = np.column_stack([-raw / 2, raw / 2])
        return softmax(raw, axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _penalty(C: float, n_obs: int, n_classes: int) -> float:
    """Penalty of the mean loss that equals scikit-learn's ``C`` on the summed loss."""
    return (2 if n_classes == 2 else 1) / (n_obs * C)


def _squared_error(X: Any, Y: Float, coef: Float, intercept: Float) -> Float:
    """Mean squared error of every penalty and target, shape ``(n_alphas, n_targets)``."""
    n_alphas, n_features, n_targets = coef.shape
    flat = coef.transpose(1, 0, 2).reshape(n_features, -1)
    predicted = np.asarray(X @ flat).reshape(len(Y), n_alphas, n_targets) + intercept
    return np.square(predicted - Y[:, None, :]).mean(axis=0)


def _is_partition(folds: Folds, n_obs: int) -> bool:
    """Whether each cell is held out once and trains in all other folds."""
    tested = np.bincount(np.concatenate([test for _, test in folds]), minlength=n_obs)
    whole = all(len(np.union1d(train, test)) == len(train) + len(test) == n_obs for train, test in folds)
    return bool(whole and (tested == 1).all())


def _grid(values: ArrayLike | None, default: tuple[float, ...], name: str) -> Float:
    grid = np.asarray(default if values is None else values, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not np.all(np.isfinite(grid) & (grid > 0)):
        raise ValueError(f"Wanted {name} to be a list of positive numbers, got {values!r}.")
    return grid


def _folds(cv: Any, X: Any, codes: NDArray[np.intp] | None, groups: ArrayLike | None) -> Folds:
    """Rows of each fold; ``codes`` are classes to stratify by."""
    members = None if groups is None else _group_codes(groups, X.shape[0])
    n_units = X.shape[0] if members is None else int(members.max()) + 1
    if n_units < 2:
        what = "sample" if members is None else "group (donor)"
        raise ValueError(f"Choosing a penalty by cross-validation needs two {what}s, got {n_units} {what}.")
    splitter = cv
    if isinstance(cv, int | np.integer):
        if cv < 2:
            raise ValueError(f"Wanted cv >= 2 folds, got {cv}.")
        n_splits = min(int(cv), n_units)
        if codes is None:
            splitter = KFold(n_splits) if members is None else GroupKFold(n_splits)
        else:
            n_splits = max(2, min(n_splits, int(np.bincount(codes).max())))
            splitter = StratifiedKFold(n_splits) if members is None else StratifiedGroupKFold(n_splits)
    with warnings.catch_warnings():
        # A class rarer than the folds is expected with few donors, and scored as missed.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(_non_empty(splitter.split(X, codes, members)))
    if not folds:
        raise ValueError(f"{splitter!r} gave no fold with cells on both sides; give more donors.")
    return folds


def _non_empty(folds: Any) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    for train, test in folds:
        if len(train) and len(test):
            yield train, test


def _group_codes(groups: ArrayLike, n_obs: int) -> NDArray[np.intp]:
    codes = pd.factorize(np.asarray(groups), sort=True)[0]
    if len(codes) != n_obs:
        raise ValueError(f"Wanted one group for each of {n_obs} cells, got {len(codes)}.")
    if (n_missing := int((codes < 0).sum())) > 0:
        raise ValueError(f"{n_missing} cell(s) have no group; drop them or name their donor.")
    return codes
