"""Linear probes of any embedding on donors that they have never seen."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from anndata import AnnData

from scr2mae._utils.progress import progress
from scr2mae.probe.inputs import Kind, read_representation, read_target
from scr2mae.probe.split import DonorSplit, donor_split
from scr2mae.probe.task import Task, make_task, run_task

Splits = Mapping[str, Sequence[DonorSplit]]


def donor_splits(
    adata: AnnData,
    *,
    targets: Mapping[str, Kind],
    donor_key: str,
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
) -> dict[str, list[DonorSplit]]:
    """Draw the splits that :func:`linear_probe` draws, to give them to several calls.

    Parameters
    ----------
    adata
        Annotated data; only ``adata.obs`` is read.
    targets
        Column of ``adata.obs`` to "classification" or "regression".
    donor_key
        Column with the donor.
    n_train_donors
        Donors that train, at least two, so that the penalty can be chosen across them; by default half.
    n_splits
        Splits a seed.
    seeds
        Seeds of the draws.

    Returns
    -------
    For every target its splits, seed by seed. Donors without a label of the target are on neither side.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If there are too few donors, or labels that cannot be probed.
    """
    if n_splits < 1 or not len(seeds):
        raise ValueError(
            f"Wanted at least one split and one seed, got n_splits={n_splits}, seeds={list(seeds)}."
        )
    if n_train_donors is not None and n_train_donors < 2:
        raise ValueError(f"Choosing a penalty across donors needs n_train_donors >= 2, got {n_train_donors}.")
    drawn: dict[str, list[DonorSplit]] = {}
    for name, kind in targets.items():
        target = read_target(adata, name, kind, donor_key=donor_key, sample_key=None, cell_level=())
        labels = target.y if kind == "classification" else None
        if (n_donors := len(np.unique(target.donors))) < 3:
            raise ValueError(
                f"Probing {name!r} needs two donors to train and one to test, got {n_donors} donors."
            )
        n_train = max(2, n_donors // 2) if n_train_donors is None else n_train_donors
        drawn[name] = [
            donor_split(target.donors, n_train_donors=n_train, labels=labels, seed=_child_seed(seed, i))
            for seed in seeds
            for i in range(n_splits)
        ]
    return drawn


def linear_probe(
    adata: AnnData,
    *,
    use_rep: str | Sequence[str],
    targets: Mapping[str, Kind],
    donor_key: str,
    sample_key: str | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    splits: Splits | Sequence[DonorSplit] | None = None,
    n_train_donors: int | None = None,
    n_splits: int = 1,
    seeds: Sequence[int] = (0,),
    max_cells_per_donor: int | None = None,
    max_cells_per_donor_and_class: int | None = None,
    scale: bool | Sequence[bool] = False,
    n_bootstrap: int = 500,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Fit linear models to embeddings of some donors and score them on the others.

    Parameters
    ----------
    adata
        Annotated data.
    use_rep
        Representations to probe: "X" for ``adata.X``, keys of ``adata.obsm``, or layers. They are taken as they
        are; normalize expression beforehand.
    targets
        Column of ``adata.obs`` to "classification" or "regression". Cells without a label are dropped.
    donor_key
        Column with the donor.
    sample_key
        Column with the sample, of which a donor may have several; the unit over which cells are averaged. By
        default the donor.
    cell_level
        Targets that belong to the cell rather than to its sample, such as cell type: scored by cell only, and
        capped per donor and class. The default is the name in the CELLxGENE schema.
    splits
        Splits to use, for all targets or for each: pairs methods and training seeds. By default those of
        :func:`donor_splits` with the next three arguments.
    n_train_donors
        Donors that train; by default half.
    n_splits
        Splits a seed.
    seeds
        Seeds of the splits.
    max_cells_per_donor
        Cap on a donor's cells on either side, drawn at random: the same cells for every representation.
    max_cells_per_donor_and_class
        Cap on a donor's cells of a class, for the targets in ``cell_level``.
    scale
        True divides each feature by its standard deviation over the training cells; a pair gives rows of both.
    n_bootstrap
        Draws of test donors behind the interval; 0 leaves it NaN.
    confidence
        Coverage of the interval.

    Returns
    -------
    One row for each representation, target, split, scaling, level and metric:

    - ``method``, ``target``, ``metric``, ``level`` ("cell" or "donor"), ``unit``, ``scale``
    - ``seed`` and ``split`` (its place among the splits), ``split_hash``
    - ``value`` with ``ci_low``, ``ci_high``: the interval over test donors for this fitted probe
    - ``n_train_donors``, ``n_test_donors``, ``n_train_cells``, ``n_test_cells``, ``n_units``
    - ``n_dropped``: cells without a label; ``n_unseen``: test cells of a class that no training donor carries,
      which are not scored; ``absent_train``, ``absent_test``: those classes and their converse
    - ``penalty``: the chosen alpha or C; ``note``: why a value is NaN

    At level "donor" predictions (numbers or class probabilities) are averaged over each ``unit``: "donor" or
    "sample" where the target is constant there, else "donor_and_class", "donor_and_value" and the like.
    The manifests of the splits are in ``.attrs["splits"]``.

    Raises
    ------
    KeyError
        If a column or representation is missing.
    ValueError
        If a donor is on both sides, there are too few donors or classes, a regression target holds text, or a
        representation is not finite.

    Notes
    -----
    Protocol of Dong et al. (2025): donors held out, penalty by five folds grouped by donor, no scaling.

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
    scalings = [scale] if isinstance(scale, bool) else list(scale)
    _check_options(methods, targets, scalings, confidence)
    if splits is None:
        splits = donor_splits(
            adata,
            targets=targets,
            donor_key=donor_key,
            n_train_donors=n_train_donors,
            n_splits=n_splits,
            seeds=seeds,
        )
    by_target: Splits = splits if isinstance(splits, Mapping) else dict.fromkeys(targets, splits)
    tasks: list[tuple[int, Task]] = []
    for name, kind in targets.items():
        if not by_target.get(name):
            raise ValueError(f"No splits for target {name!r}; there are splits for {list(by_target)}.")
        target = read_target(
            adata, name, kind, donor_key=donor_key, sample_key=sample_key, cell_level=cell_level
        )
        per_class = max_cells_per_donor_and_class if name in cell_level else None
        tasks += [
            (i, make_task(target, split, adata.obs_names, max_cells_per_donor, per_class))
            for i, split in enumerate(by_target[name])
        ]
    records = []
    with progress(total=len(methods) * len(tasks) * len(scalings), desc="Probing", unit="fit") as bar:
        for method in methods:
            X = read_representation(adata, method)
            for (i, task), scaled in product(tasks, scalings):
                found = run_task(X, task, scaled, n_bootstrap, confidence)
                records += [{"method": method, "split": i, "scale": scaled} | record for record in found]
                bar.update()
    frame = pd.DataFrame.from_records(records)[list(_COLUMNS)]
    frame.attrs["splits"] = {name: [s.to_manifest() for s in by_target[name]] for name in targets}
    return frame


_COLUMNS = (
    *("method", "target", "metric", "level", "unit", "scale", "seed", "split", "value", "ci_low", "ci_high"),
    *("n_train_donors", "n_test_donors", "n_train_cells", "n_test_cells", "n_units", "n_dropped", "n_unseen"),
    *("absent_train", "absent_test", "penalty", "split_hash", "note"),
)


def _check_options(
    methods: Sequence[str], targets: Mapping[str, Kind], scalings: Sequence[bool], confidence: float
) -> None:
    if not methods or not targets or not scalings:
        raise ValueError(
            "Wanted at least one representation, one target and one scaling; one of them is empty."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"Wanted confidence between 0 and 1, got {confidence}.")


def _child_seed(seed: int, index: int) -> int:
    """Seed of a split: the first has the seed itself, so that a single split is easily drawn again."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
