"""Linear probes of embeddings on held-out donors."""

import logging
from collections.abc import Mapping, Sequence
from itertools import product
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scr2mae._utils.progress import progress
from scr2mae.data.columns import as_keys
from scr2mae.data.containers import check_anndata
from scr2mae.data.donors import warn_about_copied_cells
from scr2mae.probe.inputs import (
    Kind,
    Protocol,
    check_protocol,
    kinds_of,
    read_donors,
    read_representation,
    read_target,
)
from scr2mae.probe.splits import DonorSplit, draw_splits
from scr2mae.probe.task import ProbeTask, make_task, run_task, warn_about_classes

logger = logging.getLogger(__name__)

Splits = Mapping[str, Sequence[DonorSplit]]


def donor_splits(
    adata: AnnData,
    *,
    targets: Mapping[str, Kind],
    donor_key: str | Sequence[str],
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
    protocol: Protocol = "stratified",
) -> dict[str, list[DonorSplit]]:
    """Draw the splits of :func:`linear_probe`, to share them between several calls.

    Parameters
    ----------
    adata
        Annotated data; only ``adata.obs`` is read.
    targets, donor_key, n_splits, seeds, protocol
        As in :func:`linear_probe`.
    n_train_donors
        Number of training donors, at least two, so that the penalty can be chosen across them; by default half.

    Returns
    -------
    The splits of each target, ordered by seed. Donors without a label for the target are excluded; with
    ``protocol="paper"`` all donors are split, the same for all targets.

    Raises
    ------
    KeyError
        If a column is missing.
    TypeError
        If ``seeds`` is not a list.
    ValueError
        If there are too few donors, a target has fewer than two classes or values, classes are fractions, or a
        regression target holds text or infinity.
    """
    if isinstance(seeds, (str, Integral)):
        raise TypeError(f"seeds is a list of numbers, got {seeds!r}; pass [{seeds!r}].")
    if n_splits < 1 or not len(seeds):
        raise ValueError(
            f"Wanted at least one split and one seed, got n_splits={n_splits}, seeds={list(seeds)}."
        )
    check_anndata(adata)
    kinds_of(targets)
    check_protocol(protocol, None)
    donors = read_donors(adata.obs, donor_key)
    children = [_child_seed(seed, i) for seed in seeds for i in range(n_splits)]
    if protocol == "paper":
        drawn_alike = draw_splits(donors, None, n_train_donors=n_train_donors, seeds=children)
        return {name: list(drawn_alike) for name in targets}
    drawn: dict[str, list[DonorSplit]] = {}
    for name, kind in targets.items():
        target = read_target(adata.obs, name, kind, donor_key=donor_key)
        labels = target.y if kind == "classification" else None
        drawn[name] = draw_splits(
            target.donors, labels, n_train_donors=n_train_donors, seeds=children, what=f" {name!r}"
        )
    return drawn


