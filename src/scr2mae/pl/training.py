"""Curves of training, and reconstruction of hidden genes by ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from scr2mae.pl.axes import MARKERS, OKABE_ITO, despine, frameless_legend, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scr2mae.model import R2MAEModel
    from scr2mae.train.provenance import History

__all__ = ["reconstruction", "training_curves"]

_THIN_STYLES = (
    (OKABE_ITO[1], "--"),
    (OKABE_ITO[2], "-."),
    (OKABE_ITO[4], ":"),
    (OKABE_ITO[5], (0, (5, 1, 1, 1))),
)
_RATIO_CURVE = "validation_loss_"


def training_curves(model_or_history: R2MAEModel | History, *, ax: Axes | None = None) -> Axes:
    """Draw the loss of each epoch: in training, in validation, and in validation at each masking ratio.

    Parameters
    ----------
    model_or_history
        A trained model, or its ``history``.
    ax
        Where to draw.

    Returns
    -------
    The Axes. The loss is the mean negative log-likelihood of a hidden count, in nats. Validation hides the same
    genes at every epoch and for every scheme; its heavy curve is the mean of the thin ones.

    Raises
    ------
    ValueError
        If the model is not trained.
    """
    history = model_or_history if isinstance(model_or_history, Mapping) else model_or_history.history
    if not history or "train_loss" not in history:
        raise ValueError(
            f"Expected a history with the curve 'train_loss', got {sorted(history or {})}; call model.train() first."
        )
    ax = make_axes(ax, width=5.5, height=3.6)
    # A line through a single epoch cannot be seen.
    marker = "o" if len(history["train_loss"]) < 10 else None

    def draw(name: str, label: str, **style: Any) -> None:
        ax.plot(history[name].index, history[name][name], label=label, marker=marker, markersize=4, **style)

    draw("train_loss", "Training", color=OKABE_ITO[0], linewidth=1.8)
    if "validation_loss" in history:
        draw("validation_loss", "Validation, mean", color=OKABE_ITO[3], linewidth=1.8)
    ratios = {
        float(name.removeprefix(_RATIO_CURVE)): name for name in history if name.startswith(_RATIO_CURVE)
    }
    for i, (ratio, name) in enumerate(sorted(ratios.items())):
        color, dash = _THIN_STYLES[i % len(_THIN_STYLES)]
        draw(name, f"Validation, {ratio:.0%} hidden", color=color, linestyle=dash, linewidth=1)
    ax.set(xlabel="Epoch", ylabel="Loss (nats per hidden count)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    despine(ax)
    frameless_legend(ax)
    return ax


def reconstruction(
    models_or_frames: R2MAEModel | pd.DataFrame | Mapping[str, R2MAEModel | pd.DataFrame],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how well hidden genes are predicted against the share of genes hidden.

    Parameters
    ----------
    models_or_frames
        A model, or what its ``get_masked_reconstruction`` returned; several of either by name. A model is scored
        on its validation cells, or on all of its cells where it has none.
    ax
        Where to draw.

    Returns
    -------
    The Axes.

    Raises
    ------
    ValueError
        If there is nothing to draw or a frame lacks the column ``pearson``.
    """
    named = models_or_frames if isinstance(models_or_frames, Mapping) else {None: models_or_frames}
    frames = {
        name: value if isinstance(value, pd.DataFrame) else _validation_reconstruction(value)
        for name, value in named.items()
    }
    if not frames:
        raise ValueError("Expected at least one model or frame to draw, got none.")
    for frame in frames.values():
        if "pearson" not in frame:
            raise ValueError(
                f"Expected a frame of get_masked_reconstruction with the column 'pearson', got {list(frame)}."
            )
    ax = make_axes(ax, width=5.0, height=3.6)
    for i, (name, frame) in enumerate(frames.items()):
        curve = frame["pearson"].sort_index()
        color, marker = OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % len(MARKERS)]
        ax.plot(100 * curve.index.to_numpy(), curve, label=name, color=color, marker=marker, markersize=5)
    ax.set(xlabel="Genes hidden (%)", ylabel="Pearson correlation over hidden genes")
    despine(ax)
    if len(frames) > 1 or None not in frames:
        frameless_legend(ax)
    return ax


def _validation_reconstruction(model: R2MAEModel) -> pd.DataFrame:
    held_out = model.validation_indices
    return model.get_masked_reconstruction(
        indices=held_out if held_out is not None and len(held_out) else None
    )
