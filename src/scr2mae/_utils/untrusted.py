"""What is checked of a file before it is believed: it may come from anyone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scr2mae._utils.memory import free_memory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "UnsafeFileError",
    "check_codecs",
    "check_memory",
    "check_sparse",
    "check_store",
    "is_inside",
    "load_tensors",
    "read_json",
    "tensors_of",
]

LARGEST_JSON = 1 << 28
_DEEPEST_JSON = 64
_LARGEST_ATTRIBUTE = 1 << 24
_LEFT_ON_DISK = ("X", "layers", "raw/X")

# Codecs whose decoding moves bytes and does nothing else; numcodecs also has "pickle".
_CODECS = {
    *("adler32", "astype", "base64", "bitround", "blosc", "bytes", "bz2", "cast_value", "categorize", "crc32"),
    *("crc32c", "delta", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits"),
    *("pcodec", "quantize", "scale_offset", "sharding_indexed", "shuffle", "transpose", "vlen-array"),
    *("vlen-bytes", "vlen-utf8", "zfpy", "zlib", "zstd"),
}  # fmt: skip


class UnsafeFileError(ValueError):
    """A file holds what no file of its kind needs, such as a link to another file or code in place of data."""


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder itself, links followed.

    Parameters
    ----------
    path
        The file; it need not exist.
    folder
        The folder.
    """
    return path.resolve().is_relative_to(folder.resolve())


def check_memory(n_bytes: int, what: str) -> None:
    """Refuse what cannot be read into memory, before the system ends the process for trying.

    Parameters
    ----------
    n_bytes
        What it takes.
    what
        What it is, for the message.

    Raises
    ------
    MemoryError
        If less is free.
    """
    if n_bytes > (free := free_memory()):
        raise MemoryError(
            f"{what} takes {n_bytes / 1e9:,.1f} GB of memory, of which {free / 1e9:,.1f} GB are free. If that is more "
            "than it should hold, the file is damaged or not what it seems."
        )


def read_json(
    path: Path,
    *,
    largest: int = LARGEST_JSON,
    may_be_nan: Collection[str] = (),
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read JSON of a size, depth and kind that a file of this package may have.

    Parameters
    ----------
    path
        The file.
    largest
        Bytes at most.
    may_be_nan
        Entries of the outermost object in which numbers need not be finite.
    object_hook
        As in :func:`json.loads`.

    Returns
    -------
    The document.

    Raises
    ------
    ValueError
        If it is too large or too deep, no JSON, or holds NaN or infinity elsewhere.
    """
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path} has {size} bytes, more than any model needs; refusing to read it.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_hook=object_hook)
        checked = document
        if isinstance(document, dict):
            checked = {key: value for key, value in document.items() if key not in may_be_nan}
        _check_values(checked)
    except RecursionError:
        raise ValueError(f"{path} is nested deeper than any model needs; refusing to read it.") from None
    except ValueError as error:  # of text, of JSON or of its values
        raise ValueError(f"{path} is damaged: {error}. Restore the folder from a copy.") from error
    return document


def _check_values(value: Any, depth: int = 0) -> None:
    if depth > _DEEPEST_JSON:
        raise RecursionError
    if isinstance(value, dict):
        for item in value.values():
            _check_values(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds the number {value}, where only finite ones belong")
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError("it holds an array with NaN or infinity, where only finite numbers belong")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; its header is checked before any tensor is made.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Tensors by name.

    Raises
    ------
    FileNotFoundError
        If there is none.
    MemoryError
        If they do not fit.
    ValueError
        If it is damaged, or of another format.
    """
    check_memory(2 * path.stat().st_size, str(path))  # the bytes, and the tensors made of them
    return tensors_of(path.read_bytes(), path=path)


def tensors_of(content: bytes, *, path: Path) -> dict[str, Tensor]:
    """Take tensors out of the bytes of a safetensors file.

    Parameters
    ----------
    content
        All of it.
    path
        Where it is from, for messages.

    Returns
    -------
    Tensors by name.

    Raises
    ------
    ValueError
        If it is damaged, or of another format.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, or no safetensors file: {error!r}. Restore it from a copy."
        ) from error


def check_store(
    group: Any, *, path: str | os.PathLike[str], left_on_disk: Collection[str] = _LEFT_ON_DISK
) -> None:
    """Refuse an AnnData on disk that points to other files, would run code, or says that it is enormous.

    Parameters
    ----------
    group
        :class:`h5py.File` or :class:`zarr.Group`, open for reading.
    path
        Where it is, for messages.
    left_on_disk
        Matrices that are not read into memory.

    Raises
    ------
    MemoryError
        If what is read into memory does not fit.
    UnsafeFileError
        If it refers to another file, an attribute is enormous, or an array is encoded as code.
    """
    arrays = _hdf5_arrays(group, path) if isinstance(group, h5py.Group) else _zarr_arrays(group, path)
    needed = 0
    for name, n_bytes in arrays:
        place = name.removesuffix("/indptr")  # read whole, to find rows
        is_left = place == name and any(f"{name}/".startswith(f"{left}/") for left in left_on_disk)
        needed += 0 if is_left else n_bytes
    check_memory(needed, f"All but the counts of {path}" if left_on_disk else str(path))


def check_sparse(matrix: Any) -> None:
    """Refuse a sparse matrix that points outside itself, which SciPy would follow into memory of others.

    Parameters
    ----------
    matrix
        Compressed by row or column; other formats are checked by SciPy when they are made.

    Raises
    ------
    ValueError
        If the pointers do not rise from 0 to the number of entries, or an index lies outside.
    """
    if matrix.format not in ("csr", "csc"):
        return
    by_row = matrix.format == "csr"
    n_lines, n_places = matrix.shape if by_row else matrix.shape[::-1]
    ends, where = matrix.indptr, matrix.indices
    is_whole = len(ends) == n_lines + 1 and ends[0] == 0 and ends[-1] <= min(len(where), len(matrix.data))
    if not is_whole or (np.diff(ends) < 0).any():
        raise ValueError(
            f"The sparse matrix of shape {tuple(matrix.shape)} is damaged: its indptr does not rise from 0 to its "
            f"{len(where)} entries."
        )
    if len(where) and (where.min() < 0 or where.max() >= n_places):
        raise ValueError(
            f"The sparse matrix of shape {tuple(matrix.shape)} is damaged: its indices run from {where.min()} to "
            f"{where.max()}, outside its {'columns' if by_row else 'rows'}."
        )


def _hdf5_arrays(root: Any, path: Any) -> Iterator[tuple[str, int]]:
    """Name and bytes of every array; groups may be deep, or hold themselves."""
    seen, waiting = set(), [("", root)]
    while waiting:
        place, group = waiting.pop()
        _check_attributes(group, place, path)
        for key in group:
            name = f"{place}/{key}".lstrip("/")
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UnsafeFileError(
                    f"{path} holds no {name} but a link to another file, {link.filename!r}; refusing to follow it."
                )
            if isinstance(link, h5py.SoftLink):  # to a part of this file, which has its turn
                continue
            item = group[key]
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address not in seen:
                    seen.add(address)
                    waiting.append((name, item))
            elif isinstance(item, h5py.Dataset):
                _check_attributes(item, name, path)
                yield name, _hdf5_bytes(item, name, path)


def _hdf5_bytes(array: h5py.Dataset, name: str, path: Any) -> int:
    if array.external or array.is_virtual:
        raise UnsafeFileError(f"{name} of {path} is stored in other files; refusing to read them.")
    size = int(array.size or 0)
    if h5py.check_string_dtype(array.dtype) is not None and array.dtype.kind == "O":
        # What was never written is the fill value, once for every element.
        return size * (16 + len(array.fillvalue or b""))
    return size * array.dtype.itemsize


def _check_attributes(item: Any, name: str, path: Any) -> None:
    for key in item.attrs:
        about = item.attrs.get_id(key)
        n_bytes = math.prod(about.shape or ()) * about.dtype.itemsize
        if n_bytes > _LARGEST_ATTRIBUTE:
            raise UnsafeFileError(
                f"The attribute {key!r} of {name or 'the root'} in {path} has {n_bytes} bytes, more than any needs; "
                "refusing to read it."
            )


def _zarr_arrays(root: Any, path: Any) -> Iterator[tuple[str, int]]:
    import zarr

    for name, item in root.members(max_depth=None):
        if isinstance(item, zarr.Array):
            check_codecs(item, path=path)
            # A chunk is decoded whole, however little of it is in the array.
            check_memory(math.prod(item.chunks) * item.dtype.itemsize, f"A chunk of {name} in {path}")
            yield name, math.prod(item.shape) * item.dtype.itemsize


def check_codecs(array: Any, *, path: str | os.PathLike[str]) -> None:
    """Refuse a zarr array that is decoded by anything but a plain compressor or filter.

    Parameters
    ----------
    array
        The array; nothing of it is read.
    path
        Where it is, for messages.

    Raises
    ------
    UnsafeFileError
        If a codec is unknown, or is one that unpickles.
    """
    metadata = array.metadata.to_dict()
    names = list(_codec_names(metadata.get("codecs") or []))
    names += [each.codec_id for each in (*(getattr(array.metadata, "filters", None) or ()),)]
    compressor = getattr(array.metadata, "compressor", None)
    names += [] if compressor is None else [compressor.codec_id]
    if unknown := sorted({name for name in names if name.removeprefix("numcodecs.") not in _CODECS}):
        raise UnsafeFileError(
            f"{array.name} of {path} is encoded by {unknown}, which may run code when it is read; refusing. "
            "Write it again with zarr's own codecs."
        )


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield str(codec["name"])
        configuration = codec.get("configuration") or {}
        for inner in ("codecs", "index_codecs"):  # of shards
            yield from _codec_names(configuration.get(inner) or [])
