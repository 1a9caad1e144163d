"""Atomic writes of files and folders, leftovers of killed writers, and errors of the disk.

Only the standard library is imported, so that the command line can check paths before it loads anything heavy.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "DATA_FILE",
    "RUN_FILE",
    "RUN_SCHEMA_VERSION",
    "as_path",
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

# A name that starts with a dot and has "part" as a word: unfinished models, embeddings, checkpoints, results, stores.
_LEFTOVER = re.compile(r"\..+\.part(\..*)?")
DATA_FILE = re.compile(r"adata-[0-9a-f]{32}\.h5ad")
_WEIGHTS = re.compile(r"weights-[0-9a-f]{64}\.safetensors")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOTDIR, errno.ENOENT),
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def as_path(place: str | os.PathLike[str]) -> Path:
    """Return a path that a user has given, with ``~`` and ``~name`` as the home folder."""
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"No home folder for {os.fspath(place)!r}; give the whole path.") from error


def is_leftover(path: Path) -> bool:
    """Return whether this is an unfinished file or folder, of a killed writer or of one still at work."""
    return _LEFTOVER.fullmatch(path.name) is not None


def is_free(folder: Path) -> bool:
    """Return whether a folder contains only what killed writers have left, weights without an index included."""
    unfinished = (_WEIGHTS, DATA_FILE)
    return all(
        is_leftover(item) or any(name.fullmatch(item.name) for name in unfinished)
        for item in folder.iterdir()
    )


def _errno(error: BaseException) -> int | None:
    """Return the errno of an error, which HDF5 gives only in its message."""
    found = re.search(r"errno = (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    # PyTorch's writer raises an error of its own after the one of the file.
    behind = error.__context__ if isinstance(error, RuntimeError) else None
    return number or (None if behind is None else _errno(behind))


def cannot_write(path: Path, error: Exception) -> OSError:
    """Return an error of the same kind that says what could not be written, where, and what to do."""
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
    return OSError(number, f"Cannot write {path} ({reason}). {advice}; existing files were not changed.")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, where system and disk have advisory locks."""
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
    """Re-raise disk errors of ``part`` with ``path`` in the message; other errors propagate unchanged."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _is_of(error, part):
            raise
        raise cannot_write(path, error) from error


def _is_of(error: BaseException, part: Path) -> bool:
    """Return whether an error is a disk error about ``part`` or its folder."""
    given = (getattr(error, name, None) for name in ("filename", "filename2"))
    named = [str(name) for name in given if name is not None]
    is_own = not named or any(name == str(part.parent) or name.startswith(str(part)) for name in named)
    return is_own and _errno(error) in _OF_THE_DISK


@contextmanager
def atomic_write(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, which is made; rename it on success, delete it on error.

    ``part`` is another temporary path; the default is a name that :func:`is_leftover` recognizes.
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
    """Write files, then rename them into place in the order given once all are on the disk; on error none is left."""
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
    """Write the entries of a folder to disk, so that they survive a power loss."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(first: Path, second: Path) -> bool:
    """Swap two files or folders on one disk atomically; return False, without changes, if that is not possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # a C library without it
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def run_document(runs: Sequence[dict[str, Any]], *, weights: str | None = None) -> bytes:
    """Return the content of ``run.json``: records of runs, the latest last, and the hash of the weights if known."""
    whole = {
        "format": "scr2mae.run",
        "schema_version": RUN_SCHEMA_VERSION,
        "weights": weights,
        "runs": list(runs),
    }
    return json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
