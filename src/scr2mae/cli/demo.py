"""``scr2mae demo``: the whole way on real cells, with nothing to download."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from scr2mae.cli import arguments
from scr2mae.cli.command import Command, loading
from scr2mae.cli.files import check_free, check_writable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMAND"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=arguments.path,
        default=Path("demo"),
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument(
        "--max-epochs",
        metavar="N",
        type=arguments.positive_int,
        help="passes over the cells (default: the model's)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="of everything (default: %(default)s)",
    )
    arguments.add_accelerator(parser)
    arguments.add_force(parser, "the files of an earlier demo")


def _run(args: argparse.Namespace) -> str:
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    with loading():
        import_module("scr2mae.model")
    from scr2mae.cli.demo_run import FILES, SNIPPET, run_demo, save_demo

    result = run_demo(
        seed=args.seed,
        max_epochs=args.max_epochs,
        accelerator=args.accelerator,
        enable_progress_bar=not args.quiet,
    )
    save_demo(result, args.output, force=args.force)
    n_obs, n_vars = result.adata.shape
    return "\n".join(
        [
            f"{n_obs} PBMCs, {n_vars} genes; cell types told by a linear probe, on cells it has not seen:",
            "",
            _table(result.scores),
            "",
            "Written:",
            *(f"  {args.output / name}" for name in FILES),
            "",
            "The same on your own raw counts:",
            "",
            *(f"  {line}" for line in SNIPPET.splitlines()),
        ]
    )


def _table(scores: pd.DataFrame) -> str:
    """Lay scores out, mean ± standard deviation over folds."""
    columns = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
    lines = ["  " + " " * 8 + "".join(f"{title:>20}" for title in columns.values())]
    for name, row in scores.iterrows():
        cells = (f"{row[column]:.3f} ± {row[f'{column}_sd']:.3f}" for column in columns)
        lines.append(f"  {name:<8}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


COMMAND = Command(
    name="demo",
    summary="train, embed and draw 700 real cells, offline",
    description=(
        "Train on 700 blood cells that come with Scanpy, embed them, compare with PCA by linear probe and\n"
        "draw a UMAP and the training curves. Nothing is downloaded; under two minutes on two cores."
    ),
    examples="""
scr2mae demo
scr2mae demo -o somewhere/ --seed 1
scr2mae demo --max-epochs 20 --force
""",
    add_arguments=_add_arguments,
    run=_run,
)
