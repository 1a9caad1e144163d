"""Plain and gzipped files, with errors that name the file."""

from __future__ import annotations

import gzip
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

__all__ = ["file_type", "open_text", "raise_if_damaged"]


def file_type(path: Path) -> str:
    """Return the suffix of a file in lower case, without ``.gz``."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


@contextmanager
def raise_if_damaged(path: str | Path) -> Iterator[None]:
    """Turn the errors of a decompressor into a ValueError that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error


@contextmanager
def open_text(path: Path, *, errors: str = "strict", newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 file, decompressed if its name ends in ``.gz``."""
    opener = gzip.open if path.suffix == ".gz" else open
    with raise_if_damaged(path), opener(path, "rt", encoding="utf-8", errors=errors, newline=newline) as file:
        yield file  # type: ignore[misc]
