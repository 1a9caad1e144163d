"""Training curves and reconstruction of masked genes by ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from scr2mae.pl.axes import OKABE_ITO, despine, epoch_axis, frameless_legend, history_of, look, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scr2mae.model import R2MAEModel
    from scr2mae.train.provenance import History

_THIN_STYLES = (
    (OKABE_ITO[1], "--"),
    (OKABE_ITO[2], "-."),
    (OKABE_ITO[4], ":"),
    (OKABE_ITO[5], (0, (5, 1, 1, 1))),
)
_RATIO_CURVE = "validation_loss_"


def training_curves(model_or_history: R2MAEModel | History, *, ax: Axes | None = None) -> Axes:
    """Draw the loss per epoch in training, in validation, and in validation at each masking ratio.

    Parameters
    ----------
    model_or_history
        A trained model, or its ``history``.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. The loss is the mean negative log-likelihood per masked count, in nats. Validation masks the same genes
    at every epoch and for every scheme; its thick curve is the mean of the thin ones.

    Raises
    ------
    ValueError
        If the model is not trained.
    """
    history = history_of(model_or_history)
    if "train_loss" not in history:
        raise ValueError(
            f"Expected a history with the curve 'train_loss', got {sorted(history)}; call model.train() first. "
            "A query model is trained only if max_epochs is given."
        )
    ax = make_axes(ax, width=5.5, height=3.6)
    # A line through a single epoch is invisible.
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
        draw(name, f"Validation, {ratio:.0%} masked", color=color, linestyle=dash, linewidth=1)
    ax.set_ylabel("Loss (nats per masked count)")
    epoch_axis(ax)
    despine(ax)
    frameless_legend(ax)
    return ax


def reconstruction(
    models_or_frames: R2MAEModel | pd.DataFrame | Mapping[str, R2MAEModel | pd.DataFrame],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how well masked genes are predicted against the fraction of masked genes.

    Parameters
    ----------
    models_or_frames
        A model, or a frame from its ``get_masked_reconstruction``; or several of them by name. A model is scored on
        its validation cells, or on all of its cells if it has none.
    ax
        Axes to draw on.

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
        ax.plot(100 * curve.index.to_numpy(), curve, label=name, markersize=5, **look(i))
    ax.set(xlabel="Masked genes (%)", ylabel="Pearson correlation over masked genes")
    despine(ax)
    if len(frames) > 1 or None not in frames:
        frameless_legend(ax)
    return ax


def _validation_reconstruction(model: R2MAEModel) -> pd.DataFrame:
    validation = model.validation_indices
    has_validation = validation is not None and len(validation)
    return model.get_masked_reconstruction(indices=validation if has_validation else None)
