"""From scores of single fits to the rows of a table: pure functions on frames."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

Columns = Mapping[str, Sequence[tuple[str, str]]]

_ABBREVIATIONS = {
    "balanced_accuracy": "BAcc.",
    "macro_f1": "F1",
    "macro_auroc": "AUROC",
    "spearman": "Spearman",
}


def mean_scores(results: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Average scores over splits and training seeds.

    Parameters
    ----------
    results
        One row a score, with ``method``, ``target``, ``metric``, ``level`` and ``value``; of one scaling.
    columns
        For every task the (metric, level) pairs that it is scored by.

    Returns
    -------
    Methods, in the order of their first row, by (task, metric, level), in the order of ``columns``. A NaN among the
    values is left out of the mean; a column that no method has a value in is left out of the table.
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
    One row a method: ``Score``, the mean over tasks of the mean of a task's columns (NaN where one is missing), and
    ``Rank``, the mean over columns of the rank, one being best. Methods that tie share the smallest of their ranks;
    a missing score ranks last.

    Notes
    -----
    With two columns a task, this gives every score and rank printed in Tables 4 and 6 of Dong et al. (2025).
    """
    tasks = scores.columns.get_level_values(0)
    by_task = pd.DataFrame(
        {task: scores.loc[:, tasks == task].mean(axis=1, skipna=False) for task in tasks.unique()}
    )
    ranks = scores.rank(ascending=False, method="min", na_option="bottom")
    return pd.DataFrame({"Score": by_task.mean(axis=1, skipna=False), "Rank": ranks.mean(axis=1)})


def seed_spread(results: pd.DataFrame, columns: Columns) -> pd.Series:
    """Return the standard deviation over training seeds of each method's Score; NaN where it has one seed or none."""
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
    """Short names of (task, metric, level) columns, with the level where a task has both."""
    names = []
    for task, metric, level in columns:
        several = sum(other[:2] == (task, metric) for other in columns) > 1
        short = _ABBREVIATIONS.get(metric, metric)
        names.append(f"{task} {short} ({level})" if several or level != "cell" else f"{task} {short}")
    return names


def to_markdown(table: pd.DataFrame, *, best: Mapping[str, str] | None = None) -> str:
    """Lay a frame of text out as a Markdown table, its index first.

    Parameters
    ----------
    table
        Text in every cell.
    best
        For a column the row whose entry is set bold.
    """
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
