"""Curves of a run: continued by the next run, and as JSON."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["History", "decode", "encode", "extend"]

History = dict[str, pd.DataFrame]
"""Name of a curve to a frame with that one column, indexed by step or epoch."""


def extend(before: History | None, new: History) -> History:
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


def encode(history: History | None) -> dict[str, Any]:
    """Describe curves in JSON."""
    return {
        name: {"index": frame.index.name, "at": frame.index.tolist(), "values": frame[name].tolist()}
        for name, frame in (history or {}).items()
    }


def decode(described: dict[str, Any]) -> History:
    """Undo :func:`encode`."""
    return {
        name: pd.DataFrame({name: curve["values"]}, index=pd.Index(curve["at"], name=curve["index"]))
        for name, curve in described.items()
    }
