"""``run.json``: the records of a model's runs, as they lie beside it. Standard library alone, so that saving needs no Lightning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RUN_FILE", "RUN_SCHEMA_VERSION", "document"]

RUN_FILE = "run.json"
RUN_SCHEMA_VERSION = 1


def document(runs: Sequence[dict[str, Any]], *, weights: str | None = None) -> bytes:
    """Return the content of ``run.json``.

    Parameters
    ----------
    runs
        Records of runs, the last one last, as :func:`scr2mae.train.record.seal` returns them.
    weights
        Hash of the weights that they led to, where it is known.
    """
    whole = {
        "format": "scr2mae.run",
        "schema_version": RUN_SCHEMA_VERSION,
        "weights": weights,
        "runs": list(runs),
    }
    return json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
