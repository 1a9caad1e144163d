"""``scr2mae prepare``: one shuffled store from files of counts that need not fit into memory."""

from __future__ import annotations

import argparse

from scr2mae.cli import arguments
from scr2mae.cli.command import Command, loading
from scr2mae.cli.files import check_writable

__all__ = ["COMMAND"]


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected gigabytes, at least 0.001, got {text!r}")
    return value


def _column(text: str) -> str | None:
    return text or None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        metavar="IN",
        nargs="+",
        type=arguments.path,
        help="AnnData with raw counts: .h5ad files or .zarr folders",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="STORE.zarr",
        type=arguments.path,
        required=True,
        help="store to write, .zarr or .h5ad",
    )
    arguments.add_force(parser, "the store")
    parser.add_argument(
        "--layer", metavar="NAME", help="layer of raw counts (default: raw if there is one, else X)"
    )
    parser.add_argument(
        "--n-top-genes",
        metavar="N",
        type=arguments.positive_int,
        default=5000,
        help="highly variable genes to keep (default: %(default)s)",
    )
    parser.add_argument(
        "--min-genes",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="drop cells with fewer of these genes (default: %(default)s)",
    )
    parser.add_argument(
        "--join",
        choices=["inner", "outer"],
        default="inner",
        help="genes that all files have, or that any has (default: %(default)s)",
    )
    parser.add_argument(
        "--file-key",
        metavar="COLUMN",
        type=_column,
        default="file",
        help="column that names each cell's file; '' for none (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="of the shuffle (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-limit",
        metavar="GB",
        type=_gigabytes,
        default=0.25,
        help="gigabytes for blocks and buckets (default: %(default)s)",
    )


def _run(args: argparse.Namespace) -> str:
    check_writable(args.output.absolute().parent)
    with loading():
        from scr2mae import datasets
        from scr2mae.data.store import open_group

    datasets.prepare(
        args.inputs,
        args.output,
        n_top_genes=args.n_top_genes,
        layer=args.layer,
        min_genes=args.min_genes,
        join=args.join,
        file_key=args.file_key,
        seed=args.seed,
        memory_limit=args.memory_limit * 1e9,
        overwrite=args.force,
        progressbar=not args.quiet,
    )
    n_obs, n_vars = (int(n) for n in open_group(args.output)["X"].attrs["shape"])
    return f"output\t{args.output}\nfiles\t{len(args.inputs)}\ncells\t{n_obs}\ngenes\t{n_vars}"


COMMAND = Command(
    name="prepare",
    summary="make one shuffled store of several files",
    description=(
        "Read files of counts block by block, keep the highly variable genes that they share, and write\n"
        "all cells in random order to one store. Memory does not grow with the number of counts."
    ),
    examples="""
scr2mae prepare counts.h5ad -o store.zarr
scr2mae prepare lung1.h5ad lung2.h5ad lung3.zarr -o lung.zarr --n-top-genes 5000 --seed 1
scr2mae prepare atlas.h5ad -o atlas.zarr --layer counts --min-genes 20 --memory-limit 4 --force
""",
    add_arguments=_add_arguments,
    run=_run,
)
