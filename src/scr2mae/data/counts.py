"""Locate and validate raw counts, and convert them to CSR."""

from __future__ import annotations

from typing import Any, NamedTuple

import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from scr2mae._utils.once import warn_once
from scr2mae._utils.untrusted import check_sparse

__all__ = [
    "RAW_LAYER",
    "as_csr",
    "check_counts",
    "check_genes",
    "find_invalid_count",
    "get_counts",
    "layer_names",
    "move_counts",
    "named_layer",
    "place_of",
    "raw_counts",
    "take_rows",
    "warn_about_binary",
]

RAW_LAYER = "scr2mae_raw"
"""Layer of models that read ``adata.raw``; setup makes it, and it shares memory with ``raw`` if the genes are the same."""

_BLOCK = 1 << 24
_ROWS_LOOKED_AT = 100


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; anndata 0.13 counts ``X`` among them, under None."""
    return [name for name in adata.layers if name is not None]


def named_layer(layer: str | None, *, use_raw: bool) -> str | None:
    """Return the layer to read counts from: that of ``adata.raw`` if ``use_raw``, else the one given."""
    if not use_raw:
        return layer
    if layer not in (None, RAW_LAYER):
        raise ValueError(f"use_raw=True and layer={layer!r} name two matrices; give one of them.")
    return RAW_LAYER


def get_counts(adata: AnnData, layer: str | None, *, is_query: bool = False) -> Any:
    """Return ``adata.X`` or a layer as it is stored; for a query, errors say what to copy where."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"Expected cells and genes, got an empty AnnData ({adata.n_obs} x {adata.n_vars}).")
    if is_query and not _has_matrix(adata, layer):
        error = ValueError if layer in (None, RAW_LAYER) else KeyError
        absent = "adata.X is None" if layer is None else f"No {place_of(layer)}"
        raise error(f"{absent}, where the model reads counts; {_counts_elsewhere(adata, layer, is_query)}.")
    if layer is not None:
        if layer == RAW_LAYER and layer not in adata.layers:
            return raw_counts(adata)
        if layer not in adata.layers:
            raise KeyError(f"No {layer!r} in adata.layers; choose one of {layer_names(adata)} or layer=None.")
        return adata.layers[layer]
    if adata.X is None:
        raise ValueError(f"adata.X is None; name the layer of raw counts, one of {layer_names(adata)}.")
    return adata.X


def _has_matrix(adata: AnnData, layer: str | None) -> bool:
    if layer is None:
        return adata.X is not None
    return layer in adata.layers or (layer == RAW_LAYER and adata.raw is not None)


def raw_counts(adata: AnnData) -> Any:
    """Return ``adata.raw.X`` with the genes of ``adata``; it is not copied if these are all of its genes."""
    if adata.raw is None:
        raise ValueError(
            f"use_raw=True, but adata.raw is None; counts are elsewhere: X, or one of {layer_names(adata)}."
        )
    columns = adata.raw.var_names.get_indexer(adata.var_names)
    if (columns < 0).any():
        absent = adata.var_names[columns < 0][:5].tolist()
        raise ValueError(f"adata.raw lacks {int((columns < 0).sum())} genes of adata, such as {absent}.")
    matrix: Any = adata.raw.X
    if np.array_equal(columns, np.arange(matrix.shape[1])):
        return matrix
    matrix = matrix.to_memory() if isinstance(matrix, (CSRDataset, CSCDataset)) else matrix
    return matrix[:, columns] if sparse.issparse(matrix) else np.asarray(matrix)[:, columns]


def move_counts(adata: AnnData, source: str | None, target: str | None) -> AnnData:
    """Return the cells with the matrix at ``source`` as that at ``target``, None for ``X``; nothing is copied."""
    if source == RAW_LAYER and adata.raw is not None:
        counts, var = adata.raw.X, adata.raw.var  # with all of its genes
    else:
        counts, var = get_counts(adata, source), adata.var
    place: dict[str, Any] = {"X": counts} if target is None else {"layers": {target: counts}}
    return AnnData(obs=adata.obs, var=var, obsm=dict(adata.obsm), uns=dict(adata.uns), **place)


