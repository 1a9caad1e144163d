"""Figures of kept probes: calibration, predictions of donors, genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scr2mae.pl.axes import OKABE_ITO, despine, frameless_legend, look, make_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scr2mae.probe import Probe

_LOOKS = {"before": "before calibration", "after": "after calibration"}


def calibration(probe: Probe, *, level: str = "cell", ax: Axes | None = None) -> Axes:
    """Draw the accuracy of predictions for held-out donors against their probability.

    Parameters
    ----------
    probe
        Probe of classes.
    level
        "cell", or "donor" for mean probabilities of donors.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes; the area of a point is proportional to the number of cells or donors, and the diagonal is perfect calibration.

    Raises
    ------
    ValueError
        If the probe predicts a number, or has no predictions at this level.
    """
    table = probe.reliability
    if table is None or not (table["level"] == level).any():
        raise ValueError(
            f"Wanted a probe of classes with predictions at level {level!r}; {probe.target!r} is of kind {probe.kind!r}."
        )
    ax = make_axes(ax, width=4.2, height=4.0)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    rows = table[table["level"] == level]
    for i, (name, group) in enumerate(rows.groupby("calibration", sort=False)):
        error = (group["n"] * (group["probability"] - group["correct"]).abs()).sum() / group["n"].sum()
        style = look(i)
        label = f"{_LOOKS[str(name)]} (error {error:.3f})"
        ax.plot(group["probability"], group["correct"], color=style["color"], linewidth=1, zorder=1)
        ax.scatter(
            group["probability"],
            group["correct"],
            s=200 * group["n"] / rows["n"].max() + 8,
            label=label,
            **style,
        )
    ax.set(
        xlabel="Probability of the predicted class", ylabel="Share correct", xlim=(0, 1.02), ylim=(0, 1.05)
    )
    despine(ax)
    frameless_legend(ax, loc="upper left")
    return ax


def donor_predictions(table: pd.DataFrame, *, truth: pd.Series | None = None, ax: Axes | None = None) -> Axes:
    """Draw the prediction of each donor with its interval.

    Parameters
    ----------
    table
        Table from :meth:`scr2mae.probe.Probe.predict_donors`.
    truth
        True class or value by donor, if known; it may lack donors.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Classes: the probability of the predicted class, colored by class, with a cross on wrong ones. Numbers: the prediction,
    with a cross at the true value. Donors whose cells were all rejected are listed without a point.

    Raises
    ------
    ValueError
        If the table is empty or not one of predictions.
    """
    if not len(table) or not {"prediction", "low", "high"} <= set(table):
        raise ValueError(
            f"Wanted a table of predict_donors, got {len(table)} rows with columns {list(table)}."
        )
    classify = "probability" in table
    value = table["probability" if classify else "prediction"].to_numpy(dtype=float)
    order = (
        np.argsort(value, kind="stable")
        if not classify
        else np.lexsort((value, table["prediction"].astype(str)))
    )
    table, value = table.iloc[order], value[order]
    ax = make_axes(ax, width=5.5, height=1.2 + 0.22 * len(table))
    rows = np.arange(len(table))
    low, high = (np.where(np.isfinite(table[side]), table[side], value) for side in ("low", "high"))
    groups = table["prediction"].astype(str).to_numpy() if classify else np.full(len(table), "")
    for i, name in enumerate(np.unique(groups)):
        at = groups == name
        ax.errorbar(
            value[at],
            rows[at],
            xerr=[value[at] - low[at], high[at] - value[at]],
            fmt="o",
            color=OKABE_ITO[i % len(OKABE_ITO)],
            markersize=5,
            linewidth=1,
            label=name or "prediction",
        )
    if truth is not None:
        known = truth.reindex(table.index)
        has = known.notna().to_numpy()
        wrong = has & (known.astype(str).to_numpy() != groups) if classify else has
        x = value if classify else known.to_numpy(dtype=float)
        ax.scatter(
            x[wrong],
            rows[wrong],
            marker="x",
            color="black",
            zorder=3,
            label="wrong" if classify else "true value",
        )
    ax.set_yticks(
        rows, [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in table.index]
    )
    ax.set(xlabel="Probability" if classify else "Prediction", ylabel="Donor")
    despine(ax)
    frameless_legend(ax, outside=True)
    return ax


def probe_genes(
    table: pd.DataFrame, *, label: str | None = None, n_genes: int = 20, ax: Axes | None = None
) -> Axes:
    """Draw the genes that a probe uses most.

    Parameters
    ----------
    table
        Table from :func:`scr2mae.probe.gene_attribution`.
    label
        Class; by default the first of the table.
    n_genes
        Number of genes.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Bars are attributions, blue if the gene is higher in the class (or with the number) and orange if lower; pale bars are of
    genes that are at the top in fewer than half of the folds.

    Raises
    ------
    KeyError
        If the table lacks the class.
    """
    labels = table["class"].unique().tolist()
    label = labels[0] if label is None else label
    if label not in labels:
        raise KeyError(f"No class {label!r} in the table; choose one of {labels}.")
    rows = table[table["class"] == label].sort_values("rank").head(n_genes)
    ax = make_axes(ax, width=4.2, height=1.0 + 0.22 * len(rows))
    colors = [OKABE_ITO[0] if up else OKABE_ITO[1] for up in rows["expression"] > 0]
    bars = ax.barh(np.arange(len(rows)), rows["attribution"], color=colors)
    for bar, stability in zip(bars, rows["stability"], strict=True):
        bar.set_alpha(1.0 if stability >= 0.5 else 0.4)
    ax.set_yticks(np.arange(len(rows)), rows["gene"])
    ax.invert_yaxis()
    ax.set(xlabel=f"Attribution to {label}" if label else "Attribution", ylabel="")
    despine(ax)
    return ax
