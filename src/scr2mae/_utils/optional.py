"""Optional dependencies, loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["require"]


def require(module: str, *, extra: str) -> Any:
    """Import an optional dependency; if it is missing, the error names the ``extra`` of this package that installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(f"This needs {error.name}; pip install 'scr2mae[{extra}]' installs it.") from error
