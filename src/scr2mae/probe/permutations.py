"""Tests over donors: permuted labels, paired comparison of representations, and the power of a study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from scipy.stats import mannwhitneyu, rankdata
from scipy.stats import permutation_test as sign_flip_test

from scr2mae.data.columns import as_keys, find_column, warn_about_missing_text
from scr2mae.metrics import group_means
from scr2mae.probe.fitting import check_donors
from scr2mae.probe.folds import make_folds, to_dense
from scr2mae.probe.inputs import Kind, Target, checked_obs, read_representation, read_target
from scr2mae.probe.linear import hold_out
from scr2mae.probe.ridge import ALPHAS, UnitMoments

Float = NDArray[np.float64]


@dataclass(frozen=True)
class PermutationResult:
    """Result of :func:`permutation_test`.

    Attributes
    ----------
    statistic
        Macro AUROC or Spearman's correlation over units, of predictions for held-out donors.
    p_value
        Share of labelings, the observed one included, with at least this statistic.
    smallest
        Smallest p-value that the number of donors and of permutations allows.
    null
        Statistics of the permuted labels, shape ``(n_permutations,)``.
    unit
        What was permuted: "donor" or "sample" across donors, or labels within each donor.
    n_units
        Number of units.
    """

    statistic: float
    p_value: float
    smallest: float
    null: Float
    unit: str
    n_units: int


def permutation_test(
    adata: AnnData,
    *,
    use_rep: str,
    target: str,
    kind: Kind,
    donor_key: str | Sequence[str],
    sample_key: str | Sequence[str] | None = None,
    strata: Sequence[str] = (),
    n_permutations: int = 999,
    cv: int = 5,
    seed: int = 0,
) -> PermutationResult:
    """Test whether a representation predicts the target better than chance, by permuting labels over donors.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        Representation: a key of ``obsm``, "X" or a layer.
    target, kind, donor_key, sample_key
        As in :func:`fit_probe`.
    strata
        Columns, constant within units, such as batch or sex: labels are permuted within their combinations, so that an
        association with them is kept under the null hypothesis. If the target varies within donors (before and after a
        treatment), labels are permuted within each donor, and predictions are relative to the mean of the donor.
    n_permutations
        Number of permutations.
    cv
        Number of folds of donors.
    seed
        Random seed of the permutations and folds.

    Returns
    -------
    The statistic, its p-value and the permuted statistics.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If there are too few donors, the target belongs to the cell, a stratum varies within a unit, or no
        other labeling is possible.

    Notes
    -----
    Every labeling is scored in the same way: ridge regression on the label (on indicators of the classes) with a penalty
    chosen across donors, predictions for held-out donors averaged over each unit. Ridge regression decomposes the
    features once for all labelings. The p-value is ``(1 + n_at_least) / (1 + n_permutations)``, exact for labels that
    are exchangeable within strata.
    """
    obs = checked_obs(adata, donor_key)
    described = read_target(obs, target, kind, donor_key=donor_key, sample_key=sample_key, cell_level=())
    check_donors(described)
    if described.unit is None:
        raise ValueError(
            f"{target!r} varies from cell to cell; only labels of donors or samples can be permuted."
        )
    if n_permutations < 1:
        raise ValueError(f"Wanted n_permutations >= 1, got {n_permutations}.")
    X = read_representation(adata, use_rep)[described.rows]
    first = np.unique(described.units, return_index=True)[1]
    y, owners = described.y[first], described.donors[first]
    groups, unit = _strata(adata.obs.iloc[described.rows], described, first, strata)
    rng = np.random.default_rng(seed)
    order = np.stack([np.arange(len(y)), *(_permute(groups, rng) for _ in range(n_permutations))])
    labelings = y[order]  # (1 + n_permutations, n_units)
    folds = rng.permutation(len(np.unique(owners))) % min(cv, len(np.unique(owners)))
    fold_of_unit = folds[np.unique(owners, return_inverse=True)[1]]
    moments = UnitMoments(to_dense(X), described.units, fold_of_unit)
    pairs = np.unique(owners, return_inverse=True)[1] if "_and_" in described.unit else None
    statistics = _statistics(moments, labelings, kind, pairs)
    n_labelings, n_equal = _count(groups, y)
    if n_labelings == 1:
        raise ValueError(f"Within the strata, {target!r} does not vary, so no other labeling is possible.")
    reached = int((statistics[1:] >= statistics[0] - 1e-12).sum())
    return PermutationResult(
        statistic=float(statistics[0]),
        p_value=(1 + reached) / (1 + n_permutations),
        smallest=max(1 / (1 + n_permutations), n_equal / n_labelings),
        null=statistics[1:],
        unit=unit,
        n_units=len(y),
    )


def _strata(
    obs: pd.DataFrame, target: Target, first: NDArray[np.intp], strata: Sequence[str]
) -> tuple[NDArray[np.intp], str]:
    """Return the group within which the label of each unit may be exchanged, and what a unit is."""
    unit = str(target.unit)
    owners = target.donors[first]
    columns: dict[str, Any] = {}
    if "_and_" in unit:
        columns["donor"] = owners
        unit = f"{unit.partition('_and_')[0]}, labels within donors"
    for name in as_keys(strata, "strata"):
        warn_about_missing_text(find_column(obs, name), name)
        values = find_column(obs, name).astype(str).to_numpy()
        if pd.Series(values).groupby(target.units).nunique().max() > 1:
            raise ValueError(f"{name!r} varies within a unit; strata are properties of donors or samples.")
        columns[name] = values[first]
    if not columns:
        return np.zeros(len(first), dtype=np.intp), unit
    return pd.DataFrame(columns).groupby(list(columns)).ngroup().to_numpy().astype(np.intp), unit


def _permute(groups: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return positions after a permutation within each group."""
    order = np.arange(len(groups))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        order[members] = rng.permutation(members)
    return order


