"""Tables of the benchmark, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scr2mae.pl.axes import MARKERS, OKABE_ITO, despine, frameless_legend, make_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["benchmark_reconstruction", "benchmark_scores"]


def benchmark_scores(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the scores of each method, a row each, best rank on top.

    Parameters
    ----------
    table
        What :meth:`scr2mae.benchmark.Benchmark.table` returned: methods by (task, metric, level), then "Score", "Rank".
    ax
        Where to draw.

    Returns
    -------
    The Axes. A diamond is the Score, a bar its standard deviation over training seeds.

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
        color, marker = OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % (len(MARKERS) - 1)]
        label = f"{column[0]}: {column[1].replace('_', ' ')}, {column[2]}"
        ax.scatter(table[column], rows, color=color, marker=marker, s=22, label=label)
    score, spread = table[("Score", "", "")], table[("Score sd", "", "")].fillna(0)
    ax.errorbar(score, rows, xerr=spread, fmt="D", color="black", markersize=6, capsize=2, label="Score")
    names = [f"{name} ({rank:.2f})" for name, rank in zip(table.index, table[("Rank", "", "")], strict=True)]
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.grid(axis="y", linewidth=0.4)
    ax.set_axisbelow(True)
    ax.set(xlabel="Score on held-out donors", ylabel="Method (mean rank)")
    despine(ax)
    frameless_legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def benchmark_reconstruction(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how far each method's reconstruction is from the best at each share of genes hidden.

    Parameters
    ----------
    table
        What :meth:`scr2mae.benchmark.Benchmark.reconstruction` returned: methods by ratio.
    ax
        Where to draw.

    Returns
    -------
    The Axes. The correlations themselves fall by far more with the ratio than methods differ.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not table.size:
        raise ValueError("Expected a table with a row for each method that reconstructs, got an empty one.")
    gaps = table - table.max(axis=0)
    ax = make_axes(ax, width=7.0, height=max(3.6, 1.5 + 0.3 * len(table)))
    percent = 100 * gaps.columns.to_numpy(dtype=float)
    for i, (name, curve) in enumerate(gaps.iterrows()):
        style: dict[str, Any] = {
            "color": OKABE_ITO[i % len(OKABE_ITO)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        dash = "-" if i < len(OKABE_ITO) else "--"
        ax.plot(percent, curve, label=name, linestyle=dash, markersize=4, **style)
    ax.set(xlabel="Genes hidden (%)", ylabel="Pearson correlation minus the best")
    despine(ax)
    frameless_legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax
