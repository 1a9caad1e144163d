"""Run a benchmark in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from anndata import AnnData

from scr2mae._utils.files import as_path
from scr2mae._utils.methods import LABELS
from scr2mae.benchmark.cache import Store
from scr2mae.benchmark.design import PretrainOn, integration_task, make_design
from scr2mae.benchmark.environment import versions
from scr2mae.benchmark.fits import Probing, run_fits
from scr2mae.benchmark.methods import make_methods
from scr2mae.benchmark.pretraining import Options
from scr2mae.benchmark.results import Benchmark, write_about
from scr2mae.benchmark.table import results_frame
from scr2mae.benchmark.tasks import Task, as_tasks
from scr2mae.data.containers import check_anndata
from scr2mae.data.counts import named_layer
from scr2mae.nn.curriculum import Curriculum
from scr2mae.probe.inputs import Kind
from scr2mae.probe.scores import check_interval


def run(
    adata: AnnData,
    *,
    targets: Mapping[str, Kind] | Sequence[Task],
    donor_key: str | Sequence[str],
    methods: Sequence[str] | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    use_raw: bool = False,
    sample_key: str | Sequence[str] | None = None,
    cell_level: Sequence[str] = ("cell_type",),
    seeds: Sequence[int] = (0, 1, 2),
    n_splits: int = 5,
    n_train_donors: int | None = None,
    split_seed: int = 0,
    max_cells_per_donor: int | None = None,
    max_cells_per_donor_and_class: int | None = None,
    protocol: Literal["stratified", "paper"] = "stratified",
    scale: bool | Sequence[bool] = (False, True),
    n_bootstrap: int = 0,
    confidence: float = 0.95,
    pretrain_on: Literal["all", "train"] = "all",
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.7),
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    scvi_model_kwargs: Mapping[str, Any] | None = None,
    scvi_train_kwargs: Mapping[str, Any] | None = None,
    schemes: Literal["single_cell", "hlca", "sea_ad"] = "single_cell",
    curriculum: Curriculum | None = None,
    n_pcs: int = 50,
    integration: bool = False,
    accelerator: str = "auto",
    out: str | Path | None = None,
    enable_progress_bar: bool = True,
) -> Benchmark:
    """Compare embeddings by linear probes on held-out donors and by their reconstruction of masked genes.

    The paper's comparison is ``run(adata, targets=tasks("hlca"), **scr2mae.paper("hlca").benchmark)``.

    Parameters
    ----------
    adata
        Raw counts of the genes to use; not modified.
    targets
        Maps columns of ``adata.obs`` to "classification" (balanced accuracy and macro F1 by cell) or "regression"
        (Spearman's correlation by cell and by donor); or tasks, such as those of :func:`tasks`.
    donor_key
        Column of ``adata.obs`` with donor IDs.
    methods
        Names of methods and keys of ``adata.obsm``. Methods are ``"lognorm"``, ``"pca"``, ``"scvi"``,
        ``"scvi_joint"`` (``scvi.external.JointEmbeddingSCVI``, available from scvi-tools 1.5) and the masking schemes
        of :func:`scr2mae.schemes`. None means all of them.
    batch_key
        Column of the batch, for scVI and the masked autoencoders.
    layer
        Layer of raw counts; None for ``X``.
    use_raw
        Whether the counts are in ``adata.raw``, as in files of CELLxGENE; its genes are cut to those of ``adata``.
    sample_key, cell_level, max_cells_per_donor, max_cells_per_donor_and_class, protocol, n_bootstrap, confidence
        As in :func:`scr2mae.probe.linear_probe`. A :class:`Task` may have a cap of its own. Intervals over
        donors are off by default.
    seeds
        Training seeds.
    n_splits
        Number of donor splits, the same for all methods, seeds and tasks.
    n_train_donors
        Number of training donors, at least two; by default half of those with a label.
    split_seed
        Random seed for the donor splits, the validation cells, and the draws of cells before labels are dropped.
    scale
        Whether to divide each feature by its standard deviation over the training cells; a pair for both tables.
    pretrain_on
        "all": pretraining sees the counts of all cells, a tenth of them for validation, as in the paper. "train": it
        sees the cells of the training donors, so that each method is trained once per split.
    ratios
        Fractions of masked genes for the reconstruction of validation cells or, if ``pretrain_on`` is "train", of the
        test donors' cells; empty for no reconstruction.
    model_kwargs, train_kwargs
        Arguments of :class:`scr2mae.R2MAEModel` and of its ``train`` for all masking schemes.
    scvi_model_kwargs, scvi_train_kwargs
        The same for scVI; by default those of scvi-tools, whose number of epochs decreases above 20,000 cells
        (four for two million). The column ``epochs`` of the results has the number for each method.
    schemes, curriculum
        The masking schemes, ``domain`` and ``curriculum`` of :func:`scr2mae.schemes`.
    n_pcs
        Number of principal components of log-normalized expression, at most one less than cells or genes.
    integration
        Whether to also score how batches mix and labels stay apart, by :func:`scr2mae.metrics.integration_scores` with
        the labels of the first classification in ``cell_level``. Adds the methods ``"r2mae_aligned"``, ``"harmony"``,
        ``"scanvi"`` (which sees the labels, so it is not probed) and ``"sysvi"``, where their packages are installed.
    accelerator
        As in :class:`lightning.pytorch.Trainer`.
    out
        Folder for the results and for the embeddings and scores of each fit. Existing fits with the same data,
        settings and versions are not computed again.
    enable_progress_bar
        Whether to show a progress bar on a terminal.

    Returns
    -------
    Rows and tables; also written to ``out``.

    Raises
    ------
    KeyError
        If a column or layer is missing.
    ValueError
        If a method is unknown, the counts are not raw, or donors, labels or batches do not allow the probes.

    Notes
    -----
    As in Dong et al. (2025), appendix C.8; ``protocol="paper"`` follows it exactly. All tasks share the donor splits,
    so a method can be trained on one side of them. Log-normalized expression, principal components and embeddings in
    ``adata.obsm`` have no reconstruction.
    """
    scalings = (scale,) if isinstance(scale, bool) else tuple(scale)
    probing = Probing(
        max_cells_per_donor, max_cells_per_donor_and_class, protocol, scalings, n_bootstrap, confidence
    )
    _check_settings(seeds, n_splits, pretrain_on, ratios, probing)
    options = Options(
        model_kwargs=dict(model_kwargs or {}),
        train_kwargs=dict(train_kwargs or {}),
        scvi_model_kwargs=dict(scvi_model_kwargs or {}),
        scvi_train_kwargs=dict(scvi_train_kwargs or {}),
        schemes=schemes,
        curriculum=curriculum,
        n_pcs=n_pcs,
        ratios=tuple(ratios),
        accelerator=accelerator,
    )
    check_anndata(adata)
    named = as_tasks(targets, cell_level)
    scored = integration_task(named, batch_key) if integration else None
    chosen = make_methods(
        methods, adata, options, labels=None if scored is None else scored.labels(adata.obs)
    )
    # Invalid data and settings raise here, before the first fit.
    design = make_design(
        adata,
        named,
        donor_key=donor_key,
        sample_key=sample_key,
        batch_key=batch_key,
        layer=named_layer(layer, use_raw=use_raw),
        n_splits=n_splits,
        n_train_donors=n_train_donors,
        max_cells_per_donor=max_cells_per_donor,
        max_cells_per_donor_and_class=max_cells_per_donor_and_class,
        protocol=protocol,
        pretrain_on=pretrain_on,
        seed=split_seed,
        integration=scored,
    )
    about = {
        "n_obs": design.cells.n_obs,
        "n_vars": design.cells.n_vars,
        "n_donors": int(design.obs[design.donor_key].nunique()),
        "pretrain_on": pretrain_on,
        "seeds": [int(seed) for seed in seeds],
        "probing": asdict(probing),
        "integration": design.integration,
        "options": asdict(options),
        "versions": versions(),
        "splits": [split.to_manifest() for split in design.splits],
    }
    if out is not None:
        write_about(as_path(out), about)
    store = Store(None if out is None else as_path(out))
    records = run_fits(design, chosen, seeds, probing, store, enable_progress_bar)
    names = [method.name for method in chosen]
    benchmark = Benchmark(
        results=results_frame(records, names),
        columns={task.name: task.scores for task in design.tasks},
        about=about,
        labels={name: LABELS.get(name, name) for name in names},
    )
    if out is not None:
        benchmark.write(out)
    return benchmark


def _check_settings(
    seeds: Sequence[int], n_splits: int, pretrain_on: str, ratios: Sequence[float], probing: Probing
) -> None:
    if not len(seeds) or len(set(seeds)) < len(seeds) or n_splits < 1:
        raise ValueError(
            f"Wanted distinct seeds and at least one split, got seeds={list(seeds)}, n_splits={n_splits}."
        )
    if pretrain_on not in get_args(PretrainOn):
        raise ValueError(f"pretrain_on must be one of {get_args(PretrainOn)}, got {pretrain_on!r}.")
    if not all(0 < ratio < 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
        raise ValueError(f"Wanted distinct ratios between 0 and 1, got {list(ratios)}.")
    if not probing.scale or len(set(probing.scale)) < len(probing.scale):
        raise ValueError(f"Wanted scale to be True, False or a pair of both, got {probing.scale}.")
    check_interval(probing.n_bootstrap, probing.confidence)
