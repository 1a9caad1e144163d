"""Scores of embeddings, predictions and reconstructions: pure functions on arrays."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from scr2mae._utils.scib import batch_mixing, integration_scores
from scr2mae._utils.spectrum import EffectiveRank, effective_rank

__all__ = [
    "EffectiveRank",
    "balanced_accuracy",
    "batch_mixing",
    "calibration_error",
    "effective_rank",
    "group_means",
    "integration_scores",
    "knn_label_recovery",
    "macro_auroc",
    "macro_f1",
    "masked_pearson",
    "spearman",
]

# Normalized expression is counts per ten thousand before the logarithm.
TARGET_SUM = 1e4


def _column(y: ArrayLike) -> NDArray[Any]:
    return np.asarray(column_or_1d(y))


def _matrix(X: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(check_array(X, dtype=np.float64))


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean recall over the classes present in ``y_true``.

    Parameters
    ----------
    y_true
        Labels, shape ``(n_obs,)``.
    y_pred
        Predicted labels, shape ``(n_obs,)``. A label that is absent from ``y_true`` counts as an error, not as
        another class.

    Returns
    -------
    Score in [0, 1].
    """
    y_true, y_pred = _column(y_true), _column(y_pred)
    labels = np.unique(y_true)
    return float(recall_score(y_true, y_pred, labels=labels, average="macro", zero_division=0))


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean F1 score over the classes present in ``y_true``.

    Parameters
    ----------
    y_true
        Labels, shape ``(n_obs,)``.
    y_pred
        Predicted labels, shape ``(n_obs,)``.

    Returns
    -------
    Score in [0, 1].

    Notes
    -----
    scikit-learn averages over the union of true and predicted labels by default. Here a class without a test
    cell is left out: with donors held out, it may be missing for reasons unrelated to the embedding.

    Examples
    --------
    >>> from scr2mae.metrics import macro_f1
    >>> round(macro_f1(["T", "T", "B", "B"], ["T", "T", "B", "T"]), 3)
    0.733
    """
    y_true, y_pred = _column(y_true), _column(y_pred)
    labels = np.unique(y_true)
    return float(f1_score(y_true, y_pred, labels=labels, average="macro", zero_division=0))


def macro_auroc(y_true: ArrayLike, scores: ArrayLike, *, classes: ArrayLike) -> float:
    """Return the mean area under the ROC curve of each class present against the rest.

    Parameters
    ----------
    y_true
        Labels, shape ``(n_obs,)``, all of them in ``classes``.
    scores
        One score per class, larger for more likely, shape ``(n_obs, n_classes)``.
    classes
        Class of each column of ``scores``, shape ``(n_classes,)``.

    Returns
    -------
    Score in [0, 1]; NaN, with an :class:`~sklearn.exceptions.UndefinedMetricWarning`, if ``y_true`` holds
    fewer than two classes.

    Raises
    ------
    ValueError
        If the shapes disagree or a label is not in ``classes``.
    """
    y_true, classes = _column(y_true), _column(classes)
    scores = _matrix(scores)
    check_consistent_length(y_true, scores)
    if scores.shape[1] != len(classes):
        raise ValueError(
            f"Got {scores.shape[1]} columns of scores for {len(classes)} classes; pass one per class."
        )
    present = np.unique(y_true)
    if unknown := sorted(set(present.tolist()) - set(classes.tolist())):
        raise ValueError(f"No column of scores for the labels {unknown}; drop those cells first.")
    if len(present) < 2:
        return _undefined(f"Macro AUROC needs two classes in y_true; it holds {present.tolist()}.")
    column = {label: j for j, label in enumerate(classes.tolist())}
    return float(np.mean([roc_auc_score(y_true == c, scores[:, column[c]]) for c in present.tolist()]))


def calibration_error(y_true: ArrayLike, probabilities: ArrayLike, *, n_bins: int = 10) -> float:
    """Return the expected calibration error: how far confidence is from the share of correct predictions.

    Parameters
    ----------
    y_true
        Code of the class of each cell, a column of ``probabilities``, shape ``(n_obs,)``.
    probabilities
        Class probabilities, shape ``(n_obs, n_classes)``.
    n_bins
        Number of bins of equal width of the largest probability.

    Returns
    -------
    Mean over cells of the difference, in their bin, between the mean probability of the predicted class and the share
    of cells that have it; in [0, 1].
    """
    y_true, values = _column(y_true), _matrix(probabilities)
    check_consistent_length(y_true, values)
    confidence = values.max(axis=1)
    gap = confidence - (values.argmax(axis=1) == y_true)
    bins = np.ceil(confidence * n_bins)
    return float(np.abs(np.bincount(bins.astype(int), weights=gap)).sum() / len(gap))


def spearman(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return Spearman's rank correlation between a prediction and its target.

    Parameters
    ----------
    y_true, y_pred
        Finite values, shape ``(n_obs,)``.

    Returns
    -------
    Correlation in [-1, 1]; NaN, with an :class:`~sklearn.exceptions.UndefinedMetricWarning`, if one side is
    constant.
    """
    y_true, y_pred = _column(y_true), _column(y_pred)
    check_consistent_length(y_true, y_pred)
    constant = [name for name, y in (("y_true", y_true), ("y_pred", y_pred)) if np.all(y == y[0])]
    if constant:
        return _undefined(
            f"Spearman's correlation needs two distinct values; {' and '.join(constant)} is constant."
        )
    return float(spearmanr(y_true, y_pred).statistic)


