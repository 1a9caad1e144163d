"""Write an AnnData to disk piece by piece, completely or not at all."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from glob import escape
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import settings
from anndata.io import sparse_dataset, write_elem

from scr2mae._utils.files import clear_errors, exchange
from scr2mae.data.formats import is_zarr_folder

__all__ = [
    "bytes_per_value",
    "check_output",
    "check_space",
    "create_group",
    "publish",
    "work_folder",
    "write_counts",
    "write_tables",
]

logger = logging.getLogger(__name__)

_SUFFIXES = (".zarr", ".h5ad")


def check_output(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Raise if an output cannot be made or must not be replaced."""
    if output.suffix not in _SUFFIXES:
        raise ValueError(f"The output must end in .zarr (a folder) or .h5ad (one file), got {output}.")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"No folder {output.absolute().parent} to write {output.name} in; create it first."
        )
    for path in inputs:
        if output.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"The output {output} is, or holds, the input {path}; choose another path.")
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists; choose another path or pass overwrite=True.")
    is_store = is_zarr_folder(output) if output.is_dir() else h5py.is_hdf5(output)
    if not is_store or output.is_dir() != (output.suffix == ".zarr"):
        raise FileExistsError(
            f"{output} is not an AnnData and is not replaced; choose another path or remove it."
        )


def check_space(folder: Path, needed: int) -> None:
    """Raise if a disk has fewer free bytes than needed."""
    free = shutil.disk_usage(folder).free
    logger.info("Needs up to %.2f GB on disk, and %.2f GB are free.", needed / 1e9, free / 1e9)
    if free < needed:
        raise OSError(
            f"Not enough room in {folder}: up to {needed / 1e9:.2f} GB are needed, temporary files included, and "
            f"{free / 1e9:.2f} GB are free. Write to another disk, or keep fewer genes."
        )


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Yield a hidden folder next to the output, on the same disk, and remove it afterwards.

    A killed process leaves its folder. The next run logs its path in a warning and ignores it, since a process on
    another machine may still be using it.
    """
    prefix, suffix = f".{output.name}.", ".part"
    parent = output.absolute().parent
    for left in sorted(parent.glob(f"{escape(prefix)}*{suffix}")):
        logger.warning(
            "%s belongs to a run that was killed or is still active; delete it if no run is active.", left
        )
    place = tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=parent)
    with place as folder, clear_errors(output, Path(folder)):
        yield Path(folder)


def publish(part: Path, output: Path) -> None:
    """Rename a complete store to its final name, replacing an older one."""
    if not output.is_dir():
        part.replace(output)
        return
    if exchange(part, output):  # the older one is now in the work folder, which is removed
        return
    old = part.with_name(f"{part.name}.old")
    output.rename(old)
    try:
        part.rename(output)
    except BaseException:
        old.rename(output)
        raise


@contextmanager
def create_group(path: Path) -> Iterator[Any]:
    """Create an ``.h5ad`` file or a ``.zarr`` folder (format 3) and open it for writing."""
    if path.suffix == ".h5ad":
        with h5py.File(path, mode="w") as file:
            yield file
        return
    with _without_shards():
        yield zarr.open_group(str(path), mode="w", zarr_format=3)


def _without_shards() -> AbstractContextManager[None]:
    """Keep anndata from grouping chunks into shards, which would be rewritten for every bucket."""
    if "auto_shard_zarr_v3" in dir(settings):
        return settings.override(auto_shard_zarr_v3=False)
    return nullcontext()


def bytes_per_value(path: Path) -> int:
    """Return the maximum size of a stored count in bytes; zarr compresses."""
    return 8 if path.suffix == ".h5ad" else 4


def write_counts(
    group: Any, buckets: Iterable[tuple[sp.csr_matrix, np.ndarray]], *, n_vars: int, chunk_size: int
) -> np.ndarray:
    """Write ``X`` from blocks of rows and their positions; returns all positions in the order written."""
    empty = sp.csr_matrix((0, n_vars), dtype=np.float32)
    # Offsets may exceed 32 bits, and later blocks are written with the type of the first.
    empty.indptr = empty.indptr.astype(np.int64)
    write_elem(group, "X", empty, dataset_kwargs={"chunks": (chunk_size,)})
    matrix = sparse_dataset(group["X"])
    positions = [np.empty(0, dtype=np.int64)]
    for rows, numbers in buckets:
        matrix.append(rows)
        positions.append(numbers)
        del rows  # before the next ones are read
    return np.concatenate(positions)


def write_tables(
    group: Any,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: dict[str, Any],
    varm: dict[str, Any] | None = None,
) -> None:
    """Write everything except the counts; the attributes that mark an AnnData come last."""
    for name in ("layers", "obsm", "obsp", "varp"):
        write_elem(group, name, {})
    write_elem(group, "varm", varm or {})
    write_elem(group, "uns", uns)
    write_elem(group, "var", var)
    write_elem(group, "obs", obs)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
