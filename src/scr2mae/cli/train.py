"""``scr2mae train``: from a file of counts to a model folder."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli import arguments
from scr2mae.cli.command import Command, UsageError, loading
from scr2mae.cli.files import check_counts, check_free, check_writable, open_counts

if TYPE_CHECKING:
    from scr2mae.model import R2MAEModel

__all__ = ["COMMAND"]

logger = logging.getLogger(__name__)

_SETUP = ("layer", "batch_key", "labels_key", "donor_key", "size_factor_key")
_SIZES = ("n_hidden", "n_latent", "n_layers")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        type=arguments.path,
        help="AnnData with raw counts: an .h5ad file or a .zarr store",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="MODEL/",
        type=arguments.path,
        required=True,
        help="folder to save the model in",
    )
    arguments.add_force(parser, "the model")
    _add_data(parser.add_argument_group("data"))
    _add_network(parser.add_argument_group("network"))
    _add_training(parser.add_argument_group("training"))


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--layer", metavar="NAME", help="layer of raw counts (default: X)")
    group.add_argument(
        "--batch-key", metavar="COLUMN", help="column of obs with the batch, told to the network"
    )
    group.add_argument(
        "--labels-key", metavar="COLUMN", help="column with the cell type; kept, never an input"
    )
    group.add_argument("--donor-key", metavar="COLUMN", help="column with the donor; donors are not split")
    group.add_argument("--size-factor-key", metavar="COLUMN", help="column that replaces the total count")
    for kind in ("categorical", "continuous"):
        group.add_argument(
            f"--{kind}-covariate-key",
            metavar="COLUMN",
            nargs="+",
            action="extend",
            help=f"further {kind} columns told to the network; may be repeated",
        )
    group.add_argument(
        "--no-check-counts",
        action="store_true",
        help="accept fractions (estimated counts: SoupX, CellBender)",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--n-hidden", metavar="N", type=arguments.positive_int, help="width of the hidden layers"
    )
    group.add_argument("--n-latent", metavar="N", type=arguments.positive_int, help="width of the embedding")
    group.add_argument(
        "--n-layers", metavar="N", type=arguments.positive_int, help="hidden layers of the encoder"
    )
    group.add_argument(
        "--mask-ratio",
        metavar="RATIO",
        type=arguments.fraction,
        nargs="+",
        default=[0.1, 0.5],
        help="share of genes hidden at a step: two numbers for a range (R²MAE), one for a fixed share "
        "(default: 0.1 0.5)",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="of weights, masks, split and order (default: %(default)s)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-epochs",
        metavar="N",
        type=arguments.positive_int,
        help="passes over the cells (default: by their number)",
    )
    group.add_argument("--batch-size", metavar="N", type=arguments.positive_int, help="cells a mini-batch")
    group.add_argument(
        "--train-size",
        metavar="SHARE",
        type=arguments.fraction,
        default=0.9,
        help="share of cells that train; the others validate (default: %(default)s)",
    )
    split = group.add_mutually_exclusive_group()
    split.add_argument(
        "--split-key",
        metavar="COLUMN",
        help="column whose groups are not split (default: the donor, if given)",
    )
    split.add_argument(
        "--split-cells", action="store_true", help="split cell by cell even if donors are given"
    )
    group.add_argument(
        "--early-stopping", action="store_true", help="stop when the validation loss no longer falls"
    )
    arguments.add_accelerator(group)
    group.add_argument(
        "--devices",
        metavar="N",
        type=arguments.devices,
        default="auto",
        help="how many on each machine, or which: 2 or 0,3; each trains on --batch-size cells at a time",
    )
    group.add_argument(
        "--nodes", metavar="M", type=arguments.positive_int, help="machines that train together (default: 1)"
    )
    group.add_argument(
        "--precision",
        choices=["auto", "32-true", "16-mixed", "bf16-mixed"],
        default="auto",
        help="of the arithmetic; auto is bf16-mixed where the processor does that in hardware (default: %(default)s)",
    )
    group.add_argument(
        "--counts-on",
        choices=["auto", "device", "memory", "disk"],
        default="auto",
        help="where the counts are meanwhile (default: the first of these where they fit)",
    )
    group.add_argument(
        "--checkpoint-dir",
        metavar="FOLDER",
        type=arguments.path,
        help="save a checkpoint there after every epoch",
    )
    group.add_argument(
        "--checkpoint-every",
        metavar="STEPS",
        type=arguments.positive_int,
        help="and every so many steps within an epoch",
    )
    group.add_argument(
        "--resume",
        metavar="FOLDER",
        type=arguments.path,
        help="go on from a checkpoint, or from such a folder",
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse whatever would stop the run later, before anything heavy is loaded."""
    ratios = args.mask_ratio
    if len(ratios) > 2 or (len(ratios) == 2 and ratios[0] > ratios[1]):
        raise UsageError(
            f"--mask-ratio takes one number, or a low and a high one; got {' '.join(map(str, ratios))}"
        )
    if args.train_size == 0:
        raise UsageError("--train-size must be above 0")
    if args.early_stopping and args.train_size == 1:
        raise UsageError("--early-stopping needs validation cells; lower --train-size")
    if args.checkpoint_every is not None and args.checkpoint_dir is None:
        raise UsageError("--checkpoint-every needs --checkpoint-dir")
    check_counts(args.input)
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    if args.resume is not None:
        _last_checkpoint(args.resume, wanted=True)
    if args.checkpoint_dir is not None:
        check_free(args.checkpoint_dir, folder=True, force=True)
        check_writable(args.checkpoint_dir)
        last = _last_checkpoint(args.checkpoint_dir)
        goes_on = (
            args.resume is not None
            and last is not None
            and last.samefile(_last_checkpoint(args.resume) or "")
        )
        if last is not None and not (goes_on or args.force):
            raise FileExistsError(f"{last} exists; go on from it with --resume, or replace it with --force.")