def place_of(layer: str | None) -> str:
    """Return the name of a matrix in messages."""
    if layer == RAW_LAYER:
        return "adata.raw.X"
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _holds_counts(matrix: Any) -> bool:
    """Return whether the first cells of a matrix have non-negative whole numbers, not all of them 0 or 1."""
    block = matrix[:_ROWS_LOOKED_AT]
    values = np.asarray(block.data if sparse.issparse(block) else block)
    with np.errstate(invalid="ignore"):
        return bool(
            values.size and (values >= 0).all() and (values == np.floor(values)).all() and values.max() > 1
        )


def _counts_elsewhere(adata: AnnData, layer: str | None, is_query: bool) -> str:
    """Return a message on the other matrices, which of them look like counts, and how to use them."""
    places: dict[str, tuple[str | None, Any]] = {
        f"adata.layers[{name!r}]": (name, adata.layers[name])
        for name in layer_names(adata)
        if name not in (layer, RAW_LAYER)
    }
    if layer is not None and adata.X is not None:
        places["adata.X"] = (None, adata.X)
    if adata.raw is not None and layer != RAW_LAYER:
        places["adata.raw"] = (RAW_LAYER, adata.raw.X)
    if not places:
        return (
            "this AnnData has neither layers nor raw. If the counts were normalized in place, read them again "
            "and keep them in a layer"
        )
    whole = {name: source for name, (source, matrix) in places.items() if _holds_counts(matrix)}
    found = f"whole numbers are in {' and '.join(whole)}" if whole else "none of them holds whole numbers"
    if whole:
        source = next(iter(whole.values()))
        found += f": write {_line_to_copy(source, layer) if is_query else _line_to_set_up(source)}"
    return f"here there are {', '.join(places)}; {found}"


def _line_to_set_up(source: str | None) -> str:
    argument = "use_raw=True" if source == RAW_LAYER else f"layer={source!r}"
    return f"R2MAEModel.setup_anndata(adata, {argument})"


def _line_to_copy(source: str | None, target: str | None) -> str:
    """Return the code that puts counts where a model reads them."""
    if target == RAW_LAYER:
        matrix = "X" if source is None else f"layers[{source!r}]"
        return f"adata.raw = anndata.AnnData(adata.{matrix}.copy(), var=adata.var)"
    if source == RAW_LAYER:  # raw may have other genes, so its table of genes comes along
        copy = "" if target is None else f"; adata.layers[{target!r}] = adata.X.copy()"
        return f"adata = adata.raw.to_adata(){copy}"
    return f"{place_of(target)} = {place_of(source)}.copy()"  # later steps may normalize one of them


