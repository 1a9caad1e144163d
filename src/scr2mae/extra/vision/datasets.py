"""Images in memory, or in files that are decoded for each mini-batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from scr2mae._utils.files import as_path
from scr2mae._utils.optional import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["ImageArray", "ImageFiles", "ImageFolder", "Images"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Images(Protocol):
    """Data set of images, with a length, labels (or None) and mini-batches."""

    labels: Tensor | None

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the mini-batch of the given images, and their labels if there are any.

        ``"image"`` is float32 in [0, 1], shape (n, n_channels, height, width). ``"label"`` holds the labels.

        Parameters
        ----------
        indices
            Positions of the images, shape (n,).
        """
        ...


class ImageArray:
    """Images in memory.

    Parameters
    ----------
    images
        Images, shape (n_obs, height, width) or (n_obs, height, width, n_channels); uint8 or floats in [0, 1].
    labels
        Classes, shape (n_obs,), or attributes, shape (n_obs, n_attributes); None if unlabeled.

    Raises
    ------
    ValueError
        If shapes or values are invalid, or there are no images.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        images = np.asarray(images)
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
            raise ValueError(
                "images must have shape (n_obs, height, width) or (n_obs, height, width, n_channels) "
                f"with 1, 3 or 4 channels, got {images.shape}."
            )
        if not len(images):
            raise ValueError("There are no images; pass at least one.")
        if images.dtype != np.uint8:
            if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
                raise ValueError(
                    "images must be uint8 or floats in [0, 1], "
                    f"got {images.dtype} from {images.min()} to {images.max()}."
                )
            images = images.astype(np.float32, copy=False)
        if labels is not None and len(labels) != len(images):
            raise ValueError(
                f"There are {len(images)} images but {len(labels)} labels; pass one label per image."
            )
        channels_last = images[..., None] if images.ndim == 3 else images
        self.images = torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)))
        self.labels = None if labels is None else torch.from_numpy(np.array(labels, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the mini-batch of the given images, as described in :class:`Images`.

        Parameters
        ----------
        indices
            Positions of the images, shape (n,).
        """
        return _batch(self.images[torch.from_numpy(np.asarray(indices))], self.labels, indices)


class ImageFiles:
    """Image files decoded by Pillow, whose shorter side is scaled to ``size`` before a center crop."""

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray | None, *, size: int, n_channels: int
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        if n_channels not in (1, 3):
            raise ValueError(f"n_channels must be 1 (gray) or 3 (RGB), got {n_channels}.")
        self.paths, self.size, self.n_channels = list(paths), size, n_channels
        self.labels = None if labels is None else torch.from_numpy(labels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the mini-batch of the given images, as described in :class:`Images`.

        Parameters
        ----------
        indices
            Positions of the images, shape (n,).
        """
        images = np.stack([self._read(self.paths[i]) for i in indices])
        return _batch(torch.from_numpy(images).permute(0, 3, 1, 2), self.labels, indices)

    def _read(self, path: Path) -> np.ndarray:
        """Decode a file into a uint8 array of shape (size, size, n_channels)."""
        pillow = require("PIL.Image", extra="vision")
        try:
            with pillow.open(path) as file:
                image = file.convert("RGB" if self.n_channels == 3 else "L")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged or not an image: {error}.") from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, math.floor(side * scale + 0.5)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), pillow.Resampling.BICUBIC)
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.n_channels)


def _batch(images: Tensor, labels: Tensor | None, indices: np.ndarray) -> dict[str, Tensor]:
    tensors = {"image": images if images.is_floating_point() else images.float() / 255}
    if labels is not None:
        tensors["label"] = labels[torch.from_numpy(np.asarray(indices))]
    return tensors


class ImageFolder(ImageFiles):
    """Image files in a folder with one subfolder per class; without subfolders, images have no labels.

    Parameters
    ----------
    folder
        Folder with the images.
    size
        Side length of the square images. The shorter side is scaled to it, then a center crop is taken.
    n_channels
        3 for RGB, 1 for gray.
    classes
        Names of the classes in the order of their labels, such as ``classes_`` of the training images. None
        uses the names of the subfolders in alphabetical order.

    Attributes
    ----------
    classes_
        Names of the classes.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist or contains no images.
    ValueError
        If a subfolder is not one of the classes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int = 224,
        n_channels: int = 3,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = as_path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"No folder {root}; pass a folder of images.")
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not paths:
            raise FileNotFoundError(f"No images in {root}; expected files ending in {sorted(_SUFFIXES)}.")
        names = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
        found = sorted(set(names) - {""})
        if found and "" in names:
            raise ValueError(
                f"{root} has images both inside and outside subfolders; move each to the folder of its class."
            )
        self.classes_ = list(found if classes is None else classes)
        if unknown := [name for name in found if name not in self.classes_]:
            raise ValueError(
                f"{root} has the subfolders {unknown}, which are not among the classes {self.classes_}; "
                "add them to classes or move them."
            )
        number = {name: i for i, name in enumerate(self.classes_)}
        labels = np.array([number[name] for name in names], dtype=np.int64) if found else None
        super().__init__(paths, labels, size=size, n_channels=n_channels)
