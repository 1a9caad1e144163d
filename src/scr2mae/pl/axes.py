"""What every figure shares: colors, markers, Axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MARKERS", "OKABE_ITO", "despine", "frameless_legend", "make_axes"]

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Eight colors that people with any color vision tell apart (Okabe & Ito, 2008), the palest last."""

MARKERS = ("o", "^", "s", "P", "X", "D")
"""Told apart in black and white."""


def make_axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the Axes given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def frameless_legend(ax: Axes, **kwargs: Any) -> None:
    """Draw a small legend without a box."""
    ax.legend(frameon=False, fontsize="small", **kwargs)


def despine(ax: Axes) -> None:
    """Remove the upper and the right spine."""
    ax.spines[["top", "right"]].set_visible(False)
