"""Names of chromosomes, with and without a leading ``chr``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["find_chrom"]


def find_chrom(chrom: object, present: Container[str]) -> str | None:
    """Return the name under which a chromosome is there: its own, or with or without ``chr``; None if it is not."""
    name = str(chrom)
    return next((each for each in (name, f"chr{name}", name.removeprefix("chr")) if each in present), None)
