"""Checks of files and folders, made before anything expensive starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scr2mae._utils.files import atomic_write, is_free

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "check_counts",
    "check_free",
    "check_input_file",
    "check_writable",
    "open_counts",
    "read_anndata",
    "replacing",
]


def check_input_file(path: Path) -> None:
    """Refuse what is no HDF5 file.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    IsADirectoryError
        If it is a folder.
    ValueError
        If it is a file of another kind.
    """
    import h5py

    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected an .h5ad file.")
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    with path.open("rb"):  # says so if it may not be read
        pass
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an HDF5 file; expected an AnnData written by write_h5ad.")


def check_counts(path: Path) -> None:
    """Refuse what is neither an HDF5 file nor a zarr store.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    IsADirectoryError
        If it is a folder of another kind.
    ValueError
        If it is a file of another kind.
    """
    if not path.is_dir():
        check_input_file(path)
    elif not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise IsADirectoryError(
            f"{path} is a folder without a zarr store; expected an .h5ad file or a .zarr store."
        )


def open_counts(path: Path) -> AnnData:
    """Open a file or a store of cells, counts left on disk.

    Raises
    ------
    ValueError
        If it is damaged or holds something else.
    """
    if not path.is_dir():
        return read_anndata(path, backed="r")
    from scr2mae.data import open_store

    return open_store(path)


def read_anndata(path: Path, *, backed: Literal["r"] | None = None) -> AnnData:
    """Read a file of cells; ``backed="r"`` leaves the counts on disk.

    Raises
    ------
    MemoryError
        If what is read of it takes more memory than is free.
    ValueError
        If it is damaged or holds something else.
    """
    import h5py
    from anndata import read_h5ad

    from scr2mae._utils.untrusted import UnsafeFileError, check_store

    try:
        with h5py.File(path) as file:
            check_store(file, path=path, left_on_disk=() if backed is None else ("X", "raw/X"))
        return read_h5ad(path, backed=backed)
    except (MemoryError, UnsafeFileError):
        raise
    except Exception as error:
        # Which exception a damaged or foreign file raises is a matter of where the reader stumbles.
        raise ValueError(
            f"{path} is damaged or not an AnnData file ({error}); expected one written by write_h5ad."
        ) from error


def check_free(path: Path, *, folder: bool, force: bool) -> None:
    """Refuse an output that is there already, or is of the wrong kind.

    Raises
    ------
    FileExistsError
        If it exists (a folder: with more in it than what a process that was killed has left) and ``force`` is False.
    IsADirectoryError, NotADirectoryError
        If a folder is where a file is wanted, or the other way round.
    """
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected a folder to write to. Choose another path.")
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a file to write to. Choose another path.")
    taken = path.is_dir() and not is_free(path) if folder else os.path.lexists(path)
    if taken and not force:
        state = "exists and is not empty" if folder else "exists"
        raise FileExistsError(f"{path} {state}; choose another path or pass --force.")


def check_writable(folder: Path) -> None:
    """Make sure that a folder, or the one it will be made in, can be written to.

    Raises
    ------
    NotADirectoryError
        If a part of the path is a file.
    PermissionError
        If nothing can be made there.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, so {folder} cannot be made; choose another path.")
    try:
        # Permission bits tell little of read-only and network file systems; making something does.
        with tempfile.TemporaryDirectory(dir=place, prefix=".scr2mae-"):
            pass
    except OSError as error:
        raise PermissionError(f"Cannot write to {place}: {error.strerror}. Choose another path.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, in the same folder; put it in place when the block ends well, else remove it.

    Raises
    ------
    OSError
        If it cannot be written, with what to do.
    """
    # Through a link the file that it names is replaced, not the link.
    with atomic_write(path.resolve()) as part:
        yield part
