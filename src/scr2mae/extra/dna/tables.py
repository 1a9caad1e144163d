"""Tables of variants and windows, with errors that name the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scr2mae.extra.files import file_type, raise_if_damaged

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = ["read_table"]


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """Read ``.parquet``, ``.csv`` or tab-separated text, the latter two with options of :func:`pandas.read_csv`."""
    if not path.is_file():
        raise FileNotFoundError(f"No table at {path}.")
    if file_type(path) == ".parquet":
        return _read_parquet(path)
    separator = "," if file_type(path) == ".csv" else "\t"
    try:
        with raise_if_damaged(path):
            return pd.read_csv(path, sep=separator, dtype={"chrom": str}, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table: {error}") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            "Reading Parquet needs pyarrow; pip install pyarrow installs it, and text files need nothing more."
        ) from error
    except (ValueError, OSError) as error:  # pyarrow's own errors derive from these
        raise ValueError(f"{path} is damaged or not a Parquet file: {error}") from error