def _count(groups: NDArray[np.intp], y: NDArray[Any]) -> tuple[float, int]:
    """Return the number of distinct labelings, and how many of them only rename the classes of the observed one."""
    table = pd.crosstab(groups, y).to_numpy()
    log = sum(math.lgamma(row.sum() + 1) - sum(math.lgamma(n + 1) for n in row) for row in table)
    n_labelings = math.exp(min(log, 700))
    n_equal = 1
    if y.dtype.kind not in "fiu" and table.shape[1] <= 6:
        renamed = permutations(range(table.shape[1]))
        n_equal = sum(np.array_equal(table[:, list(columns)], table) for columns in renamed)
    return round(n_labelings) if n_labelings < 1e15 else n_labelings, n_equal


def _statistics(
    moments: UnitMoments, labelings: NDArray[Any], kind: Kind, pairs: NDArray[np.intp] | None
) -> Float:
    """Return the statistic of each labeling, shape ``(n_labelings,)``; ``pairs`` are donors whose units are compared."""

    def predict(labels: Float) -> Float:
        predicted = moments.held_out(labels, np.array(ALPHAS))  # (n_units, n_labelings)
        return predicted if pairs is None else predicted - group_means(predicted, pairs)[1][pairs]

    if kind == "regression":
        predicted = predict(labelings.T.astype(np.float64))
        return _column_correlation(rankdata(labelings.T, axis=0), rankdata(predicted, axis=0))
    classes = np.unique(labelings[0])
    areas = []
    for label in classes[-1:] if len(classes) == 2 else classes:
        inside = (labelings == label).T  # (n_units, n_labelings)
        ranks = rankdata(predict(inside.astype(np.float64)), axis=0)
        n_inside = inside.sum(axis=0)
        won = (ranks * inside).sum(axis=0) - n_inside * (n_inside + 1) / 2
        areas.append(won / (n_inside * (len(inside) - n_inside)))
    return np.mean(areas, axis=0)


def _column_correlation(a: Float, b: Float) -> Float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), norm, out=np.zeros(a.shape[1]), where=norm > 0)