def as_csr(matrix: Any) -> sparse.csr_matrix:
    """Return a dense, sparse or backed matrix as float32 CSR; shares memory if possible."""
    if isinstance(matrix, (CSRDataset, CSCDataset)):
        matrix = matrix.to_memory()
    if sparse.issparse(matrix):
        check_sparse(matrix)
        return sparse.csr_matrix(matrix, dtype=np.float32)
    if isinstance(matrix, (np.ndarray, h5py.Dataset, zarr.Array)):
        n_rows = max(1, _BLOCK // matrix.shape[1])
        blocks = [
            sparse.csr_matrix(np.asarray(matrix[i : i + n_rows], dtype=np.float32))
            for i in range(0, matrix.shape[0], n_rows)
        ]
        return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")
    if type(matrix).__module__.partition(".")[0] == "dask":
        raise TypeError(
            "The counts are a dask array; load them: adata.X = adata.X.compute(), or use scr2mae.data.open_store."
        )
    raise TypeError(
        f"Expected counts as a NumPy array, a SciPy sparse matrix or a backed one, got {type(matrix).__name__}."
    )


def take_rows(matrix: sparse.csr_matrix, indices: np.ndarray | slice) -> sparse.csr_matrix:
    """Return the given rows of a CSR matrix, at a cost that depends on these rows only.

    If ``indptr`` is int64 and ``indices`` int32, as in a very large matrix or one written in pieces, SciPy
    would convert all column indices at each call.
    """
    if matrix.indices.dtype == matrix.indptr.dtype:
        return matrix[indices]
    rows = np.arange(matrix.shape[0])[indices] if isinstance(indices, slice) else np.asarray(indices)
    starts = matrix.indptr[rows]
    lengths = matrix.indptr[rows + 1] - starts
    ends = np.cumsum(lengths)
    n_values = int(ends[-1]) if len(ends) else 0
    entries = np.arange(n_values) + np.repeat(starts - (ends - lengths), lengths)
    indptr = np.concatenate([[0], ends]).astype(matrix.indices.dtype if n_values < 1 << 31 else np.int64)
    return sparse.csr_matrix(
        (matrix.data[entries], matrix.indices[entries], indptr), shape=(len(rows), matrix.shape[1])
    )


def check_genes(adata: AnnData, *, at_least: int = 2) -> None:
    """Raise unless there are enough genes and their names are unique."""
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()[:5].tolist()
        raise ValueError(
            f"Gene names must be unique, but {repeated} occur more than once; "
            "call adata.var_names_make_unique() or merge them first."
        )
    if adata.n_vars < at_least:
        raise ValueError(f"Expected at least two genes, one to mask and one to keep; got {adata.n_vars}.")


def warn_about_binary(largest: float, layer: str | None, adata: AnnData) -> None:
    """Warn if no count is above one."""
    if largest == 1:
        warn_once(
            f"All counts in {place_of(layer)} are 0 or 1: detected or not, instead of how often. Pass the counts themselves.",
            adata,
            stacklevel=3,
        )


class InvalidCount(NamedTuple):
    """An entry of a matrix that is not a raw count."""

    row: int
    column: int
    value: float
    reason: str


def find_invalid_count(counts: sparse.csr_matrix, *, integers: bool = True) -> InvalidCount | None:
    """Return the first stored entry that is negative, not finite or, with ``integers``, fractional."""
    for start in range(0, len(counts.data), _BLOCK):
        block = counts.data[start : start + _BLOCK]
        with np.errstate(invalid="ignore"):
            invalid = ~np.isfinite(block) | (block < 0)
            if integers:
                invalid |= block != np.floor(block)
        if invalid.any():
            entry = start + int(invalid.argmax())
            value = counts.data[entry]
            reason = "not finite" if not np.isfinite(value) else "negative" if value < 0 else "fractional"
            row = int(np.searchsorted(counts.indptr, entry, side="right")) - 1
            return InvalidCount(row, int(counts.indices[entry]), value, reason)
    return None


def check_counts(
    counts: sparse.csr_matrix,
    adata: AnnData,
    layer: str | None,
    *,
    integers: bool = True,
    rows: np.ndarray | None = None,
    is_query: bool = False,
) -> None:
    """Raise unless all counts are non-negative, finite and (by default) integers.

    The error names the cell, the gene and where raw counts usually are; ``rows`` are the cells of ``adata``
    that the rows of ``counts`` belong to, by default all.
    """
    found = find_invalid_count(counts, integers=integers)
    if found is None:
        return
    cell = adata.obs_names[found.row if rows is None else rows[found.row]]
    gene = adata.var_names[found.column]
    note = ""
    if found.reason == "fractional":
        remedy = "set the model up with check_counts=False" if is_query else "pass check_counts=False"
        note = f" It looks normalized or log-transformed; for estimated counts (SoupX, CellBender), {remedy}."
    raise ValueError(
        f"Expected raw counts in {place_of(layer)}, got {found.value:g} ({found.reason}) at cell {cell!r}, gene {gene!r}. "
        f"Raw counts are usually in adata.layers['counts'] (layer='counts') or adata.raw; {_counts_elsewhere(adata, layer, is_query)}.{note}"
    )
