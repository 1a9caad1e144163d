"""Documents from text files, or from a stream of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae._utils.files import as_path
from scr2mae.extra.files import open_text
from scr2mae.extra.text.hub import load_dataset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["read_documents", "stream_documents"]

_UNITS = ("line", "paragraph", "file")


def _read(path: Path, unit: str) -> Iterator[str]:
    """Yield the texts of a file: lines, paragraphs, or the whole file."""
    with open_text(path) as file:
        if unit == "file":
            yield file.read()
            return
        lines: list[str] = []
        for line in file:
            if line.strip():
                lines.append(line)
            if lines and (unit == "line" or not line.strip()):
                yield "".join(lines)
                lines = []
        if lines:
            yield "".join(lines)


def read_documents(paths: str | Path | Iterable[str | Path], *, unit: str = "paragraph") -> Iterator[str]:
    """Read text files one document at a time.

    Parameters
    ----------
    paths
        UTF-8 files, gzip-compressed if they end in ``.gz``.
    unit
        Unit of a document: a ``"line"``, a ``"paragraph"`` (lines up to an empty one) or a ``"file"``.

    Yields
    ------
    Documents that are not blank, with outer white space removed.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the unit is unknown or a file is not UTF-8.
    """
    if unit not in _UNITS:
        raise ValueError(f"unit must be one of {list(_UNITS)}, got {unit!r}.")
    files = [as_path(paths)] if isinstance(paths, (str, Path)) else [as_path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"No text file {path}.")
    return _documents(files, unit)


def _documents(files: list[Path], unit: str) -> Iterator[str]:
    for path in files:
        try:
            for document in _read(path, unit):
                if text := document.strip():
                    yield text
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def stream_documents(
    name: str = "HuggingFaceFW/fineweb",
    config: str | None = "sample-10BT",
    *,
    split: str = "train",
    column: str = "text",
    **options: Any,
) -> Iterator[str]:
    """Stream the documents of a data set on the Hugging Face Hub, without storing it.

    Parameters
    ----------
    name, config
        Data set and its configuration; by default the paper's, FineWeb's sample of ten billion tokens.
    split
        Split of the data set.
    column
        Column with the text.
    options
        Additional arguments of ``datasets.load_dataset``, such as ``revision``.

    Yields
    ------
    Documents, in the order of the data set.

    Raises
    ------
    ImportError
        If ``datasets`` is not installed.
    KeyError
        If there is no such column.
    """
    for row in load_dataset(name, config, split=split, streaming=True, **options):
        if column not in row:
            raise KeyError(f"{name} has no column {column!r}; choose one of {sorted(row)}.")
        if row[column]:
            yield row[column]
