"""Types of arguments, each refusing nonsense as a usage error, and options that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from scr2mae._schemes import scheme_names

__all__ = [
    "add_accelerator",
    "add_accumulate",
    "add_checkpoints",
    "add_compute",
    "add_force",
    "add_mask_ratio",
    "add_output",
    "add_scheme",
    "add_seed",
    "devices",
    "fraction",
    "non_negative_int",
    "obsm_key",
    "path",
    "positive_float",
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


def positive_float(text: str) -> float:
    """Take a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
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


def add_output(parser: argparse._ActionsContainer, metavar: str, what: str) -> None:
    """Add ``-o`` and ``--output``."""
    parser.add_argument("-o", "--output", metavar=metavar, type=path, required=True, help=what)


def add_scheme(group: argparse._ActionsContainer, domain: str) -> None:
    """Add ``--scheme``, with the schemes that a domain has."""
    group.add_argument(
        "--scheme",
        choices=scheme_names(domain),
        default="r2mae",
        help="of masking, with the paper's ratios (default: %(default)s)",
    )


def add_mask_ratio(group: argparse._ActionsContainer, what: str) -> None:
    """Add ``--mask-ratio``; ``_training.mask_ratio`` reads it."""
    group.add_argument(
        "--mask-ratio",
        metavar="RATIO",
        type=fraction,
        nargs="+",
        help=f"share of {what} hidden instead of the scheme's: two numbers for a range (R²MAE), one for a fixed share",
    )


def add_seed(group: argparse._ActionsContainer, what: str) -> None:
    """Add ``--seed``."""
    group.add_argument(
        "--seed", metavar="N", type=non_negative_int, default=0, help=f"of {what} (default: %(default)s)"
    )


def add_accumulate(group: argparse._ActionsContainer, *, default: int = 1) -> None:
    """Add ``--accumulate``."""
    group.add_argument(
        "--accumulate",
        metavar="N",
        type=positive_int,
        default=default,
        help="mini-batches an optimizer step, each with a ratio of its own (default: %(default)s)",
    )


def add_compute(group: argparse._ActionsContainer) -> None:
    """Add ``--accelerator``, ``--devices`` and ``--precision``."""
    add_accelerator(group)
    group.add_argument(
        "--devices", metavar="N", type=devices, default="auto", help="how many, or which: 2 or 0,3"
    )
    group.add_argument(
        "--precision",
        choices=["32-true", "16-mixed", "bf16-mixed"],
        default="32-true",
        help="of the arithmetic (default: %(default)s)",
    )


def add_checkpoints(group: argparse._ActionsContainer) -> None:
    """Add ``--checkpoint-dir`` and ``--resume``; ``_training.check_checkpoints`` checks them."""
    group.add_argument(
        "--checkpoint-dir", metavar="FOLDER", type=path, help="save a checkpoint there after every epoch"
    )
    group.add_argument(
        "--resume", metavar="FOLDER", type=path, help="go on from a checkpoint, or from such a folder"
    )
