"""Score and rank are those printed in the paper; means, headings and Markdown by hand."""

import numpy as np
import pandas as pd
import pytest

from scr2mae.benchmark import mean_scores, score_and_rank
from scr2mae.benchmark.table import headings, seed_spread, to_markdown

# Printed in Dong et al. (2025), arXiv 2509.21650: six scores, then Score and Rank. For comparison only.
TABLE_4 = {  # SEA-AD
    "Normalized exp.": (0.798, 0.738, 0.571, 0.611, 0.129, 0.511, 0.560, 9.00),
    "scGPT": (0.784, 0.693, 0.549, 0.556, 0.065, 0.272, 0.486, 12.67),
    "scVI": (0.826, 0.740, 0.631, 0.731, 0.201, 0.502, 0.605, 7.00),
    "MAE (MR 25%)": (0.841, 0.737, 0.667, 0.699, 0.483, 0.575, 0.667, 4.33),
    "MR 10%": (0.837, 0.726, 0.543, 0.536, 0.449, 0.399, 0.582, 10.67),
    "MR 50%": (0.839, 0.738, 0.574, 0.591, 0.516, 0.536, 0.632, 6.17),
    "MDLM": (0.831, 0.719, 0.667, 0.686, 0.543, 0.622, 0.678, 6.83),
    "Dynamic MR": (0.838, 0.735, 0.662, 0.694, 0.444, 0.446, 0.636, 7.50),
    "CL-MAE": (0.838, 0.729, 0.687, 0.722, 0.462, 0.484, 0.654, 5.83),
    "R2MAE": (0.840, 0.737, 0.687, 0.716, 0.572, 0.628, 0.697, 2.17),
    "R2MAE + Dynamic MR": (0.834, 0.735, 0.642, 0.682, 0.551, 0.545, 0.665, 6.67),
    "R2MAE + CL": (0.836, 0.730, 0.684, 0.719, 0.570, 0.559, 0.683, 4.83),
    "R2MAE + CL (k=0)": (0.837, 0.734, 0.676, 0.707, 0.511, 0.506, 0.662, 6.17),
}
TABLE_6 = {  # HLCA
    "Normalized exp.": (0.834, 0.774, 0.675, 0.489, 0.470, 0.574, 0.636, 12.50),
    "scGPT (Lung)": (0.813, 0.717, 0.624, 0.401, 0.429, 0.523, 0.584, 15.67),
    "scGPT (All)": (0.834, 0.711, 0.629, 0.403, 0.438, 0.500, 0.586, 15.00),
    "scGPT (CP)": (0.816, 0.696, 0.613, 0.389, 0.431, 0.521, 0.578, 16.67),
    "UCE (4L)": (0.808, 0.702, 0.631, 0.417, 0.436, 0.518, 0.585, 15.50),
    "UCE (33L)": (0.800, 0.699, 0.619, 0.419, 0.447, 0.540, 0.587, 15.50),
    "scVI": (0.897, 0.804, 0.767, 0.626, 0.556, 0.618, 0.711, 9.67),
    "MAE (MR 25%)": (0.908, 0.830, 0.834, 0.604, 0.586, 0.623, 0.731, 6.50),
    "MR 10%": (0.915, 0.802, 0.851, 0.635, 0.582, 0.609, 0.732, 5.67),
    "MR 50%": (0.909, 0.833, 0.837, 0.604, 0.587, 0.601, 0.729, 6.33),
    "MDLM": (0.903, 0.806, 0.829, 0.560, 0.577, 0.622, 0.716, 8.83),
    "Dynamic MR": (0.919, 0.829, 0.850, 0.651, 0.571, 0.597, 0.736, 5.00),
    "CL-MAE": (0.907, 0.825, 0.843, 0.635, 0.589, 0.648, 0.741, 4.50),
    "CL-MAE (k=0)": (0.801, 0.667, 0.773, 0.493, 0.530, 0.563, 0.638, 13.83),
    "R2MAE": (0.915, 0.812, 0.853, 0.651, 0.595, 0.641, 0.744, 2.83),
    "R2MAE + Dynamic MR": (0.914, 0.842, 0.835, 0.597, 0.616, 0.658, 0.744, 4.17),
    "R2MAE + CL": (0.911, 0.817, 0.837, 0.618, 0.572, 0.619, 0.729, 6.67),
    "R2MAE + CL (k=0)": (0.911, 0.805, 0.840, 0.630, 0.590, 0.646, 0.737, 5.00),
}
COLUMNS = {
    "state": [("balanced_accuracy", "cell"), ("macro_f1", "cell")],
    "age": [("spearman", "cell"), ("spearman", "donor")],
}


