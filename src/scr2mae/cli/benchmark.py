"""``scr2mae benchmark``: methods times tasks, as a table."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from scr2mae.cli import arguments, probing
from scr2mae.cli.command import Command, UsageError, loading
from scr2mae.cli.files import check_free, check_input_file, check_writable, read_anndata

if TYPE_CHECKING:
    from scr2mae.benchmark import Benchmark

__all__ = ["COMMAND"]

logger = logging.getLogger(__name__)

_MARKER = "benchmark.json"
_SIZES = ("n_hidden", "n_latent")
_TRAINING = ("max_epochs", "batch_size")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.h5ad", type=arguments.path, help="AnnData with raw counts")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT/",
        type=arguments.path,
        required=True,
        help="folder to write to, or to go on in",
    )
    arguments.add_force(parser, "files of the same names in a folder that is no benchmark's")
    what = parser.add_mutually_exclusive_group(required=True)
    probing.add_target(what, required=False)
    what.add_argument(
        "--atlas",
        choices=["hlca", "sea_ad"],
        help="the paper's tasks on an atlas of CELLxGENE, instead of targets",
    )
    probing.add_donors(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--layer", metavar="NAME", help="layer of raw counts (default: X)")
    data.add_argument("--batch-key", metavar="COLUMN", help="column with the batch, told to the networks")
    _add_methods(parser.add_argument_group("methods"))
    probing.add_splits(parser.add_argument_group("splits and probes"), scale="both")


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        help="lognorm, pca, scvi, scvi_joint, masking schemes (mae, r2mae, ...), names in obsm (default: all but those)",
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        type=arguments.non_negative_int,
        nargs="+",
        default=[0, 1, 2],
        help="of training (default: 0 1 2)",
    )
    group.add_argument(
        "--pretrain-on",
        choices=["all", "train"],
        default="all",
        help="what pretraining sees: all cells, or those of each split's training donors (default: %(default)s)",
    )
    group.add_argument(
        "--n-hidden", metavar="N", type=arguments.positive_int, help="width of the hidden layers"
    )
    group.add_argument("--n-latent", metavar="N", type=arguments.positive_int, help="width of the embedding")
    group.add_argument(
        "--max-epochs",
        metavar="N",
        type=arguments.positive_int,
        help="passes over the cells, masking schemes",
    )
    group.add_argument(
        "--batch-size", metavar="N", type=arguments.positive_int, help="cells a mini-batch, masking schemes"
    )
    group.add_argument(
        "--scvi-max-epochs", metavar="N", type=arguments.positive_int, help="passes over the cells, scVI"
    )
    arguments.add_accelerator(group)


def _run(args: argparse.Namespace) -> str:
    targets: Any = None if args.target is None else probing.named_targets(args)
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError(f"--seeds must differ, got {' '.join(map(str, args.seeds))}")
    check_input_file(args.input)
    # A folder of this command's own is gone on in; nothing that was computed there is lost.
    check_free(args.output, folder=True, force=args.force or (args.output / _MARKER).is_file())
    check_writable(args.output)
    with loading():
        from scr2mae import benchmark

    adata = read_anndata(args.input)
    logger.info("Read %d cells and %d genes from %s.", adata.n_obs, adata.n_vars, args.input)
    try:
        result = benchmark.run(
            adata,
            targets=benchmark.tasks(args.atlas) if targets is None else targets,
            out=args.output,
            **_options(args),
        )
    except KeyboardInterrupt:
        logger.warning("Finished fits are kept; the same command goes on in %s.", args.output)
        raise
    logger.info("Wrote the tables and figures to %s.", args.output)
    return _summary(result)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    same = (
        *("donor_key", "sample_key", "cell_level", "layer", "batch_key", "methods", "seeds", "pretrain_on"),
        *("n_splits", "n_train_donors", "max_cells_per_donor", "max_cells_per_donor_and_class"),
        *("n_bootstrap", "accelerator"),
    )
    scvi_epochs = {} if args.scvi_max_epochs is None else {"max_epochs": args.scvi_max_epochs}
    return {name: getattr(args, name) for name in same} | {
        "scale": probing.scalings(args),
        "model_kwargs": {name: getattr(args, name) for name in _SIZES if getattr(args, name) is not None},
        "train_kwargs": {name: getattr(args, name) for name in _TRAINING if getattr(args, name) is not None},
        "scvi_train_kwargs": scvi_epochs,
        "enable_progress_bar": not args.quiet,
    }


def _summary(result: Benchmark) -> str:
    """One method a line, best rank first, with tabs between: the first of the tables."""
    summary = result.table()[["Score", "Rank"]].droplevel([1, 2], axis="columns")
    lines = [f"{name}\t{row['Score']:.4f}\t{row['Rank']:.2f}" for name, row in summary.iterrows()]
    return "\n".join(["method\tscore\trank", *lines])


COMMAND = Command(
    name="benchmark",
    summary="compare methods on your own data",
    description=(
        "Train the masking schemes, scVI, PCA and others, probe their embeddings on held-out donors, and write\n"
        "tables with the paper's score and rank. The same command goes on where an earlier one broke off."
    ),
    examples="""
scr2mae benchmark counts.h5ad --donor-key donor --target disease:classification --target age:regression -o bench/
scr2mae benchmark counts.h5ad --donor-key donor --target cell_type:classification --methods pca scvi r2mae X_harmony -o bench/
scr2mae benchmark counts.h5ad --donor-key donor --target disease:classification --pretrain-on train --n-splits 3 -o bench_train/
scr2mae benchmark hlca.h5ad --atlas hlca --donor-key donor_id --batch-key dataset --max-cells-per-donor 500 -o hlca/
""",
    add_arguments=_add_arguments,
    run=_run,
)
