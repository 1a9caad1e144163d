"""Text files, plain or gzipped, whose damage is named with the file."""

from __future__ import annotations

import gzip
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

__all__ = ["naming_damage", "open_text"]


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what a decompressor raises, which knows no file, into an error that names the file.

    Raises
    ------
    ValueError
        If the file is cut off, damaged or not compressed although its name says so.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}.") from error


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, through gzip where its name ends in ``.gz``; bytes that are no text become U+FFFD.

    Raises
    ------
    ValueError
        While it is read, if it is gzipped and damaged.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with naming_damage(path), opener(path, "rt", encoding="utf-8", errors="replace") as file:
        yield file  # type: ignore[misc]
