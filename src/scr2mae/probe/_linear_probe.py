"""Linear probes of any embedding on donors that they have never seen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.preprocessing import StandardScaler

from scr2mae.metrics import group_means
from scr2mae.probe._inputs import Kind, Rows, Target, cap_cells, read_representation, read_target
from scr2mae.probe._logistic import LogisticProbe
from scr2mae.probe._ridge import RidgeProbe
from scr2mae.probe._scores import Bootstrap, score_classes, score_numbers, undefined
from scr2mae.probe._split import DonorSplit, donor_split

logger = logging.getLogger(__name__)

Splits = Mapping[str, Sequence[DonorSplit]]


@dataclass(frozen=True)
class _Task:
    """One target on one split: the cells of either side, as positions in the target's arrays."""

    target: Target
    split: DonorSplit
    train: Rows
    test: Rows
    absent_train: tuple[str, ...]
    absent_test: tuple[str, ...]
    n_unseen: int


def donor_splits(
    adata: AnnData,
    *,
    targets: Mapping[str, Kind],
    donor_key: str,
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
) -> dict[str, list[DonorSplit]]:
    """Draw the splits that :func:`linear_probe` draws, to give them to several calls.

    Parameters
    ----------
    adata
        Annotated data; only ``adata.obs`` is read.
    targets
        Column of ``adata.obs`` to "classification" or "regression".
    donor_key
        Column with the donor.
    n_train_donors
        Donors that train, at least two, so that the penalty can be chosen across them; by default half.
    n_splits
        Splits a seed.
    seeds
        Seeds of the draws.

    Returns
    -------
    For every target its splits, seed by seed. Donors without a label of the target are on neither side.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If there are too few donors, or labels that cannot be probed.
    """
    if n_splits < 1 or not len(seeds):
        raise ValueError(
            f"Wanted at least one split and one seed, got n_splits={n_splits}, seeds={list(seeds)}."
        )
    if n_train_donors is not None and n_train_donors < 2:
        raise ValueError(f"Choosing a penalty across donors needs n_train_donors >= 2, got {n_train_donors}.")
    drawn: dict[str, list[DonorSplit]] = {}
    for name, kind in targets.items():
        target = read_target(adata, name, kind, donor_key=donor_key, sample_key=None, cell_level=())
        labels = target.y if kind == "classification" else None
        if (n_donors := len(np.unique(target.donors))) < 3:
            raise ValueError(
                f"Probing {name!r} needs two donors to train and one to test, got {n_donors} donors."
            )
        n_train = max(2, n_donors // 2) if n_train_donors is None else n_train_donors
        drawn[name] = [
            donor_split(target.donors, n_train_donors=n_train, labels=labels, seed=_child_seed(seed, i))
            for seed in seeds
            for i in range(n_splits)
        ]
    return drawn


def linear_probe(
    adata: AnnData,
    *,
    use_rep: str | Sequence[str],
    targets: Mapping[str, Kind],
    donor_key: str,
    sample_key: str | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    splits: Splits | Sequence[DonorSplit] | None = None,
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
    max_cells_per_donor: int | None = None,
    max_cells_per_donor_and_class: int | None = None,
    scale: bool | Sequence[bool] = False,
    n_bootstrap: int = 500,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Fit linear models to embeddings of some donors and score them on the others.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        Representations to probe: "X" for ``adata.X``, keys of ``adata.obsm``, or layers. They are taken as they
        are; normalise expression beforehand.
    targets
        Column of ``adata.obs`` to "classification" or "regression". Cells without a label are dropped.
    donor_key
        Column with the donor.
    sample_key
        Column with the sample, of which a donor may have several; the unit over which cells are averaged. By
        default the donor.
    cell_level
        Targets that belong to the cell rather than to its sample, such as cell type: scored by cell only, and
        capped per donor and class. The default is the name in the CELLxGENE schema.
    splits
        Splits to use, for all targets or for each: pairs methods and training seeds. By default those of
        :func:`donor_splits` with the next three arguments.
    n_train_donors
        Donors that train; by default half.
    n_splits
        Splits a seed.
    seeds
        Seeds of the splits.
    max_cells_per_donor
        Cap on a donor's cells on either side, drawn at random: the same cells for every representation.
    max_cells_per_donor_and_class
        Cap on a donor's cells of a class, for the targets in ``cell_level``.
    scale
        True divides each feature by its standard deviation over the training cells; a pair gives rows of both.
    n_bootstrap
        Draws of test donors behind the interval; 0 leaves it NaN.
    confidence
        Coverage of the interval.

    Returns
    -------
    One row for each representation, target, split, scaling, level and metric:

    - ``method``, ``target``, ``metric``, ``level`` ("cell" or "donor"), ``unit``, ``scale``
    - ``seed`` and ``split`` (its place among the splits), ``split_hash``
    - ``value`` with ``ci_low``, ``ci_high``: the interval over test donors for this fitted probe
    - ``n_train_donors``, ``n_test_donors``, ``n_train_cells``, ``n_test_cells``, ``n_units``
    - ``n_dropped``: cells without a label; ``n_unseen``: test cells of a class that no training donor carries,
      which are not scored; ``absent_train``, ``absent_test``: those classes and their converse
    - ``penalty``: the chosen alpha or C; ``note``: why a value is NaN

    At level "donor" predictions (numbers or class probabilities) are averaged over each ``unit``: "donor" or
    "sample" where the target is constant there, else "donor_and_class", "donor_and_value" and the like.
    The manifests of the splits are in ``.attrs["splits"]``.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If a donor is on both sides, there are too few donors or classes, a regression target holds text, or a
        representation is not finite.

    Notes
    -----
    Protocol of Dong et al. (2025): donors held out, penalty by five folds grouped by donor, no scaling.
    """
    methods = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    scalings = [scale] if isinstance(scale, bool) else list(scale)
    _check_options(methods, targets, scalings, confidence)
    if splits is None:
        splits = donor_splits(
            adata,
            targets=targets,
            donor_key=donor_key,
            n_train_donors=n_train_donors,
            n_splits=n_splits,
            seeds=seeds,
        )
    by_target: Splits = splits if isinstance(splits, Mapping) else dict.fromkeys(targets, splits)
    tasks: list[tuple[int, _Task]] = []
    for name, kind in targets.items():
        if not by_target.get(name):
            raise ValueError(f"No splits for target {name!r}; there are splits for {list(by_target)}.")
        target = read_target(
            adata, name, kind, donor_key=donor_key, sample_key=sample_key, cell_level=cell_level
        )
        per_class = max_cells_per_donor_and_class if name in cell_level else None
        tasks += [
            (i, _make_task(target, split, adata.obs_names, max_cells_per_donor, per_class))
            for i, split in enumerate(by_target[name])
        ]
    records: list[dict[str, Any]] = []
    for method in methods:
        X = read_representation(adata, method)
        for i, task in tasks:
            bootstrap = Bootstrap(n_bootstrap, confidence, _hash_seed(task.split))
            for scaled in scalings:
                head = {"method": method, "split": i, "scale": scaled}
                records += [head | record for record in _probe(X, task, scaled, bootstrap)]
    frame = pd.DataFrame.from_records(records)[list(_COLUMNS)]
    frame.attrs["splits"] = {name: [s.to_manifest() for s in by_target[name]] for name in targets}
    return frame


_COLUMNS = (
    *("method", "target", "metric", "level", "unit", "scale", "seed", "split", "value", "ci_low", "ci_high"),
    *("n_train_donors", "n_test_donors", "n_train_cells", "n_test_cells", "n_units", "n_dropped", "n_unseen"),
    *("absent_train", "absent_test", "penalty", "split_hash", "note"),
)


def _check_options(
    methods: Sequence[str], targets: Mapping[str, Kind], scalings: Sequence[bool], confidence: float
) -> None:
    if not methods or not targets or not scalings:
        raise ValueError(
            "Wanted at least one representation, one target and one scaling; one of them is empty."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"Wanted confidence between 0 and 1, got {confidence}.")


def _child_seed(seed: int, index: int) -> int:
    """Seed of a split: the first has the seed itself, so that a single split is easily drawn again."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _hash_seed(split: DonorSplit) -> int:
    """Seed of everything drawn within a split: equal splits then see equal cells, whoever asks."""
    return int(split.hash[:15], 16)


def _make_task(
    target: Target, split: DonorSplit, names: pd.Index, per_donor: int | None, per_class: int | None
) -> _Task:
    train, test = split.rows(target.donors)
    inner, seed = names[target.rows], _hash_seed(split)
    if per_class is not None:
        keys = [target.donors, target.y]
        train, test = (cap_cells(r, keys, inner, limit=per_class, seed=seed) for r in (train, test))
    if per_donor is not None:
        keys = [target.donors]
        train, test = (cap_cells(r, keys, inner, limit=per_donor, seed=seed) for r in (train, test))
    task = _Task(target, split, train, test, (), (), 0)
    if target.kind == "regression":
        return task
    carried, tested = set(target.y[train].tolist()), set(target.y[test].tolist())
    # No model can name a class that it was not shown; those cells are counted instead of scored.
    seen = np.isin(target.y[test], list(carried))
    task = replace(
        task,
        test=test[seen],
        absent_train=tuple(sorted(tested - carried)),
        absent_test=tuple(sorted(carried - tested)),
        n_unseen=int((~seen).sum()),
    )
    if task.absent_train or task.absent_test:
        logger.warning(
            "Target %r: classes absent from training %s, from test %s.",
            target.name,
            list(task.absent_train),
            list(task.absent_test),
        )
    return task


def _probe(X: Any, task: _Task, scaled: bool, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """Fit one probe and yield its rows."""
    target, train, test = task.target, task.train, task.test
    donors, y = target.donors, target.y
    common = {
        "target": target.name,
        "seed": task.split.seed,
        "n_train_donors": len(np.unique(donors[train])),
        "n_test_donors": len(np.unique(donors[test])),
        "n_train_cells": len(train),
        "n_test_cells": len(test),
        "n_dropped": target.n_dropped,
        "n_unseen": task.n_unseen,
        "absent_train": "; ".join(task.absent_train),
        "absent_test": "; ".join(task.absent_test),
        "split_hash": task.split.hash,
    }
    levels: list[tuple[str, str]] = [("cell", "cell")]
    if target.unit is not None:
        levels.append(("donor", target.unit))
    classify = target.kind == "classification"
    if classify and len(carried := np.unique(y[train])) < 2:
        note = f"the training donors carry one class only: {carried[0]}"
        for level, unit in levels:
            fields = {"level": level, "unit": unit, "n_units": 0, "penalty": np.nan}
            yield from (common | fields | record for record in undefined("classification", note))
        return
    X_train, X_test = X[target.rows[train]], X[target.rows[test]]
    if scaled:
        # A free intercept makes centring immaterial, and leaving it out keeps sparse features sparse.
        scaler = StandardScaler(with_mean=False).fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    model: Any = LogisticProbe() if classify else RidgeProbe()
    model.fit(X_train, y[train], groups=donors[train])
    predicted = model.predict_proba(X_test) if classify else model.predict(X_test)
    common["penalty"] = model.C_ if classify else model.alpha_
    truth = np.searchsorted(model.classes_, y[test]) if classify else y[test]
    codes = np.unique(donors[test], return_inverse=True)[1]
    for level, unit in levels:
        rows, truths, by = predicted, truth, codes
        if level == "donor":
            first = np.unique(target.units[test], return_index=True)[1]
            rows, truths, by = group_means(predicted, target.units[test])[1], truth[first], codes[first]
        score: Any = score_classes if classify else score_numbers
        for record in score(truths, rows, by, bootstrap):
            yield common | {"level": level, "unit": unit, "n_units": len(truths)} | record
