"""Metrics of variant scores."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scr2mae.extra import dna


def test_metrics_are_those_of_scikit_learn_over_all_and_by_class():
    rng = np.random.default_rng(0)
    y = rng.random(600) < 0.3
    score = rng.normal(size=600) + y
    groups = rng.choice(np.array(["5'UTR", "ncRNA", None], dtype=object), size=600)
    found = dna.variant_metrics(y, score, groups=groups)
    assert found.index.tolist() == ["all", "5'UTR", "ncRNA"]
    for name, row in found.iterrows():
        inside = np.ones(600, dtype=bool) if name == "all" else groups == name
        assert (row["n"], row["n_positive"]) == (inside.sum(), y[inside].sum())
        assert row["auroc"] == pytest.approx(roc_auc_score(y[inside], score[inside]))
        assert row["auprc"] == pytest.approx(average_precision_score(y[inside], score[inside]))
        assert row["pauroc"] == pytest.approx(roc_auc_score(y[inside], score[inside], max_fpr=0.001))
    shared = dna.variant_metrics(y, score, groups=groups, shared_negatives=True)
    inside = ~y | (groups == "ncRNA")
    assert shared.loc["ncRNA", "auprc"] == pytest.approx(average_precision_score(y[inside], score[inside]))
    assert shared.loc["ncRNA", "n"] == inside.sum()


def test_a_perfect_ranking_scores_one_and_chance_a_half():
    y = np.r_[np.ones(50), np.zeros(5000)]
    perfect = dna.variant_metrics(y, y.copy()).loc["all"]
    assert perfect[["auroc", "auprc", "pauroc"]].tolist() == [1, 1, 1]
    constant = dna.variant_metrics(y, np.zeros_like(y)).loc["all"]
    assert constant["auroc"] == constant["pauroc"] == pytest.approx(0.5)
    assert constant["auprc"] == pytest.approx(50 / 5050)


def test_a_class_of_one_kind_has_no_scores():
    found = dna.variant_metrics([1, 1, 0], [0.2, 0.4, 0.1], groups=["a", "a", "b"])
    assert found.loc[["a", "b"], "auroc"].isna().all()
    assert found.loc["a", "n_positive"] == 2


@pytest.mark.parametrize(
    ("y", "score", "options", "message"),
    [
        ([], [], {}, r"There are no variants"),
        ([1, 0], [1.0], {}, r"same length, got shapes \(2,\) and \(1,\)"),
        ([1, 2], [1.0, 2.0], {}, r"y must hold 0 and 1 or booleans, got \[1, 2\]"),
        ([1, 0], [np.nan, 1.0], {}, r"1 of 2 scores are NaN; pass the variants whose status is 'scored'"),
        ([1, 0], [1.0, 2.0], {"max_fpr": 0}, r"max_fpr must lie in \(0, 1\]"),
        ([1, 0], [1.0, 2.0], {"groups": ["a"]}, r"groups must have the length of y, 2, got 1"),
        ([1, 0], [1.0, 2.0], {"groups": ["a", "all"]}, r"A class is named 'all'"),
        ([True, None], [1.0, 2.0], {}, r"y must hold 0 and 1 or booleans, got \[True, None\]"),
    ],
)
def test_invalid_arguments_of_metrics_are_refused(y, score, options, message):
    with pytest.raises(ValueError, match=message):
        dna.variant_metrics(y, score, **options)