def compare_representations(
    adata: AnnData,
    *,
    use_rep: tuple[str, str],
    target: str,
    kind: Kind,
    donor_key: str | Sequence[str],
    sample_key: str | Sequence[str] | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    cv: int = 5,
    n_permutations: int = 9999,
    seed: int = 0,
) -> pd.Series:
    """Test whether one representation predicts held-out donors better than another, paired over donors.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        The two representations: keys of ``obsm``, "X" or layers.
    target, kind, donor_key, sample_key, cell_level
        As in :func:`fit_probe`.
    cv
        Number of folds of donors, the same for both.
    n_permutations
        Number of exchanges of the two representations; all of them if there are no more.
    seed
        Random seed of the exchanges.

    Returns
    -------
    ``difference`` between the first and the second in the mean over donors of the score of a donor, ``p_value`` (two-sided),
    ``low`` and ``high`` (95 % interval, bootstrap over donors), ``n_donors``, and the mean scores of both. The score of a donor is the
    share of correct cells for targets of the cell, the mean probability of the true class for classes of the donor, and
    minus the absolute error for numbers.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If there are too few donors, or as in :func:`fit_probe`.
    """
    obs = checked_obs(adata, donor_key)
    described = read_target(
        obs, target, kind, donor_key=donor_key, sample_key=sample_key, cell_level=cell_level
    )
    check_donors(described)
    scores = [
        _donor_scores(
            read_representation(adata, name)[described.rows],
            described,
            cv,
            target in as_keys(cell_level, "cell_level"),
        )
        for name in use_rep
    ]
    difference = scores[0] - scores[1]
    rng = np.random.default_rng(seed)
    test = sign_flip_test(
        (difference,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        n_resamples=n_permutations,
        rng=rng,
        vectorized=True,
    )
    means = rng.choice(difference, size=(2000, len(difference))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    result = {"difference": difference.mean(), "p_value": test.pvalue, "low": low, "high": high}
    result |= {"n_donors": len(difference)} | {
        name: score.mean() for name, score in zip(use_rep, scores, strict=True)
    }
    return pd.Series(result)


def _donor_scores(X: Any, target: Target, cv: int, is_cell_level: bool) -> Float:
    """Return the score of each donor from predictions made without it, shape ``(n_donors,)``."""
    classes, codes = (
        np.unique(target.y, return_inverse=True) if target.kind == "classification" else (None, None)
    )
    folds = make_folds(cv, X, codes, target.donors)
    found = hold_out(X, target.y, target.donors, folds, kind=target.kind, classes=classes)
    if codes is None:
        _, predicted = group_means(found.outputs[:, 0], target.units)
        first = np.unique(target.units, return_index=True)[1]
        return group_means(-np.abs(predicted - target.y[first]), target.donors[first])[1]
    probabilities = np.asarray(softmax(found.outputs, axis=1))
    right = probabilities[np.arange(len(codes)), codes]
    if is_cell_level:
        right = np.where(np.isnan(right), np.nan, probabilities.argmax(axis=1) == codes)
    return group_means(right, target.donors)[1]


def donor_power(
    held_out: pd.DataFrame,
    *,
    positive: str,
    auroc: Sequence[float] = (0.7, 0.8, 0.9),
    n_donors: Sequence[int] = (8, 12, 16, 24, 32, 48, 64),
    alpha: float = 0.05,
    n_simulations: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulate how often a study of new donors shows that a probe of a given AUROC is better than chance.

    Parameters
    ----------
    held_out
        Held-out predictions of donors, ``probe.held_out``.
    positive
        Class whose probability is tested against all others.
    auroc
        True areas under the ROC curve over donors, in [0.5, 1).
    n_donors
        Numbers of new donors, with the classes as frequent as in ``held_out``.
    alpha
        Level of the one-sided Mann-Whitney test.
    n_simulations
        Number of simulated studies per entry.
    seed
        Random seed.

    Returns
    -------
    Power, one row per number of donors, one column per AUROC.

    Raises
    ------
    KeyError
        If there is no such class.
    ValueError
        If a class has fewer than two donors, or an argument is out of its range.

    Notes
    -----
    Scores of new donors are drawn from the held-out log-odds: the spread within each class is that of the data, and the
    distance between the classes is set so that the share of correctly ordered pairs of donors is the AUROC.
    """
    column = f"p_{positive}"
    if column not in held_out:
        known = [name.removeprefix("p_") for name in map(str, held_out) if name.startswith("p_")]
        raise KeyError(f"No class {positive!r} in the held-out predictions; choose one of {known}.")
    values = np.clip(held_out[column].to_numpy(dtype=float), 1e-6, 1 - 1e-6)
    inside = (held_out["truth"].astype(str) == positive).to_numpy()
    if min(inside.sum(), (~inside).sum()) < 2:
        raise ValueError(
            f"Wanted two donors with and without {positive!r}, got {inside.sum()} and {(~inside).sum()}."
        )
    if not all(0.5 <= area < 1 for area in auroc) or min(n_donors) < 2:
        raise ValueError(
            f"Wanted AUROCs in [0.5, 1) and two donors or more, got {list(auroc)} and {list(n_donors)}."
        )
    odds = np.log(values / (1 - values))
    cases, controls = odds[inside] - odds[inside].mean(), odds[~inside] - odds[~inside].mean()
    share = inside.mean()
    rng = np.random.default_rng(seed)
    power = pd.DataFrame(
        index=pd.Index(n_donors, name="n_donors"), columns=pd.Index(auroc, name="auroc"), dtype=float
    )
    for area in auroc:
        shift = _shift(cases, controls, area)
        for n in n_donors:
            n_cases = min(max(round(n * share), 1), n - 1)
            a = rng.choice(cases, (n_simulations, n_cases)) + shift
            b = rng.choice(controls, (n_simulations, n - n_cases))
            # Ties of equal draws are broken as a continuous score would.
            a, b = (x + rng.normal(0, 1e-9, x.shape) for x in (a, b))
            p_values = mannwhitneyu(a, b, alternative="greater", axis=1).pvalue
            power.loc[n, area] = float((p_values <= alpha).mean())
    return power


def _shift(cases: ArrayLike, controls: ArrayLike, auroc: float) -> float:
    """Return the distance at which a share ``auroc`` of the pairs is ordered correctly."""
    gaps = np.subtract.outer(np.asarray(controls), np.asarray(cases)).ravel()
    return float(np.quantile(gaps, auroc))
