"""Checks of files and folders, made before anything expensive starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scr2mae._utils.files import atomic_write, is_free


def check_exists(*places: Path | None) -> None:
    """Raise unless every path that is given leads to a file or a folder."""
    for place in places:
        if place is not None and not place.exists():
            raise FileNotFoundError(f"No file or folder {place}.")


def _check_format(path: Path) -> None:
    """Raise for files and folders of cells in another format, with the line that converts them."""
    from scr2mae.data.formats import not_anndata

    if path.exists() and (advice := not_anndata(path)):
        raise ValueError(advice)


def check_input_file(path: Path) -> None:
    """Raise unless this is an HDF5 file."""
    import h5py

    from scr2mae.data.formats import is_zarr_folder

    _check_format(path)
    if path.is_dir():
        advice = f" Convert it once: anndata.read_zarr({str(path)!r}).write_h5ad('counts.h5ad')."
        advice = advice if is_zarr_folder(path) else ""
        raise IsADirectoryError(f"{path} is a folder; expected an .h5ad file.{advice}")
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    with path.open("rb"):  # raises if it may not be read
        pass
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an HDF5 file; expected an AnnData written by write_h5ad.")


def check_counts(path: Path) -> None:
    """Raise unless this is an HDF5 file or a zarr store."""
    from scr2mae.data.formats import is_zarr_folder

    _check_format(path)
    if not path.is_dir():
        check_input_file(path)
    elif not is_zarr_folder(path):
        raise IsADirectoryError(
            f"{path} is a folder without a zarr store; expected an .h5ad file or a .zarr store."
        )


def check_output(path: Path, *, folder: bool = False, force: bool) -> None:
    """Raise unless an output can be written, and replaces something only with ``force``."""
    check_free(path, folder=folder, force=force)
    check_writable(path if folder else path.parent)


def check_free(path: Path, *, folder: bool, force: bool) -> None:
    """Raise if the output exists and ``force`` is False, or if it is of the wrong kind.

    A folder that holds only what a killed process has left behind counts as free.
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
    """Raise unless a folder, or the one that it will be made in, can be written to."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, so {folder} cannot be made; choose another path.")
    try:
        # Permission bits do not tell whether a file system is read-only; creating something does.
        with tempfile.TemporaryDirectory(dir=place, prefix=".scr2mae-"):
            pass
    except OSError as error:
        raise PermissionError(f"Cannot write to {place}: {error.strerror}. Choose another path.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it on success, delete it on error."""
    # Through a link the file that it names is replaced, not the link.
    with atomic_write(path.resolve()) as part:
        yield part
