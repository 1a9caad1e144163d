"""Command line, tables and style of figures, shared by the theory scripts."""

import argparse
import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scr2mae.theory import SimulatedRisk

# Okabe and Ito's colors, which readers with color-vision deficiencies can distinguish
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

plt.rcParams.update(
    {
        "axes.labelsize": 11,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "font.size": 10,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "savefig.bbox": "tight",
        "savefig.dpi": 95,
    }
)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all theory scripts."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("-o", "--output", type=Path, required=True, help="folder for the CSV and PNG")
    options.add_argument("--quick", action="store_true", help="fewer covariates and draws")
    options.add_argument("--jobs", type=int, default=1, help="processes for the simulations")
    return options


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys, floats with six digits."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"wrote {path}")


def save(figure: Figure, path: Path) -> None:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    print(f"wrote {path}")


def curve(axes: Axes, ratios: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """Plot a formula as a line."""
    axes.plot(ratios, values, color=color, lw=1.8, label=label, zorder=2)


def points(axes: Axes, ratios: np.ndarray, mean: np.ndarray, sd: np.ndarray, color: str) -> None:
    """Plot simulation means with standard deviations, as in the paper."""
    axes.errorbar(ratios, mean, yerr=sd, fmt="o", ms=4, lw=1, capsize=2, color=color, alpha=0.85, zorder=3)


def column(run: SimulatedRisk, index: int, *, null: float = 1.0) -> SimulatedRisk:
    """Return the simulated risks of one of several signals, divided by its null risk."""
    return SimulatedRisk(run.risks[..., index] / null, run.powers[..., index] / null)


def long_rows(
    ratios: np.ndarray, theory: np.ndarray, run: SimulatedRisk | None, **labels: Any
) -> list[dict[str, Any]]:
    """Return one row per ratio: risk by the formula; mean, standard deviation and standard error of the simulation."""
    rows = []
    for i, (ratio, value) in enumerate(zip(ratios, theory, strict=True)):
        row = {**labels, "ratio": float(ratio), "theory": float(value)}
        if run is not None:
            row |= {
                "simulated": float(run.mean[i]),
                "sd": float(run.sd[i]),
                "standard_error": float(run.standard_error[i]),
            }
        rows.append(row)
    return rows
