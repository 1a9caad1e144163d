"""Writing an AnnData to disk piece by piece, whole or not at all."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import settings
from anndata.io import sparse_dataset, write_elem

from scr2mae._utils.files import clear_errors, exchange
from scr2mae.data.store import import_zarr

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
    """Refuse an output that cannot be made or must not be replaced.

    Raises
    ------
    FileExistsError
        If it exists and ``overwrite`` is False, or is something else than a store.
    FileNotFoundError
        If its folder does not exist.
    ValueError
        If it ends in neither ``.zarr`` nor ``.h5ad``, or is one of the inputs.
    """
    if output.suffix not in _SUFFIXES:
        raise ValueError(f"The output must end in .zarr (a folder) or .h5ad (one file), got {output}.")
    if output.suffix == ".zarr":
        import_zarr()
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"No folder {output.absolute().parent} to write {output.name} in; make it first."
        )
    for path in inputs:
        if output.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"The output {output} is, or holds, the input {path}; choose another path.")
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists; choose another path or pass overwrite=True (--force).")
    is_store = (
        any((output / name).is_file() for name in ("zarr.json", ".zgroup"))
        if output.is_dir()
        else h5py.is_hdf5(output)
    )
    if not is_store or output.is_dir() != (output.suffix == ".zarr"):
        raise FileExistsError(
            f"{output} is no AnnData and is not replaced; choose another path or remove it."
        )


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what the disk has no room for.

    Raises
    ------
    OSError
        If fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    logger.info("Needs up to %.2f GB of disk, %.2f GB are free.", needed / 1e9, free / 1e9)
    if free < needed:
        raise OSError(
            f"Not enough room in {folder}: up to {needed / 1e9:.2f} GB are needed, spilled rows included, and "
            f"{free / 1e9:.2f} GB are free. Write to another disk, or keep fewer genes."
        )


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Give a hidden folder beside the output, on the same disk; it is gone afterwards, whatever happens.

    A process that is killed leaves it. It is then named in a warning of the next run and otherwise ignored, since
    only its owner can tell that no other machine is at work in it.
    """
    prefix, suffix = f".{output.name}.", ".part"
    parent = output.absolute().parent
    for left in sorted(parent.glob(f"{escape(prefix)}*{suffix}")):
        logger.warning(
            "%s is of a run that was killed, or of one still at work; delete it if there is none.", left
        )
    place = tempfile.TemporaryDirectory(prefix=prefix, suffix=suffix, dir=parent)
    with place as folder, clear_errors(output, Path(folder)):
        yield Path(folder)


def publish(part: Path, output: Path) -> None:
    """Put a finished store in its place, which an older one may hold."""
    if not output.is_dir():
        part.replace(output)
        return
    if exchange(part, output):  # the older one now lies in the folder of work, which goes
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
    """Make the file or folder of an AnnData and open it for writing.

    A folder is of Zarr format 3 where anndata writes that (0.12 and later), else of format 2.
    """
    if path.suffix == ".h5ad":
        with h5py.File(path, mode="w") as file:
            yield file
        return
    options = {}
    if _at_least("zarr", 3):
        options = {"zarr_format": 3 if _at_least("anndata", 0, 12) else 2}
    with _without_shards():
        yield import_zarr().open_group(str(path), mode="w", **options)


def _without_shards() -> AbstractContextManager[None]:
    """Keep anndata from grouping chunks into shards, which are rewritten whole whenever a bucket is appended."""
    if "auto_shard_zarr_v3" in dir(settings):
        return settings.override(auto_shard_zarr_v3=False)
    return nullcontext()


def _at_least(package: str, *wanted: int) -> bool:
    return tuple(int(part) for part in version(package).split(".")[: len(wanted)]) >= wanted


def bytes_per_value(path: Path) -> int:
    """Return what a stored count takes at most, in bytes; zarr compresses."""
    return 8 if path.suffix == ".h5ad" else 4


def write_counts(
    group: Any, buckets: Iterable[tuple[sp.csr_matrix, np.ndarray]], *, n_vars: int, chunk_size: int
) -> np.ndarray:
    """Write ``X`` from blocks of rows.

    Parameters
    ----------
    group
        From `create_group`.
    buckets
        Rows (CSR, float32) and their positions.
    n_vars
        Columns.
    chunk_size
        Values per chunk.

    Returns
    -------
    Positions of all rows in the order written, int64, shape (n_obs,).
    """
    empty = sp.csr_matrix((0, n_vars), dtype=np.float32)
    # Offsets outgrow 32 bits, and later blocks are written with the type of the first.
    empty.indptr = empty.indptr.astype(np.int64)
    write_elem(group, "X", empty, dataset_kwargs={"chunks": (chunk_size,)})
    matrix = sparse_dataset(group["X"])
    positions = [np.empty(0, dtype=np.int64)]
    for rows, numbers in buckets:
        matrix.append(rows)
        positions.append(numbers)
        del rows  # before the next ones are read
    return np.concatenate(positions)


def write_tables(group: Any, *, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> None:
    """Write all but the counts; what makes it an AnnData comes last."""
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(group, name, {})
    write_elem(group, "uns", uns)
    write_elem(group, "var", var)
    write_elem(group, "obs", obs)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
