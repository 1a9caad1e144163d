"""Reader of the multiple alignment format (MAF)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scr2mae._utils.files import as_path
from scr2mae.extra.dna.alphabet import reverse_complement
from scr2mae.extra.dna.chromosomes import match_chrom
from scr2mae.extra.files import open_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["read_maf"]

_GAP, _UNKNOWN = ord("-"), ord("N")
_N_FIELDS = 7  # s src start size strand srcSize text


@dataclass(frozen=True)
class _Row:
    """An ``s`` line: the sequence of one species in a block."""

    species: str
    chrom: str
    start: int
    size: int
    strand: str
    source_size: int
    text: np.ndarray  # uint8, shape (n_columns,)
    line: int


def _parse_row(line: str, number: int, path: Path) -> _Row:
    """Parse a line of a species in an alignment block, and check its lengths."""
    place, parts = f"{path}, line {number}", line.split()
    if len(parts) != _N_FIELDS:
        raise ValueError(
            f"{place}: an 's' line has {_N_FIELDS} fields, this has {len(parts)}; the file is truncated or damaged."
        )
    _, source, start, size, strand, source_size, text = parts
    species, _, chrom = source.partition(".")
    try:
        row = _Row(
            species, chrom or species, int(start), int(size), strand, int(source_size),
            np.frombuffer(text.encode("ascii"), dtype=np.uint8), number,
        )  # fmt: skip
    except (ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"{place}: not an 's' line of a MAF file: {error}.") from error
    n_bases = int((row.text != _GAP).sum())
    if n_bases != row.size:
        raise ValueError(
            f"{place}: {source} should have {row.size} bases and has {n_bases}; the file is truncated or damaged."
        )
    if strand not in "+-" or row.start + row.size > row.source_size:
        raise ValueError(
            f"{place}: strand {strand!r}, start {row.start} and size {row.size} do not fit a sequence of {row.source_size} bases."
        )
    return row


def _check_block(rows: list[_Row], path: Path) -> list[_Row]:
    if len({len(row.text) for row in rows}) > 1:
        raise ValueError(
            f"{path}, lines {rows[0].line} to {rows[-1].line}: the rows of a block differ in length; "
            "the file is truncated or damaged."
        )
    return rows


def _blocks(path: Path) -> Iterator[list[_Row]]:
    """Yield the rows of each block."""
    rows: list[_Row] = []
    inside, line, number = False, "", 0
    with open_text(path, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and not line.startswith("##maf"):
                raise ValueError(
                    f"{path} is not a MAF file: its first line is {line[:40]!r}, not '##maf ...'."
                )
            kind = line[:1]
            if kind == "s" and inside:
                rows.append(_parse_row(line, number, path))
            elif kind == "s":
                raise ValueError(
                    f"{path}, line {number}: an 's' line outside a block (no 'a' line before it)."
                )
            elif kind == "a" or not line.strip():
                if rows:
                    yield _check_block(rows, path)
                rows, inside = [], kind == "a"
    if number == 0:
        raise ValueError(f"{path} is empty.")
    if not line.endswith("\n"):
        raise ValueError(
            f"{path} is truncated: its last line, {number}, has no line break. If nothing is missing, add one."
        )
    if inside and not rows:
        raise ValueError(f"{path} is truncated: it ends with the 'a' line of a block without rows.")
    if rows:
        yield _check_block(rows, path)


def _project(rows: list[_Row], reference: _Row) -> tuple[int, dict[str, np.ndarray]]:
    """Return the start on the reference's plus strand, and the symbols of each species at the reference's positions."""
    kept = reference.text != _GAP
    symbols: dict[str, np.ndarray] = {}
    for row in rows:
        if row.species not in symbols:
            symbols[row.species] = row.text[kept]
    if reference.strand == "+":
        return reference.start, symbols
    start = reference.source_size - reference.start - reference.size
    return start, {name: reverse_complement(text) for name, text in symbols.items()}


def _join(blocks: list[tuple[int, dict[str, np.ndarray]]], names: list[str]) -> tuple[np.ndarray, int]:
    """Join the blocks of a chromosome: ASCII codes, shape (n_positions, n_names), and the first coordinate."""
    first = min(start for start, _ in blocks)
    last = max(start + len(symbols[names[0]]) for start, symbols in blocks)
    array = np.full((last - first, len(names)), _GAP, dtype=np.uint8)
    array[:, 0] = _UNKNOWN
    filled = np.zeros(last - first, dtype=bool)
    for start, symbols in blocks:
        rows = slice(start - first, start - first + len(symbols[names[0]]))
        free = ~filled[rows]
        for column, name in enumerate(names):
            if name in symbols:
                array[rows, column] = np.where(free, symbols[name], array[rows, column])
        filled[rows] = True
    return array, first


def read_maf(
    path: str | Path,
    *,
    reference: str | None,
    species: Sequence[str] | None,
    chroms: Iterable[str] | None,
) -> tuple[dict[str, np.ndarray], dict[str, int], list[str]]:
    """Read the arrays, starts and column names for :meth:`GenomeMSA.from_maf`."""
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No MAF file {path}.")
    wanted = None if chroms is None else [str(chrom) for chrom in chroms]
    pieces: dict[str, list[tuple[int, dict[str, np.ndarray]]]] = defaultdict(list)
    seen: dict[str, None] = {}
    for rows in _blocks(path):
        reference = reference or rows[0].species
        seen.update(dict.fromkeys(row.species for row in rows))
        own = next((row for row in rows if row.species == reference), None)
        if own is not None and own.size and (wanted is None or match_chrom(own.chrom, wanted)):
            pieces[own.chrom].append(_project(rows, own))
    if reference is None:
        raise ValueError(f"{path} has no blocks.")
    others = [name for name in seen if name != reference] if species is None else [str(n) for n in species]
    names = [reference, *others]
    if absent := [name for name in names if name not in seen]:
        raise KeyError(f"No rows of {absent} in {path}; it has {list(seen)[:12]}.")
    if absent := [chrom for chrom in wanted or () if match_chrom(chrom, pieces) is None]:
        raise KeyError(f"No blocks of {absent} in {path}; {reference} has {sorted(pieces)[:12]}.")
    joined = {chrom: _join(blocks, names) for chrom, blocks in pieces.items()}
    return {c: a for c, (a, _) in joined.items()}, {c: s for c, (_, s) in joined.items()}, names
