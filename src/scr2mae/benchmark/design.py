"""Inputs that all methods share: counts, labels, donor splits and the cells of each fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scr2mae._utils.optional import require
from scr2mae.benchmark.cache import digest
from scr2mae.benchmark.pretraining import BATCH, Pretraining
from scr2mae.benchmark.tasks import Task
from scr2mae.data import split_cells
from scr2mae.data.columns import find_column, key_name, warn_about_missing_text
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import as_csr, check_counts, check_genes, get_counts, warn_about_binary
from scr2mae.data.donors import warn_about_copied_cells
from scr2mae.data.genes import warn_about_genes
from scr2mae.probe import DonorSplit
from scr2mae.probe.inputs import Protocol, as_text, cap_cells, check_protocol, read_donors, read_target
from scr2mae.probe.splits import draw_splits
from scr2mae.probe.task import make_task, warn_about_classes

PretrainOn = Literal["all", "train"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Design:
    """Counts, labels and splits.

    ``caps`` has the maximum number of cells per donor of each task. ``cells`` has raw counts and the batch; ``obs`` has
    the labels of each task, the donor and, if there is one, the sample; ``splits`` are the same for all tasks; ``seed``
    draws the validation cells; ``integration`` is the task whose labels score the integration of batches.
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
    caps: dict[str, int | None]
    integration: str | None = None

    @cached_property
    def cells_key(self) -> str:
        """Hash of the counts, their names and batches."""
        return digest(self.cells.X, self.cells.obs_names, self.cells.var_names, self.cells.obs[BATCH])

    @cached_property
    def labels_key(self) -> str:
        """Hash of the labels, donors and samples."""
        tasks = [(task.name, task.kind, task.cell_level, self.caps[task.name]) for task in self.tasks]
        return digest(self.obs.astype(str), self.sample_key, tasks)

    def pretraining(self, split: int | None) -> Pretraining:
        """Return the cells of a fit for one split, or for all splits if it is None."""
        if split is None:
            seen, tested = np.arange(self.cells.n_obs), None
        else:
            seen, tested = self.splits[split].rows(self.obs[self.donor_key].to_numpy())
        drawn = split_cells(len(seen), seed=self.seed)
        train, validation = seen[drawn.train], seen[drawn.validation]
        scored = validation if tested is None else tested
        return Pretraining(self.cells, train, validation, scored, self.has_batch, self.cells_key)

    def probed_splits(self, split: int | None) -> list[int]:
        """Return the positions of the splits on which a fit is probed."""
        return list(range(len(self.splits))) if split is None else [split]


def make_design(
    adata: AnnData,
    tasks: tuple[Task, ...],
    *,
    donor_key: str | Sequence[str],
    sample_key: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    n_splits: int = 1,
    n_train_donors: int | None = None,
    max_cells_per_donor: int | None = None,
    max_cells_per_donor_and_class: int | None = None,
    protocol: Protocol = "stratified",
    pretrain_on: PretrainOn = "all",
    seed: int = 0,
    integration: Task | None = None,
) -> Design:
    """Read the inputs of a benchmark and check them before anything expensive starts."""
    check_protocol(protocol, max_cells_per_donor_and_class)
    check_anndata(adata)
    donors = read_donors(adata.obs, donor_key)
    caps = {task.name: task.max_cells_per_donor or max_cells_per_donor for task in tasks}
    columns = {task.name: _labels(adata.obs, task, donors, caps[task.name], seed) for task in tasks}
    donor_name = key_name(donor_key)
    own = {donor_name: donors}
    if sample_key is not None:
        own[key_name(sample_key)] = find_column(adata.obs, sample_key).astype(object).to_numpy()
    if clash := sorted(own.keys() & columns.keys()):
        raise ValueError(f"{clash} names both a task and the donors or samples; rename the task.")
    obs = pd.DataFrame(columns | own, index=adata.obs_names)
    design = Design(
        cells=_read_cells(adata, layer, batch_key),
        obs=obs,
        tasks=tasks,
        splits=_shared_splits(obs, tasks, donor_name, n_train_donors, n_splits, seed, protocol),
        donor_key=donor_name,
        sample_key=None if sample_key is None else key_name(sample_key),
        has_batch=batch_key is not None,
        pretrain_on=pretrain_on,
        seed=seed,
        caps=caps,
        integration=None if integration is None else integration.name,
    )
    if integration is not None:
        _check_integration(design)
    _check_labels(design, max_cells_per_donor_and_class, protocol)
    if pretrain_on == "train" and batch_key is not None:
        _check_batches(design, batch_key)
    return design


