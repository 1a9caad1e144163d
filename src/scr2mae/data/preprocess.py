"""Preprocessing of the paper: raw counts of the highly variable genes, block by block and sparse throughout."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scr2mae._utils.progress import progress
from scr2mae._utils.untrusted import check_sparse
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import InvalidCount, find_invalid_count, layer_names

logger = logging.getLogger(__name__)

STATISTICS = ("means", "dispersions", "dispersions_norm")


def preprocess(
    adata: AnnData,
    *,
    n_top_genes: int = 5000,
    min_genes: int = 0,
    target_sum: float | None = 1e4,
    layer: str | None = None,
    chunk_size: int = 10_000,
    progressbar: bool = True,
) -> AnnData:
    """Keep the raw counts of the highly variable genes, and cells in which at least ``min_genes`` of them are detected.

    Genes are selected on all cells, as in Dong et al. (2025); cells are dropped afterwards.

    Parameters
    ----------
    adata
        AnnData in memory or backed; read in blocks of cells and never changed. Counts are read from ``adata.raw.X`` if
        there is a ``raw``, else from ``adata.X``.
    n_top_genes
        Number of highly variable genes to keep, >= 1; the paper keeps 5000.
    min_genes
        Smallest number of these genes detected per cell, >= 0; the paper drops HLCA cells below 20.
    target_sum
        Counts per cell to which cells are scaled for the ranking, see `highly_variable_genes`.
    layer
        Layer with the counts, instead of ``raw`` or ``X``.
    chunk_size
        Cells read at once, >= 1.
    progressbar
        Whether to show a progress bar; never shown if standard error is not a terminal.

    Returns
    -------
    New AnnData in memory: counts in ``X`` (CSR, float32), ``obs`` and ``obsm`` of the remaining cells, and the gene
    annotation of the counts with ``means``, ``dispersions`` and ``dispersions_norm``. Genes keep their order.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If the values are not counts, or no cell or gene remains.
    """
    if min_genes < 0:
        raise ValueError(f"min_genes must not be negative, got {min_genes}.")
    ranking = highly_variable_genes(
        adata,
        n_top_genes=n_top_genes,
        target_sum=target_sum,
        layer=layer,
        chunk_size=chunk_size,
        progressbar=progressbar,
    )
    counts, var = _counts_and_var(adata, layer)
    genes = np.flatnonzero(ranking["highly_variable"])
    n_stored = int(ranking["n_cells"].to_numpy()[genes].sum())
    logger.info("Keeping %d genes needs %.2f GB of memory.", len(genes), n_stored * 8 / 1e9)
    X, kept = _gather(
        _blocks(counts, chunk_size, "counts of the genes", progressbar), genes, n_stored, min_genes
    )
    if not kept.any():
        raise ValueError(f"No cell has {min_genes} of the {len(genes)} genes detected; lower min_genes.")
    logger.info("Kept %d of %d cells.", kept.sum(), len(kept))
    return AnnData(
        X=X,
        obs=adata.obs.loc[kept].copy(),
        # by position, since gene names may repeat
        var=var.iloc[genes].assign(**{name: ranking[name].to_numpy()[genes] for name in STATISTICS}),
        obsm={key: value[kept] for key, value in adata.obsm.items()},
    )


def highly_variable_genes(
    adata: AnnData,
    *,
    n_top_genes: int = 5000,
    target_sum: float | None = 1e4,
    layer: str | None = None,
    chunk_size: int = 10_000,
    progressbar: bool = True,
) -> pd.DataFrame:
    """Rank genes as Scanpy does by default, reading the counts once in blocks.

    The result is that of `scanpy.pp.normalize_total`, `scanpy.pp.log1p` and `scanpy.pp.highly_variable_genes`
    (flavor ``"seurat"``), which need several copies of the whole matrix.

    Parameters
    ----------
    adata, layer, chunk_size, progressbar
        As in `preprocess`.
    n_top_genes
        Number of genes to mark, >= 1. Genes that are never detected or never vary are not marked, even if fewer remain.
    target_sum
        Counts per cell after scaling, > 0. If None, the median over cells, which needs one more pass; that is
        the default of Scanpy, while 10,000 is used by the log-values of the CELLxGENE portal and by the
        tutorials. [The paper only states "Scanpy's defaults"; the flavor is inferred.]

    Returns
    -------
    One row per gene of the counts: ``means`` and ``dispersions`` (both on the log scale, as in Scanpy),
    ``dispersions_norm``, ``highly_variable`` (bool) and ``n_cells`` (cells in which the gene is detected).

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If the values are not counts, an argument is out of range, or there are fewer than two cells.

    Notes
    -----
    Satija et al. (2015), as implemented for ``flavor="seurat"``: the logarithm of variance over mean, centered
    and scaled within twenty bins of equal width in ``log1p(mean)``. A gene alone in its bin scores one.
    """
    if n_top_genes < 1:
        raise ValueError(f"n_top_genes must be at least 1, got {n_top_genes}.")
    if target_sum is not None and not target_sum > 0:
        raise ValueError(f"target_sum must be positive, got {target_sum}; None takes the median.")
    counts, var = _counts_and_var(adata, layer)
    if target_sum is None:
        sizes = _blocks(counts, chunk_size, "library sizes", progressbar)
        library = np.concatenate([np.asarray(block.sum(1)).ravel() for block in sizes])
        target_sum = float(np.median(library[library > 0])) if library.any() else 1.0
    blocks = _blocks(
        counts, chunk_size, "highly variable genes", progressbar, obs_names=adata.obs_names, genes=var.index
    )
    return rank_genes(
        *moments(blocks, counts.shape, target_sum), n_top_genes=n_top_genes, var_names=var.index
    )


def rank_genes(
    mean: np.ndarray, variance: np.ndarray, n_cells: np.ndarray, *, n_top_genes: int, var_names: pd.Index
) -> pd.DataFrame:
    """Rank genes by the results of `moments`; the table that `highly_variable_genes` returns."""
    table = _seurat_dispersions(mean, variance)
    ranked = np.argsort(-table["dispersions_norm"].to_numpy(), kind="stable")  # NaN comes last
    n_rankable = int(table["dispersions_norm"].notna().sum())
    if n_rankable < n_top_genes:
        logger.warning(
            "Only %d genes vary, fewer than n_top_genes=%d; keeping those.", n_rankable, n_top_genes
        )
    marked = np.zeros(len(var_names), dtype=bool)
    marked[ranked[: min(n_top_genes, n_rankable)]] = True
    return table.assign(highly_variable=marked, n_cells=n_cells).set_index(var_names)


def _counts_and_var(adata: AnnData, layer: str | None) -> tuple[Any, pd.DataFrame]:
    """Return the counts, as a matrix in memory or on disk that can be sliced by row, and their genes."""
    check_anndata(adata)
    if layer is not None:
        if layer not in adata.layers:
            raise KeyError(f"No {layer!r} in adata.layers; choose one of {layer_names(adata)}.")
        counts, var = adata.layers[layer], adata.var
    elif adata.raw is not None:
        counts, var = adata.raw.X, adata.raw.var
        if len(var) != adata.n_vars:
            logger.warning(
                "Reading the counts of adata.raw, with %d genes; X has %d. To work on them, start from "
                "adata.raw.to_adata().",
                len(var),
                adata.n_vars,
            )
    else:
        counts, var = adata.X, adata.var
    if counts is None:
        raise ValueError("The AnnData has no matrix in X; pass layer= or set adata.raw.")
    if min(counts.shape) == 0:
        raise ValueError(f"The counts are empty, shape {counts.shape}.")
    if getattr(counts, "format", None) == "csc":
        if not sp.issparse(counts):
            logger.warning(
                "The counts are stored by gene on disk; reading all of them. Convert the file to CSR."
            )
            counts = counts.to_memory()
        counts = counts.tocsr()
    return counts, var


def _blocks(
    counts: Any,
    chunk_size: int,
    description: str,
    progressbar: bool,
    *,
    obs_names: pd.Index | None = None,
    genes: pd.Index | None = None,
) -> Iterator[sp.csr_matrix]:
    """Read blocks of cells; validates the counts if the names of cells and genes are given."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    starts = range(0, counts.shape[0], chunk_size)
    for start in progress(starts, desc=description, unit="block", show=progressbar):
        block = read_block(counts, start, start + chunk_size)
        if obs_names is not None and genes is not None and (found := find_invalid_count(block)):
            raise invalid_count_error(found, obs_names[start + found.row], genes)
        yield block


