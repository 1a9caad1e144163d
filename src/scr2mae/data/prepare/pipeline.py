"""One shuffled store from several files of counts, with bounded memory."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae._utils.files import as_path
from scr2mae._utils.progress import progress
from scr2mae.data.columns import as_keys
from scr2mae.data.counts import find_invalid_count
from scr2mae.data.donors import Fingerprints
from scr2mae.data.genes import select_genes
from scr2mae.data.panels import MEASURED_COLUMN
from scr2mae.data.prepare.join import (
    align_sources,
    check_cells,
    join_obs,
    join_var,
    measured_table,
    report_genes,
)
from scr2mae.data.prepare.shuffle import RowShuffle
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
from scr2mae.data.preprocess import STATISTICS, invalid_count_error, moments, rank_genes

__all__ = ["prepare"]

logger = logging.getLogger(__name__)

# At the peak: a block with its copies in float64, or a bucket with its sorted copy.
_BYTES_PER_VALUE = 64


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
    prefix: str | Sequence[str] = (),
    seed: int = 0,
    memory_limit: float = 2.5e8,
    chunk_size: int = 1 << 18,
    overwrite: bool = False,
    progressbar: bool = True,
) -> Path:
    """Write the raw counts of the highly variable genes of several files into one store, with the cells shuffled.

    Files are read twice, block by block: first to validate the counts and rank the genes, then to copy the
    selected genes. Cells are shuffled on disk, so that a store of any size can be read in long runs of rows
    and yet in random order. The result is that of `preprocess` on the concatenated files, with the cells in
    another order.

    Parameters
    ----------
    paths
        ``.h5ad`` files or ``.zarr`` folders, with counts stored by cell (CSR) or dense; ``.h5`` files of Cell
        Ranger; or ``.h5mu`` files with a modality "rna". Genes are matched by name, ignoring versions of
        Ensembl ids.
    output
        Store to write, ending in ``.zarr`` (a folder) or ``.h5ad``.
    n_top_genes
        Number of highly variable genes to keep, >= 1; the paper keeps 5000. None keeps all.
    layer
        Layer with the counts; None for ``raw`` if there is one, else ``X``.
    min_genes
        Smallest number of detected genes per cell, among those kept, >= 0; other cells are dropped.
    target_sum
        Counts per cell to which cells are scaled for the ranking, see `highly_variable_genes`.
    join
        ``"inner"`` keeps genes that all files have, ``"outer"`` genes that any file has.
        ``varm["scr2mae_measured"]`` then records which genes each file has, so models do not treat the zeros of
        the others as measurements.
    file_key
        Column of ``obs`` with the file of each cell; None for no such column, with ``join="inner"``.
    prefix
        Columns of ``obs``, such as the donor, whose values are prefixed with the file, if equal names in two files
        are different people.
    seed
        Seed of the shuffle. The order of the cells depends only on the seed and the input order, not on
        ``memory_limit``.
    memory_limit
        Approximate bytes for blocks and buckets, in addition to ``obs`` and the libraries. For stores much larger
        than this, a higher limit means fewer and larger pieces.
    chunk_size
        Counts per chunk of the store, which is the unit of compression and reading.
    overwrite
        Whether to replace an existing store, once the new one is complete.
    progressbar
        Whether to show a progress bar; never shown if standard error is not a terminal.

    Returns
    -------
    Path of the store, which `anndata.read_zarr`, `anndata.read_h5ad` and `scr2mae.data.open_store` open. ``X`` has
    raw counts (CSR, float32), ``obs`` the columns of all files, ``var`` the annotation in the first file that has
    the gene, with ``means``, ``dispersions`` and ``dispersions_norm``; ``uns["scr2mae_store"]`` records the settings.
    Names of cells that occur more than once get the name of their file as a suffix.

    Raises
    ------
    FileExistsError
        If the output exists and ``overwrite`` is False.
    FileNotFoundError
        If an input, or the folder of the output, does not exist.
    KeyError
        If a file lacks the layer.
    OSError
        If the disk has too little free space.
    ValueError
        If values are not counts, files share no gene or disagree on the type of a column, or an argument is invalid.

    Notes
    -----
    Temporary files and the growing store are in a hidden folder next to the output, which is removed if the run fails.
    The store gets its name only when it is complete.
    """
    _check_arguments(n_top_genes, min_genes, target_sum, join, memory_limit, chunk_size)
    inputs = [as_path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    target = as_path(output).resolve()  # a link is followed
    check_output(target, inputs, overwrite=overwrite)
    with open_sources(inputs, layer=layer) as sources:
        n_obs = sum(source.n_obs for source in sources)
        names, columns = align_sources(sources, join=join)
        report_genes(sources, columns, join)
        measured = measured_table(sources, names, columns)
        is_complete = bool(measured.all(axis=None))
        if file_key is None and not is_complete:
            raise ValueError(
                "The files have different genes, and join='outer' needs file_key= to say which were measured in a cell."
            )
        keys = as_keys(prefix, "prefix")
        cells = check_cells(sources, keys)
        # Fails early; read again when no counts are in memory.
        n_renamed = join_obs(sources, file_key, keys)[1]
        if n_renamed:
            logger.warning(
                "%d names of cells occur more than once; they get their file as a suffix.", n_renamed
            )
        max_nnz = max(1, int(memory_limit / _BYTES_PER_VALUE))
        prints = Fingerprints(n_obs, len(names))
        blocks = _blocks(sources, columns, max_nnz, "check and rank", progressbar, prints=prints)
        var = join_var(sources, names, columns)
        sizes = np.array([source.n_obs for source in sources])
        n_measured = None if is_complete else measured.to_numpy() @ sizes
        var, genes = _select_genes(blocks, n_obs, var, n_top_genes, target_sum, n_measured=n_measured)
        prints.warn(cells)
        del cells, prints
        n_values = int(var.pop("n_cells").sum())
        spilled = RowShuffle.bytes_needed(n_obs, n_values, len(genes))
        check_space(target.parent, spilled + n_values * bytes_per_value(target))
        settings = {"seed": seed, "join": join, "min_genes": min_genes, "target_sum": target_sum}
        record = _record(sources, layer=layer, n_top_genes=n_top_genes, **settings)
        with work_folder(target) as folder:
            n_buckets = max(1, math.ceil(n_values * _BYTES_PER_VALUE / memory_limit))
            shuffle = RowShuffle(folder, n_buckets=n_buckets, n_vars=len(genes))
            columns = [column[genes] for column in columns]
            _spill(_blocks(sources, columns, max_nnz, "copy", progressbar), shuffle, min_genes, seed)
            part = folder / f"store{target.suffix}"
            with create_group(part) as group:
                buckets = progress(
                    shuffle.sorted_buckets(), desc="write", unit="bucket", total=n_buckets, show=progressbar
                )
                order = write_counts(group, buckets, n_vars=len(genes), chunk_size=chunk_size)
                obs = join_obs(sources, file_key, keys)[0].iloc[order]
                varm = {} if is_complete else {MEASURED_COLUMN: measured.iloc[genes]}
                write_tables(group, obs=obs, var=var, varm=varm, uns={"scr2mae_store": record})
            publish(part, target)
    logger.info("Wrote %d of %d cells and %d genes to %s.", len(order), n_obs, len(genes), output)
    return as_path(output)


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
    prints: Fingerprints | None = None,
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Read all files in blocks of cells, with their genes in one order; yields the index of the first cell too.

    With ``prints``, the counts are validated and fingerprints of the cells are added.
    """
    first = 0
    total = sum(source.n_obs for source in sources)
    with progress(total=total, desc=description, unit="cell", show=progressbar) as bar:
        for source, column in zip(sources, columns, strict=True):
            for start, block in source.blocks(max_nnz):
                if prints is not None and (found := find_invalid_count(block)):
                    cell = source.read_obs().index[start + found.row]
                    place = f"{source.path}, {source.element.name.strip('/')}: "
                    raise invalid_count_error(found, cell, source.var.index, place=place)
                selected = select_genes(block, column)
                if prints is not None:
                    prints.add(first + start, selected)
                yield first + start, selected
                bar.update(block.shape[0])
            first += source.n_obs


