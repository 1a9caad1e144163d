"""Images in memory, or in files that are decoded when a mini-batch is asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from scr2mae._utils.optional import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["ImageArray", "ImageFiles", "ImageFolder", "Images"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Images(Protocol):
    """Images that training takes: a length, labels or None, and a mini-batch of the images at some positions."""

    labels: Tensor | None

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return ``"image"``, float32 in [0, 1], shape (n, n_channels, height, width), and maybe ``"label"``.

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
        Shape (n_obs, height, width) or (n_obs, height, width, n_channels); uint8, or floats in [0, 1].
    labels
        Classes, shape (n_obs,), or attributes, shape (n_obs, n_attributes); None without.

    Raises
    ------
    ValueError
        If shapes or values do not fit, or there is no image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None) -> None:
        images = np.asarray(images)
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
            raise ValueError(
                "images must have shape (n_obs, height, width) or (n_obs, height, width, n_channels) with 1, 3 or 4 "
                f"channels, got {images.shape}."
            )
        if not len(images):
            raise ValueError("There is no image; expected at least one.")
        if images.dtype != np.uint8:
            if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
                raise ValueError(
                    f"images must be uint8 or floats in [0, 1], got {images.dtype} from {images.min()} to {images.max()}."
                )
            images = images.astype(np.float32, copy=False)
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"There are {len(images)} images but {len(labels)} labels.")
        channels_last = images[..., None] if images.ndim == 3 else images
        self.images = torch.from_numpy(np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2)))
        self.labels = None if labels is None else torch.from_numpy(np.array(labels, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the images at ``indices``, in [0, 1], and their labels.

        Parameters
        ----------
        indices
            Positions of the images, shape (n,).
        """
        where = torch.from_numpy(np.asarray(indices))
        images = self.images[where]
        tensors = {"image": images if images.is_floating_point() else images.float() / 255}
        if self.labels is not None:
            tensors["label"] = self.labels[where]
        return tensors


class ImageFiles:
    """Images decoded from files, by Pillow.

    Parameters
    ----------
    paths
        The files.
    labels
        Classes, shape (n_obs,), or attributes, shape (n_obs, n_attributes); None without.
    size
        Side of the square that each image becomes: its shorter side is scaled to that, and the center kept.
    n_channels
        3 for RGB, 1 for gray.
    """

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
        """Return the images at ``indices``, in [0, 1], and their labels.

        Parameters
        ----------
        indices
            Positions of the images, shape (n,).
        """
        images = np.stack([self._read(self.paths[i]) for i in indices])
        tensors = {"image": torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255}
        if self.labels is not None:
            tensors["label"] = self.labels[torch.from_numpy(np.asarray(indices))]
        return tensors

    def _read(self, path: Path) -> np.ndarray:
        """Decode a file, scale its shorter side to ``size`` and keep the center; (size, size, n_channels)."""
        pillow = require("PIL.Image", extra="vision")
        try:
            with pillow.open(path) as file:
                image = file.convert("RGB" if self.n_channels == 3 else "L")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no image: {error}.") from error
        scale = self.size / min(image.size)
        width, height = (max(self.size, math.floor(side * scale + 0.5)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.resize((width, height), pillow.Resampling.BICUBIC)
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.n_channels)


class ImageFolder(ImageFiles):
    """Image files in a folder, of which each subfolder is a class; without subfolders there are no labels.

    Parameters
    ----------
    folder
        Where the images are.
    size
        Side of the square that each image becomes: its shorter side is scaled to that, and the center kept.
    n_channels
        3 for RGB, 1 for gray.
    classes
        Names of the classes in the order of their numbers, such as ``classes_`` of the training images; None takes the
        names of the subfolders in alphabetical order.

    Attributes
    ----------
    classes_
        Names of the classes.

    Raises
    ------
    FileNotFoundError
        If there is no folder or no image in it.
    ValueError
        If a subfolder is none of the classes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int = 224,
        n_channels: int = 3,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"No folder {root}.")
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not paths:
            raise FileNotFoundError(f"No image in {root}; expected files ending in {sorted(_SUFFIXES)}.")
        of_each = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
        found = sorted(set(of_each) - {""})
        if found and "" in of_each:
            raise ValueError(
                f"{root} has images both in subfolders and beside them; put each into its class."
            )
        self.classes_ = list(found if classes is None else classes)
        if unknown := [name for name in found if name not in self.classes_]:
            raise ValueError(
                f"{root} has the subfolders {unknown}, which are none of the classes {self.classes_}."
            )
        number = {name: i for i, name in enumerate(self.classes_)}
        labels = np.array([number[name] for name in of_each], dtype=np.int64) if found else None
        super().__init__(paths, labels, size=size, n_channels=n_channels)
