"""Validation of untrusted files: size, depth, links, codecs and indices, before anything is read."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scr2mae._utils.memory import check_memory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "UnsafeFileError",
    "check_codecs",
    "check_size",
    "check_sparse",
    "check_store",
    "is_indptr",
    "is_inside",
    "load_tensors",
    "parse_json",
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
    """A file contains something that valid files never do, such as a link to another file or executable code."""


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path lies in a folder after links are resolved; it need not exist."""
    return path.resolve().is_relative_to(folder.resolve())


def check_size(n_bytes: int, what: str) -> None:
    """Raise MemoryError if the content of a file does not fit in memory."""
    advice = "if it should not be that large, the file is damaged or not what it seems"
    check_memory(n_bytes, what, advice=advice)


def read_json(
    path: Path,
    *,
    largest: int = LARGEST_JSON,
    may_be_nan: Collection[str] = (),
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Read JSON whose size and nesting are limited and whose numbers are finite.

    Entries of the outermost object named in ``may_be_nan`` may hold NaN or infinity; ``object_hook`` is that of
    :func:`json.loads`.
    """
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path} has {size} bytes, more than any model needs; it was not read.")
    return parse_json(path.read_bytes(), path=path, may_be_nan=may_be_nan, object_hook=object_hook)


def parse_json(
    content: bytes,
    *,
    path: Path,
    may_be_nan: Collection[str] = (),
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Parse the bytes of a file as :func:`read_json` does; ``path`` is named in errors."""
    try:
        document = json.loads(content.decode("utf-8"), object_hook=object_hook)
        checked = document
        if isinstance(document, dict):
            checked = {key: value for key, value in document.items() if key not in may_be_nan}
        _check_values(checked)
    except RecursionError:
        raise ValueError(f"{path} is nested deeper than any model needs; it was not read.") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number that is not finite
        raise ValueError(f"{path} is damaged: {error}. Restore the folder from a copy.") from error
    return document


def _check_values(value: Any, depth: int = 0) -> None:
    """Raise for numbers that are not finite, and for values that are nested too deeply."""
    if depth > _DEEPEST_JSON:
        raise RecursionError
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_values(item, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it contains the number {value}, but numbers must be finite")
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError("it contains an array with NaN or infinity, but numbers must be finite")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name."""
    check_size(2 * path.stat().st_size, str(path))  # the bytes, and the tensors made of them
    return tensors_of(path.read_bytes(), path=path)


def tensors_of(content: bytes, *, path: Path) -> dict[str, Tensor]:
    """Parse the bytes of a safetensors file; ``path`` is named in errors."""
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, or not a safetensors file: {error!r}. Restore it from a copy."
        ) from error


def check_store(
    group: Any, *, path: str | os.PathLike[str], left_on_disk: Collection[str] = _LEFT_ON_DISK
) -> None:
    """Raise if an AnnData on disk links to other files, would run code, or does not fit in memory.

    ``group`` is an open :class:`h5py.File` or :class:`zarr.Group`; ``left_on_disk`` names matrices that are not loaded.
    """
    arrays = _hdf5_arrays(group, path) if isinstance(group, h5py.Group) else _zarr_arrays(group, path)
    needed = 0
    for name, n_bytes in arrays:
        place = name.removesuffix("/indptr")  # always loaded, to find rows
        is_left = place == name and any(f"{name}/".startswith(f"{left}/") for left in left_on_disk)
        needed += 0 if is_left else n_bytes
    check_size(needed, f"All but the counts of {path}" if left_on_disk else str(path))


def check_sparse(matrix: Any) -> None:
    """Raise unless the pointers and indices of a CSR or CSC matrix lie within it; SciPy would read out of bounds."""
    if matrix.format not in ("csr", "csc"):
        return
    by_row = matrix.format == "csr"
    n_lines, n_places = matrix.shape if by_row else matrix.shape[::-1]
    indptr, indices = matrix.indptr, matrix.indices
    if not is_indptr(indptr, n_lines) or indptr[-1] > min(len(indices), len(matrix.data)):
        raise ValueError(
            f"The sparse matrix of shape {tuple(matrix.shape)} is damaged: its indptr does not rise from 0 to its "
            f"{len(indices)} entries."
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= n_places):
        raise ValueError(
            f"The sparse matrix of shape {tuple(matrix.shape)} is damaged: its indices run from {indices.min()} to "
            f"{indices.max()}, outside its {'columns' if by_row else 'rows'}."
        )


def is_indptr(indptr: np.ndarray, n_lines: int) -> bool:
    """Return whether the pointers of a compressed sparse matrix rise from 0 over its rows or columns."""
    return len(indptr) == n_lines + 1 and indptr[0] == 0 and not (np.diff(indptr) < 0).any()


def _hdf5_arrays(root: Any, path: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and size in bytes of every array; groups may contain themselves."""
    seen, waiting = set(), [("", root)]
    while waiting:
        place, group = waiting.pop()
        _check_attributes(group, place, path)
        for key in group:
            name = f"{place}/{key}".lstrip("/")
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UnsafeFileError(
                    f"{name} of {path} is a link to another file, {link.filename!r}; it was not followed."
                )
            if isinstance(link, h5py.SoftLink):  # its target in this file is visited anyway
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
        raise UnsafeFileError(f"{name} of {path} is stored in other files; they were not read.")
    size = int(array.size or 0)
    if h5py.check_string_dtype(array.dtype) is not None and array.dtype.kind == "O":
        # Every element that was never written reads as a copy of the fill value.
        return size * (16 + len(array.fillvalue or b""))
    return size * array.dtype.itemsize


def _check_attributes(item: Any, name: str, path: Any) -> None:
    """Raise for HDF5 attributes that take too much memory."""
    for key in item.attrs:
        attribute = item.attrs.get_id(key)
        n_bytes = math.prod(attribute.shape or ()) * attribute.dtype.itemsize
        if n_bytes > _LARGEST_ATTRIBUTE:
            raise UnsafeFileError(
                f"The attribute {key!r} of {name or 'the root'} in {path} has {n_bytes} bytes, more than the limit; "
                "it was not read."
            )


def _zarr_arrays(root: Any, path: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and the size in bytes of each array; raise for unsafe codecs and chunks."""
    import zarr

    for name, item in root.members(max_depth=None):
        if isinstance(item, zarr.Array):
            check_codecs(item, path=path)
            # A chunk is decoded as a whole, even if the array covers little of it.
            check_size(math.prod(item.chunks) * item.dtype.itemsize, f"A chunk of {name} in {path}")
            yield name, math.prod(item.shape) * item.dtype.itemsize


def check_codecs(array: Any, *, path: str | os.PathLike[str]) -> None:
    """Raise if reading a zarr array needs a codec other than a plain compressor or filter."""
    metadata = array.metadata.to_dict()
    names = list(_codec_names(metadata.get("codecs") or []))
    names += [each.codec_id for each in (*(getattr(array.metadata, "filters", None) or ()),)]
    compressor = getattr(array.metadata, "compressor", None)
    names += [] if compressor is None else [compressor.codec_id]
    if unknown := sorted({name for name in names if name.removeprefix("numcodecs.") not in _CODECS}):
        raise UnsafeFileError(
            f"{array.name} of {path} is encoded by {unknown}, which may run code when it is read; it was not read. "
            "Write it again with zarr's own codecs."
        )


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield str(codec["name"])
        configuration = codec.get("configuration") or {}
        for inner in ("codecs", "index_codecs"):  # of shards
            yield from _codec_names(configuration.get(inner) or [])
