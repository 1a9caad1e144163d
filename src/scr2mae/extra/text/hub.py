"""Data sets of the Hugging Face Hub, through a library that is loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["load_dataset"]


def load_dataset(*args: Any, **options: Any) -> Any:
    """Call ``datasets.load_dataset``; no extra installs the library: it is not needed for tables and text files."""
    try:
        library = import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError(
            "The Hugging Face Hub needs datasets: pip install datasets, or give text files and tables."
        ) from error
    return library.load_dataset(*args, **options)
