"""Files that are whole or not there: written beside their place, then renamed; what killed writers leave behind.

Standard library alone, so that the command line can ask before it loads anything heavy.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "RUN_FILE",
    "RUN_SCHEMA_VERSION",
    "atomic_write",
    "cannot_write",
    "clear_errors",
    "exchange",
    "folder_lock",
    "is_free",
    "is_leftover",
    "run_document",
    "sync_folder",
    "write_durably",
]

RUN_FILE = "run.json"
RUN_SCHEMA_VERSION = 1

# Hidden, with "part" as a word of its own: parts of models, embeddings, checkpoints, results and stores.
_LEFTOVER = re.compile(r"\..+\.part(\..*)?")
_WEIGHTS = re.compile(r"weights-[0-9a-f]{64}\.safetensors")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOTDIR, errno.ENOENT),
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def is_leftover(path: Path) -> bool:
    """Whether this is the unfinished file or folder of a writer that was killed, or of one still at work."""
    return _LEFTOVER.fullmatch(path.name) is not None


def is_free(folder: Path) -> bool:
    """Whether nothing is in a folder but what killed writers have left, weights without metadata among them."""
    items = list(folder.iterdir())
    has_model = any(item.name == "model.json" for item in items)
    return not has_model and all(is_leftover(item) or _WEIGHTS.fullmatch(item.name) for item in items)


def _errno(error: BaseException) -> int | None:
    """Return the system's number of an error, which HDF5 has in its message alone."""
    found = re.search(r"errno = (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    # PyTorch's writer fails on its own account after the file has.
    behind = error.__context__ if isinstance(error, RuntimeError) else None
    return number or (None if behind is None else _errno(behind))


def cannot_write(path: Path, error: Exception) -> OSError:
    """Say what could not be written, where, and what to do.

    Parameters
    ----------
    path
        What was to be written.
    error
        What the system said.

    Returns
    -------
    An error of the same kind, to be raised from it.
    """
    number = _errno(error) or errno.EIO
    advice = {
        errno.ENOSPC: "The disk is full: free some room, or choose another folder",
        errno.EDQUOT: "The quota is used up: free some room, or choose another folder",
        errno.EFBIG: "The file is larger than allowed here: raise the limit, or choose another folder",
        errno.EROFS: "The disk is read-only: choose another folder",
        errno.EACCES: "You may not write there: choose another folder",
        errno.EPERM: "You may not write there: choose another folder",
    }.get(number, "Choose another folder")
    reason = os.strerror(number) if _errno(error) else str(error)
    return OSError(number, f"Cannot write {path} ({reason}). {advice}; what was there before is as it was.")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder, where system and disk have advisory locks."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)


@contextmanager
def clear_errors(path: Path, part: Path) -> Iterator[None]:
    """Say of a disk's errors what could not be written, and what to do.

    Parameters
    ----------
    path
        What is to be written, for the message.
    part
        The file or folder that is written to meanwhile; errors that name others pass as they are.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _is_of(error, part):
            raise
        raise cannot_write(path, error) from error


def _is_of(error: BaseException, part: Path) -> bool:
    """Whether a disk could not take ``part``."""
    given = (getattr(error, name, None) for name in ("filename", "filename2"))
    named = [str(name) for name in given if name is not None]
    is_own = not named or any(name == str(part.parent) or name.startswith(str(part)) for name in named)
    return is_own and _errno(error) in _OF_THE_DISK


@contextmanager
def atomic_write(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Give a path to write a file to, in the same folder; it takes its name when the block ends well, else goes.

    Parameters
    ----------
    path
        Where the file is to be; its folder is made.
    part
        Where it is written, in the same folder; None for a name that :func:`is_leftover` knows.

    Raises
    ------
    OSError
        If it cannot be written, with what to do.
    """
    part = part or path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with clear_errors(path, part):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_durably(contents: Mapping[Path, bytes]) -> None:
    """Put whole files in place, one after the other once all are on the disk, or leave what was there.

    Parameters
    ----------
    contents
        Path to content, in the order in which they take their names.

    Raises
    ------
    OSError
        If one cannot be written, with what to do.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    path = next(iter(contents))
    try:
        for path, part in parts.items():
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            part.replace(path)
    except BaseException as error:
        for part in parts.values():
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, so that at no moment either is missing.

    Parameters
    ----------
    first, second
        Files or folders on one disk.

    Returns
    -------
    False where system or disk cannot do so, and nothing has happened.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def run_document(runs: Sequence[dict[str, Any]], *, weights: str | None = None) -> bytes:
    """Return the content of ``run.json``.

    Parameters
    ----------
    runs
        Records of runs, the last one last, as :func:`scr2mae.train.provenance.fingerprint` returns them.
    weights
        Hash of the weights that they led to, where it is known.
    """
    whole = {
        "format": "scr2mae.run",
        "schema_version": RUN_SCHEMA_VERSION,
        "weights": weights,
        "runs": list(runs),
    }
    return json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