def linear_probe(
    adata: AnnData,
    *,
    use_rep: str | Sequence[str],
    targets: Mapping[str, Kind],
    donor_key: str | Sequence[str],
    sample_key: str | Sequence[str] | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    splits: Splits | Sequence[DonorSplit] | None = None,
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
    max_cells_per_donor: int | Mapping[str, int | None] | None = None,
    max_cells_per_donor_and_class: int | None = None,
    protocol: Protocol = "stratified",
    scale: bool | Sequence[bool] = False,
    n_bootstrap: int = 500,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Fit linear models to the embeddings of some donors and score them on the others.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        Representations to probe: "X" for ``adata.X``, keys of ``adata.obsm``, or layers. They are used as they
        are; normalize expression beforehand.
    targets
        Maps columns of ``adata.obs`` to "classification" or "regression". Cells without a label are dropped.
    donor_key
        Column of ``adata.obs`` with donor IDs, or several that together name a donor: ``["study", "donor"]``.
    sample_key
        Column of ``adata.obs`` with sample IDs, the unit over which cells are averaged; a donor may have several
        samples. By default the unit is the donor.
    cell_level
        Targets that belong to the cell rather than to its sample, such as cell type: scored by cell only, and
        capped per donor and class. The default is the column of the CELLxGENE schema.
    splits
        Splits to use, for all targets or per target, to compare methods and training seeds on the same splits. By
        default those of :func:`donor_splits` with the next three arguments.
    n_train_donors
        Number of training donors; by default half.
    n_splits
        Number of splits per seed.
    seeds
        Random seeds for the splits.
    max_cells_per_donor
        Maximum number of cells per donor, drawn at random, the same cells for every representation; a mapping has one
        per target.
    max_cells_per_donor_and_class
        Maximum number of cells per donor and class, for the targets in ``cell_level``.
    protocol
        ``"stratified"``: a class that two donors have is placed on both sides of a split; folds are
        stratified by class; test cells of a class without training cells are counted, not scored; F1 is
        averaged over the classes of the test cells; each target has its own splits. ``"paper"``, exactly
        as in Dong et al. (2025): donors are drawn at random, the same for all targets; folds split donors
        regardless of class; every test cell is scored, so a class absent from training counts
        as missed; F1 is averaged over the classes of cells and predictions, as in scikit-learn; cells are
        capped per donor, not per class.
    scale
        Whether to divide each feature by its standard deviation over training cells; ``(False, True)`` reports both.
    n_bootstrap
        Number of bootstrap resamples of test donors for the interval; 0 leaves it NaN.
    confidence
        Coverage of the interval.

    Returns
    -------
    One row per representation, target, split, scaling, level and metric:

    - ``method``, ``target``, ``metric``, ``level`` ("cell" or "donor"), ``unit``, ``scale``
    - ``seed`` and ``split`` (its position among the splits), ``split_hash``
    - ``value`` with ``ci_low``, ``ci_high``: the interval over test donors for this fitted probe
    - ``n_train_donors``, ``n_test_donors``, ``n_train_cells``, ``n_test_cells``, ``n_units``
    - ``n_dropped``: cells without a label; ``absent_train``, ``absent_test``: classes that only the other side has;
      ``n_unseen``: test cells of classes absent from training, which are not scored
    - ``penalty``: the chosen C for classes (smaller is stronger) or alpha for numbers (larger is stronger)
    - ``note``: why a value is NaN

    At level "donor", predictions (numbers or class probabilities) are averaged over each ``unit``: "donor" or
    "sample" if the target is constant there, else "donor_and_class", "donor_and_value" and so on. The manifests of
    the splits are in ``.attrs["splits"]``.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If a donor is on both sides, there are too few donors or classes, a regression target holds text, or a
        representation is not finite.

    Notes
    -----
    As in Dong et al. (2025), whole donors are held out, the penalty is chosen by five folds of donors, and features are
    not scaled; ``protocol`` selects what differs.

    Examples
    --------
    >>> import scr2mae
    >>> from scr2mae.probe import linear_probe
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=8, n_cells_per_donor=20, n_genes=50, disease_effect=2.0)
    >>> adata.layers["log"] = adata.X.log1p()
    >>> scores = linear_probe(adata, use_rep="log", targets={"disease": "classification"}, donor_key="donor")
    >>> bool(scores["value"].max() > 0.9)
    True
    """
    methods = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    scalings = _scalings(scale)
    if not methods or not targets or not scalings:
        raise ValueError(
            "Wanted at least one representation, one target and one scaling; one of them is empty."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"Wanted confidence between 0 and 1, got {confidence}.")
    check_protocol(protocol, max_cells_per_donor_and_class)
    check_anndata(adata)
    kinds_of(targets)
    if splits is not None:
        read_donors(adata.obs, donor_key)
    else:
        splits = donor_splits(
            adata,
            targets=targets,
            donor_key=donor_key,
            n_train_donors=n_train_donors,
            n_splits=n_splits,
            seeds=seeds,
            protocol=protocol,
        )
    by_target: Splits = splits if isinstance(splits, Mapping) else dict.fromkeys(targets, splits)
    tasks: list[tuple[int, ProbeTask]] = []
    for name, kind in targets.items():
        if not by_target.get(name):
            raise ValueError(f"No splits for target {name!r}; there are splits for {list(by_target)}.")
        target = read_target(
            adata.obs, name, kind, donor_key=donor_key, sample_key=sample_key, cell_level=cell_level
        )
        per_class = max_cells_per_donor_and_class if name in as_keys(cell_level, "cell_level") else None
        per_donor = (
            max_cells_per_donor.get(name) if isinstance(max_cells_per_donor, Mapping) else max_cells_per_donor
        )
        of_target = [
            make_task(target, split, adata.obs_names, per_donor, per_class, protocol=protocol)
            for split in by_target[name]
        ]
        warn_about_classes(of_target)
        tasks += enumerate(of_target)
    records = []
    with progress(total=len(methods) * len(tasks) * len(scalings), desc="Probing", unit="fit") as bar:
        for method in methods:
            X = read_representation(adata, method)
            if method == methods[0]:
                warn_about_copied_cells(X, adata.obs_names)
            for (i, task), scaled in product(tasks, scalings):
                found = run_task(X, task, scaled, n_bootstrap, confidence)
                records += [{"method": method, "split": i, "scale": scaled} | record for record in found]
                bar.update()
    frame = pd.DataFrame.from_records(records, columns=_COLUMNS)
    for note in frame.loc[frame["note"] != "", "note"].unique():
        logger.warning("Some scores are undefined: %s.", note)
    frame.attrs["splits"] = {name: [s.to_manifest() for s in by_target[name]] for name in targets}
    return frame


_COLUMNS = (
    *("method", "target", "metric", "level", "unit", "scale", "seed", "split", "value", "ci_low", "ci_high"),
    *("n_train_donors", "n_test_donors", "n_train_cells", "n_test_cells", "n_units", "n_dropped", "n_unseen"),
    *("absent_train", "absent_test", "penalty", "split_hash", "note"),
)


def _child_seed(seed: int, index: int) -> int:
    """Return the seed of a split; the first is the seed itself, so that a single split is easily drawn again."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _scalings(scale: Any) -> list[bool]:
    """Return the scalings to try, one or both."""
    scalings = [bool(scale)] if isinstance(scale, (bool, np.bool_)) else list(scale)
    if wrong := [each for each in scalings if not isinstance(each, (bool, np.bool_))]:
        raise TypeError(f"scale is True, False or a list of both, got {wrong[0]!r}.")
    return scalings
