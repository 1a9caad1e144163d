"""What every method shares: counts, labels, splits of donors, and the cells that pretraining sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scr2mae.benchmark.store import digest
from scr2mae.benchmark.tasks import Task
from scr2mae.data import split_cells
from scr2mae.data.counts import as_csr, check_counts, check_genes, get_counts
from scr2mae.probe import DonorSplit, donor_split
from scr2mae.probe.inputs import Rows, cap_cells, obs_column, read_donors, read_target
from scr2mae.probe.task import make_task

PretrainOn = Literal["all", "train"]
BATCH = "batch"


@dataclass(frozen=True, eq=False)
class Pretraining:
    """Cells for one fit.

    Attributes
    ----------
    cells
        Raw counts of all cells, and their batch.
    train, validation
        Rows that may be learned from. Networks train on the first; what has no validation uses both.
    scored
        Rows whose hidden genes are reconstructed.
    has_batch
        Whether there are batches to tell a network of.
    cells_key
        Hash of the cells.
    """

    cells: AnnData
    train: Rows
    validation: Rows
    scored: Rows
    has_batch: bool
    cells_key: str

    @cached_property
    def seen(self) -> Rows:
        """Rows that may be learned from, ascending."""
        return np.sort(np.concatenate([self.train, self.validation]))

    def subset(self, rows: Rows | None = None) -> AnnData:
        """Cells in an AnnData of their own, free to be written to; None for all. Counts are shared where they can be."""
        X, obs = self.cells.X, self.cells.obs
        if rows is not None and len(rows) < self.cells.n_obs:
            X, obs = X[rows], obs.iloc[rows]
        obs = obs.copy()
        if self.has_batch:
            obs[BATCH] = pd.Categorical(obs[BATCH])
        return AnnData(X=X, obs=obs, var=self.cells.var.copy())

    @property
    def external_indexing(self) -> list[Rows]:
        """Training, validation and test rows within ``subset(seen)``."""
        sides = [np.searchsorted(self.seen, rows) for rows in (self.train, self.validation)]
        return [*sides, np.zeros(0, dtype=np.intp)]

    @cached_property
    def key(self) -> str:
        """Hash of everything here."""
        return digest(self.cells_key, self.train, self.validation, self.scored, self.has_batch)


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """Counts, labels and splits.

    Attributes
    ----------
    cells
        Raw counts and, in ``obs``, the batch.
    obs
        A column of labels for every task, the donor and, if there is one, the sample.
    tasks
        What is read.
    splits
        Donors of either side, the same for all tasks.
    pretrain_on
        "all" or "train".
    seed
        Of the cells that validate.
    """

    cells: AnnData
    obs: pd.DataFrame
    tasks: tuple[Task, ...]
    splits: list[DonorSplit]
    donor_key: str
    sample_key: str | None
    has_batch: bool
    pretrain_on: PretrainOn
    seed: int

    @cached_property
    def cells_key(self) -> str:
        """Hash of the counts, their names and batches."""
        return digest(self.cells.X, self.cells.obs_names, self.cells.var_names, self.cells.obs[BATCH])

    @cached_property
    def labels_key(self) -> str:
        """Hash of the labels, donors and samples."""
        return digest(
            self.obs.astype(str), self.sample_key, [(t.name, t.kind, t.cell_level) for t in self.tasks]
        )

    def pretraining(self, split: int | None) -> Pretraining:
        """Cells that pretraining sees, for a split or, where it sees all, for None."""
        if split is None:
            seen, tested = np.arange(self.cells.n_obs), None
        else:
            seen, tested = self.splits[split].rows(self.obs[self.donor_key].to_numpy())
        drawn = split_cells(len(seen), seed=self.seed)
        train, validation = seen[drawn.train], seen[drawn.validation]
        scored = validation if tested is None else tested
        return Pretraining(self.cells, train, validation, scored, self.has_batch, self.cells_key)

    def chosen(self, split: int | None) -> list[int]:
        """Positions of the splits that a fit is probed on."""
        return list(range(len(self.splits))) if split is None else [split]


def make_design(
    adata: AnnData,
    tasks: tuple[Task, ...],
    *,
    donor_key: str,
    sample_key: str | None,
    batch_key: str | None,
    layer: str | None,
    n_splits: int,
    n_train_donors: int | None,
    max_cells_per_donor: int | None,
    max_cells_per_donor_and_class: int | None,
    pretrain_on: PretrainOn,
    seed: int,
) -> Design:
    """Read what a benchmark needs, and check it before anything expensive starts.

    Raises
    ------
    KeyError
        If a column or layer is missing.
    ValueError
        If the counts are no raw counts, a cell is empty, or donors or batches do not allow the splits.
    """
    donors = read_donors(adata, donor_key)
    columns = {task.name: _labels(adata.obs, task, donors, max_cells_per_donor, seed) for task in tasks}
    own = {donor_key: donors}
    if sample_key is not None:
        own[sample_key] = obs_column(adata, sample_key).astype(object).to_numpy()
    if clash := sorted(own.keys() & columns.keys()):
        raise ValueError(f"{clash} names both a task and the donors or samples; call the task otherwise.")
    obs = pd.DataFrame(columns | own, index=adata.obs_names)
    design = Design(
        cells=_read_cells(adata, layer, batch_key),
        obs=obs,
        tasks=tasks,
        splits=draw_splits(
            obs, tasks, donor_key, n_train_donors=n_train_donors, n_splits=n_splits, seed=seed
        ),
        donor_key=donor_key,
        sample_key=sample_key,
        has_batch=batch_key is not None,
        pretrain_on=pretrain_on,
        seed=seed,
    )
    _check_labels(design, max_cells_per_donor, max_cells_per_donor_and_class)
    if pretrain_on == "train" and batch_key is not None:
        _check_batches(design, batch_key)
    return design


def _labels(obs: pd.DataFrame, task: Task, donors: np.ndarray, max_cells: int | None, seed: int) -> pd.Series:
    """Labels of a task, those of cells that do not count set to missing."""
    labels = task.labels(obs)
    if not task.drop_after_cap:
        return labels
    labels = labels.astype(object).copy()
    if max_cells is not None:
        known = np.flatnonzero(labels.notna().to_numpy())
        kept = cap_cells(known, [donors], obs.index, limit=max_cells, seed=seed)
        labels.iloc[np.setdiff1d(known, kept)] = np.nan
    return labels.where(~labels.isin(task.drop_after_cap))


def _read_cells(adata: AnnData, layer: str | None, batch_key: str | None) -> AnnData:
    check_genes(adata)
    counts = as_csr(get_counts(adata, layer))
    check_counts(counts, adata, layer)
    if n_empty := int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum()):
        raise ValueError(f"{n_empty} cell(s) have no counts; drop them, by scanpy.pp.filter_cells for one.")
    batch = np.full(adata.n_obs, "all")
    if batch_key is not None:
        column = obs_column(adata, batch_key)
        if column.isna().any():
            raise ValueError(f"{int(column.isna().sum())} cell(s) have no {batch_key!r}; drop or name them.")
        batch = column.astype(str).to_numpy(dtype=str)
    obs = pd.DataFrame({BATCH: batch.astype(object)}, index=adata.obs_names)
    return AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=adata.var_names))


def draw_splits(
    obs: pd.DataFrame,
    tasks: Sequence[Task],
    donor_key: str,
    *,
    n_train_donors: int | None,
    n_splits: int,
    seed: int,
) -> list[DonorSplit]:
    """Draw splits that all tasks share, each class of each of them on both sides where two donors carry it.

    One split for all tasks is what lets a network be trained on one side of it. Donors without any label are on
    neither side.
    """
    donors, classes = [], []
    for task in tasks:
        known = obs[obs[task.name].notna()]
        donors.append(known[donor_key].to_numpy(dtype=str))
        classify = task.kind == "classification"
        values = known[task.name].astype(str) if classify else pd.Series("known", index=known.index)
        classes.append(f"{task.name}: " + values.to_numpy(dtype=object))
    all_donors = np.concatenate(donors)
    if (n_donors := len(np.unique(all_donors))) < 3:
        raise ValueError(f"Probing needs two donors to train and one to test, got {n_donors} with labels.")
    if n_train_donors is not None and n_train_donors < 2:
        raise ValueError(f"Choosing a penalty across donors needs n_train_donors >= 2, got {n_train_donors}.")
    n_train = max(2, n_donors // 2) if n_train_donors is None else n_train_donors
    return [
        donor_split(
            all_donors, n_train_donors=n_train, labels=np.concatenate(classes).astype(str), seed=int(child)
        )
        for child in np.random.SeedSequence(seed).generate_state(n_splits)
    ]


def _check_labels(design: Design, per_donor: int | None, per_class: int | None) -> None:
    """Let what the probes would refuse be refused before anything is trained, and classes that a split lacks be named."""
    labeled = AnnData(obs=design.obs)
    cell_level = [task.name for task in design.tasks if task.cell_level]
    for task in design.tasks:
        target = read_target(
            labeled,
            task.name,
            task.kind,
            donor_key=design.donor_key,
            sample_key=design.sample_key,
            cell_level=cell_level,
        )
        for split in design.splits:
            make_task(target, split, design.obs.index, per_donor, per_class if task.cell_level else None)


def _check_batches(design: Design, batch_key: str) -> None:
    batches = design.cells.obs[BATCH].to_numpy()
    donors = design.obs[design.donor_key].to_numpy()
    for i, split in enumerate(design.splits):
        train, test = split.rows(donors)
        if unseen := sorted(set(batches[test]) - set(batches[train])):
            raise ValueError(
                f"Batches {unseen[:5]} of {batch_key!r} belong to test donors of split {i} only, and a network cannot "
                "embed a batch that it was not trained on; use batch_key=None or pretrain_on='all'."
            )
