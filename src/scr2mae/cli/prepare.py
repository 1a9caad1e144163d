"""``scr2mae prepare``: one shuffled store from files of counts that need not fit into memory."""

from __future__ import annotations

from typing import Annotated, Literal

from scr2mae.cli import options as opt
from scr2mae.cli.files import check_writable
from scr2mae.cli.process import loading, results

_gigabytes = opt.number(float, lambda value: 0.001 <= value < float("inf"), "gigabytes, at least 0.001")


def prepare(
    inputs: Annotated[
        opt.InPaths, opt.doc("Files of raw counts: .h5ad, .zarr, .h5 of Cell Ranger, or .h5mu.")
    ],
    /,
    *,
    output: Annotated[opt.OutPath, opt.doc("Store to write, .zarr or .h5ad.")],
    force: opt.Force = False,
    layer: Annotated[
        opt.Name | None, opt.doc("Layer of raw counts; by default raw if there is one, else X.")
    ] = None,
    n_top_genes: Annotated[opt.PositiveInt, opt.doc("Highly variable genes to keep.")] = 5000,
    min_genes: Annotated[
        opt.NonNegativeInt, opt.doc("Drop cells with fewer than N of these genes detected.")
    ] = 0,
    join: Annotated[
        Literal["inner", "outer"], opt.doc("Keep genes present in all files, or in any file.")
    ] = "inner",
    file_key: Annotated[
        opt.Name, opt.doc("Column of obs that records each cell's source file; '' for none.")
    ] = "file",
    prefix: Annotated[
        opt.Names,
        opt.doc("Columns of obs, such as the donor, whose values get the name of their file in front."),
    ] = (),
    seed: Annotated[opt.NonNegativeInt, opt.doc("Random seed for the shuffle.")] = 0,
    memory_limit: Annotated[float, opt.one(_gigabytes, "GB"), opt.doc("Memory for buffers, in GB.")] = 0.25,
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Make one shuffled store from several files.

    Read files of counts block by block, keep the highly variable genes that they share, and write all cells in
    random order to one store. Memory does not grow with the number of counts.

    Examples
    --------
    scr2mae prepare counts.h5ad -o store.zarr
    scr2mae prepare lung1.h5ad lung2.h5ad lung3.zarr -o lung.zarr --seed 1
    scr2mae prepare atlas.h5ad -o atlas.zarr --layer counts --min-genes 20 \
        --memory-limit 4 --force
    """
    check_writable(output.absolute().parent)
    with loading():
        from scr2mae import datasets
        from scr2mae.data.store import open_group

    datasets.prepare(
        inputs,
        output,
        n_top_genes=n_top_genes,
        layer=layer,
        min_genes=min_genes,
        join=join,
        file_key=file_key or None,
        prefix=prefix,
        seed=seed,
        memory_limit=memory_limit * 1e9,
        overwrite=force,
        progressbar=not messages.quiet,
    )
    n_obs, n_vars = (int(n) for n in open_group(output)["X"].attrs["shape"])
    return results(output=output, files=len(inputs), cells=n_obs, genes=n_vars)
