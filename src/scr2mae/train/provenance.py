"""What a run was, for a reader years later: versions, seed, data, arguments, split, times, outcome."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

    import lightning.pytorch as pl

    from scr2mae.data import Cells, CellSpec, Split
    from scr2mae.train.plan import MaskedTrainingPlan

__all__ = [
    "History",
    "decode_history",
    "describe_data",
    "describe_split",
    "encode_history",
    "extend_history",
    "fingerprint",
    "plain",
    "recorded",
]

_PACKAGES = ("scr2mae", "torch", "lightning", "scvi-tools", "anndata", "numpy", "scipy", "pandas")
_WHAT_DECIDES = ("seed", "data", "arguments", "split")
_CELLS_HASHED_ON_DISK = 64


@contextmanager
def recorded(plan: MaskedTrainingPlan) -> Iterator[dict[str, Any]]:
    """Note how a run goes in ``plan.run``, and add that to ``runs_`` of its network.

    Parameters
    ----------
    plan
        Its plan.

    Yields
    ------
    Where the trainer is to be put as soon as there is one, under ``"trainer"``, and under ``"described"`` what
    :func:`scr2mae.train.checkpoints.describe_run` says.
    """
    # Not in the plan meanwhile, of which the weight average keeps a deep copy.
    held: dict[str, Any] = {}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    outcome = "failed"
    try:
        yield held
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        described = held.get("described", {})
        plan.run = {
            "seed": plan.mask_seed,
            "data": {"cells": described.get("cells")},
            "arguments": described,
            "split": described.get("split"),
            "started": started,
            "seconds": round(time.perf_counter() - start, 3),
            "outcome": outcome,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            **(_of_trainer(held["trainer"], plan) if "trainer" in held else {}),
        }
        if plan.rows:
            network: Any = plan.module
            network.runs_ = [*getattr(network, "runs_", []), fingerprint(plan.run)]


def _of_trainer(trainer: pl.Trainer, plan: MaskedTrainingPlan) -> dict[str, Any]:
    return {
        "device": trainer.strategy.root_device.type,
        "n_processes": trainer.world_size,
        "precision": str(trainer.precision),
        "epochs": sum(1 for _ in plan.rows.get("train_loss", ())),
        "steps": trainer.global_step,
        "skipped_steps": int(sum(n for _, n in plan.rows.get("skipped_steps", ()))),
    }


def describe_data(cells: Cells, spec: CellSpec) -> dict[str, Any]:
    """Say which cells and genes a run has seen.

    Parameters
    ----------
    cells
        The cells.
    spec
        What was read of the AnnData.

    Returns
    -------
    Numbers of cells and genes, hashes of the genes' names and of counts with covariates, and how many cells went into
    the latter: all where the counts are in memory, a few spread over all where they are on disk.
    """
    n_obs, n_vars = cells.counts.shape
    if cells.on_disk:
        where = np.linspace(0, n_obs - 1, _CELLS_HASHED_ON_DISK).astype(np.int64)
        cells = cells.to_memory(np.unique(where))
    counts: Any = cells.counts
    digest = hashlib.blake2b(f"{n_obs} {n_vars}".encode(), digest_size=32)
    for array in (counts.indptr, counts.indices, counts.data, *cells.covariates(slice(None)).values()):
        # scipy chooses the width of its indices by the size of the matrix and of those that it was made from.
        same = array.astype(np.int32, copy=False) if array is counts.indices else array
        same = array.astype(np.int64, copy=False) if array is counts.indptr else same
        digest.update(np.ascontiguousarray(same).data.cast("B"))
    return {
        "n_obs": n_obs,
        "n_vars": n_vars,
        "genes": hashlib.sha256("\n".join(map(str, spec.var_names)).encode()).hexdigest(),
        "counts": digest.hexdigest(),
        "n_obs_hashed": cells.n_obs,
    }


def describe_split(split: Split) -> dict[str, Any]:
    """Say who trained: sizes, and the hash that the split is known by; no name of a donor."""
    sides = ("train", "validation", "test")
    return {
        "sha256": split.sha256,
        "key": split.key,
        "seed": split.seed,
        **{f"n_{side}": len(getattr(split, side)) for side in sides},
    }


def plain(value: Any) -> Any:
    """Turn an argument into what JSON holds; of a thing without a value of its own, the name of its type."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array {value.dtype} {list(value.shape)} {content[:16]}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    # The repr of a data class says all of it; that of most others holds an address.
    return repr(value) if hasattr(value, "__dataclass_fields__") else type(value).__qualname__


def fingerprint(record: dict[str, Any]) -> dict[str, Any]:
    """Add a hash of what decides the result: seed, data, arguments and split.

    Parameters
    ----------
    record
        Of a run.

    Returns
    -------
    The record as JSON holds it, with ``sha256``: the same for two runs of the same thing, whenever and on whatever machine.
    """
    record = plain(record)
    decisive = {name: record.get(name) for name in _WHAT_DECIDES}
    content = json.dumps(decisive, sort_keys=True, allow_nan=False).encode()
    return {**record, "sha256": hashlib.sha256(content).hexdigest()}


History = dict[str, pd.DataFrame]
"""Name of a curve to a frame with that one column, indexed by step or epoch."""


def extend_history(before: History | None, new: History) -> History:
    """Continue the curves of an earlier run: steps and epochs count on."""
    joined = dict(before or {})
    done: dict[Any, int] = {}
    for frame in joined.values():
        if len(frame):
            done[frame.index.name] = max(done.get(frame.index.name, 0), int(frame.index[-1]) + 1)
    for name, frame in new.items():
        later = frame.set_axis(frame.index + done.get(frame.index.name, 0))
        later.index.name = frame.index.name
        joined[name] = pd.concat([joined[name], later]) if name in joined else later
    return joined


def encode_history(history: History | None) -> dict[str, Any]:
    """Describe curves in JSON."""
    return {
        name: {"index": frame.index.name, "at": frame.index.tolist(), "values": frame[name].tolist()}
        for name, frame in (history or {}).items()
    }


def decode_history(described: dict[str, Any]) -> History:
    """Undo :func:`encode_history`."""
    return {
        name: pd.DataFrame({name: curve["values"]}, index=pd.Index(curve["at"], name=curve["index"]))
        for name, curve in described.items()
    }
