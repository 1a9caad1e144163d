"""Results of a benchmark: rows, tables and files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scr2mae._utils.files import as_path, atomic_write
from scr2mae._utils.scib import INTEGRATION_SCORES
from scr2mae.benchmark.table import (
    Columns,
    headings,
    mean_scores,
    score_and_rank,
    seed_spread,
    to_markdown,
)

MARKER = "benchmark.json"
"""File that identifies a folder of results."""

_SAW = {
    "all": "Pretraining saw the counts of all cells, including those of the test donors, but no labels, as in the paper.",
    "train": "Pretraining saw the cells of the training donors of each split, and none of the test donors'.",
}
_SCALING = {
    False: "## Features as they are, as in the paper",
    True: "## Features divided by their standard deviation",
}
_MASKED = {
    pretrain_on: f"Mean Pearson correlation over the masked genes of {cells}; the same genes are masked for all methods. "
    "scVI sees zeros in their place, and the library of the whole cell."
    for pretrain_on, cells in (("all", "validation cells"), ("train", "cells of the test donors"))
}


_INTEGRATION = "Scores of scib-metrics by the labels {!r}, means over training seeds, and seconds of a fit; scANVI has seen the labels."


@dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark:
    """Scores of all methods.

    Attributes
    ----------
    results
        One row per score. ``part`` is "probe", "reconstruction" or "integration"; ``method``,
        ``pretrained_on``, ``seed`` (training seed; missing if the method does not depend on it), ``split``;
        the columns of :func:`scr2mae.probe.linear_probe`, with its ``seed`` as ``split_seed``; ``ratio``,
        fraction of masked genes; ``value``. Cost of the fit: ``epochs`` (passes over the cells in training),
        ``seconds`` (training and embedding), ``probe_seconds``, ``peak_memory_mb`` (memory of the process)
        and ``peak_gpu_memory_mb``; and ``versions``.
    columns
        (metric, level) pairs of each task that are columns of the table.
    about
        Size of the data, settings and splits.
    labels
        Names of the methods in tables and figures.
    """

    results: pd.DataFrame
    columns: Columns
    about: Mapping[str, Any]
    labels: Mapping[str, str]

    @property
    def scalings(self) -> list[bool]:
        """Whether features were scaled: False, True or both, in the requested order."""
        return [bool(scaled) for scaled in self._probe()["scale"].unique()]

    def _probe(self, scale: bool | None = None) -> pd.DataFrame:
        rows = self.results[self.results["part"] == "probe"]
        return rows if scale is None else rows[rows["scale"] == scale]

    def table(self, *, scale: bool | None = None) -> pd.DataFrame:
        """Return the table of scores, best rank first.

        Parameters
        ----------
        scale
            Whether to use the rows with scaled features; None for the first requested scaling.

        Returns
        -------
        Methods by (task, metric, level), means over splits and seeds; then "Score" and "Rank" of
        :func:`score_and_rank`, and "Score sd", the standard deviation of Score over training seeds.

        Raises
        ------
        ValueError
            If there are no rows of that scaling.
        """
        scale = self.scalings[0] if scale is None else scale
        if scale not in self.scalings:
            raise ValueError(f"No rows with scale={scale}; there are {self.scalings}.")
        rows = self._probe(scale)
        scores = mean_scores(rows, self.columns)
        summary = score_and_rank(scores).assign(**{"Score sd": seed_spread(rows, self.columns)})
        summary.columns = pd.MultiIndex.from_tuples([(name, "", "") for name in summary])
        return pd.concat([scores, summary], axis=1).sort_values(("Rank", "", ""), kind="stable")

    def reconstruction(self) -> pd.DataFrame:
        """Return the Pearson correlation over masked genes: methods by ratio, means over seeds and splits."""
        rows = self.results[self.results["part"] == "reconstruction"]
        wide = rows.pivot_table(index="method", columns="ratio", values="value", sort=False)
        return wide.sort_index(axis="columns")

    def integration(self) -> pd.DataFrame:
        """Return the scores of integration: methods by metric, means over seeds and splits, and ``seconds`` of a fit."""
        rows = self.results[self.results["part"] == "integration"]
        wide = rows.pivot_table(index="method", columns="metric", values="value", sort=False)
        if not len(wide):
            return wide
        wide = wide[[name for name in INTEGRATION_SCORES if name in wide]]
        seconds = rows.drop_duplicates(["method", "seed", "split"]).groupby("method")["seconds"].mean()
        return wide.assign(seconds=seconds).sort_values("total", ascending=False, kind="stable")

    def to_markdown(self) -> str:
        """Return a description of the benchmark and its tables as Markdown."""
        parts = ["# Benchmark", self._description()]
        for scale in self.scalings:
            parts += [_SCALING[scale], self._score_table(scale)]
        reconstruction = self.reconstruction()
        if len(reconstruction):
            shown = reconstruction.map("{:.3f}".format).set_axis(
                [f"{ratio:.0%}" for ratio in reconstruction], axis=1
            )
            parts += ["## Reconstruction by fraction of masked genes", _MASKED[self.about["pretrain_on"]]]
            parts.append(self._markdown_table(shown, reconstruction))
        integration = self.integration()
        if len(integration):
            shown = integration.map("{:.3f}".format).assign(
                seconds=integration["seconds"].map("{:.0f}".format)
            )
            parts += ["## Integration of batches", _INTEGRATION.format(self.about["integration"])]
            parts.append(self._markdown_table(shown, integration.assign(seconds=-integration["seconds"])))
        if notes := self._notes():
            parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def _description(self) -> str:
        """Return the paragraph that says what was compared, and how."""
        about = self.about
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        n_train = about["splits"][0]["train_donors"]
        return (
            f"{about['n_obs']} cells, {about['n_vars']} genes, {about['n_donors']} donors. {_SAW[about['pretrain_on']]}\n\n"
            f"Linear probes, protocol {about['probing']['protocol']!r}: {len(about['splits'])} split(s) with {len(n_train)} training donors; training seeds "
            f"{', '.join(map(str, about['seeds']))}. Score is the mean over tasks ± its standard deviation over training "
            f"seeds; Rank is the mean over columns, with the smallest rank for ties. Versions: {versions}."
        )

    def _score_table(self, scale: bool) -> str:
        """Return the table of scores in Markdown, the best values in bold."""
        table = self.table(scale=scale)
        table = table.set_axis([*headings(table.columns[:-3]), "Score", "Rank", "sd"], axis=1)
        spread = table.pop("sd").map(lambda sd: "" if np.isnan(sd) else f" ± {sd:.3f}")
        shown = table.map("{:.3f}".format)
        shown["Score"] += spread
        shown["Rank"] = table["Rank"].map("{:.2f}".format)
        first = self._probe(scale).drop_duplicates("method").set_index("method").reindex(shown.index)
        shown["Epochs"] = first["epochs"].astype("string").fillna("")
        shown["Pretrained on"] = first["pretrained_on"]
        return self._markdown_table(shown, table.assign(Rank=-table["Rank"]))

    def _markdown_table(self, shown: pd.DataFrame, values: pd.DataFrame) -> str:
        """Return a table with the largest value per column in bold."""
        best = values.set_axis(shown.columns[: values.shape[1]], axis=1).dropna(axis=1, how="all").idxmax()
        return to_markdown(
            shown.rename(index=self.labels).rename_axis(index="Method"),
            best={str(column): self.labels.get(str(name), str(name)) for column, name in best.items()},
        )

    def _notes(self) -> list[str]:
        """Return a sentence for each score that is undefined and each class that a split lacks."""
        rows = self._probe()
        undefined = rows[rows["value"].isna()]
        notes = [
            f"{self.labels[method]}, {target}, {metric} by {level}: undefined {len(group)} time(s) "
            f"({'; '.join(sorted(set(group['note'])))})."
            for method in self.labels
            for target, scores in self.columns.items()
            for metric, level in scores
            for group in [
                undefined.query("method == @method & target == @target & metric == @metric & level == @level")
            ]
            if len(group)
        ]
        for side, column in (("training", "absent_train"), ("test", "absent_test")):
            absent = rows[rows[column] != ""].groupby("target", sort=False)[column].unique()
            notes += [
                f"{target}: no {side} donor had {', '.join(sorted({c for text in texts for c in text.split('; ')}))} "
                "in at least one split."
                for target, texts in absent.items()
            ]
        return notes

    def write(self, folder: str | Path) -> list[Path]:
        """Write the rows, the tables, the figures, and the settings with the splits.

        Parameters
        ----------
        folder
            Folder to write to; created if it does not exist.

        Returns
        -------
        The paths written.
        """
        folder = as_path(folder)
        texts = {"results.csv": self.results.to_csv(index=False), "table.md": self.to_markdown()}
        for name, text in texts.items():
            with atomic_write(folder / name) as part:
                part.write_text(text, encoding="utf-8")
        write_about(folder, self.about)
        return [folder / name for name in [*texts, MARKER, *self._draw(folder)]]

    def _draw(self, folder: Path) -> list[str]:
        """Draw the figures for which there are scores; return their names."""
        from matplotlib.figure import Figure

        from scr2mae import pl

        figures = {
            "scores.png": (pl.benchmark_scores, self.table()),
            "reconstruction.png": (pl.benchmark_reconstruction, self.reconstruction()),
            "integration.png": (
                pl.integration_scores,
                self.integration().drop(columns="seconds", errors="ignore"),
            ),
        }
        drawn = {name: item for name, item in figures.items() if len(item[1])}
        for name, (draw, frame) in drawn.items():
            width = 7.5 if name != "integration.png" else 1.5 + 0.75 * frame.shape[1]
            figure = Figure(figsize=(width, max(3.6, 1.5 + 0.3 * len(frame))), layout="constrained")
            draw(frame.rename(index=self.labels), ax=figure.add_subplot())
            with atomic_write(folder / name) as part:
                figure.savefig(part, dpi=150, format="png")
        return list(drawn)


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the settings and splits to the file that identifies a folder of results."""
    with atomic_write(folder / MARKER) as part:
        part.write_text(json.dumps(about, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
