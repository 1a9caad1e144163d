"""One target on one split: its training and test cells, the fit of a probe, and the scores."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scr2mae._utils.shorten import shorten
from scr2mae.metrics import group_means
from scr2mae.probe.inputs import Protocol, Rows, Target, cap_cells
from scr2mae.probe.linear import fit_estimator
from scr2mae.probe.scores import donor_interval, score_classes, score_numbers, undefined
from scr2mae.probe.splits import DonorSplit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeTask:
    """Training and test cells of a target, as positions in the arrays of the target."""

    target: Target
    split: DonorSplit
    train: Rows
    test: Rows
    absent_train: tuple[str, ...] = ()
    absent_test: tuple[str, ...] = ()
    n_unseen: int = 0
    protocol: Protocol = "stratified"

    @property
    def classify(self) -> bool:
        """Whether the target is a class."""
        return self.target.kind == "classification"

    def columns(self) -> dict[str, Any]:
        """Return the columns that do not depend on the representation."""
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

    def obstacle(self) -> str:
        """Return the reason why nothing can be fitted or scored, or an empty string."""
        if not len(self.test):
            return "no training donor has a class of the test donors"
        classes = np.unique(self.target.y[self.train])
        if self.classify and len(classes) < 2:
            return f"the training donors have one class only: {classes[0]}"
        return ""


def make_task(
    target: Target,
    split: DonorSplit,
    names: pd.Index,
    per_donor: int | None,
    per_class: int | None,
    *,
    protocol: Protocol = "stratified",
) -> ProbeTask:
    """Find the cells of each side, capped per donor and per class of a donor; ``names`` are those of all cells."""
    train, test = split.rows(target.donors)
    for keys, limit in (([target.donors, target.y], per_class), ([target.donors], per_donor)):
        if limit is not None:
            cap = partial(cap_cells, keys=keys, names=names[target.rows], limit=limit, seed=_seed(split))
            train, test = cap(train), cap(test)
    if target.kind == "regression":
        return ProbeTask(target, split, train, test, protocol=protocol)
    trained, tested = set(target.y[train].tolist()), set(target.y[test].tolist())
    absent_train, absent_test = tuple(sorted(tested - trained)), tuple(sorted(trained - tested))
    seen = np.isin(target.y[test], list(trained))
    n_unseen = int((~seen).sum())
    if protocol != "paper":
        # No model can predict a class without training cells; its test cells are counted instead of scored.
        test = test[seen]
    return ProbeTask(target, split, train, test, absent_train, absent_test, n_unseen, protocol)


def warn_about_classes(tasks: Sequence[ProbeTask]) -> None:
    """Warn once of classes of a target that are not on both sides of every split."""
    one_sided = [{*task.absent_train, *task.absent_test} for task in tasks]
    if not any(one_sided):
        return
    target = tasks[0].target
    found = []
    for name in sorted(set().union(*one_sided)):
        donors = np.unique(target.donors[target.y == name])
        found.append(
            f"{name} ({f'donor {donors[0]} alone' if len(donors) == 1 else f'{len(donors)} donors'})"
        )
    logger.warning(
        "Target %r: in %d of %d splits, only training or only test donors have %s. A class is scored where both have it; "
        "it takes two donors or more.",
        target.name,
        sum(map(bool, one_sided)),
        len(tasks),
        shorten(found),
    )


def run_task(
    X: Any, task: ProbeTask, scaled: bool, n_bootstrap: int, confidence: float
) -> Iterator[dict[str, Any]]:
    """Fit one probe to a representation of all cells, dense or CSR, and yield its records."""
    target, test = task.target, task.test
    common = task.columns()
    if note := task.obstacle():
        for level, unit in target.levels:
            fields = {"level": level, "unit": unit, "n_units": 0, "penalty": np.nan}
            yield from (common | fields | record for record in undefined(target.kind, note))
        return
    model, predicted = _fit_predict(X, task, scaled)
    score: Any = score_numbers
    truth = target.y[test]
    if task.classify:
        score = partial(score_classes, all_predicted=task.protocol == "paper")
        classes = np.union1d(model.classes_, truth)
        truth = np.searchsorted(classes, truth)
        if len(classes) > len(model.classes_):  # classes that are never predicted
            known = np.zeros((len(predicted), len(classes)))
            known[:, np.searchsorted(classes, model.classes_)] = predicted
            predicted = known
    common["penalty"] = model.C_ if task.classify else model.alpha_
    donors = np.unique(target.donors[test], return_inverse=True)[1]
    interval = partial(donor_interval, n_draws=n_bootstrap, confidence=confidence, seed=_seed(task.split))
    for level, unit in target.levels:
        values = (truth, predicted, donors)
        if level == "donor":
            first = np.unique(target.units[test], return_index=True)[1]
            values = (truth[first], group_means(predicted, target.units[test])[1], donors[first])
        for record in score(*values, interval):
            yield common | {"level": level, "unit": unit, "n_units": len(values[0])} | record


def _seed(split: DonorSplit) -> int:
    """Return the random seed for all draws within a split: equal splits draw equal cells."""
    return int(split.hash[:15], 16)


def _fit_predict(X: Any, task: ProbeTask, scaled: bool) -> tuple[Any, NDArray[np.float64]]:
    """Fit the estimator to the training cells of a task and predict the test cells."""
    target, train, test = task.target, task.train, task.test
    model, scaler = fit_estimator(
        X[target.rows[train]],
        target.y[train],
        target.donors[train],
        target.kind,
        scaled,
        protocol=task.protocol,
    )
    X_test = X[target.rows[test]]  # after the fit, which needs the memory
    if scaler is not None:
        X_test = scaler.transform(X_test)
    return model, model.predict_proba(X_test) if task.classify else model.predict(X_test)
