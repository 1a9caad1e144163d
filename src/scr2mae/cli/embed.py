"""``scr2mae embed``: a copy of a file of counts, with the embedding in it."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from scr2mae.cli import _arguments as arguments
from scr2mae.cli._command import Command, loading
from scr2mae.cli._files import check_free, check_input_file, check_writable, read_anndata, replacing

if TYPE_CHECKING:
    import numpy as np

__all__ = ["COMMAND"]

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.h5ad", type=arguments.path, help="AnnData with raw counts")
    parser.add_argument(
        "--model", metavar="MODEL/", type=arguments.path, required=True, help="folder of the model"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT.h5ad", type=arguments.path, required=True, help="file to write"
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        type=arguments.obsm_key,
        default="X_r2mae",
        help="name of the embedding in obsm (default: %(default)s)",
    )
    parser.add_argument("--batch-size", metavar="N", type=arguments.positive_int, help="cells at a time")
    arguments.add_accelerator(parser)
    arguments.add_force(parser, "OUT.h5ad, or an embedding of this name in IN.h5ad,")


def _run(args: argparse.Namespace) -> str:
    check_input_file(args.input)
    check_free(args.output, folder=False, force=args.force)
    check_writable(args.output.parent)
    with loading():
        from scr2mae.model import R2MAEModel

    model = R2MAEModel.load(args.model, accelerator=args.accelerator)
    adata = read_anndata(args.input, backed="r")
    try:
        if args.key in adata.obsm and not args.force:
            raise FileExistsError(
                f"{args.input} has {args.key!r} in obsm already; choose another --key or pass --force."
            )
        logger.info("Embedding %d cells of %s.", adata.n_obs, args.input)
        embedded = model.get_latent_representation(adata, batch_size=args.batch_size)
    finally:
        adata.file.close()
    with replacing(args.output) as part:
        # A copy of the file keeps all that is in it, in the very encoding it was written in.
        shutil.copyfile(args.input, part)
        _write_obsm(part, args.key, embedded)
    n_obs, n_latent = embedded.shape
    return f"output\t{args.output}\nkey\t{args.key}\ncells\t{n_obs}\ndimensions\t{n_latent}"


def _write_obsm(path: Path, key: str, values: np.ndarray) -> None:
    """Put an array into ``obsm`` of an AnnData file, in place of one of that name."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if "obsm" not in file:
            write_elem(file, "obsm", {})
        group = file["obsm"]
        if not isinstance(group, h5py.Group):
            raise ValueError(
                "The input was written by an AnnData before 0.7, which cannot be added to; "
                "read it and write it again with a newer one."
            )
        write_elem(group, key, values)


COMMAND = Command(
    name="embed",
    summary="embed cells with a trained model",
    description=(
        "Copy an AnnData file and add the embedding of its cells to obsm. Genes are matched by name;\n"
        "those that the file lacks are treated as masked."
    ),
    examples="""
scr2mae embed counts.h5ad --model model/ -o embedded.h5ad
scr2mae embed new_donors.h5ad --model model/ -o new_donors_embedded.h5ad --batch-size 4096
scr2mae embed embedded.h5ad --model model_seed1/ -o both.h5ad --key X_r2mae_seed1
""",
    add_arguments=_add_arguments,
    run=_run,
)
