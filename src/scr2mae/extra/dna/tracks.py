"""Conservation along a genome: phyloP and phastCons from bigWig, wig or npy."""

from __future__ import annotations

import math
import os
from array import array as packed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scr2mae.extra.dna.chromosomes import find_chrom
from scr2mae.extra.dna.text_files import open_text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ArrayTrack", "BigWigTrack", "Track", "open_track"]


class Track(Protocol):
    """A number a position."""

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 of shape (end - start,), NaN where there is none; coordinates are 0-based, half-open.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.
        start, end
            0-based, half-open.
        """
        ...


class ArrayTrack:
    """A track in memory.

    Parameters
    ----------
    arrays
        Chromosome to values, shape (n_positions,); NaN where there is none.
    starts
        Coordinate of each array's first value, 0-based, where it is not 0.

    Raises
    ------
    ValueError
        If an array is not one-dimensional.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, starts: Mapping[str, int] | None = None) -> None:
        self.arrays = {chrom: np.asarray(array, dtype=np.float32) for chrom, array in arrays.items()}
        for chrom, array in self.arrays.items():
            if array.ndim != 1:
                raise ValueError(f"A track has one number a position; {chrom} has shape {array.shape}.")
        self.starts = {chrom: int((starts or {}).get(chrom, 0)) for chrom in self.arrays}

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 of shape (end - start,), NaN outside the arrays.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.
        start, end
            0-based, half-open.

        Raises
        ------
        KeyError
            If there is no such chromosome.
        """
        name = find_chrom(chrom, self.arrays)
        if name is None:
            raise KeyError(f"No chromosome {chrom!r} in the track; it has {list(self.arrays)[:12]}.")
        array, first = self.arrays[name], self.starts[name]
        found = np.full(end - start, np.nan, dtype=np.float32)
        low, high = max(start, first), min(end, first + len(array))
        if low < high:
            found[low - start : high - start] = array[low - first : high - first]
        return found


class BigWigTrack:
    """A track in a bigWig file, read through pyBigWig.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ImportError
        If pyBigWig is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged or no bigWig file.

    Notes
    -----
    Every process opens the file for itself: one handle has one place in the file, which processes would move for each other.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import pyBigWig  # noqa: F401
        except ModuleNotFoundError as error:
            raise ImportError(
                "Reading bigWig needs pyBigWig; pip install pyBigWig installs it. Wig and npy files need nothing more."
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(f"No bigWig file {path}.")
        self._path = str(path)
        self._file: Any = None
        self._process = -1
        self._lengths: dict[str, int] = dict(self._open().chroms())

    def _open(self) -> Any:
        import pyBigWig

        if self._process != os.getpid():
            wanted = "is damaged or no bigWig file."
            try:
                self._file, self._process = pyBigWig.open(self._path), os.getpid()
            except RuntimeError as error:
                raise ValueError(f"{self._path} {wanted}") from error
            if not self._file.isBigWig():
                raise ValueError(f"{self._path} {wanted}")
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": -1}

    def values(self, chrom: object, start: int, end: int) -> np.ndarray:
        """Return float32 of shape (end - start,), NaN where there is none.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.
        start, end
            0-based, half-open.

        Raises
        ------
        KeyError
            If there is no such chromosome.
        """
        name = find_chrom(chrom, self._lengths)
        if name is None:
            raise KeyError(f"No chromosome {chrom!r} in the track; it has {list(self._lengths)[:12]}.")
        found = np.full(end - start, np.nan, dtype=np.float32)
        low, high = max(start, 0), min(end, self._lengths[name])
        if low < high:
            found[low - start : high - start] = self._open().values(name, low, high)
        return found


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{place}: expected a number, got {text.strip()[:40]!r}; the file is damaged or no wig."
        ) from None


def _whole(text: str, place: str) -> int:
    """Take a position, step or span."""
    value = _number(text, place)
    if not math.isfinite(value) or value < 1 or value % 1:
        raise ValueError(
            f"{place}: positions, steps and spans are whole numbers of at least 1, got {text.strip()[:40]!r}."
        )
    return int(value)


def _read_wig(path: Path) -> ArrayTrack:
    """Read fixedStep and variableStep sections."""
    positions: dict[str, packed[int]] = {}
    numbers: dict[str, packed[float]] = {}
    kind, chrom, position, step, width = "", "", 0, 1, 1
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            parts, place = line.split(), f"{path}, line {number}"
            if not parts or parts[0] in ("track", "browser") or parts[0].startswith("#"):
                continue
            if parts[0] in ("fixedStep", "variableStep"):
                options = dict(part.partition("=")[::2] for part in parts[1:])
                kind, chrom = parts[0], options.get("chrom", "")
                if not chrom or (kind == "fixedStep" and "start" not in options):
                    raise ValueError(f"{place}: {kind} lacks chrom= or start=.")
                position = _whole(options.get("start", "1"), place) - 1
                step, width = (_whole(options.get(name, "1"), place) for name in ("step", "span"))
                continue
            if len(parts) != (1 if kind == "fixedStep" else 2) or not kind:
                raise ValueError(
                    f"{place}: {line.strip()[:40]!r} does not belong in a {kind or 'wig'} section."
                )
            if kind == "variableStep":
                position = _whole(parts[0], place) - 1
            value = _number(parts[-1], place)
            positions.setdefault(chrom, packed("q")).extend(range(position, position + width))
            numbers.setdefault(chrom, packed("f")).extend([value] * width)
            position += step
    if not positions:
        raise ValueError(f"{path} holds no values; expected fixedStep or variableStep sections.")
    arrays, starts = {}, {}
    for name, stored in positions.items():
        where = np.frombuffer(stored, dtype=np.int64)
        starts[name] = int(where.min())
        arrays[name] = np.full(where.max() + 1 - starts[name], np.nan, dtype=np.float32)
        arrays[name][where - starts[name]] = np.frombuffer(numbers[name], dtype=np.float32)
    return ArrayTrack(arrays, starts=starts)


def open_track(path: str | Path, *, chrom: str | None = None, start: int = 0) -> Track:
    """Open a file of phyloP or phastCons.

    Parameters
    ----------
    path
        ``.bw`` or ``.bigWig`` (needs pyBigWig), ``.wig`` or ``.wig.gz``, or ``.npy`` with one value a position of one chromosome.
    chrom, start
        For ``.npy``: the chromosome, and the coordinate of the first value, 0-based.

    Returns
    -------
    The track.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If pyBigWig is needed and not installed.
    ValueError
        If the file is of another kind or damaged, or ``chrom`` is not given for ``.npy``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No track {path}.")
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix in (".bw", ".bigwig"):
        return BigWigTrack(path)
    if suffix == ".wig":
        return _read_wig(path)
    if suffix == ".npy":
        if chrom is None:
            raise ValueError("A .npy track needs chrom=, the chromosome that its values are of.")
        try:
            return ArrayTrack({chrom: np.load(path, allow_pickle=False)}, starts={chrom: start})
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no .npy file of one number a position: {error}") from error
    raise ValueError(f"A track is a .bw, .bigWig, .wig, .wig.gz or .npy file, got {path.name}.")