def _select_genes(
    blocks: Iterator[tuple[int, sp.csr_matrix]],
    n_obs: int,
    var: pd.DataFrame,
    n_top_genes: int | None,
    target_sum: float,
    *,
    n_measured: np.ndarray | None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the annotation of the selected genes, with their statistics and ``n_cells``, and their indices."""
    shape = n_obs, len(var)
    found = moments((block for _, block in blocks), shape, target_sum, n_measured=n_measured)
    ranking = rank_genes(*found, n_top_genes=n_top_genes or 1, var_names=var.index)
    genes = np.arange(len(var)) if n_top_genes is None else np.flatnonzero(ranking["highly_variable"])
    if not len(genes):
        raise ValueError("No gene varies between cells; expected counts in which some do.")
    statistics = {name: ranking[name].to_numpy()[genes] for name in (*STATISTICS, "n_cells")}
    return var.iloc[genes].assign(**statistics), genes


def _spill(
    blocks: Iterator[tuple[int, sp.csr_matrix]], shuffle: RowShuffle, min_genes: int, seed: int
) -> None:
    """Write the cells with enough genes to buckets by random keys, drawn as one stream whatever the size of the blocks."""
    rng = np.random.default_rng(seed)
    for first, block in blocks:
        keys = rng.random(block.shape[0])
        kept = np.flatnonzero(np.diff(block.indptr) >= min_genes)
        rows = block if len(kept) == block.shape[0] else block[kept]
        shuffle.add(rows, keys=keys[kept], positions=first + kept)
    if not shuffle.n_obs.any():
        raise ValueError(f"No cell has {min_genes} of the {shuffle.n_vars} genes detected; lower min_genes.")


def _record(
    sources: Sequence[Source], *, layer: str | None, n_top_genes: int | None, **settings: Any
) -> dict[str, Any]:
    """Describe the store in types that every anndata can write, so without None."""
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
