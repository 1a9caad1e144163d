"""Alignments of a genome to other species, one array a chromosome: in memory, on disk, or from MAF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scr2mae._utils.optional import require
from scr2mae._utils.untrusted import check_codecs
from scr2mae.extra.dna.alphabet import encode, reverse_complement
from scr2mae.extra.dna.chromosomes import find_chrom
from scr2mae.extra.dna.maf import read_maf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["GenomeMSA"]

_ROWS_AT_A_TIME = 1 << 20


class GenomeMSA:
    """Alignment of a reference genome to other species, addressed by the reference's coordinates.

    Parameters
    ----------
    arrays
        Chromosome to an array of shape (n_positions, 1 + n_species): bytes (``S1``) or ASCII codes (uint8), the reference
        in the first column, one row a position of the reference. Lower case means soft-masked. Anything that slices like
        an array will do; what is in memory is checked at once, the rest when it is read.
    species
        Names of all columns, the reference first; None if unknown.
    starts
        Coordinate of each array's first row, 0-based, where it is not 0.

    Raises
    ------
    ValueError
        If shapes, names or symbols are wrong.

    Notes
    -----
    A chromosome is found with and without a leading ``chr``.
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
        widths = set()
        for chrom, array in self._arrays.items():
            if len(array.shape) != 2 or array.shape[1] < 1:
                raise ValueError(
                    f"The alignment of {chrom} must have shape (n_positions, 1 + n_species), got {tuple(array.shape)}."
                )
            widths.add(int(array.shape[1]))
            if isinstance(array, np.ndarray):
                for start in range(0, len(array), _ROWS_AT_A_TIME):
                    encode(array[start : start + _ROWS_AT_A_TIME])
        if len(widths) > 1:
            raise ValueError(f"All chromosomes must have the same number of columns, got {sorted(widths)}.")
        self.n_columns = widths.pop()
        if self.species is not None and len(self.species) != self.n_columns:
            raise ValueError(
                f"species must name all {self.n_columns} columns, the reference first; got {len(self.species)} names."
            )

    @property
    def n_species(self) -> int:
        """Columns beside the reference."""
        return self.n_columns - 1

    @property
    def chroms(self) -> list[str]:
        """Names of the chromosomes."""
        return list(self._arrays)

    def find_chrom(self, chrom: object) -> str:
        """Return the alignment's own name of a chromosome.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.

        Raises
        ------
        KeyError
            If there is none of that name, with or without ``chr``.
        """
        found = find_chrom(chrom, self._arrays)
        if found is None:
            raise KeyError(f"No chromosome {str(chrom)!r} in the alignment; it has {self.chroms[:12]}.")
        return found

    def span(self, chrom: object) -> tuple[int, int]:
        """First coordinate of a chromosome that is covered, and the one after the last.

        Parameters
        ----------
        chrom
            Name, with or without ``chr``.

        Returns
        -------
        0-based, half-open.
        """
        name = self.find_chrom(chrom)
        return self.starts[name], self.starts[name] + int(self._arrays[name].shape[0])

    def get(self, chrom: object, start: int, end: int, strand: str = "+") -> np.ndarray:
        """Read a window.

        Parameters
        ----------
        chrom
            Name of the chromosome.
        start, end
            0-based, half-open coordinates of the reference.
        strand
            ``"+"``, or ``"-"`` for the reverse complement.

        Returns
        -------
        Bytes of shape (end - start, 1 + n_species), case kept.

        Raises
        ------
        KeyError
            If there is no such chromosome.
        IndexError
            If the window leaves what is covered.
        ValueError
            If the strand is neither, or the window is empty.
        """
        name = self.find_chrom(chrom)
        first, last = self.span(name)
        if strand not in ("+", "-"):
            raise ValueError(f"strand must be '+' or '-', got {strand!r}.")
        if end <= start:
            raise ValueError(f"A window needs start < end, got {start} and {end}.")
        if start < first or end > last:
            raise IndexError(
                f"{name}:{start}-{end} leaves the alignment, which covers {name}:{first}-{last}."
            )
        window = np.asarray(self._arrays[name][start - first : end - first])
        window = window if window.dtype == "S1" else np.ascontiguousarray(window).view("S1")
        return window if strand == "+" else reverse_complement(window)

    def tokens(self, chrom: object, start: int, end: int, strand: str = "+") -> np.ndarray:
        """Read a window as tokens, uint8 of shape (end - start, 1 + n_species); see :meth:`get`.

        Parameters
        ----------
        chrom, start, end, strand
            As in :meth:`get`.

        Returns
        -------
        Codes of ``-ACGT?``, the reference in the first column.
        """
        return encode(self.get(chrom, start, end, strand))

    def to_memory(self) -> GenomeMSA:
        """Return a copy whose arrays are in memory and have been checked."""
        arrays = {chrom: np.asarray(array[:]) for chrom, array in self._arrays.items()}
        return GenomeMSA(arrays, species=self.species, starts=self.starts)

    def __repr__(self) -> str:
        n = sum(int(array.shape[0]) for array in self._arrays.values())
        return (
            f"GenomeMSA({n:,} positions on {self.chroms[:4]}, {self.n_species} species beside the reference)"
        )

    @classmethod
    def from_zarr(cls, path: str | Path, *, chroms: Iterable[str] | None = None) -> GenomeMSA:
        """Open a Zarr group with one array a chromosome, format 2 or 3; windows are read when they are asked for.

        Parameters
        ----------
        path
            Folder, or ``.zip`` file, such as the published alignments of GPN-MSA come in. The group's attribute ``species`` and the
            arrays' attribute ``start`` are used where they are there.
        chroms
            Which to open, with or without ``chr``; None for all.

        Returns
        -------
        The alignment.

        Raises
        ------
        ImportError
            If Zarr is not installed.
        FileNotFoundError
            If there is nothing at the path.
        KeyError
            If a chromosome is missing.
        ValueError
            If the path is no Zarr group of arrays.
        """
        zarr = require("zarr", extra="dna")
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No alignment at {path}.")
        try:
            store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
            group = zarr.open_group(store, mode="r")
            present = sorted(group.array_keys())
        except Exception as error:
            raise ValueError(f"{path} is no Zarr group that can be read: {error}") from error
        if not present:
            raise ValueError(f"{path} holds no arrays; expected a Zarr group with one array a chromosome.")
        wanted = present if chroms is None else [find_chrom(chrom, present) or str(chrom) for chrom in chroms]
        if absent := [chrom for chrom in wanted if chrom not in present]:
            raise KeyError(f"No chromosome {absent} in {path}; it has {present[:12]}.")
        arrays = {chrom: group[chrom] for chrom in wanted}
        for array in arrays.values():
            check_codecs(array, path=path)
        starts = {chrom: int(array.attrs.get("start", 0)) for chrom, array in arrays.items()}
        return cls(arrays, species=group.attrs.get("species"), starts=starts)

    def to_zarr(self, path: str | Path, *, zarr_format: int = 3, rows_per_chunk: int = 512) -> None:
        """Write a Zarr group with one array of ASCII codes a chromosome.

        Parameters
        ----------
        path
            Folder to make.
        zarr_format
            2 or 3.
        rows_per_chunk
            Positions a chunk.

        Raises
        ------
        ImportError
            If Zarr is not installed.
        FileExistsError
            If something is at the path.
        """
        zarr = require("zarr", extra="dna")
        if Path(path).exists():
            raise FileExistsError(f"{path} exists; choose another path.")
        group = zarr.open_group(Path(path), mode="w", zarr_format=zarr_format)
        if self.species is not None:
            group.attrs["species"] = list(self.species)
        for chrom, source in self._arrays.items():
            chunks = (min(rows_per_chunk, source.shape[0]), self.n_columns)
            array = group.create_array(chrom, shape=source.shape, chunks=chunks, dtype="uint8")
            array.attrs["start"] = self.starts[chrom]
            for start in range(0, source.shape[0], _ROWS_AT_A_TIME):
                part = np.asarray(source[start : start + _ROWS_AT_A_TIME])
                array[start : start + len(part)] = np.ascontiguousarray(part).view(np.uint8)

    @classmethod
    def from_numpy(
        cls, array: np.ndarray, *, chrom: str, start: int = 0, species: Sequence[str] | None = None
    ) -> GenomeMSA:
        """Take one chromosome, or a piece of one, from an array.

        Parameters
        ----------
        array
            Shape (n_positions, 1 + n_species), as for the class.
        chrom
            Its name.
        start
            Coordinate of the first row, 0-based.
        species
            Names of all columns, the reference first.

        Returns
        -------
        The alignment.
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
        """Read a multiple alignment format (MAF) file, plain or gzipped, into memory.

        Parameters
        ----------
        path
            The file.
        reference
            Assembly whose coordinates count, such as ``"hg38"``; None for that of the first row.
        species
            The other assemblies, in the order of columns; None for all, as they first appear, which differs from file to file.
            For a trained network give its ``species_``.
        chroms
            Chromosomes of the reference to read, with or without ``chr``; None for all.

        Returns
        -------
        From the first position of each chromosome that is in a block to the last. Positions outside all blocks are ``N``, species
        that are not aligned ``-``, insertions against the reference left out. Where blocks overlap the first counts,
        and in a block the first row of a species.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        KeyError
            If the reference, a species or a chromosome is not in the file.
        ValueError
            If the file is damaged or truncated, or no MAF; the message has the number of the line.
        """
        arrays, starts, names = read_maf(path, reference=reference, species=species, chroms=chroms)
        return cls(arrays, species=names, starts=starts)
