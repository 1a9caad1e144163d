"""Lists of names in messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["shorten"]


def shorten(names: Iterable[Any], limit: int = 10) -> str:
    """Return the first names as text, with the number of the others."""
    names = list(names)
    tail = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + tail
