"""Colors, markers, axes and legends shared by all figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scr2mae.model import R2MAEModel
    from scr2mae.train.provenance import History

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Eight colors that are distinguishable with any color vision (Okabe & Ito, 2008), the palest last."""

MARKERS = ("o", "^", "s", "P", "X", "D")
"""Markers that are distinguishable in black and white."""


def make_axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return the given Axes, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def look(i: int, *, n_markers: int = len(MARKERS)) -> dict[str, Any]:
    """Return the color and marker of the i-th curve."""
    return {"color": OKABE_ITO[i % len(OKABE_ITO)], "marker": MARKERS[i % n_markers]}


def frameless_legend(ax: Axes, *, outside: bool = False, **kwargs: Any) -> None:
    """Draw a small legend without a frame, inside or to the right of the Axes."""
    if outside:
        kwargs |= {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    ax.legend(frameon=False, fontsize="small", **kwargs)


def despine(ax: Axes) -> None:
    """Remove the top and right spines."""
    ax.spines[["top", "right"]].set_visible(False)


def epoch_axis(ax: Axes) -> None:
    """Label the x axis with whole epochs."""
    ax.set_xlabel("Epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def history_of(model_or_history: R2MAEModel | History) -> History:
    """Return the history of a model, or the given history; empty if the model is not trained."""
    history = model_or_history if isinstance(model_or_history, Mapping) else model_or_history.history
    return history or {}
