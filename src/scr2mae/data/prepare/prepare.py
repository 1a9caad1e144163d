"""One shuffled store from several files of counts, none of which is ever in memory whole."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae._utils.progress import progress
from scr2mae.data.prepare.join import align_sources, join_obs, join_var, report_genes, select_columns
from scr2mae.data.prepare.shuffle import RowShuffle, random_keys
from scr2mae.data.prepare.sources import Source, open_sources
from scr2mae.data.prepare.writer import (
    bytes_per_value,
    check_output,
    check_space,
    create_group,
    publish,
    work_folder,
    write_counts,
    write_tables,
)
from scr2mae.data.preprocess import STATISTICS, check_counts, moments, rank_genes

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

# Bytes that a value takes at the peak: of a block with its copies in float64, of a bucket with its sorted copy.
_BLOCK_BYTES, _BUCKET_BYTES = 64, 64


def prepare(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    n_top_genes: int | None = 5000,
    layer: str | None = None,
    min_genes: int = 0,
    target_sum: float = 1e4,
    join: Literal["inner", "outer"] = "inner",
    file_key: str | None = "file",
    seed: int = 0,
    memory_limit: float = 2.5e8,
    chunk_size: int = 1 << 18,
    overwrite: bool = False,
    progressbar: bool = True,
) -> Path:
    """Write the raw counts of the highly variable genes of several files into one store, cells shuffled.

    Files are read twice, block by block: once to check the counts and rank the genes, once to copy the genes kept.
    Cells are shuffled outside memory, so a store of any size can be read in long runs of rows and yet in random
    order. The result is that of `preprocess` on the concatenated files, in another order of cells.

    Parameters
    ----------
    paths
        ``.h5ad`` files or ``.zarr`` folders, with counts stored by cell (CSR) or dense. Genes are matched by name,
        versions of Ensembl ids aside.
    output
        Store to write, ending in ``.zarr`` (a folder) or ``.h5ad``.
    n_top_genes
        Highly variable genes to keep, >= 1; the paper keeps 5000. None keeps all.
    layer
        Layer with the counts, instead of ``raw`` where there is one, else ``X``.
    min_genes
        Cells with fewer of the genes kept are dropped, >= 0.
    target_sum
        Counts per cell that the genes are ranked at, see `highly_variable_genes`.
    join
        Genes that all files have (``"inner"``), or that any has (``"outer"``), zero where it is absent: zeros that
        nobody has measured.
    file_key
        Column of ``obs`` that will name the file of each cell; None for no such column.
    seed
        Of the shuffle. The order of cells depends on it and on the cells before it alone, not on ``memory_limit``.
    memory_limit
        Bytes that blocks and buckets may take, roughly; ``obs`` and the libraries come on top. Where the store is
        very much larger than this, more memory means fewer and larger pieces.
    chunk_size
        Counts per chunk of the store; what is compressed, and read, at once.
    overwrite
        Whether to replace a store that is there already, once the new one is whole.
    progressbar
        Whether to show one; it stays quiet where standard error is not a terminal.

    Returns
    -------
    Path of the store, which `anndata.read_zarr`, `anndata.read_h5ad` and `scr2mae.data.open_store` open. ``X`` has
    raw counts (CSR, float32), ``obs`` the columns of all files, ``var`` the annotation in the first file that has
    the gene, joined by ``means``, ``dispersions`` and ``dispersions_norm``; ``uns["scr2mae_store"]`` says how it was made.
    Names of cells that occur twice get that of their file as suffix.

    Raises
    ------
    FileExistsError
        If the output exists and ``overwrite`` is False.
    FileNotFoundError
        If an input, or the folder of the output, does not exist.
    KeyError
        If a file lacks the layer.
    OSError
        If the disk has no room.
    ValueError
        If values are not counts, files share no gene or disagree on what a column is, or an argument is unusable.

    Notes
    -----
    Spilled rows and the growing store lie in a hidden folder beside the output, which a run that fails removes. A
    store takes its name only when it is whole.
    """
    _check_arguments(n_top_genes, min_genes, target_sum, join, memory_limit, chunk_size)
    inputs = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    target = Path(output).resolve()  # through a link, what it names is written
    check_output(target, inputs, overwrite=overwrite)
    with open_sources(inputs, layer=layer) as sources:
        n_obs = sum(source.n_obs for source in sources)
        names, columns = align_sources(sources, join=join)
        report_genes(sources, columns, join)
        n_renamed = join_obs(sources, file_key)[1]  # fails early; read again when memory is free of counts
        if n_renamed:
            logger.warning(
                "%d names of cells occur more than once; they get their file as suffix.", n_renamed
            )
        max_nnz = max(1, int(memory_limit / _BLOCK_BYTES))
        blocks = _blocks(sources, columns, max_nnz, "check and rank", progressbar, check=True)
        var = join_var(sources, names, columns)
        var, genes = _select_genes(blocks, n_obs, var, n_top_genes, target_sum)
        n_values = int(var.pop("n_cells").sum())
        spilled = RowShuffle.bytes_needed(n_obs, n_values, len(genes))
        check_space(target.parent, spilled + n_values * bytes_per_value(target))
        settings = {"seed": seed, "join": join, "min_genes": min_genes, "target_sum": target_sum}
        record = _record(sources, layer=layer, n_top_genes=n_top_genes, **settings)
        with work_folder(target) as folder:
            n_buckets = max(1, math.ceil(n_values * _BUCKET_BYTES / memory_limit))
            shuffle = RowShuffle(folder, n_buckets=n_buckets, n_vars=len(genes))
            columns = [column[genes] for column in columns]
            _spill(_blocks(sources, columns, max_nnz, "copy", progressbar), shuffle, min_genes, seed)
            part = folder / f"store{target.suffix}"
            with create_group(part) as group:
                buckets = _progress(shuffle, progressbar)
                order = write_counts(group, buckets, n_vars=len(genes), chunk_size=chunk_size)
                obs = join_obs(sources, file_key)[0].iloc[order]
                write_tables(group, obs=obs, var=var, uns={"scr2mae_store": record})
            publish(part, target)
    logger.info("Wrote %d of %d cells and %d genes to %s.", len(order), n_obs, len(genes), output)
    return Path(output)


def _check_arguments(
    n_top_genes: int | None,
    min_genes: int,
    target_sum: float,
    join: str,
    memory_limit: float,
    chunk_size: int,
) -> None:
    if n_top_genes is not None and n_top_genes < 1:
        raise ValueError(f"n_top_genes must be at least 1, or None for all genes, got {n_top_genes}.")
    if min_genes < 0:
        raise ValueError(f"min_genes must not be negative, got {min_genes}.")
    if not target_sum > 0:
        raise ValueError(f"target_sum must be positive, got {target_sum}.")
    if join not in ("inner", "outer"):
        raise ValueError(f"join must be 'inner' or 'outer', got {join!r}.")
    if not memory_limit >= 1e6:
        raise ValueError(f"memory_limit must be at least a million bytes, got {memory_limit}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")


def _blocks(
    sources: Sequence[Source],
    columns: Sequence[np.ndarray],
    max_nnz: int,
    description: str,
    progressbar: bool,
    *,
    check: bool = False,
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Read all files in blocks of cells, in one order of genes; gives the number of each block's first cell."""
    first = 0
    total = sum(source.n_obs for source in sources)
    with progress(total=total, desc=description, unit="cell", show=progressbar) as bar:
        for source, column in zip(sources, columns, strict=True):
            for start, block in source.blocks(max_nnz):
                if check:
                    _check_block(source, start, block)
                yield first + start, select_columns(block, column)
                bar.update(block.shape[0])
            first += source.n_obs


