"""Logistic regression with a penalty chosen by cross-validation over donors."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from scr2mae.probe.folds import Float, check_grid, make_folds
from scr2mae.probe.multinomial import MultinomialPath

CS: tuple[float, ...] = tuple(np.logspace(-6, 2, 10).tolist())


class LogisticProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression whose penalty is chosen by cross-validation over groups of cells.

    In each fold the whole grid is solved from strong to weak penalty by L-BFGS, preconditioned with the second
    moment of the features; each fit starts from the previous solution.

    Parameters
    ----------
    Cs
        Inverse penalties > 0 to choose from; by default ``logspace(-6, 2, 10)``.
    cv
        Number of folds, at most the number of groups, or a scikit-learn splitter. Folds are stratified by class as
        far as the groups allow.
    tol
        Largest entry of the gradient at convergence, in coordinates where the average curvature is one. Much larger
        values lead to too weak a penalty, since stopping early regularizes as well.
    max_iter
        Maximum number of steps per fit.

    Attributes
    ----------
    C_
        Inverse penalty with the best mean balanced accuracy over folds; the smallest among ties. If the test cells of a
        fold are of one class only, as with few donors of a class, recalls are taken over the cells of all folds.
    classes_
        Sorted classes, shape ``(n_classes,)``.
    coef_
        Weights, shape ``(n_classes, n_features)``, or ``(1, n_features)`` with two classes.
    intercept_
        Intercepts, not penalized, shape ``(n_classes,)`` or ``(1,)``.
    cv_scores_
        Balanced accuracies over the classes that a fold tests, shape ``(n_folds, n_Cs)``, in the order of ``Cs``.
    n_iter_
        Number of steps of the final fit.

    Notes
    -----
    Grid and criterion are those of Dong et al. (2025). Features are not scaled. The objective is that of
    :class:`sklearn.linear_model.LogisticRegression` with an L2 penalty; sparse features stay sparse. In a fold
    without training cells of a class, that class counts as missed at every penalty.
    """

    def __init__(
        self, Cs: ArrayLike | None = None, *, cv: Any = 5, tol: float = 1e-4, max_iter: int = 1000
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter

    # The products are small: several threads cost five times the processor time, and more on a busy machine.
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def fit(self, X: Any, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Choose the penalty and fit on all cells.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        y
            Classes, shape ``(n_obs,)``.
        groups
            Donor of each cell, shape ``(n_obs,)``; all cells of a donor are in the same fold.

        Returns
        -------
        The fitted probe.

        Raises
        ------
        ValueError
            If there are fewer than two classes or groups, or an entry of ``X`` is not finite.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Wanted at least two classes, got one class only: {self.classes_.tolist()}.")
        Cs = check_grid(self.Cs, CS, "Cs")
        order = np.argsort(Cs)  # strong penalties first: their solutions lie close to the start
        folds = make_folds(self.cv, X, codes, groups)
        tested = [np.bincount(codes[test], minlength=len(self.classes_)) for _, test in folds]
        hits = [self._count_hits(X, codes, train, test, Cs[order]) for train, test in folds]
        scores = np.array(
            [[_mean_recall(row, n) for row in of_fold] for of_fold, n in zip(hits, tested, strict=True)]
        )
        self.cv_scores_ = np.empty_like(scores)
        self.cv_scores_[:, order] = scores
        if any((n > 0).sum() < 2 for n in tested):  # predicting that class alone would be perfect there
            best = np.argmax([_mean_recall(row, np.sum(tested, axis=0)) for row in np.sum(hits, axis=0)])
        else:
            best = scores.mean(axis=0).argmax()
        self.C_ = float(Cs[order][best])
        path = MultinomialPath(X, codes, tol=self.tol, max_iter=self.max_iter)
        coef, intercept = path.solve(_penalty(self.C_, len(codes), len(self.classes_)))
        if len(self.classes_) == 2:
            coef, intercept = coef[:, 1:] - coef[:, :1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_, self.n_iter_ = coef.T, intercept, path.n_iter
        return self

    def _count_hits(
        self, X: Any, codes: NDArray[np.intp], train: NDArray[np.intp], test: NDArray[np.intp], Cs: Float
    ) -> NDArray[np.intp]:
        """Return how many test cells of each class each penalty predicts right, shape ``(n_Cs, n_classes)``."""
        present, inner = np.unique(codes[train], return_inverse=True)
        path = None
        if len(present) > 1:
            path = MultinomialPath(X[train], inner, tol=self.tol, max_iter=self.max_iter)
        X_test, hits = X[test], np.zeros((len(Cs), len(self.classes_)), dtype=np.intp)
        for i, C in enumerate(Cs):
            predicted = np.full(len(test), present[0])
            if path is not None:
                coef, intercept = path.solve(_penalty(C, len(train), len(present)))
                predicted = present[np.argmax(X_test @ coef + intercept, axis=1)]
            hits[i] = np.bincount(codes[test][codes[test] == predicted], minlength=len(self.classes_))
        return hits

    def decision_function(self, X: Any) -> Float:
        """Return logits, shape ``(n_obs, n_classes)``; with two classes those of the second, shape ``(n_obs,)``.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        raw = np.asarray(X @ self.coef_.T) + self.intercept_
        return raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class, shape ``(n_obs,)``.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        """
        raw = self.decision_function(X)
        return self.classes_[(raw > 0).astype(np.intp) if raw.ndim == 1 else raw.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Float:
        """Return class probabilities, shape ``(n_obs, n_classes)``, with columns as in ``classes_``.

        Parameters
        ----------
        X
            Features, shape ``(n_obs, n_features)``, dense or sparse.
        """
        raw = self.decision_function(X)
        if raw.ndim == 1:
            raw = np.column_stack([-raw / 2, raw / 2])
        return softmax(raw, axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _penalty(C: float, n_obs: int, n_classes: int) -> float:
    """Return the penalty on the mean loss that equals scikit-learn's ``C`` on the summed loss."""
    return (2 if n_classes == 2 else 1) / (n_obs * C)


def _mean_recall(n_hit: NDArray[np.intp], n_true: NDArray[np.intp]) -> float:
    """Return the balanced accuracy over the classes with cells."""
    return float(np.mean(n_hit[n_true > 0] / n_true[n_true > 0]))
