"""The sentence tasks of GLUE that the paper fine-tunes on, from tables or from the hub."""

from __future__ import annotations

import csv
import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae.extra.text.hub import load_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["TASKS", "GlueTask", "LabeledText", "average_rank", "load_task", "read_task"]


logger = logging.getLogger(__name__)

_FEW = 0.01  # GLUE's own table of QQP has a handful of broken lines


@dataclass(frozen=True)
class GlueTask:
    """How the tables of a task are laid out.

    Attributes
    ----------
    columns
        Columns with one or two sentences.
    label
        Column with the label.
    classes
        Labels in the order of their numbers.
    split
        Held-out part on the hub, whose labels are public.
    """

    columns: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    split: str = "validation"


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


@dataclass(frozen=True)
class LabeledText:
    """Sentences, or pairs of them, with a class each.

    Attributes
    ----------
    first
        Sentences.
    second
        What each is paired with, or None.
    labels
        Numbers of classes, shape ``(n_obs,)``.
    classes
        Their names.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels))
        n_obs = len(self.first)
        if not n_obs:
            raise ValueError("There is no labeled text: the table is empty.")
        if self.labels.shape != (n_obs,) or (self.second is not None and len(self.second) != n_obs):
            raise ValueError(
                f"{n_obs} sentences need as many labels"
                f"{'' if self.second is None else ' and second sentences'}, got {self.labels.shape}"
                f"{'' if self.second is None else f' and {len(self.second)}'}."
            )
        wrong = (self.labels < 0) | (self.labels >= len(self.classes))
        if self.labels.dtype.kind not in "iu" or wrong.any():
            bad = np.unique(self.labels if self.labels.dtype.kind not in "iu" else self.labels[wrong])[:5]
            raise ValueError(
                f"Labels must be whole numbers from 0 to {len(self.classes) - 1}, one for each of {list(self.classes)}; "
                f"got {bad.tolist()}. GLUE's test sets are unlabeled: score on its validation sets."
            )

    def __len__(self) -> int:
        return len(self.first)


def _task(name: str) -> GlueTask:
    if name not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}, got {name!r}.")
    return TASKS[name]


def read_task(path: str | Path, *, task: str = "sst2") -> LabeledText:
    """Read the labeled sentences of a task from a table.

    Parameters
    ----------
    path
        Tab-separated text without quoting, as GLUE's own files, or ``.csv`` with; gzip-compressed if it ends in ``.gz``.
        A file whose first line names none of the task's columns has no header: its columns are the sentences, then
        the label.
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
        If the file is empty or a label is none of the task's.
    """
    layout, file = _task(task), Path(path)
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
    if n_short > _FEW * len(rows):
        raise ValueError(
            f"{n_short} of {len(rows)} rows of {file} have fewer than the {max(places) + 1} columns needed: {rows[0][:5]}."
        )
    if n_short:
        logger.warning("Left out %d of %d rows of %s, which lack columns.", n_short, len(rows), file)
    return _labeled(table, layout, source=str(file))


def _rows(file: Path) -> list[list[str]]:
    opened: Any = gzip.open if file.suffix == ".gz" else open
    is_csv = file.name.removesuffix(".gz").endswith(".csv")
    options: dict[str, Any] = {} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with opened(file, "rt", encoding="utf-8", newline="") as handle:
        return [row for row in csv.reader(handle, **options) if row]


def _labeled(table: Iterable[Sequence[str]], layout: GlueTask, *, source: str) -> LabeledText:
    """Give numbers to the classes of rows that end in a label."""
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
    """Load the labeled sentences of a task from the Hugging Face hub.

    Parameters
    ----------
    task
        ``"mnli"``, ``"qqp"``, ``"sst2"`` or ``"qnli"``.
    split
        ``"train"``, or another part; None for the held-out part that is scored (MNLI: matched).

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
    return _labeled(table, layout, source=f"{task} on the hub")


def average_rank(scores: pd.DataFrame) -> pd.Series:
    """Average over tasks of each method's rank, as in Table 2 of Dong et al. (2025).

    Parameters
    ----------
    scores
        One row a method, one column a task, higher is better.

    Returns
    -------
    Mean rank of each method, 1 the best; of tied methods each has the smallest rank, which reproduces the printed ranks.

    Raises
    ------
    ValueError
        If a score is missing.
    """
    if scores.isna().to_numpy().any():
        incomplete = [str(name) for name in scores.index[scores.isna().any(axis=1)]]
        raise ValueError(f"Ranks need a score of every method on every task; {incomplete} lack some.")
    return scores.rank(ascending=False, method="min").mean(axis=1).rename("rank")