def _last_checkpoint(place: Path, *, wanted: bool = False) -> Path | None:
    """Checkpoint at a path or in a folder; if there is none an error where one is wanted, else None."""
    found = place / "last.ckpt" if place.is_dir() else place
    if found.is_file():
        return found
    if wanted:
        raise FileNotFoundError(
            f"No checkpoint {found}; give a .ckpt file or the --checkpoint-dir of an earlier run."
        )
    return None


def _run(args: argparse.Namespace) -> str:
    _check(args)
    with loading():
        from lightning.pytorch.utilities import rank_zero_only

        from scr2mae.model import R2MAEModel

    if getattr(rank_zero_only, "rank", 0):  # the first of several processes speaks for all
        logging.getLogger("scr2mae").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    adata = open_counts(args.input)
    logger.info("Read %d cells and %d genes from %s.", adata.n_obs, adata.n_vars, args.input)
    R2MAEModel.setup_anndata(
        adata,
        **{name: getattr(args, name) for name in _SETUP},
        categorical_covariate_keys=args.categorical_covariate_key,
        continuous_covariate_keys=args.continuous_covariate_key,
        check_counts=not args.no_check_counts,
    )
    sizes = {name: value for name in _SIZES if (value := getattr(args, name)) is not None}
    ratios = args.mask_ratio
    mask_ratio = ratios[0] if len(ratios) == 1 else tuple(ratios)
    model = R2MAEModel(adata, mask_ratio=mask_ratio, seed=args.seed, **sizes)
    try:
        model.train(**_train_options(args))
    except KeyboardInterrupt:
        if args.checkpoint_dir is not None and _last_checkpoint(args.checkpoint_dir) is not None:
            logger.warning("No model was saved; go on with --resume %s.", args.checkpoint_dir)
        else:
            logger.warning("No model was saved; with --checkpoint-dir a run can be gone on with.")
        raise
    if not model.trainer.is_global_zero:
        return ""  # one of several processes writes
    # Checkpoints may lie inside the folder by now; whether a model does was checked at the start.
    model.save(args.output, overwrite=True)
    return _summary(model, args.output)


def _train_options(args: argparse.Namespace) -> dict[str, Any]:
    given = {
        "batch_size": args.batch_size,
        "num_nodes": args.nodes,
        "checkpoint_every_n_steps": args.checkpoint_every,
    }
    return {name: value for name, value in given.items() if value is not None} | {
        "max_epochs": args.max_epochs,
        "accelerator": args.accelerator,
        "devices": args.devices,
        "precision": args.precision,
        "counts_on": args.counts_on,
        "train_size": args.train_size,
        "split_key": False if args.split_cells else args.split_key,
        "early_stopping": args.early_stopping,
        "resume": args.resume,
        "checkpoint_dir": args.checkpoint_dir,
        "enable_progress_bar": not args.quiet,
    }


def _summary(model: R2MAEModel, output: Path) -> str:
    """One quantity a line, its name and its value with a tab between."""
    rows: dict[str, Any] = {"model": output}
    if model.split_ is not None:
        rows |= {"cells_train": len(model.split_.train), "cells_validation": len(model.split_.validation)}
    history = model.history
    rows["epochs"] = len(history["train_loss"])
    for name in ("train_loss", "validation_loss"):
        if name in history:
            rows[name] = f"{history[name][name].iloc[-1]:.4f}"
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())


COMMAND = Command(
    name="train",
    summary="train a model on raw counts",
    description="Train a masked autoencoder on the raw counts of an AnnData file and save it as a folder.",
    examples="""
scr2mae train counts.h5ad -o model/
scr2mae train counts.h5ad -o model/ --layer counts --batch-key batch --donor-key donor
scr2mae train counts.h5ad -o model/ --mask-ratio 0.25 --n-hidden 1000 --n-latent 512
scr2mae train counts.h5ad -o model/ --checkpoint-dir run1/
scr2mae train counts.h5ad -o model/ --checkpoint-dir run1/ --resume run1/
scr2mae train counts.h5ad -o model/ --devices 4
""",
    add_arguments=_add_arguments,
    run=_run,
)
