"""Run the fits sequentially: train, embed, probe and store."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from scr2mae._utils.progress import log_level, no_progress, progress
from scr2mae.benchmark.cache import Store, digest
from scr2mae.benchmark.design import Design, PretrainOn
from scr2mae.benchmark.environment import measure, versions
from scr2mae.benchmark.methods import Method
from scr2mae.benchmark.pretraining import BATCH
from scr2mae.metrics import integration_scores
from scr2mae.probe import linear_probe
from scr2mae.probe.inputs import Protocol

# Increase it when a code change makes stored results out of date.
_REVISION = 2


@dataclass(frozen=True)
class Probing:
    """Settings of the probes."""

    max_cells_per_donor: int | None
    max_cells_per_donor_and_class: int | None
    protocol: Protocol
    scale: tuple[bool, ...]
    n_bootstrap: int
    confidence: float


@dataclass(frozen=True)
class Fit:
    """A method with a training seed, on the training donors of a split or, if None, on all cells."""

    method: Method
    seed: int | None
    split: int | None

    @property
    def name(self) -> str:
        """Name of the files of the fit."""
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
    """Train each method on each split with each seed and return the records of all scores."""
    fits = _list_fits(methods, seeds, len(design.splits), design.pretrain_on)
    records: list[dict[str, Any]] = []
    bar = progress(fits, desc="benchmark", unit="fit", show=enable_progress_bar)
    # The design has already logged which classes a split lacks; do not repeat it for every method.
    with log_level(logging.ERROR, "scr2mae.probe.task"), no_progress():
        for fit in bar:
            bar.set_postfix_str(fit.name)
            records += _run_fit(fit, design, probing, store)
    return records


def _list_fits(
    methods: Sequence[Method], seeds: Sequence[int], n_splits: int, pretrain_on: PretrainOn
) -> list[Fit]:
    """Return fits ordered by seed, then split, so that all methods have a first score early."""
    fits = [
        (i, -1 if split is None else split, Fit(method, seed if method.seeded else None, split))
        for method in methods
        for i, seed in enumerate(seeds if method.seeded else seeds[:1])
        for split in (range(n_splits) if method.learns and pretrain_on == "train" else [None])
    ]
    return [fit for *_, fit in sorted(fits, key=lambda item: item[:2])]


def _run_fit(fit: Fit, design: Design, probing: Probing, store: Store) -> list[dict[str, Any]]:
    """Return the records of one fit, stored or computed."""
    numbers = versions()
    cells = design.pretraining(fit.split)
    fit_key = digest(_REVISION, fit.method.name, fit.method.settings, fit.seed, cells.key, numbers)
    splits = [design.splits[i].to_manifest() for i in design.probed_splits(fit.split)]
    scored = [] if design.integration is None else [design.integration]
    key = digest(fit_key, splits, design.labels_key, asdict(probing), *scored)
    if (kept := store.read_scores(fit.name, key)) is not None:
        return kept["rows"]
    values, about = _embed(fit, design, store, fit_key)
    reconstruction = about.pop("reconstruction")
    with measure() as cost:
        rows = _probe(values, fit, design, probing) if fit.method.probed else []
    saw = fit.method.saw or ("all cells" if fit.split is None else "training donors")
    common = {"method": fit.method.name, "pretrained_on": saw, "seed": fit.seed}
    common |= about | {"probe_seconds": cost.seconds}
    common["versions"] = "; ".join(f"{name} {number}" for name, number in numbers.items())
    if design.integration is not None:
        rows += _integration(values, fit, design)
    rows += [
        {"part": "reconstruction", "split": fit.split, "metric": "pearson", "level": "cell"}
        | {"ratio": float(ratio), "value": value}
        for ratio, value in reconstruction
    ]
    rows = [
        {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in (row | common).items()
        }
        for row in rows
    ]
    store.write_scores(fit.name, key, {"rows": rows})
    return rows


def _embed(fit: Fit, design: Design, store: Store, key: str) -> tuple[Any, dict[str, Any]]:
    """Return the embedding of all cells with its reconstruction and cost, stored or computed."""
    kept = store.read_embedding(fit.name, key) if fit.method.learns else None
    if kept is not None:
        return kept
    with measure() as cost:
        embedding = fit.method.fit(design.pretraining(fit.split), fit.seed or 0)
    # Pairs, because JSON would turn ratios as keys into text.
    about = asdict(cost) | {"reconstruction": [list(pair) for pair in embedding.reconstruction.items()]}
    about["epochs"] = embedding.epochs
    if fit.method.learns:
        store.write_embedding(fit.name, key, embedding.matrix, about)
    return embedding.matrix, about


def _integration(values: Any, fit: Fit, design: Design) -> list[dict[Any, Any]]:
    """Score how batches mix; expression itself has too many dimensions."""
    if sp.issparse(values):
        return []
    labels = design.obs[design.integration]
    scores = integration_scores(values, design.cells.obs[BATCH].to_numpy(), labels.to_numpy())
    common = {"part": "integration", "split": fit.split, "target": design.integration, "level": "cell"}
    return [common | {"metric": name, "value": value} for name, value in scores.items()]


def _probe(values: Any, fit: Fit, design: Design, probing: Probing) -> list[dict[Any, Any]]:
    """Probe an embedding on the splits of a fit; return a row per score."""
    probed = design.probed_splits(fit.split)
    frame = linear_probe(
        AnnData(obs=design.obs, obsm={"embedding": values}),
        use_rep="embedding",
        targets={task.name: task.kind for task in design.tasks},
        donor_key=design.donor_key,
        sample_key=design.sample_key,
        cell_level=[task.name for task in design.tasks if task.cell_level],
        splits=[design.splits[i] for i in probed],
        **asdict(probing) | {"max_cells_per_donor": design.caps},
    )
    frame = frame.drop(columns="method").rename(columns={"seed": "split_seed"})
    frame = frame.assign(split=[probed[i] for i in frame["split"]])
    return [{"part": "probe"} | row for row in frame.to_dict("records")]
