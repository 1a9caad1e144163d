"""Types of arguments, each refusing nonsense as a usage error, and options that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = [
    "add_accelerator",
    "add_force",
    "devices",
    "fraction",
    "non_negative_int",
    "obsm_key",
    "path",
    "positive_int",
]


def path(text: str) -> Path:
    """Take the path of a file or folder; no stream, since HDF5 files and model folders need random access."""
    if text == "-":
        raise argparse.ArgumentTypeError("'-' (a stream) is not supported; give the path of a file or folder")
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; give the path of a file or folder")
    return Path(text)


def _int(text: str, smallest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = smallest - 1
    if value < smallest:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """Take a whole number of at least one."""
    return _int(text, 1)


def non_negative_int(text: str) -> int:
    """Take a whole number of at least zero."""
    return _int(text, 0)


def fraction(text: str) -> float:
    """Take a number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def devices(text: str) -> int | list[int] | str:
    """Take ``auto``, a number of devices, or the devices themselves with commas between (``0,2`` or ``1,``)."""
    try:
        if text == "auto":
            return text
        if "," in text:
            return [non_negative_int(part) for part in text.split(",") if part]
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected 'auto', a number of devices, or positions such as '0,2' or '1,', got {text!r}"
        ) from error


def obsm_key(text: str) -> str:
    """Take a key of ``adata.obsm``; a slash would open a group inside the HDF5 file."""
    if not text.strip() or "/" in text:
        raise argparse.ArgumentTypeError(f"expected a name without '/', got {text!r}")
    return text


def add_accelerator(parser: argparse._ActionsContainer) -> None:
    """Add ``--accelerator``."""
    parser.add_argument(
        "--accelerator",
        choices=["auto", "cpu", "gpu", "mps"],
        default="auto",
        help="where to compute (default: %(default)s, the fastest there is)",
    )


def add_force(parser: argparse._ActionsContainer, what: str) -> None:
    """Add ``--force``."""
    parser.add_argument("--force", action="store_true", help=f"replace {what} if there already")