def rows(*records):
    return pd.DataFrame(records, columns=["method", "seed", "split", "target", "metric", "level", "value"])


@pytest.mark.parametrize("printed", [TABLE_4, TABLE_6], ids=["Table 4", "Table 6"])
def test_scores_and_ranks_are_those_printed_in_the_paper(printed):
    table = pd.DataFrame.from_dict(printed, orient="index")
    scores = table.iloc[:, :6].set_axis(
        pd.MultiIndex.from_product([["a", "b", "c"], ["x", "y"], ["cell"]]), axis=1
    )
    summary = score_and_rank(scores)
    # Score is printed with three digits, of scores that had more.
    np.testing.assert_allclose(summary["Score"], table[6], atol=1.01e-3)
    np.testing.assert_allclose(summary["Rank"], table[7], atol=0.0051)


def test_score_is_a_mean_over_tasks_however_many_columns_they_have():
    columns = pd.MultiIndex.from_tuples([("a", "x", "cell"), ("a", "y", "cell"), ("b", "x", "cell")])
    summary = score_and_rank(pd.DataFrame([[0.2, 0.4, 0.9]], index=["m"], columns=columns))
    assert summary.loc["m", "Score"] == pytest.approx((0.3 + 0.9) / 2)


def test_ties_share_the_smallest_rank_and_a_missing_score_ranks_last():
    scores = pd.DataFrame(
        {("a", "x", "cell"): [0.5, 0.5, 0.1, np.nan]}, index=["first", "second", "third", "none"]
    )
    summary = score_and_rank(scores)
    assert summary["Rank"].tolist() == [1, 1, 3, 4]
    assert np.isnan(summary.loc["none", "Score"])


def test_means_run_over_splits_and_seeds_and_leave_missing_values_out():
    results = rows(
        ("m", 0, 0, "state", "balanced_accuracy", "cell", 0.2),
        ("m", 0, 1, "state", "balanced_accuracy", "cell", 0.4),
        ("m", 1, 0, "state", "balanced_accuracy", "cell", 0.9),
        ("m", 1, 1, "state", "balanced_accuracy", "cell", np.nan),
        ("k", None, 0, "state", "balanced_accuracy", "cell", np.nan),
        ("k", None, 0, "age", "spearman", "cell", 0.3),
        ("m", 0, 0, "age", "spearman", "cell", 0.1),
        ("m", 0, 0, "age", "macro_auroc", "cell", 0.7),
    )
    table = mean_scores(results, COLUMNS)
    assert table.index.tolist() == ["m", "k"]
    assert table.columns.tolist() == [("state", "balanced_accuracy", "cell"), ("age", "spearman", "cell")]
    np.testing.assert_allclose(table.to_numpy(), [[0.5, 0.1], [np.nan, 0.3]])


def test_the_spread_is_over_the_scores_of_the_seeds():
    values = {0: (0.2, 0.4), 1: (0.6, 0.8), 2: (0.1, 0.3)}
    results = rows(
        *[("m", seed, i, "state", "macro_f1", "cell", v) for seed, pair in values.items() for i, v in enumerate(pair)],
        ("fixed", None, 0, "state", "macro_f1", "cell", 0.5),
    )  # fmt: skip
    spread = seed_spread(results, COLUMNS)
    assert spread["m"] == pytest.approx(np.std([0.3, 0.7, 0.2], ddof=1))
    assert np.isnan(spread["fixed"])


def test_headings_name_the_level_where_there_are_two_or_it_is_no_cell():
    columns = pd.MultiIndex.from_tuples(
        [
            ("state", "macro_f1", "cell"),
            ("age", "spearman", "cell"),
            ("age", "spearman", "donor"),
            ("status", "macro_auroc", "donor"),
        ]
    )
    assert headings(columns) == [
        "state F1",
        "age Spearman (cell)",
        "age Spearman (donor)",
        "status AUROC (donor)",
    ]


def test_markdown_has_a_row_a_method_and_the_best_is_bold():
    table = pd.DataFrame({"a": ["0.1", "0.2"]}, index=pd.Index(["x|y", "z"], name="Method"))
    assert to_markdown(table, best={"a": "z"}).splitlines() == [
        "| Method | a |",
        "| --- | ---: |",
        "| x\\|y | 0.1 |",
        "| z | **0.2** |",
    ]
