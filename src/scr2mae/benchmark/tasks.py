"""Prediction tasks: labels, the cells that count and the scores; the paper's tasks on two atlases."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from scr2mae.data.columns import as_keys, find_column
from scr2mae.probe.inputs import Kind, kinds_of

Score = tuple[str, str]

_CLASSES: tuple[Score, ...] = (("balanced_accuracy", "cell"), ("macro_f1", "cell"))
_NUMBERS: tuple[Score, ...] = (("spearman", "cell"), ("spearman", "donor"))
_AREAS: tuple[Score, ...] = (("macro_auroc", "cell"), ("macro_auroc", "donor"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A label to predict from an embedding.

    Parameters
    ----------
    name
        Heading in the tables.
    kind
        "classification" or "regression".
    labels
        Function from ``adata.obs`` to the labels of its cells, missing for cells that do not count.
    scores
        Metric and level ("cell" or "donor") of each column of the table.
    cell_level
        Whether the label belongs to the cell rather than to its donor, such as cell type.
    drop_after_cap
        Labels that are dropped after the cells of a donor are drawn, not before.
    max_cells_per_donor
        Maximum number of cells per donor, in place of the benchmark's.
    """

    name: str
    kind: Kind
    labels: Callable[[pd.DataFrame], pd.Series]
    scores: tuple[Score, ...]
    cell_level: bool = False
    drop_after_cap: tuple[str, ...] = ()
    max_cells_per_donor: int | None = None


def tasks(atlas: str, *, max_cells_per_donor: Mapping[str, int] | None = None) -> tuple[Task, ...]:
    """Return the paper's tasks on an atlas.

    Parameters
    ----------
    atlas
        ``"hlca"`` or ``"sea_ad"``, as loaded by :func:`scr2mae.datasets.hlca` and :func:`scr2mae.datasets.sea_ad`;
        donors are in ``obs["donor_id"]``.
    max_cells_per_donor
        Maximum number of cells per donor by task, in place of the benchmark's: ``{"Cell state": 200}``. The paper has
        another number for the cell states of SEA-AD.

    Returns
    -------
    Three tasks with two columns each.

    - HLCA: cell state (``ann_finest_level``; "Unknown" is dropped after cells are drawn) and ``disease`` by balanced
      accuracy and macro F1, age (``age_or_mean_of_age_range``; missing ages are dropped) by Spearman's correlation.
    - SEA-AD without the reference donors: cell state (``Supertype``, within the values of ``Subclass`` that have
      Alzheimer-specific supertypes) by balanced accuracy and macro F1, Alzheimer status (``ADNC``) by macro AUROC,
      age (``development_stage``, exact ages only) by Spearman's correlation.

    AUROC and Spearman's correlation are computed by cell and by donor.

    Raises
    ------
    ValueError
        If the atlas is unknown.

    Notes
    -----
    Dong et al. (2025), appendix C.8. It is inferred that the cell states of SEA-AD are supertypes and that the
    Alzheimer-specific ones are those named "...-SEAAD". The numbers of donors and cells are not in our copy
    of the paper: they are arguments of :func:`run`.
    """
    if atlas not in _ATLASES:
        raise ValueError(f"atlas must be one of {list(_ATLASES)}, got {atlas!r}.")
    caps = dict(max_cells_per_donor or {})
    if unknown := caps.keys() - {task.name for task in _ATLASES[atlas]}:
        raise ValueError(
            f"No task {sorted(unknown)} on {atlas}; there are {[task.name for task in _ATLASES[atlas]]}."
        )
    return tuple(replace(task, max_cells_per_donor=caps.get(task.name)) for task in _ATLASES[atlas])


def as_tasks(targets: Mapping[str, Kind] | Sequence[Task], cell_level: Sequence[str]) -> tuple[Task, ...]:
    """Turn columns of ``adata.obs`` into tasks; return tasks unchanged."""
    listed = [] if isinstance(targets, (Mapping, str)) else list(targets)
    if listed and all(isinstance(task, Task) for task in listed):
        made = tuple(listed)
    else:
        of_cells = as_keys(cell_level, "cell_level")
        kinds = kinds_of(targets)  # raises unless it is a mapping
        made = tuple(_column_task(name, kind, name in of_cells) for name, kind in kinds.items())
    names = [task.name for task in made]
    if not made or len(set(names)) < len(names):
        raise ValueError(f"Wanted at least one target, each with a unique name; got {names}.")
    return made


def _column_task(column: str, kind: Kind, cell_level: bool) -> Task:
    scores = _CLASSES if kind == "classification" else _NUMBERS[:1] if cell_level else _NUMBERS
    return Task(name=column, kind=kind, labels=_column(column), scores=scores, cell_level=cell_level)


def _column(name: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda obs: find_column(obs, name)


# The reference donors of SEA-AD are young and have no diagnosis.
_REFERENCE = "Reference"
_EXACT_AGE = re.compile(r"^(\d+)[- ]year[- ]old(?: human)?(?: stage)?$")
_ALZHEIMER_SPECIFIC = "SEAAD"


def _without_reference(obs: pd.DataFrame, labels: pd.Series) -> pd.Series:
    return labels.astype(object).where(find_column(obs, "ADNC").astype(object) != _REFERENCE)


def _sea_ad_status(obs: pd.DataFrame) -> pd.Series:
    return _without_reference(obs, find_column(obs, "ADNC"))


def _sea_ad_cell_state(obs: pd.DataFrame) -> pd.Series:
    classes = find_column(obs, "Subclass").astype(object)
    states = find_column(obs, "Supertype").astype(object)
    specific = states.str.endswith(_ALZHEIMER_SPECIFIC, na=False).astype(bool)
    return _without_reference(obs, states.where(classes.isin(classes[specific].unique())))


def _sea_ad_age(obs: pd.DataFrame) -> pd.Series:
    stages = find_column(obs, "development_stage").astype(object)
    years = stages.astype("string").str.extract(_EXACT_AGE, expand=False)
    return _without_reference(obs, pd.to_numeric(years).astype(float))


_ATLASES: dict[str, tuple[Task, ...]] = {
    "hlca": (
        Task(
            name="Cell state",
            kind="classification",
            labels=_column("ann_finest_level"),
            scores=_CLASSES,
            cell_level=True,
            drop_after_cap=("Unknown",),
        ),
        Task(name="Disease", kind="classification", labels=_column("disease"), scores=_CLASSES),
        Task(name="Age", kind="regression", labels=_column("age_or_mean_of_age_range"), scores=_NUMBERS),
    ),
    "sea_ad": (
        Task(
            name="Cell state",
            kind="classification",
            labels=_sea_ad_cell_state,
            scores=_CLASSES,
            cell_level=True,
        ),
        Task(name="Alzheimer's", kind="classification", labels=_sea_ad_status, scores=_AREAS),
        Task(name="Age", kind="regression", labels=_sea_ad_age, scores=_NUMBERS),
    ),
}