def _labels(obs: pd.DataFrame, task: Task, donors: np.ndarray, max_cells: int | None, seed: int) -> pd.Series:
    """Return the labels of a task, missing for cells that do not count."""
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
    """Check the counts and return them with nothing but names and batches."""
    check_genes(adata)
    warn_about_genes(adata.var)
    counts = as_csr(get_counts(adata, layer))
    check_counts(counts, adata, layer)
    warn_about_binary(counts.data.max(initial=0), layer, adata)
    warn_about_copied_cells(counts, adata.obs_names)
    if n_empty := int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum()):
        raise ValueError(
            f"{n_empty} cell(s) have no counts; drop them, for example with scanpy.pp.filter_cells."
        )
    batch = np.full(adata.n_obs, "all")
    if batch_key is not None:
        warn_about_missing_text(find_column(adata.obs, batch_key), batch_key)
        batch = as_text(find_column(adata.obs, batch_key), repr(batch_key))
    obs = pd.DataFrame({BATCH: batch.astype(object)}, index=adata.obs_names)
    return AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=adata.var_names))


def _shared_splits(
    obs: pd.DataFrame,
    tasks: Sequence[Task],
    key: str,
    n_train_donors: int | None,
    n_splits: int,
    seed: int,
    protocol: Protocol,
) -> list[DonorSplit]:
    """Draw splits for all tasks, so that a network can be trained on one side of them.

    A class of any task is on both sides if two donors have it; the paper's protocol draws donors at random. Donors
    without a label are on neither side.
    """
    donors, classes = [], []
    for task in tasks:
        known = obs[obs[task.name].notna()]
        donors.append(known[key].to_numpy(dtype=str))
        classify = task.kind == "classification"
        values = known[task.name].astype(str) if classify else pd.Series("known", index=known.index)
        classes.append(f"{task.name}: " + values.to_numpy(dtype=object))
    labels = None if protocol == "paper" else np.concatenate(classes).astype(str)
    seeds = np.random.SeedSequence(seed).generate_state(n_splits).tolist()
    return draw_splits(np.concatenate(donors), labels, n_train_donors=n_train_donors, seeds=seeds)


def _check_labels(design: Design, per_class: int | None, protocol: Protocol) -> None:
    """Raise for labels that cannot be probed and log classes that a split lacks, before anything is trained."""
    cell_level = [task.name for task in design.tasks if task.cell_level]
    for task in design.tasks:
        target = read_target(
            design.obs,
            task.name,
            task.kind,
            donor_key=design.donor_key,
            sample_key=design.sample_key,
            cell_level=cell_level,
        )
        caps = design.caps[task.name], per_class if task.cell_level else None
        warn_about_classes(
            [make_task(target, split, design.obs.index, *caps, protocol=protocol) for split in design.splits]
        )


def integration_task(tasks: tuple[Task, ...], batch_key: str | None) -> Task:
    """Return the task whose labels score integration: the first classification of cells."""
    if batch_key is None:
        raise ValueError("integration=True scores how batches mix; name their column by batch_key.")
    found = [task for task in tasks if task.cell_level and task.kind == "classification"]
    if not found:
        raise ValueError(
            "integration=True needs labels of cells; add their column to targets as a classification, and to cell_level."
        )
    return found[0]


def _check_integration(design: Design) -> None:
    """Raise unless scib-metrics is installed and two batches share a label."""
    require("scib_metrics", extra="metrics")
    labels = design.obs[str(design.integration)]
    batches = pd.Series(design.cells.obs[BATCH].to_numpy(), index=labels.index)[labels.notna()]
    if batches.groupby(labels[labels.notna()].astype(str)).nunique().max() < 2:
        raise ValueError(
            f"Integration is scored by {design.integration!r}, but no label of it is in two batches; choose another "
            "batch_key or target."
        )


def _check_batches(design: Design, batch_key: str) -> None:
    """Raise if a batch has test donors only, since networks cannot embed it."""
    batches = design.cells.obs[BATCH].to_numpy()
    donors = design.obs[design.donor_key].to_numpy()
    for i, split in enumerate(design.splits):
        train, test = split.rows(donors)
        if unseen := sorted(set(batches[test]) - set(batches[train])):
            raise ValueError(
                f"Batches {unseen[:5]} of {batch_key!r} belong to test donors of split {i} only, and a network cannot "
                "embed a batch that it was not trained on; use batch_key=None or pretrain_on='all'."
            )
