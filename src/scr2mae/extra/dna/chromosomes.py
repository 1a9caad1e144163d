"""Names of chromosomes, with and without a leading ``chr``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["find_chrom", "match_chrom"]


def match_chrom(chrom: object, names: Collection[str]) -> str | None:
    """Return the name that is the chromosome's own, or differs from it by a leading ``chr``; None without a match."""
    name = str(chrom)
    return next((each for each in (name, f"chr{name}", name.removeprefix("chr")) if each in names), None)


def find_chrom(chrom: object, names: Collection[str], *, place: object) -> str:
    """Return :func:`match_chrom`, or raise a KeyError that names the alignment, track or file."""
    found = match_chrom(chrom, names)
    if found is None:
        raise KeyError(f"No chromosome {str(chrom)!r} in {place}; it has {list(names)[:12]}.")
    return found
