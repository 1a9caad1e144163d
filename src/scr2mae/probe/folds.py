"""Penalty grids and cross-validation folds of the probes."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

Float = NDArray[np.float64]
Folds = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def check_grid(values: ArrayLike | None, default: tuple[float, ...], name: str) -> Float:
    """Return the penalties to choose from; raise unless they are positive numbers."""
    grid = np.asarray(default if values is None else values, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not np.all(np.isfinite(grid) & (grid > 0)):
        raise ValueError(f"Wanted {name} to be a list of positive numbers, got {values!r}.")
    return grid


def make_folds(cv: Any, X: Any, codes: NDArray[np.intp] | None, groups: ArrayLike | None) -> Folds:
    """Return training and test rows of each fold, stratified by the classes in ``codes`` unless it is None."""
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
    elif not hasattr(cv, "split"):
        raise TypeError(f"Wanted cv to be a number of folds or a splitter of scikit-learn, got {cv!r}.")
    with warnings.catch_warnings():
        # With few donors a class may be rarer than the number of folds; it is scored as missed.
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = [fold for fold in splitter.split(X, codes, members) if len(fold[0]) and len(fold[1])]
    if not folds:
        raise ValueError(f"{splitter!r} gave no fold with cells on both sides; add donors.")
    return folds


def _group_codes(groups: ArrayLike, n_obs: int) -> NDArray[np.intp]:
    codes = pd.factorize(np.asarray(groups), sort=True)[0]
    if len(codes) != n_obs:
        raise ValueError(f"Wanted one group for each of {n_obs} cells, got {len(codes)}.")
    if (n_missing := int((codes < 0).sum())) > 0:
        raise ValueError(f"{n_missing} cell(s) have no group; drop them or name their donor.")
    return codes


def is_partition(folds: Folds, n_obs: int) -> bool:
    """Return whether each cell is in the test set of one fold and in the training set of all others."""
    tested = np.bincount(np.concatenate([test for _, test in folds]), minlength=n_obs)
    whole = all(len(np.union1d(train, test)) == len(train) + len(test) == n_obs for train, test in folds)
    return bool(whole and (tested == 1).all())


def to_dense(product: Any) -> Float:
    """Return a product of features, sparse if they are, as a dense array."""
    return product if isinstance(product, np.ndarray) else product.toarray()
