"""Tables of scores: pure functions on frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Columns = Mapping[str, Sequence[tuple[str, str]]]

_FIRST_COLUMNS = (
    *("part", "method", "pretrained_on", "seed", "split", "target", "metric", "level", "unit", "scale"),
    *("ratio", "value", "ci_low", "ci_high"),
)

_ABBREVIATIONS = {
    "balanced_accuracy": "BAcc.",
    "macro_f1": "F1",
    "macro_auroc": "AUROC",
    "spearman": "Spearman",
}


def results_frame(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> pd.DataFrame:
    """Return records as a frame, with methods in the given order and the most important columns first."""
    frame = pd.DataFrame.from_records([{"ratio": np.nan} | dict(record) for record in records])
    first = [name for name in _FIRST_COLUMNS if name in frame]
    frame = frame[first + [name for name in frame if name not in first]]
    integers = [
        name
        for name in frame
        if name in ("seed", "split", "split_seed", "epochs") or str(name).startswith("n_")
    ]
    frame = frame.astype(dict.fromkeys(integers, "Int64") | {"scale": "boolean"})
    position = frame["method"].map({name: i for i, name in enumerate(methods)})
    return frame.iloc[np.argsort(position.to_numpy(), kind="stable")].reset_index(drop=True)


def mean_scores(results: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Average scores over splits and training seeds.

    Parameters
    ----------
    results
        One row per score of a single scaling, with ``method``, ``target``, ``metric``, ``level`` and ``value``.
    columns
        (metric, level) pairs of each task.

    Returns
    -------
    Methods in the order of their first row by (task, metric, level) in the order of ``columns``. NaN values are
    ignored; columns without any value are dropped.
    """
    wanted = [(task, *score) for task, scores in columns.items() for score in scores]
    wide = results.pivot_table(
        index="method", columns=["target", "metric", "level"], values="value", dropna=False, sort=False
    )
    wide = wide.reindex(index=results["method"].unique(), columns=pd.MultiIndex.from_tuples(wanted))
    wide.columns.names = ["task", "metric", "level"]
    wide.index.name = "method"
    return wide.dropna(axis="columns", how="all")


def score_and_rank(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarize each method by the mean of its scores and the mean of its ranks.

    Parameters
    ----------
    scores
        Methods by columns, larger is better; the first level of the columns is the task.

    Returns
    -------
    One row per method: ``Score``, the mean over tasks of the mean of a task's columns (NaN if one is missing), and
    ``Rank``, the mean over columns of the rank, one being best. Tied methods share the smallest of their ranks; a
    missing score ranks last.

    Notes
    -----
    With two columns per task, this gives every score and rank printed in Tables 4 and 6 of Dong et al. (2025).
    """
    tasks = scores.columns.get_level_values(0)
    by_task = pd.DataFrame(
        {task: scores.loc[:, tasks == task].mean(axis=1, skipna=False) for task in tasks.unique()}
    )
    ranks = scores.rank(ascending=False, method="min", na_option="bottom")
    return pd.DataFrame({"Score": by_task.mean(axis=1, skipna=False), "Rank": ranks.mean(axis=1)})


def seed_spread(results: pd.DataFrame, columns: Columns) -> pd.Series:
    """Return the standard deviation of each method's Score over training seeds; NaN with fewer than two seeds."""
    spread = {
        method: np.nan if by_seed["seed"].nunique() < 2 else _scores_by_seed(by_seed, columns).std()
        for method, by_seed in results.groupby("method", sort=False)
    }
    return pd.Series(spread, name="Score sd", dtype=float)


def _scores_by_seed(results: pd.DataFrame, columns: Columns) -> pd.Series:
    return pd.Series(
        [score_and_rank(mean_scores(group, columns))["Score"].iloc[0] for _, group in results.groupby("seed")]
    )


def headings(columns: pd.Index) -> list[str]:
    """Return short names of (task, metric, level) columns, with the level if a task has both."""
    names = []
    for task, metric, level in columns:
        several = sum(other[:2] == (task, metric) for other in columns) > 1
        short = _ABBREVIATIONS.get(metric, metric)
        names.append(f"{task} {short} ({level})" if several or level != "cell" else f"{task} {short}")
    return names


def to_markdown(table: pd.DataFrame, *, best: Mapping[str, str] | None = None) -> str:
    """Return a frame of text as a Markdown table, its index first; ``best`` is the row in bold per column."""
    best = best or {}
    rows = [[str(table.index.name or ""), *map(str, table.columns)]]
    rows.append(["---", *["---:"] * table.shape[1]])
    for name, row in table.iterrows():
        cells = (
            f"**{text}**" if best.get(column) == name else text
            for column, text in zip(map(str, table.columns), row, strict=True)
        )
        rows.append([str(name), *map(str, cells)])
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
