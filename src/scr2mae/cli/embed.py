"""``scr2mae embed``: a copy of a file of counts, with the embedding in it."""

from __future__ import annotations

import argparse
import logging
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli import arguments
from scr2mae.cli.command import Command, loading
from scr2mae.cli.files import check_counts, check_free, check_writable, open_counts, replacing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py
    from anndata import AnnData

__all__ = ["COMMAND"]

logger = logging.getLogger(__name__)

_CELLS_A_CHUNK = 8192


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        type=arguments.path,
        help="AnnData with raw counts: an .h5ad file or a .zarr store",
    )
    parser.add_argument(
        "--model", metavar="MODEL/", type=arguments.path, required=True, help="folder of the model"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=arguments.path,
        required=True,
        help="what to write: an .h5ad file, or a .zarr store of the table of cells and the embedding",
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        type=arguments.obsm_key,
        default="X_r2mae",
        help="name of the embedding in obsm (default: %(default)s)",
    )
    parser.add_argument("--batch-size", metavar="N", type=arguments.positive_int, help="cells at a time")
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "auto"],
        default="32-true",
        help="of the arithmetic; auto is bf16-mixed where the processor does that in hardware (default: %(default)s)",
    )
    arguments.add_accelerator(parser)
    arguments.add_force(parser, "OUT, or an embedding of this name in IN.h5ad,")


def _run(args: argparse.Namespace) -> str:
    check_counts(args.input)
    to_store = args.output.suffix == ".zarr"
    if not to_store:
        check_free(args.output, folder=False, force=args.force)
    check_writable(args.output.parent)
    with loading():
        from scr2mae.model import R2MAEModel

    model = R2MAEModel.load(args.model, accelerator=args.accelerator)
    adata = open_counts(args.input)
    try:
        if args.key in adata.obsm and not args.force:
            raise FileExistsError(
                f"{args.input} has {args.key!r} in obsm already; choose another --key or pass --force."
            )
        logger.info("Embedding %d cells of %s.", adata.n_obs, args.input)
        shape = adata.n_obs, model.init_params_["n_latent"]
        new = _new_store if to_store else _new_file
        with new(args, adata, shape) as rows:
            model.get_latent_representation(
                adata, batch_size=args.batch_size, precision=args.precision, out=rows
            )
    finally:
        if adata.isbacked:
            adata.file.close()
    return f"output\t{args.output}\nkey\t{args.key}\ncells\t{shape[0]}\ndimensions\t{shape[1]}"


@contextmanager
def _new_file(args: argparse.Namespace, adata: AnnData, shape: tuple[int, int]) -> Iterator[h5py.Dataset]:
    """Give the rows of an embedding in a copy of the input, which takes its name when they are filled."""
    with replacing(args.output) as part:
        _copy_all_but_store(args.input, part, adata)
        with _new_obsm(part, args.key, shape) as rows:
            yield rows


@contextmanager
def _new_store(args: argparse.Namespace, adata: AnnData, shape: tuple[int, int]) -> Iterator[Any]:
    """Give the rows of an embedding in a new store, which takes its name when they are filled."""
    import pandas as pd

    from scr2mae.data.prepare import writer

    output = args.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    writer.check_output(output, [args.input], overwrite=args.force)
    with writer.work_folder(output) as folder:
        part = folder / "store.zarr"
        with writer.create_group(part) as group:
            writer.write_tables(group, obs=adata.obs, var=pd.DataFrame(index=pd.Index([], dtype=str)), uns={})
            rows = _append(group["obsm"], args.key, shape, chunks=(_CELLS_A_CHUNK, shape[1]))
            yield rows
        writer.publish(part, output)


def _copy_all_but_store(source: Path, target: Path, adata: AnnData) -> None:
    """Copy a file whole, with all that is in it in the very encoding it was written in; of a store the cells' table."""
    if source.is_file():
        shutil.copyfile(source, target)
        return
    from anndata import AnnData

    AnnData(obs=adata.obs).write_h5ad(target)


@contextmanager
def _new_obsm(path: Path, key: str, shape: tuple[int, int]) -> Iterator[h5py.Dataset]:
    """Make an array of ``obsm`` in an AnnData file, in place of one of that name, to be filled row by row."""
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
        yield _append(group, key, shape, maxshape=shape, chunks=True)


def _append(group: Any, key: str, shape: tuple[int, int], **options: Any) -> Any:
    """Make an array of zeros as anndata writes it, which is as long as the cells on the disk alone."""
    import numpy as np
    from anndata.io import write_elem

    write_elem(group, key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=options)
    group[key].resize(shape)
    return group[key]


COMMAND = Command(
    name="embed",
    summary="embed cells with a trained model",
    description=(
        "Copy an AnnData file and add the embedding of its cells to obsm. Genes are matched by name;\n"
        "those that the file lacks are treated as masked. From or to a .zarr store, the output has the\n"
        "table of cells and the embedding, not the counts. It takes its name when it is whole."
    ),
    examples="""
scr2mae embed counts.h5ad --model model/ -o embedded.h5ad
scr2mae embed new_donors.h5ad --model model/ -o new_donors_embedded.h5ad --batch-size 4096
scr2mae embed store.zarr --model model/ -o embedding.zarr
scr2mae embed embedded.h5ad --model model_seed1/ -o both.h5ad --key X_r2mae_seed1
""",
    add_arguments=_add_arguments,
    run=_run,
)
