"""Describe data, arguments and split for the record of a run, without names of files, donors or cells."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from scr2mae.data.splits import SIDES
from scr2mae.train.provenance import plain

if TYPE_CHECKING:
    from scr2mae.data import Cells, Split
    from scr2mae.model.base import CellModel

__all__ = ["describe_data", "describe_run"]

_CELLS_HASHED_ON_DISK = 64


def describe_run(
    model: CellModel, datamodule: Any, *, seed: int, resumed: bool, train: dict[str, Any]
) -> dict[str, Any]:
    """Return what :func:`scr2mae.train.fit` records of a run; ``train`` has the arguments that change the result."""
    cells, split = (getattr(datamodule, name, None) for name in ("cells", "split"))
    arguments = {
        "model": {**model.init_params_, "mask_ratio": model.mask_ratio, "curriculum": model.curriculum},
        "setup": model.registry["setup_args"],
        "train": train,
    }
    own = {"datamodule": type(datamodule).__qualname__}
    return {
        "seed": seed,
        "data": own if cells is None else describe_data(cells, model.spec.var_names),
        "arguments": plain(arguments),
        "split": None if split is None else _describe_split(split),
        "resumed": resumed,
    }


def describe_data(cells: Cells, var_names: np.ndarray) -> dict[str, Any]:
    """Return numbers of cells and genes, and hashes of gene names and of counts with covariates.

    Counts in memory are hashed completely, counts on disk only for a few evenly spaced cells.
    """
    n_obs, n_vars = cells.counts.shape
    if cells.on_disk:
        indices = np.linspace(0, n_obs - 1, _CELLS_HASHED_ON_DISK).astype(np.int64)
        cells = cells.to_memory(np.unique(indices))
    counts: Any = cells.counts
    digest = hashlib.blake2b(f"{n_obs} {n_vars}".encode(), digest_size=32)
    # scipy chooses the type of its indices by the size of the matrix and of those that it was made from.
    indptr, columns = counts.indptr.astype(np.int64, copy=False), counts.indices.astype(np.int32, copy=False)
    for array in (indptr, columns, counts.data, *cells.covariates(slice(None)).values()):
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return {
        "n_obs": n_obs,
        "n_vars": n_vars,
        "genes": hashlib.sha256("\n".join(map(str, var_names)).encode()).hexdigest(),
        "counts": digest.hexdigest(),
        "n_obs_hashed": cells.n_obs,
    }


def _describe_split(split: Split) -> dict[str, Any]:
    return {
        "sha256": split.sha256,
        "key": split.key,
        "seed": split.seed,
        **{f"n_{side}": len(getattr(split, side)) for side in SIDES},
    }
