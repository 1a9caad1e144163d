"""Figures of the tables of a benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scr2mae.pl.axes import MARKERS, OKABE_ITO, despine, frameless_legend, look, make_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def benchmark_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the scores, one row per method, best rank on top.

    Parameters
    ----------
    table
        Table from :meth:`scr2mae.benchmark.Benchmark.table`: methods by (task, metric, level), then "Score", "Rank".
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Diamonds are Scores, bars their standard deviations over training seeds.

    Raises
    ------
    ValueError
        If the table has no rank or no method.
    """
    if not len(table) or "Rank" not in table.columns.get_level_values(0):
        raise ValueError(
            f"Expected a table of scr2mae.benchmark with methods and the column 'Rank', got {list(table.columns)}."
        )
    table = table.sort_values(("Rank", "", ""), kind="stable")
    ax = make_axes(ax, width=7.0, height=1.5 + 0.3 * len(table))
    rows = np.arange(len(table))
    columns = [column for column in table.columns.tolist() if column[1]]
    for i, column in enumerate(columns):
        label = f"{column[0]}: {column[1].replace('_', ' ')}, {column[2]}"
        # The last marker, a diamond, is the Score.
        ax.scatter(table[column], rows, s=22, label=label, **look(i, n_markers=len(MARKERS) - 1))
    score, spread = table[("Score", "", "")], table[("Score sd", "", "")].fillna(0)
    ax.errorbar(score, rows, xerr=spread, fmt="D", color="black", markersize=6, capsize=2, label="Score")
    names = [f"{name} ({rank:.2f})" for name, rank in zip(table.index, table[("Rank", "", "")], strict=True)]
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(axis="y", linewidth=0.4)
    ax.set_axisbelow(True)
    ax.set(xlabel="Score on held-out donors", ylabel="Method (mean rank)")
    despine(ax)
    frameless_legend(ax, outside=True)
    return ax


def benchmark_reconstruction(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the difference between each method's reconstruction and the best one at each fraction of masked genes.

    Parameters
    ----------
    table
        Table from :meth:`scr2mae.benchmark.Benchmark.reconstruction`: methods by ratio.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes. Correlations vary much more between ratios than between methods, hence the differences.

    Raises
    ------
    ValueError
        If the table is empty.
    """
    if not table.size:
        raise ValueError("Expected a table with a row per method with a reconstruction, got an empty one.")
    gaps = table - table.max(axis=0)
    ax = make_axes(ax, width=7.0, height=max(3.6, 1.5 + 0.3 * len(table)))
    percent = 100 * gaps.columns.to_numpy(dtype=float)
    for i, (name, curve) in enumerate(gaps.iterrows()):
        dash = "-" if i < len(OKABE_ITO) else "--"
        ax.plot(percent, curve, label=name, linestyle=dash, markersize=4, **look(i))
    ax.set(xlabel="Masked genes (%)", ylabel="Pearson correlation minus the best")
    despine(ax)
    frameless_legend(ax, outside=True)
    return ax


def integration_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the scores of integrated embeddings as scib-metrics does: circles for scores, bars for their summaries.

    Parameters
    ----------
    table
        Methods by the scores of :func:`scr2mae.metrics.integration_scores`.
    ax
        Axes to draw on.

    Returns
    -------
    The Axes, best total on top.

    Raises
    ------
    ValueError
        If the table has no row or lacks the total.
    """
    if not len(table) or "total" not in table:
        raise ValueError(
            f"Expected methods by scores with 'total', got {len(table)} rows and {list(table.columns)}."
        )
    table = table.sort_values("total", ascending=False)
    ax = make_axes(ax, width=1.5 + 0.75 * table.shape[1], height=1.6 + 0.4 * len(table))
    for column, name in enumerate(table):
        is_summary = name in ("bio_conservation", "batch_correction", "total")
        span = max(float(table[name].max() - table[name].min()), 1e-9)
        for row, value in enumerate(table[name]):
            shade = 0.15 + 0.6 * float(value - table[name].min()) / span
            if is_summary:
                ax.barh(row, 0.9 * value, height=0.7, left=column - 0.45, color="C0", alpha=shade)
            else:
                ax.scatter(column, row, s=420, color="C2", alpha=shade, linewidths=0)
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small")
    ax.set_xticks(range(table.shape[1]), [str(name).replace("_", "\n") for name in table])
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlim=(-0.6, table.shape[1] - 0.4), ylim=(len(table) - 0.4, -0.6))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
