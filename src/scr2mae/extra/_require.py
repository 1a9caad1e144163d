"""Optional dependencies of the other modalities."""

from __future__ import annotations

from scr2mae._require import require

__all__ = ["require"]
