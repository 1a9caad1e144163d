"""Read conservation scores along a genome, such as phyloP and phastCons, from bigWig, wig or npy files."""

from __future__ import annotations

import math
import os
from array import array as packed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scr2mae._utils.files import as_path
from scr2mae.extra.dna.chromosomes import find_chrom
from scr2mae.extra.files import file_type, open_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ArrayTrack", "Track", "open_track"]


class Track(Protocol):
    """Track with one value per position of a genome."""

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 values of shape (end - start,), with NaN where there is no value.

        Parameters
        ----------
        chrom
            Name of the chromosome, with or without ``chr``.
        start, end
            Coordinates, 0-based and half-open.
        """
        ...


def _read_padded(read: Callable[[int, int], Any], first: int, last: int, start: int, end: int) -> np.ndarray:
    """Return the values from start to end, with NaN for positions outside first to last."""
    values = np.full(end - start, np.nan, dtype=np.float32)
    low, high = max(start, first), min(end, last)
    if low < high:
        values[low - start : high - start] = read(low, high)
    return values


class ArrayTrack:
    """Track in memory.

    Parameters
    ----------
    arrays
        Values of each chromosome, shape (n_positions,), with NaN where there is no value.
    starts
        0-based coordinate of the first value of each array; 0 if not given.

    Raises
    ------
    ValueError
        If an array is not one-dimensional.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, starts: Mapping[str, int] | None = None) -> None:
        self.arrays = {chrom: np.asarray(array, dtype=np.float32) for chrom, array in arrays.items()}
        for chrom, array in self.arrays.items():
            if array.ndim != 1:
                raise ValueError(
                    "A track must have shape (n_positions,), one value per position; "
                    f"{chrom} has shape {array.shape}."
                )
        self.starts = {chrom: int((starts or {}).get(chrom, 0)) for chrom in self.arrays}

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 values of shape (end - start,), with NaN outside the arrays.

        Parameters
        ----------
        chrom
            Name of the chromosome, with or without ``chr``.
        start, end
            Coordinates, 0-based and half-open.

        Raises
        ------
        KeyError
            If the chromosome is not in the track.
        """
        name = find_chrom(chrom, self.arrays, place="the track")
        array, first = self.arrays[name], self.starts[name]
        return _read_padded(
            lambda low, high: array[low - first : high - first], first, first + len(array), start, end
        )


class _BigWigTrack:
    """Track in a bigWig file, read with pyBigWig.

    Each process opens the file itself, because processes that share a file handle also share its position.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyBigWig  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                "Reading bigWig files requires pyBigWig; run pip install pyBigWig, or use a wig or npy file."
            ) from error
        self._path = str(path)
        self._file: Any = None
        self._process = -1
        self._lengths: dict[str, int] = dict(self._open().chroms())

    def _open(self) -> Any:
        """Return the open file, and open it first if this process has not done so yet."""
        import pyBigWig

        if self._process != os.getpid():
            message = f"{self._path} is damaged or not a bigWig file."
            try:
                self._file, self._process = pyBigWig.open(self._path), os.getpid()
            except RuntimeError as error:
                raise ValueError(message) from error
            if not self._file.isBigWig():
                raise ValueError(message)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": -1}

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 values of shape (end - start,), with NaN where there is no value."""
        name = find_chrom(chrom, self._lengths, place="the track")
        return _read_padded(
            lambda low, high: self._open().values(name, low, high), 0, self._lengths[name], start, end
        )


def _parse_number(text: str, place: str) -> float:
    """Parse a number, or raise a ValueError that names its place in the file."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{place}: expected a number, got {text.strip()[:40]!r}; the file is damaged or not a wig file."
        ) from None


def _parse_integer(text: str, place: str) -> int:
    """Parse a position, step or span, which must be an integer of at least 1."""
    value = _parse_number(text, place)
    if not math.isfinite(value) or value < 1 or value % 1:
        raise ValueError(
            f"{place}: positions, steps and spans must be integers >= 1, got {text.strip()[:40]!r}."
        )
    return int(value)


def _read_wig(path: Path) -> ArrayTrack:
    """Read the fixedStep and variableStep sections of a wig file."""
    positions: dict[str, packed[int]] = {}
    numbers: dict[str, packed[float]] = {}
    kind, chrom, position, step, width = "", "", 0, 1, 1
    with open_text(path, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            parts, place = line.split(), f"{path}, line {number}"
            if not parts or parts[0] in ("track", "browser") or parts[0].startswith("#"):
                continue
            if parts[0] in ("fixedStep", "variableStep"):
                options = dict(part.partition("=")[::2] for part in parts[1:])
                kind, chrom = parts[0], options.get("chrom", "")
                if not chrom or (kind == "fixedStep" and "start" not in options):
                    raise ValueError(f"{place}: {kind} lacks chrom= or start=.")
                position = _parse_integer(options.get("start", "1"), place) - 1
                step, width = (_parse_integer(options.get(name, "1"), place) for name in ("step", "span"))
                continue
            if len(parts) != (1 if kind == "fixedStep" else 2) or not kind:
                raise ValueError(
                    f"{place}: {line.strip()[:40]!r} is not a line of a {kind or 'wig'} section."
                )
            if kind == "variableStep":
                position = _parse_integer(parts[0], place) - 1
            value = _parse_number(parts[-1], place)
            positions.setdefault(chrom, packed("q")).extend(range(position, position + width))
            numbers.setdefault(chrom, packed("f")).extend([value] * width)
            position += step
    if not positions:
        raise ValueError(f"{path} contains no values; expected fixedStep or variableStep sections.")
    arrays, starts = {}, {}
    for name, stored in positions.items():
        indices = np.frombuffer(stored, dtype=np.int64)
        starts[name] = int(indices.min())
        arrays[name] = np.full(indices.max() + 1 - starts[name], np.nan, dtype=np.float32)
        arrays[name][indices - starts[name]] = np.frombuffer(numbers[name], dtype=np.float32)
    return ArrayTrack(arrays, starts=starts)


def open_track(path: str | Path, *, chrom: str | None = None, start: int = 0) -> Track:
    """Open a track such as phyloP or phastCons.

    Parameters
    ----------
    path
        File to open: ``.bw`` or ``.bigWig`` (requires pyBigWig), ``.wig`` or ``.wig.gz``, or ``.npy`` with
        one value per position of one chromosome.
    chrom, start
        Chromosome of a ``.npy`` file, and 0-based coordinate of its first value.

    Returns
    -------
    The track; ``track.values(chrom, start, end)`` reads its scores, with NaN where it has none.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged or has another type, or ``chrom`` is missing for ``.npy``.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No track {path}; check the path.")
    suffix = file_type(path)
    if suffix in (".bw", ".bigwig"):
        return _BigWigTrack(path)
    if suffix == ".wig":
        return _read_wig(path)
    if suffix == ".npy":
        if chrom is None:
            raise ValueError("A .npy file needs chrom=; pass the chromosome of its values.")
        try:
            return ArrayTrack({chrom: np.load(path, allow_pickle=False)}, starts={chrom: start})
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a .npy file with one value per position: {error}") from error
    raise ValueError(f"A track must be a .bw, .bigWig, .wig, .wig.gz or .npy file, got {path.name}.")
