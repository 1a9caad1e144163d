"""Warnings about an AnnData that are given once, however often it is read."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["is_news", "warn_once"]

_TOLD: dict[int, set[str]] = {}  # by the identity of an AnnData, until it is collected


def is_news(message: str, adata: AnnData) -> bool:
    """Return whether this has not been said of the AnnData, or of the one that it is a view of, and note that it was."""
    root = getattr(adata, "_adata_ref", None)
    root = adata if root is None else root
    told = _TOLD.get(id(root))
    if told is None:
        told = _TOLD[id(root)] = set()
        weakref.finalize(root, _TOLD.pop, id(root), None)
    is_new = message not in told
    told.add(message)
    return is_new


def warn_once(message: str, adata: AnnData | None, *, stacklevel: int = 2) -> None:
    """Warn unless this was said of the AnnData before; without one, warn."""
    if adata is None or is_news(message, adata):
        warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
