"""Mini-batches of cells, and the data modules that deliver them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.batches import BatchLoader, BatchSampler
from scr2mae._utils.shorten import shorten
from scr2mae.data.backed import BackedCounts
from scr2mae.data.device import DeviceCells, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scr2mae.data.cells import Cells, CellSpec
    from scr2mae.data.splits import Split

    Collate = Callable[[Cells, np.ndarray], dict[str, torch.Tensor]]

__all__ = [
    "BatchSampler",
    "CellDataModule",
    "CellLoader",
    "check_data_module",
    "collate_dense",
    "collate_sparse",
    "first_cells",
]

_MAX_NAMED = 5
_MANY_GENES = 10_000


def collate_dense(cells: Cells, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the given cells as dense tensors under scvi-tools' keys, with the measured genes if some are absent."""
    return _to_tensors(cells, cells.collate(indices), indices)


def collate_sparse(cells: Cells, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the given cells with ``columns``, ``starts`` and ``values`` of the non-zero counts in place of ``X``.

    They are the fields of a ``scr2mae.nn.layers.SparseRows``.
    """
    counts = cells.rows(indices)
    counts.sum_duplicates()
    arrays = {"columns": counts.indices, "starts": counts.indptr[:-1], "values": counts.data}
    return _to_tensors(cells, {**arrays, **cells.covariates(indices)}, indices)


def _to_tensors(cells: Cells, arrays: dict[str, np.ndarray], indices: np.ndarray) -> dict[str, torch.Tensor]:
    arrays |= cells.measured_genes(indices)
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class CellLoader(BatchLoader):
    """Iterate over cells in mini-batches; a drop-in for a PyTorch data loader.

    Parameters
    ----------
    cells
        Source of the mini-batches.
    indices
        Positions of the cells to visit; None for all.
    batch_size
        Cells per mini-batch.
    on_device
        Copy of the cells on the training device, from which mini-batches are then made.
    collate
        Function that makes a mini-batch of the given cells.
    sampler_kwargs
        Additional arguments of :class:`BatchSampler`.

    Notes
    -----
    Lightning finds ``sampler.set_epoch``, and saves and restores ``state_dict``, so that a run killed in mid-epoch
    continues with the mini-batch that it had not seen. Counts on disk are read about 8,192 cells at a time, one read
    ahead, and shuffled by blocks of neighbors; fewer cells than that are shuffled as in memory.
    """

    def __init__(
        self,
        cells: Cells,
        indices: np.ndarray | None = None,
        *,
        batch_size: int = 128,
        on_device: DeviceCells | None = None,
        collate: Collate = collate_dense,
        **sampler_kwargs: Any,
    ) -> None:
        self.cells, self.on_device = cells, on_device
        indices = np.arange(cells.n_obs) if indices is None else indices
        if isinstance(cells.counts, BackedCounts):
            plan = cells.counts.reading_plan(len(indices), batch_size)
            sampler_kwargs = {"read": partial(_read, cells, collate), **plan, **sampler_kwargs}
        make = partial(collate, cells) if on_device is None else on_device.collate
        super().__init__(make, indices, batch_size=batch_size, **sampler_kwargs)


def _read(cells: Cells, collate: Collate, indices: np.ndarray) -> Callable[[np.ndarray], Any]:
    """Read cells from disk and return the function that makes mini-batches of them."""
    return partial(collate, cells.to_memory(indices))


class CellDataModule(pl.LightningDataModule):
    """Training and validation loaders of a split; each rank gets its share.

    Parameters
    ----------
    cells
        Cells to train on.
    split
        Training and validation cells.
    batch_size
        Cells per mini-batch and rank.
    seed
        Seed of the order of training cells.
    counts_on
        Place of the counts during training: ``"device"``, ``"memory"``, or ``"auto"`` for the device if it is
        not the CPU and they fit. Counts on disk stay there.
    loader_kwargs
        Additional arguments of :class:`CellLoader`.
    """

    def __init__(
        self,
        cells: Cells,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        counts_on: str = "memory",
        **loader_kwargs: Any,
    ) -> None:
        super().__init__()
        self.cells, self.split = cells, split
        self.batch_size, self.seed = batch_size, seed
        self.counts_on, self.loader_kwargs = counts_on, loader_kwargs
        self._on_device: DeviceCells | None = None
        self._is_placed = False

    @property
    def facts(self) -> str:
        """Genes, and validation cells with the names of their donors, for the log of a run."""
        said = f"{self.cells.counts.shape[1]:,} genes"
        if not len(self.split.validation):
            return f"{said}; no validation"
        names = self.split.groups.get("validation", [])
        of = f" of {self.split.key} {shorten(names, _MAX_NAMED)}" if names else ""
        return f"{said}; validation on {len(self.split.validation):,} cells{of}"

    @property
    def hint(self) -> str | None:
        """Advice for very many genes."""
        if self.cells.counts.shape[1] <= _MANY_GENES:
            return None
        return (
            f"With {self.cells.counts.shape[1]:,} genes training is slow, and most of them add noise; 2,000 to 5,000 highly "
            "variable ones are usual: scr2mae.datasets.highly_variable_genes, or scanpy.pp.highly_variable_genes."
        )

    def _place(self) -> DeviceCells | None:
        """Copy the counts to the device once, if requested by ``counts_on``."""
        if not self._is_placed:
            self._is_placed = True
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            wanted = self.counts_on == "device" or (self.counts_on == "auto" and device.type == "cuda")
            if wanted and not self.cells.on_disk:
                self._on_device = to_device(self.cells, device, required=self.counts_on == "device")
        return self._on_device

    def teardown(self, stage: str) -> None:
        """Free the memory of the device."""
        self._on_device, self._is_placed = None, False

    def train_dataloader(self) -> CellLoader:
        """Return shuffled mini-batches of the training cells."""
        trainer = self.trainer
        return CellLoader(
            self.cells,
            self.split.train,
            batch_size=self.batch_size,
            shuffle=True,
            seed=self.seed,
            drop_single=True,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            on_device=self._place(),
            **self.loader_kwargs,
        )

    def val_dataloader(self) -> CellLoader | list[CellLoader]:
        """Return the validation cells in order; an empty list if there are none."""
        if not len(self.split.validation):
            return []
        return CellLoader(
            self.cells,
            self.split.validation,
            batch_size=max(self.batch_size, 2),
            on_device=self._place(),
        )


def first_cells(datamodule: Any, n_obs: int, *, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield mini-batches of about ``n_obs`` training cells: a random sample, or the first ones of an external module."""
    if isinstance(datamodule, CellDataModule):
        train = datamodule.split.train
        chosen = np.sort(np.random.default_rng(seed).permutation(train)[:n_obs])
        yield from CellLoader(datamodule.cells, chosen, batch_size=1024)
        return
    if hasattr(datamodule, "setup"):
        datamodule.setup("fit")
    n_seen = 0
    for tensors in datamodule.train_dataloader():
        yield tensors
        n_seen += len(tensors[REGISTRY_KEYS.X_KEY])
        if n_seen >= n_obs:
            return


def check_data_module(datamodule: Any, spec: CellSpec) -> None:
    """Raise if the mini-batches of an external data module do not fit a model.

    Compares the attributes that those of ``scvi.dataloaders`` have: ``n_vars``, ``n_batch``, ``batch_encoder`` or
    ``batch_labels``, ``extra_categorical_covs`` and ``extra_continuous_covs``. Absent ones are not checked.
    """
    n_vars = getattr(datamodule, "n_vars", None)
    if n_vars is not None and int(n_vars) != len(spec.var_names):
        raise ValueError(
            f"The data module yields {int(n_vars)} genes, but the model has {len(spec.var_names)}; "
            "give it the model's genes, in the model's order."
        )
    batch_key, known = spec.categorical[0]
    n_batch, labels = getattr(datamodule, "n_batch", None), _batch_labels(datamodule)
    if n_batch is not None and int(n_batch) != len(known):
        raise ValueError(
            f"The data module has {int(n_batch)} batch(es), the model {len(known)} "
            f"(column {batch_key!r} of obs); give both the same column."
        )
    # A single batch has the code 0 whatever its name.
    if labels is not None and len(known) > 1:
        _check_names("the batches", labels, known)
    _check_covariates(datamodule, spec)


def _batch_labels(datamodule: Any) -> np.ndarray | None:
    """Return the names of the batches in the order of a data module's codes."""
    # The batch_labels of TileDB-SOMA are in the order of the cells; its encoder sorts them.
    encoder = getattr(datamodule, "batch_encoder", None)
    labels = getattr(encoder, "classes_", getattr(datamodule, "batch_labels", None))
    if isinstance(labels, dict):  # Lamin: code of each name
        labels = sorted(labels, key=labels.__getitem__)
    return None if labels is None else np.asarray(labels)


def _check_covariates(datamodule: Any, spec: CellSpec) -> None:
    """Raise if a data module has other covariates than the model."""
    further = spec.categorical[1:]
    state = getattr(datamodule, "extra_categorical_covs", {}).get("state_registry")
    if state is not None:
        mappings = list(state.get("mapping", {}).values())
        sizes, wanted = [len(names) for names in mappings], [len(known) for _, known in further]
        if sizes != wanted:
            raise ValueError(
                f"The data module yields categorical covariates of {sizes} categories, the model has {wanted} "
                f"({[key for key, _ in further]}). TileDB-SOMA's joins several columns into one: register them joined."
            )
        for names, (key, known) in zip(mappings, further, strict=True):
            if np.asarray(names).dtype.kind not in "iu":  # Lamin gives codes, not names
                _check_names(f"the categories of {key!r}", np.asarray(names), known)
    state = getattr(datamodule, "extra_continuous_covs", {}).get("state_registry")
    if state is not None and list(state.get("columns", [])) != list(spec.continuous):
        raise ValueError(
            f"The data module yields the continuous covariates {list(state.get('columns', []))}, the model has "
            f"{list(spec.continuous)}; give both the same columns, in the same order."
        )


def _check_names(what: str, theirs: np.ndarray, known: np.ndarray) -> None:
    if not np.array_equal(theirs.astype(str), known.astype(str)):
        raise ValueError(
            f"The data module numbers {what} {theirs.tolist()}, the model {known.tolist()}; "
            "they must be the same, in the same order."
        )
