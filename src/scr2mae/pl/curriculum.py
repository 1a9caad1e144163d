"""Loss weights of a curriculum and their history."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm

from scr2mae.pl.axes import despine, epoch_axis, history_of, make_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scr2mae.model import R2MAEModel
    from scr2mae.train.provenance import History

_CURVE = re.compile(r"curriculum_weight_(?P<column>.+)_decile_(?P<decile>\d+)")


def curriculum_weights(model_or_frame: R2MAEModel | pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the loss weight of each gene at each masking ratio.

    Parameters
    ----------
    model_or_frame
        A model trained with a curriculum, or a frame from its ``get_curriculum_weights``: genes by ratios.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Genes are rows, sorted by the ratio of their weights at the largest and the smallest masking ratio or,
    with one fixed ratio, by the weight in use. Colors show the binary logarithm of the weight, white at one, clipped
    at the 99th percentile of its absolute value.

    Raises
    ------
    ValueError
        If the model has no curriculum, or there is nothing to draw.
    """
    frame = model_or_frame
    if not isinstance(frame, pd.DataFrame):
        frame = frame.get_curriculum_weights()
    if not frame.size or not (frame.to_numpy() > 0).all():
        raise ValueError(
            f"Expected positive weights, genes by ratios, got a frame of shape {frame.shape} with minimum {frame.min().min()}."
        )
    logs = np.log2(frame.to_numpy(dtype=float))
    by_ratio = pd.api.types.is_float_dtype(frame.columns.dtype)
    logs = logs[np.argsort(logs[:, -1] - logs[:, 0] if by_ratio else logs[:, 0], kind="stable")]
    ax = make_axes(ax, width=5.5, height=4.5)
    bound = max(float(np.quantile(np.abs(logs), 0.99)), 1e-3)
    image = ax.imshow(
        logs, aspect="auto", interpolation="nearest", cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -bound, bound)
    )
    ax.figure.colorbar(image, ax=ax, label="log2 of the loss weight", extend="both")
    ticks = [f"{100 * value:.3g}" if by_ratio else str(value) for value in frame.columns]
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(
        xlabel="Masked genes (%)" if by_ratio else "Column of weights, the first in use",
        ylabel=f"{len(logs):,} genes, sorted",
        yticks=[],
    )
    return ax


def curriculum_history(model_or_history: R2MAEModel | History, *, ax: Axes | None = None) -> Axes:
    """Draw the weights of a curriculum during training, by mean expression of the genes.

    Parameters
    ----------
    model_or_history
        A model trained with a curriculum, or its ``history``.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Each line is a decile of genes by expression, at the largest masking ratio or at that of a fixed scheme.
    The weight network is frozen where the background is gray; at the dashed line its gradient scale becomes negative,
    so that weights shift from easy to hard genes.

    Raises
    ------
    ValueError
        If the history holds no curriculum.
    """
    history = history_of(model_or_history)
    found = [match for name in history if (match := _CURVE.fullmatch(name))]
    if not found:
        raise ValueError(
            f"Expected the history of a model trained with a curriculum such as 'cl', got the curves {sorted(history)}."
        )
    column = max({match["column"] for match in found}, key=lambda text: (text != "selected", text))
    lines = {
        int(match["decile"]): history[match[0]][match[0]] for match in found if match["column"] == column
    }
    ax = make_axes(ax, width=5.5, height=3.8)
    colors = mpl.colormaps["viridis"]
    for decile, line in sorted(lines.items()):
        ax.plot(line.index, line, color=colors((decile - 1) / 9.5), linewidth=1.5)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(1, 10.5), colors)
    ax.figure.colorbar(scale, ax=ax, label="Expression decile of the genes", ticks=[1, 4, 7, 10])
    multiplier = history["curriculum_multiplier"]["curriculum_multiplier"]
    frozen, negative = multiplier.index[multiplier == 0], multiplier.index[multiplier < 0]
    if len(frozen):
        ax.axvspan(multiplier.index[0] - 0.5, frozen[-1] + 0.5, color="0.9", zorder=0)
    if len(negative):
        ax.axvline(negative[0] - 0.5, color="black", linestyle="--", linewidth=1)
    ratio = "" if column == "selected" else f", {100 * float(column):.3g} % masked"
    ax.set_ylabel(f"Mean loss weight{ratio}")
    epoch_axis(ax)
    despine(ax)
    return ax