def read_block(counts: Any, start: int, stop: int) -> sp.csr_matrix:
    """Read rows as CSR, float64, without stored zeros or duplicate entries."""
    block = sp.csr_matrix(counts[start:stop], dtype=np.float64)
    check_sparse(block)
    block.sum_duplicates()
    block.eliminate_zeros()
    return block


def invalid_count_error(
    found: InvalidCount, cell: str, var_names: pd.Index, *, place: str = ""
) -> ValueError:
    """Return the error that names an invalid count by cell and gene, and where raw counts usually are."""
    return ValueError(
        f"{place}Raw counts are non-negative integers, got {found.value} in cell {cell!r} and gene "
        f"{var_names[found.column]!r}. If the counts are in another layer, pass its name, such as layer='counts'."
    )


def moments(
    blocks: Iterator[sp.csr_matrix],
    shape: tuple[int, int],
    target_sum: float,
    *,
    n_measured: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and variance per gene of the scaled counts, and the number of cells in which each is detected.

    ``n_measured`` is the number of cells in which each gene was measured, (n_vars,); None for all cells.
    """
    n_obs, n_vars = shape
    if n_obs < 2:
        raise ValueError(f"Ranking genes by their variance needs at least 2 cells, got {n_obs}.")
    total, total_squares, n_cells = np.zeros(n_vars), np.zeros(n_vars), np.zeros(n_vars, dtype=np.int64)
    for block in blocks:
        library = np.asarray(block.sum(1)).ravel()
        block.data *= np.repeat(target_sum / np.where(library > 0, library, 1), np.diff(block.indptr))
        total += np.bincount(block.indices, weights=block.data, minlength=n_vars)
        total_squares += np.bincount(block.indices, weights=block.data**2, minlength=n_vars)
        n_cells += np.bincount(block.indices, minlength=n_vars)
    n: Any = n_obs if n_measured is None else np.maximum(n_measured, 2)
    mean = total / n
    variance = np.maximum(total_squares / n - mean**2, 0) * n / (n - 1)
    return mean, variance, n_cells


def _seurat_dispersions(mean: np.ndarray, variance: np.ndarray) -> pd.DataFrame:
    """Return dispersions of genes, normalized within bins of the mean (Satija et al. 2015)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = variance / mean
        dispersion = pd.Series(np.where(ratio > 0, np.log(ratio), np.nan))
    log_mean = np.log1p(mean)
    groups = dispersion.groupby(pd.cut(log_mean, bins=20, labels=False))
    center, spread = groups.transform("mean"), groups.transform("std")
    alone = spread.isna() & dispersion.notna()
    normalized = ((dispersion - center) / spread).where(~alone, 1.0)
    return pd.DataFrame({"means": log_mean, "dispersions": dispersion, "dispersions_norm": normalized})


def _gather(
    blocks: Iterator[sp.csr_matrix], genes: np.ndarray, n_stored: int, min_genes: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Copy the selected genes of cells with enough of them; returns the counts and which cells are kept."""
    data, indices = np.empty(n_stored, dtype=np.float32), np.empty(n_stored, dtype=np.int32)
    row_lengths, kept, filled = [], [], 0
    for block in blocks:
        block = block[:, genes]
        detected = np.diff(block.indptr)
        keep = detected >= min_genes
        block = block[keep]
        data[filled : filled + block.nnz] = block.data
        indices[filled : filled + block.nnz] = block.indices
        filled += block.nnz
        row_lengths.append(detected[keep])
        kept.append(keep)
    indptr = np.concatenate([[0], np.concatenate(row_lengths).cumsum(dtype=np.int64)])
    shape = (len(indptr) - 1, len(genes))
    return sp.csr_matrix((data[:filled], indices[:filled], indptr), shape=shape), np.concatenate(kept)
