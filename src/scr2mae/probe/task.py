"""One target on one split: which cells stand on either side, one fit, and its scores by cell and by unit."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from scr2mae.metrics import group_means
from scr2mae.probe.inputs import Rows, Target, cap_cells
from scr2mae.probe.logistic import LogisticProbe
from scr2mae.probe.ridge import RidgeProbe
from scr2mae.probe.scores import Bootstrap, score_classes, score_numbers, undefined
from scr2mae.probe.split import DonorSplit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A target and a split, with the cells of either side as positions in the target's arrays."""

    target: Target
    split: DonorSplit
    train: Rows
    test: Rows
    absent_train: tuple[str, ...] = ()
    absent_test: tuple[str, ...] = ()
    n_unseen: int = 0

    @property
    def seed(self) -> int:
        """Seed of everything drawn within the split: equal splits see equal cells, whoever asks."""
        return int(self.split.hash[:15], 16)

    def describe(self) -> dict[str, Any]:
        """Columns that do not depend on the representation."""
        donors = self.target.donors
        return {
            "target": self.target.name,
            "seed": self.split.seed,
            "n_train_donors": len(np.unique(donors[self.train])),
            "n_test_donors": len(np.unique(donors[self.test])),
            "n_train_cells": len(self.train),
            "n_test_cells": len(self.test),
            "n_dropped": self.target.n_dropped,
            "n_unseen": self.n_unseen,
            "absent_train": "; ".join(self.absent_train),
            "absent_test": "; ".join(self.absent_test),
            "split_hash": self.split.hash,
        }

    def levels(self) -> list[tuple[str, str]]:
        """Levels at which the target is scored, each with its unit."""
        cell = [("cell", "cell")]
        return cell if self.target.unit is None else [*cell, ("donor", self.target.unit)]

    def obstacle(self) -> str:
        """Why nothing can be fitted or scored; empty where it can."""
        if not len(self.test):
            return "no training donor carries a class of the test donors"
        classes = np.unique(self.target.y[self.train])
        if self.target.kind == "classification" and len(classes) < 2:
            return f"the training donors carry one class only: {classes[0]}"
        return ""


def make_task(
    target: Target, split: DonorSplit, names: pd.Index, per_donor: int | None, per_class: int | None
) -> Task:
    """Find the cells of either side, within the caps, and the classes that one side lacks.

    Parameters
    ----------
    target
        Labeled cells.
    split
        Donors of either side.
    names
        Names of all cells of the AnnData.
    per_donor, per_class
        Caps on the cells of a donor and of a donor's class.
    """
    train, test = split.rows(target.donors)
    task = Task(target, split, train, test)
    for keys, limit in (([target.donors, target.y], per_class), ([target.donors], per_donor)):
        if limit is not None:
            inner = names[target.rows]
            train, test = (
                cap_cells(side, keys, inner, limit=limit, seed=task.seed) for side in (train, test)
            )
    task = replace(task, train=train, test=test)
    if target.kind == "regression":
        return task
    carried, tested = set(target.y[train].tolist()), set(target.y[test].tolist())
    # No model can name a class that it was not shown; those cells are counted instead of scored.
    seen = np.isin(target.y[test], list(carried))
    absent_train, absent_test = tuple(sorted(tested - carried)), tuple(sorted(carried - tested))
    if absent_train or absent_test:
        logger.warning(
            "Target %r: classes absent from training %s, from test %s.",
            target.name,
            list(absent_train),
            list(absent_test),
        )
    return replace(
        task,
        test=test[seen],
        absent_train=absent_train,
        absent_test=absent_test,
        n_unseen=int((~seen).sum()),
    )


def run_task(
    X: Any, task: Task, scaled: bool, n_bootstrap: int, confidence: float
) -> Iterator[dict[str, Any]]:
    """Fit one probe and yield its rows.

    Parameters
    ----------
    X
        Representation of all cells of the AnnData, shape ``(n_obs, n_features)``, dense or CSR.
    task
        Target and split.
    scaled
        Whether features are divided by their standard deviation over the training cells.
    n_bootstrap, confidence
        Draws and coverage of the intervals.
    """
    target, test = task.target, task.test
    common = task.describe()
    if note := task.obstacle():
        for level, unit in task.levels():
            fields = {"level": level, "unit": unit, "n_units": 0, "penalty": np.nan}
            yield from (common | fields | record for record in undefined(target.kind, note))
        return
    model, predicted = _fit_predict(X, task, scaled)
    classify = target.kind == "classification"
    score: Any = score_classes if classify else score_numbers
    common["penalty"] = model.C_ if classify else model.alpha_
    truth = np.searchsorted(model.classes_, target.y[test]) if classify else target.y[test]
    donors = np.unique(target.donors[test], return_inverse=True)[1]
    bootstrap = Bootstrap(n_bootstrap, confidence, task.seed)
    for level, unit in task.levels():
        values = (truth, predicted, donors)
        if level == "donor":
            first = np.unique(target.units[test], return_index=True)[1]
            values = (truth[first], group_means(predicted, target.units[test])[1], donors[first])
        for record in score(*values, bootstrap):
            yield common | {"level": level, "unit": unit, "n_units": len(values[0])} | record


def _fit_predict(X: Any, task: Task, scaled: bool) -> tuple[Any, NDArray[np.float64]]:
    target, train, test = task.target, task.train, task.test
    X_train, X_test = X[target.rows[train]], X[target.rows[test]]
    if scaled:
        # A free intercept makes centering immaterial, and leaving it out keeps sparse features sparse.
        scaler = StandardScaler(with_mean=False).fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    classify = target.kind == "classification"
    model: Any = LogisticProbe() if classify else RidgeProbe()
    model.fit(X_train, target.y[train], groups=target.donors[train])
    return model, model.predict_proba(X_test) if classify else model.predict(X_test)
