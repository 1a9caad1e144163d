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
    """Return whether a message is new for an AnnData, or for the parent of a view, and record it."""
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
    """Warn, but only once per AnnData if one is given."""
    if adata is None or is_news(message, adata):
        warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)
