"""One cell of the table: fit, embed, probe, keep."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scr2mae._utils.progress import no_progress, progress
from scr2mae.benchmark.design import Design, PretrainOn
from scr2mae.benchmark.methods import Method
from scr2mae.benchmark.resources import Meter, versions
from scr2mae.benchmark.store import Store, digest
from scr2mae.probe import linear_probe

# Raised whenever a change here makes finished work out of date.
_REVISION = 1
_COST = ("seconds", "peak_memory_mb", "peak_gpu_memory_mb")


@dataclass(frozen=True)
class Probing:
    """Settings of the probes."""

    max_cells_per_donor: int | None
    max_cells_per_donor_and_class: int | None
    scale: tuple[bool, ...]
    n_bootstrap: int
    confidence: float


@dataclass(frozen=True)
class Fit:
    """A method, trained from a seed, on what it may see for a split."""

    method: Method
    seed: int | None
    split: int | None

    @property
    def name(self) -> str:
        """Name of the fit, used for its files."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.method.name}{seed}" + ("" if self.split is None else f"-split{self.split}")


def run_fits(
    design: Design,
    methods: Sequence[Method],
    seeds: Sequence[int],
    probing: Probing,
    store: Store,
    enable_progress_bar: bool,
) -> list[dict[str, Any]]:
    """Train each method on each split with each seed and return the probe records."""
    fits = _list_fits(methods, seeds, len(design.splits), design.pretrain_on)
    records: list[dict[str, Any]] = []
    bar = progress(fits, desc="benchmark", unit="fit", show=enable_progress_bar)
    with _said_before(), no_progress():
        for fit in bar:
            bar.set_postfix_str(fit.name)
            records += _run_fit(fit, design, probing, store)
    return records


def _list_fits(
    methods: Sequence[Method], seeds: Sequence[int], n_splits: int, pretrain_on: PretrainOn
) -> list[Fit]:
    """Fits in an order that finishes the first seed of all methods first, split by split."""
    fits = [
        (i, Fit(method, seed if method.seeded else None, split))
        for method in methods
        for i, seed in enumerate(seeds if method.seeded else seeds[:1])
        for split in (range(n_splits) if method.learns and pretrain_on == "train" else [None])
    ]
    return [
        fit
        for _, fit in sorted(fits, key=lambda pair: (pair[0], -1 if pair[1].split is None else pair[1].split))
    ]


def _run_fit(fit: Fit, design: Design, probing: Probing, store: Store) -> list[dict[str, Any]]:
    """Rows of one fit, from the store or computed."""
    numbers = versions()
    cells = design.pretraining(fit.split)
    fit_key = digest(_REVISION, fit.method.name, fit.method.settings, fit.seed, cells.key, numbers)
    splits = [design.splits[i].to_manifest() for i in design.chosen(fit.split)]
    key = digest(fit_key, splits, design.labels_key, asdict(probing))
    if (kept := store.read_scores(fit.name, key)) is not None:
        return kept["rows"]
    values, about = _embed(fit, design, store, fit_key)
    with Meter() as meter:
        frame = _probe(values, fit, design, probing)
    saw = fit.method.saw or ("all cells" if fit.split is None else "training donors")
    common: dict[Any, Any] = {"method": fit.method.name, "pretrained_on": saw, "seed": fit.seed}
    cost = {name: about[name] for name in _COST} | {
        "probe_seconds": meter.seconds,
        "versions": "; ".join(f"{name} {number}" for name, number in numbers.items()),
    }
    rows = [{"part": "probe"} | common | row | cost for row in frame.to_dict("records")]
    rows += [
        {"part": "reconstruction"}
        | common
        | {"split": fit.split, "metric": "pearson", "level": "cell", "ratio": float(ratio), "value": value}
        | cost
        for ratio, value in about["reconstruction"]
    ]
    rows = [{name: _plain(value) for name, value in row.items()} for row in rows]
    store.write_scores(fit.name, key, {"rows": rows})
    return rows


def _embed(fit: Fit, design: Design, store: Store, key: str) -> tuple[Any, dict[str, Any]]:
    """Embedding of all cells, with its reconstruction and cost, from the store or computed."""
    kept = store.read_embedding(fit.name, key) if fit.method.learns else None
    if kept is not None:
        return kept
    with Meter() as meter:
        embedding = fit.method.fit(design.pretraining(fit.split), fit.seed or 0)
    about: dict[str, Any] = {name: getattr(meter, name) for name in _COST}
    # Ratios as text would not come back from JSON as the numbers they were.
    about["reconstruction"] = [[ratio, value] for ratio, value in embedding.reconstruction.items()]
    if fit.method.learns:
        store.write_embedding(fit.name, key, embedding.matrix, about)
    return embedding.matrix, about


def _probe(values: Any, fit: Fit, design: Design, probing: Probing) -> pd.DataFrame:
    chosen = design.chosen(fit.split)
    frame = linear_probe(
        AnnData(obs=design.obs, obsm={"embedding": values}),
        use_rep="embedding",
        targets={task.name: task.kind for task in design.tasks},
        donor_key=design.donor_key,
        sample_key=design.sample_key,
        cell_level=[task.name for task in design.tasks if task.cell_level],
        splits=[design.splits[i] for i in chosen],
        **asdict(probing),
    )
    frame = frame.drop(columns="method").rename(columns={"seed": "split_seed"})
    return frame.assign(split=[chosen[i] for i in frame["split"]])


def _plain(value: Any) -> Any:
    """Turn NumPy scalars into what JSON holds."""
    return value.item() if isinstance(value, np.generic) else value


_ORDER = (
    *(
        "part",
        "method",
        "pretrained_on",
        "seed",
        "split",
        "target",
        "metric",
        "level",
        "unit",
        "scale",
        "ratio",
    ),
    *("value", "ci_low", "ci_high"),
)


def order(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> pd.DataFrame:
    """Frame with the methods in the order they were asked for and telling columns first."""
    frame = pd.DataFrame.from_records([{"ratio": np.nan} | dict(record) for record in records])
    names = [name for name in _ORDER if name in frame]
    frame = frame[names + [name for name in map(str, frame) if name not in names]]
    whole = {
        name: "Int64"
        for name in map(str, frame)
        if name in ("seed", "split", "split_seed") or name.startswith("n_")
    }
    frame = frame.astype(whole | ({"scale": "boolean"} if "scale" in frame else {}))
    place = frame["method"].map({name: i for i, name in enumerate(methods)})
    return frame.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


@contextmanager
def _said_before() -> Iterator[None]:
    """Keep the probes from saying for every method which classes a split lacks; the design has said so."""
    probe_logger = logging.getLogger("scr2mae.probe.task")

    def silent(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    probe_logger.addFilter(silent)
    try:
        yield
    finally:
        probe_logger.removeFilter(silent)
