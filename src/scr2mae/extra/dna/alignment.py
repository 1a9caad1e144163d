"""Alignments of a genome to other species, one array per chromosome: in memory, in Zarr, or read from MAF."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scr2mae._utils.files import as_path
from scr2mae._utils.untrusted import check_codecs
from scr2mae.extra.dna.alphabet import encode, reverse_complement
from scr2mae.extra.dna.chromosomes import find_chrom
from scr2mae.extra.dna.maf import read_maf

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["GenomeMSA", "row_slices"]

_ROWS_PER_SLICE = 1 << 20


def row_slices(first: int, last: int) -> Iterator[slice]:
    """Cut a range of rows into slices that fit in memory."""
    for start in range(first, last, _ROWS_PER_SLICE):
        yield slice(start, min(start + _ROWS_PER_SLICE, last))


class GenomeMSA:
    """Alignment of a reference genome to other species, addressed by the coordinates of the reference.

    Parameters
    ----------
    arrays
        Maps a chromosome to an array of shape (n_positions, 1 + n_species): bytes (``S1``) or ASCII codes (uint8), one row
        per position of the reference, the reference in the first column. Lower case means soft-masked. Any object that
        slices like an array is accepted; arrays in memory are checked at once, others as they are read.
    species
        Names of all columns, the reference first; None if unknown.
    starts
        Coordinate of each array's first row, 0-based; 0 if not given.

    Raises
    ------
    ValueError
        If shapes, names or symbols are wrong.

    Notes
    -----
    Chromosomes are found with and without a leading ``chr``.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        *,
        species: Sequence[str] | None = None,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        if not arrays:
            raise ValueError("An alignment needs at least one chromosome, got none.")
        self._arrays = dict(arrays)
        self.starts = {chrom: int((starts or {}).get(chrom, 0)) for chrom in self._arrays}
        self.species = None if species is None else tuple(str(name) for name in species)
        for chrom, array in self._arrays.items():
            if len(array.shape) != 2 or array.shape[1] < 1:
                raise ValueError(
                    f"The alignment of {chrom} must have shape (n_positions, 1 + n_species), got {tuple(array.shape)}."
                )
            if isinstance(array, np.ndarray):
                for rows in row_slices(0, len(array)):
                    encode(array[rows])
        widths = {int(array.shape[1]) for array in self._arrays.values()}
        if len(widths) > 1:
            raise ValueError(f"All chromosomes must have the same number of columns, got {sorted(widths)}.")
        self.n_columns = widths.pop()
        if self.species is not None and len(self.species) != self.n_columns:
            raise ValueError(
                f"species must name all {self.n_columns} columns, the reference first; got {len(self.species)} names."
            )

    @property
    def n_species(self) -> int:
        """Number of species besides the reference."""
        return self.n_columns - 1

    @property
    def chroms(self) -> list[str]:
        """Names of the chromosomes."""
        return list(self._arrays)

    def span(self, chrom: object) -> tuple[int, int]:
        """Return the range of coordinates that is covered, 0-based and half-open.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.
        """
        name = find_chrom(chrom, self._arrays, place="the alignment")
        return self.starts[name], self.starts[name] + int(self._arrays[name].shape[0])

    def get(self, chrom: object, start: int, end: int, strand: str = "+") -> np.ndarray:
        """Read a window.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.
        start, end
            Coordinates of the reference, 0-based and half-open.
        strand
            ``"+"``, or ``"-"`` for the reverse complement.

        Returns
        -------
        Bytes of shape (end - start, 1 + n_species), in their own case.

        Raises
        ------
        KeyError
            If the chromosome is not in the alignment.
        IndexError
            If the window extends beyond the alignment.
        ValueError
            If the strand is invalid or the window is empty.
        """
        name = find_chrom(chrom, self._arrays, place="the alignment")
        first, last = self.span(name)
        if strand not in ("+", "-"):
            raise ValueError(f"strand must be '+' or '-', got {strand!r}.")
        if end <= start:
            raise ValueError(f"A window needs start < end, got {start} and {end}.")
        if start < first or end > last:
            raise IndexError(
                f"{name}:{start}-{end} extends beyond the alignment, which covers {name}:{first}-{last}."
            )
        window = np.asarray(self._arrays[name][start - first : end - first])
        window = window if window.dtype == "S1" else np.ascontiguousarray(window).view("S1")
        return window if strand == "+" else reverse_complement(window)

    def tokens(self, chrom: object, start: int, end: int, strand: str = "+") -> np.ndarray:
        """Return a window as tokens, uint8 of shape (end - start, 1 + n_species).

        Parameters
        ----------
        chrom, start, end, strand
            As in :meth:`get`.
        """
        return encode(self.get(chrom, start, end, strand))

    def to_memory(self) -> GenomeMSA:
        """Return a copy with all arrays in memory, checked."""
        arrays = {chrom: np.asarray(array[:]) for chrom, array in self._arrays.items()}
        return GenomeMSA(arrays, species=self.species, starts=self.starts)

    def __repr__(self) -> str:
        n = sum(int(array.shape[0]) for array in self._arrays.values())
        return (
            f"GenomeMSA({n:,} positions on {self.chroms[:4]}, {self.n_species} species besides the reference)"
        )

    @classmethod
    def from_zarr(cls, path: str | Path, *, chroms: Iterable[str] | None = None) -> GenomeMSA:
        """Return the alignment in a Zarr group with one array per chromosome; windows are read on demand.

        Parameters
        ----------
        path
            Folder or ``.zip`` file, format 2 or 3, such as the published alignments of GPN-MSA. The group's attribute ``species`` and the
            arrays' attributes ``start`` are optional.
        chroms
            Chromosomes to open, with or without ``chr``; None for all.

        Raises
        ------
        FileNotFoundError
            If the path does not exist.
        KeyError
            If a chromosome is missing.
        ValueError
            If the path is not a Zarr group of arrays.
        """
        zarr: Any = import_module("zarr")
        path = as_path(path)
        if not path.exists():
            raise FileNotFoundError(f"No alignment at {path}.")
        try:
            store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
            group = zarr.open_group(store, mode="r")
            present = sorted(group.array_keys())
        except Exception as error:
            raise ValueError(f"{path} is not a readable Zarr group: {error}") from error
        if not present:
            raise ValueError(f"{path} contains no arrays; expected a Zarr group, one array per chromosome.")
        wanted = present if chroms is None else [find_chrom(chrom, present, place=path) for chrom in chroms]
        arrays = {chrom: group[chrom] for chrom in wanted}
        for array in arrays.values():
            check_codecs(array, path=path)
        starts = {chrom: int(array.attrs.get("start", 0)) for chrom, array in arrays.items()}
        return cls(arrays, species=group.attrs.get("species"), starts=starts)

    def to_zarr(self, path: str | Path, *, zarr_format: int = 3, rows_per_chunk: int = 512) -> None:
        """Write a Zarr group with one array of ASCII codes per chromosome.

        Parameters
        ----------
        path
            Folder to create.
        zarr_format
            2 or 3.
        rows_per_chunk
            Positions per chunk.

        Raises
        ------
        FileExistsError
            If the path exists.
        """
        zarr: Any = import_module("zarr")
        if as_path(path).exists():
            raise FileExistsError(f"{path} exists; choose another path.")
        group = zarr.open_group(as_path(path), mode="w", zarr_format=zarr_format)
        if self.species is not None:
            group.attrs["species"] = list(self.species)
        for chrom, source in self._arrays.items():
            chunks = (min(rows_per_chunk, source.shape[0]), self.n_columns)
            array = group.create_array(chrom, shape=source.shape, chunks=chunks, dtype="uint8")
            array.attrs["start"] = self.starts[chrom]
            for rows in row_slices(0, source.shape[0]):
                array[rows] = np.ascontiguousarray(source[rows]).view(np.uint8)

    @classmethod
    def from_numpy(
        cls, array: np.ndarray, *, chrom: str, start: int = 0, species: Sequence[str] | None = None
    ) -> GenomeMSA:
        """Return the alignment of one chromosome, or of a part of it, from an array.

        Parameters
        ----------
        array
            Shape (n_positions, 1 + n_species), as for the class.
        chrom
            Name of the chromosome.
        start
            Coordinate of the first row, 0-based.
        species
            Names of all columns, the reference first.
        """
        return cls({chrom: array}, species=species, starts={chrom: start})

    @classmethod
    def from_maf(
        cls,
        path: str | Path,
        *,
        reference: str | None = None,
        species: Sequence[str] | None = None,
        chroms: Iterable[str] | None = None,
    ) -> GenomeMSA:
        """Read a file in multiple alignment format (MAF), plain or gzipped, into memory.

        Parameters
        ----------
        path
            The file.
        reference
            Assembly that gives the coordinates, such as ``"hg38"``; None for that of the first row.
        species
            The other assemblies, in the order of the columns; None for all in order of appearance, which differs between
            files. For a trained network pass its ``species_``.
        chroms
            Chromosomes of the reference to read, with or without ``chr``; None for all.

        Returns
        -------
        Each chromosome from its first to its last aligned position. Positions outside all blocks are ``N``, species
        that are not aligned ``-``; insertions relative to the reference are dropped. Where blocks overlap the first
        wins, and within a block the first row of a species.

        Raises
        ------
        FileNotFoundError
            If the file does not exist.
        KeyError
            If the reference, a species or a chromosome is not in the file.
        ValueError
            If the file is damaged, truncated or not MAF; the message gives the line number.
        """
        arrays, starts, names = read_maf(path, reference=reference, species=species, chroms=chroms)
        return cls(arrays, species=names, starts=starts)
