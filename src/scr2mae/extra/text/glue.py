"""The sentence tasks of GLUE in the paper, from tables or from the Hub."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae._utils.files import as_path
from scr2mae.extra.files import file_type, open_text
from scr2mae.extra.text.hub import load_dataset
from scr2mae.extra.text.sentences import LabeledText

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["TASKS", "GlueTask", "average_rank", "load_task", "read_task"]


logger = logging.getLogger(__name__)

# GLUE's own table of QQP has a handful of broken lines.
_MAX_BROKEN = 0.01


@dataclass(frozen=True)
class GlueTask:
    """Layout of the tables of a task."""

    columns: tuple[str, ...]  # with one or two sentences
    label: str  # column with the label
    classes: tuple[str, ...]  # names, in the order of their integers
    split: str = "validation"  # held-out split on the Hub whose labels are public


_ENTAILMENT = ("entailment", "not_entailment")
TASKS: Mapping[str, GlueTask] = MappingProxyType(
    {
        "mnli": GlueTask(
            ("sentence1", "sentence2"),
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            split="validation_matched",
        ),
        "qqp": GlueTask(("question1", "question2"), "is_duplicate", ("0", "1")),
        "sst2": GlueTask(("sentence",), "label", ("0", "1")),
        "qnli": GlueTask(("question", "sentence"), "label", _ENTAILMENT),
    }
)
"""The four tasks of Table 2 of Dong et al. (2025), with the columns of GLUE's files."""


def _task(name: str) -> GlueTask:
    if name not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}, got {name!r}.")
    return TASKS[name]


def read_task(path: str | Path, *, task: str = "sst2") -> LabeledText:
    """Read the labeled sentences of a task from a table.

    Parameters
    ----------
    path
        Tab-separated text without quoting, as in GLUE's own files, or ``.csv`` with quoting; gzip-compressed if it ends
        in ``.gz``. If the first line names none of the task's columns, the file has no header: its columns are the
        sentences, then the label.
    task
        ``"mnli"``, ``"qqp"``, ``"sst2"`` or ``"qnli"``.

    Returns
    -------
    The sentences in the order of the file; lines of MNLI without a gold label are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If a column is missing.
    ValueError
        If the file is empty or a label is unknown.
    """
    layout, file = _task(task), as_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"No table {file}.")
    rows = _rows(file)
    if not rows:
        raise ValueError(f"{file} is empty; expected the columns {[*layout.columns, layout.label]}.")
    wanted = [*layout.columns, layout.label]
    header = rows[0]
    if set(header) & set(wanted):
        if missing := [name for name in wanted if name not in header]:
            raise KeyError(f"{file} has no column {missing}; {task} needs {wanted} and there are {header}.")
        places, rows = [header.index(name) for name in wanted], rows[1:]
    else:
        places = list(range(len(wanted)))
    table = [[row[place] for place in places] for row in rows if len(row) > max(places)]
    n_short = len(rows) - len(table)
    if n_short > _MAX_BROKEN * len(rows):
        raise ValueError(
            f"{n_short} of {len(rows)} rows of {file} have fewer than the {max(places) + 1} columns needed: {rows[0][:5]}."
        )
    if n_short:
        logger.warning("Left out %d of %d rows of %s, which lack columns.", n_short, len(rows), file)
    return _labeled(table, layout, source=str(file))


def _rows(file: Path) -> list[list[str]]:
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    if file_type(file) == ".csv":
        options = {}
    with open_text(file, newline="") as handle:
        return [row for row in csv.reader(handle, **options) if row]


def _labeled(table: Iterable[Sequence[str]], layout: GlueTask, *, source: str) -> LabeledText:
    """Return the labeled text of rows that end in a label."""
    kept = [row for row in table if row[-1] != "-"]  # MNLI's annotators did not agree
    numbers = {name: i for i, name in enumerate(layout.classes)}
    numbers |= {str(i): i for i in range(len(layout.classes))}
    if unknown := sorted({row[-1] for row in kept} - set(numbers)):
        raise ValueError(
            f"{source} has labels {unknown[:5]}; expected {list(layout.classes)} or their numbers from 0. "
            "GLUE's test sets are unlabeled: score on its validation sets."
        )
    columns = list(zip(*kept, strict=True)) or [()] * (len(layout.columns) + 1)
    return LabeledText(
        first=columns[0],
        second=columns[1] if len(layout.columns) == 2 else None,
        labels=np.array([numbers[label] for label in columns[-1]], dtype=np.int64),
        classes=layout.classes,
    )


def load_task(task: str, *, split: str | None = None) -> LabeledText:
    """Load the labeled sentences of a task from the Hugging Face Hub.

    Parameters
    ----------
    task
        ``"mnli"``, ``"qqp"``, ``"sst2"`` or ``"qnli"``.
    split
        ``"train"`` or another split; None for the held-out split that is scored (MNLI: matched).

    Returns
    -------
    The sentences in the order of the data set.

    Raises
    ------
    ImportError
        If ``datasets`` is not installed.
    """
    layout = _task(task)
    columns = ("premise", "hypothesis") if task == "mnli" else layout.columns
    rows = load_dataset("nyu-mll/glue", task, split=split or layout.split)
    table = [[*(str(row[name]) for name in columns), str(row["label"])] for row in rows]
    return _labeled(table, layout, source=f"{task} on the Hub")


def average_rank(scores: pd.DataFrame) -> pd.Series:
    """Average over tasks of each method's rank, as in Table 2 of Dong et al. (2025).

    Parameters
    ----------
    scores
        One row per method, one column per task; higher is better.

    Returns
    -------
    Mean rank of each method, 1 the best; tied methods share the smallest rank, which reproduces the printed ranks.

    Raises
    ------
    ValueError
        If a score is missing.
    """
    if scores.isna().to_numpy().any():
        incomplete = [str(name) for name in scores.index[scores.isna().any(axis=1)]]
        raise ValueError(f"Ranks need a score of every method on every task; {incomplete} lack some.")
    return scores.rank(ascending=False, method="min").mean(axis=1).rename("rank")
