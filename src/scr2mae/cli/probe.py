"""``scr2mae probe``: what a linear model reads from embeddings, in donors that it has not seen."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from scr2mae.cli import arguments, probing
from scr2mae.cli.command import Command, loading
from scr2mae.cli.files import check_free, check_input_file, check_writable, read_anndata, replacing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMAND"]

logger = logging.getLogger(__name__)

_GROUPS = ["method", "target", "metric", "level", "scale"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.h5ad", type=arguments.path, help="AnnData with embeddings")
    parser.add_argument(
        "--use-rep",
        metavar="NAME",
        nargs="+",
        required=True,
        help="embeddings in obsm, layers, or X; taken as they are",
    )
    probing.add_target(parser, required=True)
    probing.add_donors(parser)
    parser.add_argument(
        "-o", "--output", metavar="OUT.csv", type=arguments.path, help="file for the score of every split"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="of the splits (default: %(default)s)",
    )
    probing.add_splits(parser.add_argument_group("splits and probes"), scale="no")
    arguments.add_force(parser, "OUT.csv")


def _run(args: argparse.Namespace) -> str:
    targets: dict[str, Any] = probing.named_targets(args)
    check_input_file(args.input)
    if args.output is not None:
        check_free(args.output, folder=False, force=args.force)
        check_writable(args.output.parent)
    with loading():
        from scr2mae.probe import linear_probe

    adata = read_anndata(args.input, backed="r")
    try:
        if any(name not in adata.obsm for name in args.use_rep):
            adata = adata.to_memory()
        logger.info("Probing %d cells of %s.", adata.n_obs, args.input)
        frame = linear_probe(
            adata,
            use_rep=args.use_rep,
            targets=targets,
            donor_key=args.donor_key,
            sample_key=args.sample_key,
            cell_level=args.cell_level,
            n_train_donors=args.n_train_donors,
            n_splits=args.n_splits,
            seeds=(args.seed,),
            max_cells_per_donor=args.max_cells_per_donor,
            max_cells_per_donor_and_class=args.max_cells_per_donor_and_class,
            scale=probing.scalings(args),
            n_bootstrap=args.n_bootstrap,
        )
    finally:
        if adata.isbacked:
            adata.file.close()
    if args.output is not None:
        with replacing(args.output) as part:
            frame.to_csv(part, index=False)
    return _summary(frame)


def _summary(frame: pd.DataFrame) -> str:
    """One score a line, mean and standard deviation over splits, with tabs between."""
    for note in frame.loc[frame["note"] != "", "note"].unique():
        logger.warning("Some scores are undefined: %s.", note)
    values = frame.groupby(_GROUPS, sort=False)["value"].agg(["mean", "std"]).reset_index()
    return values.to_csv(sep="\t", index=False, float_format="%.4f", na_rep="nan")


COMMAND = Command(
    name="probe",
    summary="score embeddings by linear probes on held-out donors",
    description=(
        "Fit linear models to embeddings of some donors and score them on the others: balanced accuracy,\n"
        "macro F1 and macro AUROC for classes, Spearman's correlation for numbers, by cell and by donor."
    ),
    examples="""
scr2mae probe embedded.h5ad --use-rep X_r2mae --target cell_type:classification --donor-key donor
scr2mae probe embedded.h5ad --use-rep X_r2mae X_pca --target disease:classification --target age:regression --donor-key donor -o scores.csv
scr2mae probe embedded.h5ad --use-rep X_r2mae --target age:regression --donor-key donor --n-train-donors 8 --scale both
""",
    add_arguments=_add_arguments,
    run=_run,
)
