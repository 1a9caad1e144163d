"""Data sets of the Hugging Face hub, by a library that is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["load_dataset"]


def load_dataset(*args: Any, **options: Any) -> Any:
    """Call ``datasets.load_dataset``.

    Raises
    ------
    ImportError
        If the library is not installed. No extra has it: tables and text files do without.
    """
    try:
        library = import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError(
            "The Hugging Face hub needs datasets: pip install datasets, or give text files and tables."
        ) from error
    return library.load_dataset(*args, **options)
