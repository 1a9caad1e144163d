"""File formats: MNIST's idx files, CelebA as distributed, arrays in ``.npz`` files."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scr2mae._utils.files import as_path
from scr2mae._utils.untrusted import check_size
from scr2mae.extra.files import raise_if_damaged
from scr2mae.extra.vision.datasets import ImageArray, ImageFiles, ImageFolder

if TYPE_CHECKING:
    from scr2mae.extra.vision.datasets import Images

__all__ = ["CelebA", "image_splits", "open_images", "read_idx", "read_mnist"]

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MNIST_PREFIX = {"train": "train", "test": "t10k"}
_CELEBA_SPLITS = {"train": "0", "validation": "1", "test": "2"}
_SPLITS = tuple(_CELEBA_SPLITS)
_FOLDERS = {"validation": ("validation", "val")}  # torchvision and MAE have "val"


class CelebA(ImageFiles):
    """CelebA as distributed: ``img_align_celeba/``, ``list_attr_celeba.txt`` and ``list_eval_partition.txt``.

    Parameters
    ----------
    folder
        Folder with these files.
    split
        ``"train"``, ``"validation"`` or ``"test"`` of the official split.
    size
        Side of the square images (64: inferred).

    Attributes
    ----------
    attributes_
        Names of the 40 attributes; labels are 0 or 1, shape (n_obs, 40).

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the split is unknown or a table is damaged.
    """

    def __init__(self, folder: str | Path, split: str = "train", *, size: int = 64) -> None:
        if split not in _CELEBA_SPLITS:
            raise ValueError(f"split must be one of {list(_CELEBA_SPLITS)}, got {split!r}.")
        root = as_path(folder)
        for name in ("img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"):
            if not (root / name).exists():
                raise FileNotFoundError(
                    f"No {name} in {root}; expected CelebA's aligned images and its two tables."
                )
        partition = dict(
            line.split()
            for line in (root / "list_eval_partition.txt").read_text().splitlines()
            if line.strip()
        )
        count, header, *rows = (root / "list_attr_celeba.txt").read_text().splitlines()
        self.attributes_ = header.split()
        table = [row.split() for row in rows if row.strip()]
        if len(table) != int(count) or any(len(row) != len(self.attributes_) + 1 for row in table):
            raise ValueError(
                f"{root / 'list_attr_celeba.txt'} is damaged: it announces {count} images of "
                f"{len(self.attributes_)} attributes each and has {len(table)} rows."
            )
        if outside := [row[0] for row in table if Path(row[0]).name != row[0]]:
            raise ValueError(
                f"{root / 'list_attr_celeba.txt'} names {outside[0]!r}, which is not a file of img_align_celeba."
            )
        kept = [row for row in table if partition.get(row[0]) == _CELEBA_SPLITS[split]]
        if not kept:
            raise ValueError(f"No image of the {split} split in {root}.")
        labels = (np.array([row[1:] for row in kept], dtype=np.int64) > 0).astype(np.int64)
        super().__init__(
            [root / "img_align_celeba" / row[0] for row in kept], labels, size=size, n_channels=3
        )


def read_idx(path: str | Path) -> np.ndarray:
    """Read an array in the idx format of MNIST, gzipped or not.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The array, with the dtype and shape that the file declares.

    Raises
    ------
    ValueError
        If the file has another format, is damaged, or its length is not the declared one.
    """
    with as_path(path).open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if is_packed else file
        with raise_if_damaged(path):
            dtype, shape = _read_idx_header(stream, path)
            n_bytes = math.prod(shape) * dtype.itemsize
            check_size(2 * n_bytes, f"The array of shape {shape} in {path}")
            # At most what the header declares is unpacked, and one byte to detect that there is more.
            content = stream.read(n_bytes + 1)
    if len(content) != n_bytes:
        held = f"{len(content)} bytes" if len(content) < n_bytes else "more"
        raise ValueError(f"{path} declares the shape {shape}, but contains {held} of data.")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_idx_header(stream: Any, path: str | Path) -> tuple[np.dtype, tuple[int, ...]]:
    """Read the type and the shape of an idx file."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
        raise ValueError(f"{path} is not an idx file: it does not begin with an idx header.")
    n_dims = magic[3]
    sizes = stream.read(4 * n_dims)
    if len(sizes) < 4 * n_dims:
        raise ValueError(f"{path} ends within its header.")
    return np.dtype(_IDX_TYPES[magic[2]]), struct.unpack(f">{n_dims}I", sizes)


