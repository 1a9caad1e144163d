"""Input and output of one fit: the cells that it sees, the settings of the methods and the embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scr2mae.benchmark.cache import digest
from scr2mae.nn.curriculum import Curriculum
from scr2mae.probe.inputs import Rows

BATCH = "batch"


@dataclass(frozen=True, eq=False)
class Pretraining:
    """Cells of one fit: raw counts of all cells with their batch, and the rows for each purpose.

    ``train`` and ``validation`` may be learned from; methods without validation use both. The masked genes of
    ``scored`` are reconstructed.
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
        """Return some or all cells as a new AnnData that may be written to; counts are shared if possible."""
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
        """Hash of all fields."""
        return digest(self.cells_key, self.train, self.validation, self.scored, self.has_batch)


@dataclass(frozen=True)
class Options:
    """Settings of the methods."""

    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    train_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scvi_model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    scvi_train_kwargs: Mapping[str, Any] = field(default_factory=dict)
    schemes: str = "single_cell"
    curriculum: Curriculum | None = None
    n_pcs: int = 50
    ratios: tuple[float, ...] = ()
    mask_seed: int = 0
    accelerator: str = "auto"


@dataclass(frozen=True, eq=False)
class Embedding:
    """Embedding of all cells, Pearson correlation of the reconstruction by ratio, and epochs of training."""

    matrix: Any  # (n_obs, n_latent)
    reconstruction: Mapping[float, float] = field(default_factory=dict)
    epochs: int | None = None