def _undefined(message: str) -> float:
    """Warn the caller of a metric and return NaN."""
    warnings.warn(message, UndefinedMetricWarning, stacklevel=3)
    return float("nan")


def masked_pearson(
    prediction: ArrayLike,
    target: Any,
    mask: ArrayLike,
    *,
    library: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Correlate predicted with observed log-normalized expression over each cell's masked genes.

    Parameters
    ----------
    prediction
        Predicted fraction of the library, :math:`\rho`, shape ``(n_obs, n_vars)``.
    target
        Counts, shape ``(n_obs, n_vars)``, dense or sparse.
    mask
        True for the genes that are masked and scored, shape ``(n_vars,)`` or ``(n_obs, n_vars)``. To compare
        methods, use the same mask for all.
    library
        Library size per cell, shape ``(n_obs,)``; by default the sum of its counts, including masked genes.

    Returns
    -------
    Pearson correlation of ``log1p(1e4 rho)`` with ``log1p(1e4 x / library)``, shape ``(n_obs,)``; NaN where
    either side is constant over the masked genes, for example because all their counts are zero. Average with
    :func:`numpy.nanmean` or :func:`group_means`.

    Raises
    ------
    ValueError
        If the shapes disagree, a library is not positive or fewer than two genes of a cell are masked.

    Notes
    -----
    The paper states only the two sides; that the correlation is taken per cell, over its masked genes, is
    inferred.
    """
    prediction = _matrix(prediction)
    target = check_array(target, dtype=np.float64, accept_sparse="csr")
    mask = np.asarray(mask)
    _check_masked_shapes(prediction.shape, target.shape, mask)
    sizes = np.asarray(target.sum(axis=1) if library is None else library, dtype=np.float64).ravel()
    if sizes.shape != (len(prediction),) or not np.all(sizes > 0):
        raise ValueError(
            f"Wanted one positive library size for each of {len(prediction)} cells, got shape {sizes.shape} with "
            f"minimum {sizes.min() if sizes.size else None}; drop empty cells."
        )
    if mask.ndim == 1:
        # Only the scored columns are made dense.
        prediction, target = prediction[:, mask], target[:, mask]
        mask = np.ones(prediction.shape, dtype=bool)
    counts = target if isinstance(target, np.ndarray) else target.toarray()
    expected = np.log1p(TARGET_SUM * counts / sizes[:, None])
    return _row_pearson(np.log1p(TARGET_SUM * prediction), expected, mask)


def _check_masked_shapes(prediction: tuple[int, ...], target: tuple[int, ...], mask: NDArray[Any]) -> None:
    """Raise unless the shapes fit and each cell has two masked genes."""
    if prediction != target:
        raise ValueError(
            f"Prediction has shape {prediction}, target {target}; pass the same cells and genes."
        )
    if mask.dtype != bool or mask.shape not in (prediction, prediction[1:]):
        raise ValueError(
            f"Wanted a boolean mask of shape {prediction} or {prediction[1:]}, got {mask.dtype} {mask.shape}."
        )
    if (n_masked := int(mask.sum(axis=-1).min())) < 2:
        raise ValueError(f"A correlation needs two masked genes per cell, got {n_masked}; raise the ratio.")


def _row_pearson(
    a: NDArray[np.float64], b: NDArray[np.float64], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the Pearson correlation of each row over its masked entries; NaN for a constant row."""
    n_masked = mask.sum(axis=1, keepdims=True)
    a, b = np.where(mask, a, 0.0), np.where(mask, b, 0.0)
    deviations = [np.where(mask, x - x.sum(axis=1, keepdims=True) / n_masked, 0.0) for x in (a, b)]
    norms = [np.linalg.norm(d, axis=1) for d in deviations]
    # Rounding leaves a constant row with a norm of the order of its magnitude times the machine precision.
    floors = [1e-13 * np.linalg.norm(x, axis=1) for x in (a, b)]
    defined = (norms[0] > floors[0]) & (norms[1] > floors[1])
    products = (deviations[0] * deviations[1]).sum(axis=1)
    correlation = np.full(len(a), np.nan)
    np.divide(products, norms[0] * norms[1], out=correlation, where=defined)
    return correlation


def group_means(values: ArrayLike, groups: ArrayLike) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Average values within groups of cells, such as donors.

    Parameters
    ----------
    values
        One value or row of values per cell, shape ``(n_obs,)`` or ``(n_obs, n_columns)``. NaN is ignored.
    groups
        Group of each cell, shape ``(n_obs,)``, without missing values.

    Returns
    -------
    Sorted groups, shape ``(n_groups,)``, and their means, shape ``(n_groups,)`` or ``(n_groups, n_columns)``;
    NaN where a group has no value.
    """
    values = np.asarray(values, dtype=np.float64)
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    check_consistent_length(values, codes)
    present = ~np.isnan(values)
    indicator = sp.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), (len(names), len(codes)))
    totals = indicator @ np.where(present, values, 0.0)
    n_present = indicator @ present.astype(np.float64)
    means = np.full(totals.shape, np.nan)
    np.divide(totals, n_present, out=means, where=n_present > 0)
    return names, means


def knn_label_recovery(
    X: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None, n_neighbors: int = 15
) -> float:
    """Return the balanced accuracy of labels predicted by a vote of the nearest other cells.

    Parameters
    ----------
    X
        Embedding, shape ``(n_obs, n_latent)``.
    labels
        Labels, shape ``(n_obs,)``.
    groups
        Group of each cell, such as its donor, shape ``(n_obs,)``. With groups, neighbors come from other
        groups only; without, from all other cells.
    n_neighbors
        Number of neighbors that vote, >= 1; ties go to the first label in sorted order.

    Returns
    -------
    Score in [0, 1].

    Raises
    ------
    ValueError
        If there is only one group, or fewer than ``n_neighbors`` cells outside a group.
    """
    X, labels = _matrix(X), _column(labels)
    check_consistent_length(X, labels)
    codes = np.unique(labels, return_inverse=True)[1]
    if groups is None:
        model = KNeighborsClassifier(n_neighbors=n_neighbors).fit(X, codes)
        # X=None makes scikit-learn leave each cell out of its own neighbors.
        return balanced_accuracy(codes, model.predict(None))
    members = _column(groups)
    check_consistent_length(X, members)
    names = np.unique(members)
    if len(names) < 2:
        raise ValueError(
            f"Wanted at least two groups, got {names.tolist()}; pass groups=None to use all cells."
        )
    predicted = np.empty_like(codes)
    for name in names:
        inside = members == name
        if (n_outside := int((~inside).sum())) < n_neighbors:
            raise ValueError(f"Wanted {n_neighbors} neighbors outside group {name!r}, got {n_outside}.")
        model = KNeighborsClassifier(n_neighbors=n_neighbors).fit(X[~inside], codes[~inside])
        predicted[inside] = model.predict(X[inside])
    return balanced_accuracy(codes, predicted)