def read_mnist(folder: str | Path, split: str = "train") -> ImageArray:
    """Read MNIST, or a set in its format, from idx files, gzipped or not.

    Parameters
    ----------
    folder
        Folder with ``train-images-idx3-ubyte`` and so on.
    split
        ``"train"`` or ``"test"``.

    Returns
    -------
    Images of shape (n_obs, 1, height, width), with labels.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the split is unknown or a file is damaged.
    """
    if split not in _MNIST_PREFIX:
        raise ValueError(f"split must be one of {list(_MNIST_PREFIX)}, got {split!r}.")
    prefix = _MNIST_PREFIX[split]
    return ImageArray(
        *(_find_idx(as_path(folder), f"{prefix}-{what}") for what in ("images-idx3", "labels-idx1"))
    )


def _find_idx(folder: Path, stem: str) -> np.ndarray:
    names = [f"{stem}-ubyte", f"{stem}-ubyte.gz", f"{stem}-ubyte".replace("-idx", ".idx")]
    for name in names:
        if (folder / name).is_file():
            return read_idx(folder / name)
    raise FileNotFoundError(f"No {names[0]} in {folder}, gzipped or not.")


def image_splits(path: str | Path) -> list[str]:
    """Return which of the splits ``train``, ``validation`` and ``test`` there are; an empty list without splits.

    Parameters
    ----------
    path
        As in :func:`open_images`.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    """
    place = as_path(path)
    if not place.exists():
        raise FileNotFoundError(f"No file or folder {place}.")
    if place.suffix == ".npz":
        with np.load(place, allow_pickle=False) as arrays:
            return [split for split in _SPLITS if f"x_{split}" in arrays]
    if (place / "list_attr_celeba.txt").is_file():
        return list(_SPLITS)
    if any(place.glob("*-images?idx3-ubyte*")):
        return [
            split for split in _MNIST_PREFIX if any(place.glob(f"{_MNIST_PREFIX[split]}-images?idx3-ubyte*"))
        ]
    found = [split for split in _SPLITS if _folder(place, split).is_dir()]
    return found if "train" in found else []


def _folder(place: Path, split: str) -> Path:
    """Return the subfolder of a split, the first of its names that exists."""
    names = _FOLDERS.get(split, (split,))
    return next((place / name for name in names if (place / name).is_dir()), place / split)


def open_images(path: str | Path, *, split: str | None = None, **options: Any) -> Images:
    """Open images of any supported format: MNIST's idx files, CelebA, an ``.npz`` file or a folder of image files.

    Parameters
    ----------
    path
        A folder; or an ``.npz`` file with the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or ``x`` and,
        with labels, ``y``).
    split
        ``"train"``, ``"validation"`` or ``"test"``; a folder of image files is split by subfolders of these names, or
        ``val``. None opens images that are not split.
    options
        ``size`` and further arguments for images in files; arrays are used as they are.

    Returns
    -------
    The images; files are decoded for each mini-batch.

    Raises
    ------
    ValueError
        If the split does not exist, or a file is damaged.
    """
    place, splits = as_path(path), image_splits(path)
    if split is None and splits:
        raise ValueError(f"{place} has the splits {splits}; choose one with split=.")
    if split is not None and split not in splits:
        raise ValueError(f"{place} has no {split!r} split; it has {splits or 'images that are not split'}.")
    if place.suffix == ".npz":
        return _read_npz(place, "" if split is None else f"_{split}")
    if (place / "list_attr_celeba.txt").is_file():
        return CelebA(place, str(split), **options)
    if splits and not _folder(place, str(split)).is_dir():
        return read_mnist(place, str(split))
    return ImageFolder(place if split is None else _folder(place, split), **options)


def _read_npz(path: Path, suffix: str) -> ImageArray:
    with np.load(path, allow_pickle=False) as arrays:
        if f"x{suffix}" not in arrays:
            raise ValueError(f"{path} has the arrays {sorted(arrays)}; expected 'x', or 'x_train'.")
        wanted = [f"{name}.npy" for name in (f"x{suffix}", f"y{suffix}") if name in arrays]
        check_size(sum(arrays.zip.getinfo(name).file_size for name in wanted), f"Unpacked, {path}")
        return ImageArray(arrays[f"x{suffix}"], arrays.get(f"y{suffix}"))
