"""Record of a run: versions, seed, data, arguments, split, times, outcome, and curves."""

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
    from collections.abc import Iterator, Mapping

__all__ = [
    "History",
    "extend_history",
    "fingerprint",
    "history_from_state",
    "history_to_state",
    "plain",
    "timed",
]

_PACKAGES = ("scr2mae", "torch", "lightning", "scvi-tools", "anndata", "numpy", "scipy", "pandas")
_DECISIVE = ("seed", "data", "arguments", "split")


@contextmanager
def timed(record: dict[str, Any]) -> Iterator[None]:
    """Add start, duration, outcome and versions to the record of a run, however the block ends."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        record["started"] = started
        record["seconds"] = round(time.perf_counter() - start, 3)
        record["outcome"] = outcome
        record["versions"] = {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        }


def plain(value: Any) -> Any:
    """Convert an argument to JSON types; an object without a value of its own becomes the name of its type."""
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
    # The repr of a data class has all its fields; that of most other objects holds an address.
    return repr(value) if hasattr(value, "__dataclass_fields__") else type(value).__qualname__


def fingerprint(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record in JSON types, with ``sha256`` of what decides the result: seed, data, arguments, split."""
    record = plain(dict(record))
    decisive = {name: record.get(name) for name in _DECISIVE}
    content = json.dumps(decisive, sort_keys=True, allow_nan=False).encode()
    return {**record, "sha256": hashlib.sha256(content).hexdigest()}


History = dict[str, pd.DataFrame]
"""Frames by name of the curve, each with one column of that name, indexed by step or epoch."""


class Curves(dict[str, pd.DataFrame]):
    """Curves by name; the error for a missing one lists the others."""

    def __missing__(self, name: object) -> pd.DataFrame:
        is_bound = str(name).startswith(("elbo", "kl_", "reconstruction_loss"))
        why = "the model has no evidence bound; its curves are" if is_bound else "choose from"
        raise KeyError(f"No curve {name!r}: {why} {list(self)}.")


def extend_history(before: History | None, new: History) -> History:
    """Append curves to those of an earlier run, continuing its steps and epochs."""
    joined = Curves(before or {})
    done: dict[Any, int] = {}
    for frame in joined.values():
        if len(frame):
            done[frame.index.name] = max(done.get(frame.index.name, 0), int(frame.index[-1]) + 1)
    for name, frame in new.items():
        later = frame.set_axis(frame.index + done.get(frame.index.name, 0))
        later.index.name = frame.index.name
        joined[name] = pd.concat([joined[name], later]) if name in joined else later
    return joined


def history_to_state(history: History | None) -> dict[str, Any]:
    """Convert curves to JSON types."""
    return {
        name: {"index": frame.index.name, "at": frame.index.tolist(), "values": frame[name].tolist()}
        for name, frame in (history or {}).items()
    }


def history_from_state(state: dict[str, Any]) -> History:
    """Undo :func:`history_to_state`."""
    frames = {
        name: pd.DataFrame({name: curve["values"]}, index=pd.Index(curve["at"], name=curve["index"]))
        for name, curve in state.items()
    }
    return Curves(frames)