def _check_block(source: Source, start: int, block: sp.csr_matrix) -> None:
    try:
        check_counts(block, pd.RangeIndex(block.shape[0]), source.var.index)
    except ValueError:  # names of cells are read only when one must be named
        names = source.read_obs().index[start : start + block.shape[0]]
        try:
            check_counts(block, names, source.var.index)
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from None


def _select_genes(
    blocks: Iterator[tuple[int, sp.csr_matrix]],
    n_obs: int,
    var: pd.DataFrame,
    n_top_genes: int | None,
    target_sum: float,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Annotation of the genes kept, with their statistics and ``n_cells``, and their positions."""
    found = moments((block for _, block in blocks), (n_obs, len(var)), target_sum)
    ranking = rank_genes(*found, n_top_genes=n_top_genes or 1, var_names=var.index)
    genes = np.arange(len(var)) if n_top_genes is None else np.flatnonzero(ranking["highly_variable"])
    if not len(genes):
        raise ValueError("No gene varies between cells; expected counts in which some do.")
    statistics = {name: ranking[name].to_numpy()[genes] for name in (*STATISTICS, "n_cells")}
    return var.iloc[genes].assign(**statistics), genes


def _spill(
    blocks: Iterator[tuple[int, sp.csr_matrix]], shuffle: RowShuffle, min_genes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for first, block in blocks:
        keys = random_keys(block.shape[0], rng)
        kept = np.flatnonzero(np.diff(block.indptr) >= min_genes)
        rows = block if len(kept) == block.shape[0] else block[kept]
        shuffle.add(rows, keys=keys[kept], positions=first + kept)
    if not shuffle.n_obs.any():
        raise ValueError(f"No cell has {min_genes} of the {shuffle.n_vars} genes detected; lower min_genes.")


def _progress(shuffle: RowShuffle, progressbar: bool) -> Iterable[tuple[sp.csr_matrix, np.ndarray]]:
    """Read the buckets, with a progress bar."""
    return progress(
        shuffle.sorted_buckets(), desc="write", unit="bucket", total=shuffle.n_buckets, show=progressbar
    )


def _record(
    sources: Sequence[Source], *, layer: str | None, n_top_genes: int | None, **settings: Any
) -> dict[str, Any]:
    """Say what the store is made of, in kinds that every anndata can write; what is None is left out."""
    record = {
        "sources": np.array([source.path.name for source in sources], dtype=object),
        "n_obs": np.array([source.n_obs for source in sources]),
        "scr2mae_version": version("scr2mae"),
        "anndata_version": version("anndata"),
        "layer": layer,
        "n_top_genes": n_top_genes,
        **settings,
    }
    return {key: value for key, value in record.items() if value is not None}
