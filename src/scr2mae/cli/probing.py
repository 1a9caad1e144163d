"""Options of the subcommands that probe embeddings."""

from __future__ import annotations

import argparse

from scr2mae.cli import arguments
from scr2mae.cli.command import UsageError

__all__ = ["add_donors", "add_splits", "add_target", "named_targets", "scalings"]

KINDS = ("classification", "regression")
_SCALINGS = {"no": [False], "yes": [True], "both": [False, True]}


def target(text: str) -> tuple[str, str]:
    """Take ``COLUMN:KIND``; a column may hold colons itself."""
    column, _, kind = text.rpartition(":")
    if not column or kind not in KINDS:
        raise argparse.ArgumentTypeError(f"expected COLUMN:{' or COLUMN:'.join(KINDS)}, got {text!r}")
    return column, kind


def add_target(parser: argparse._ActionsContainer, *, required: bool) -> None:
    """Add ``--target``."""
    parser.add_argument(
        "--target",
        metavar="COLUMN:KIND",
        type=target,
        action="append",
        required=required,
        help="column of obs to predict, and 'classification' or 'regression'; may be repeated",
    )


def add_donors(parser: argparse._ActionsContainer) -> None:
    """Add the columns that say what is held out and what is averaged over."""
    parser.add_argument(
        "--donor-key",
        metavar="COLUMN",
        required=True,
        help="column of obs with the donor; donors are held out",
    )
    parser.add_argument(
        "--sample-key", metavar="COLUMN", help="column with the sample, where donors gave several"
    )
    parser.add_argument(
        "--cell-level",
        metavar="COLUMN",
        nargs="+",
        default=["cell_type"],
        help="targets that belong to the cell rather than to its donor (default: cell_type)",
    )


def add_splits(parser: argparse._ActionsContainer, *, scale: str) -> None:
    """Add the options that say how donors are split, how many cells count and how they are probed."""
    parser.add_argument(
        "--n-splits",
        metavar="N",
        type=arguments.positive_int,
        default=5,
        help="splits of donors (default: %(default)s)",
    )
    parser.add_argument(
        "--n-train-donors",
        metavar="N",
        type=arguments.positive_int,
        help="donors that train the probe (default: half)",
    )
    parser.add_argument(
        "--max-cells-per-donor", metavar="N", type=arguments.positive_int, help="cap on the cells of a donor"
    )
    parser.add_argument(
        "--max-cells-per-donor-and-class",
        metavar="N",
        type=arguments.positive_int,
        help="cap on the cells of a donor's class, for targets of --cell-level",
    )
    parser.add_argument(
        "--scale",
        choices=_SCALINGS,
        default=scale,
        help="divide features by their standard deviation over the training cells (default: %(default)s)",
    )
    parser.add_argument(
        "--n-bootstrap",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="draws of test donors behind the intervals in the file (default: none)",
    )


def named_targets(args: argparse.Namespace) -> dict[str, str]:
    """Return column to kind; a column may be asked for once."""
    columns = [column for column, _ in args.target]
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise UsageError(f"--target names {', '.join(map(repr, repeated))} more than once")
    return dict(args.target)


def scalings(args: argparse.Namespace) -> list[bool]:
    """Return whether features are scaled: no, yes, or both."""
    return _SCALINGS[args.scale]
