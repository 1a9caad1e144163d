"""``scr2mae probe``: linear probes of embeddings, on held-out donors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scr2mae.cli import options as opt
from scr2mae.cli.cells import opened_cells, place_counts
from scr2mae.cli.columns import check_input
from scr2mae.cli.files import check_counts, check_exists, check_output, replacing
from scr2mae.cli.process import loading

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scr2mae.model import R2MAEModel

logger = logging.getLogger(__name__)

SCALINGS = {"no": [False], "yes": [True], "both": [False, True]}
N_SPLITS = 5
_KINDS = ("classification", "regression")
_SUMMARIZED_BY = ["method", "target", "metric", "level", "scale"]

DonorKey = Annotated[
    opt.Key,
    opt.doc("Column of obs with donor IDs, or several that together name a donor; donors are held out."),
]
Scale = Annotated[
    Literal["no", "yes", "both"],
    opt.doc("Divide features by their standard deviation over the training cells."),
]
Targets = Annotated[
    list[str],
    opt.doc(
        "Column of obs to predict, and 'classification' or 'regression'; may be repeated.",
        name="--target",
        metavar="COLUMN:KIND",
    ),
]


@opt.options("Splits and probes")
class Splits:
    """Arguments of ``linear_probe`` on donors and cells."""

    sample_key: opt.Key | None = None
    """Column of obs with sample IDs, or several that together name a sample, if donors have several samples."""
    cell_level: opt.Names = ("cell_type",)
    """Targets that belong to the cell rather than to its donor."""
    n_splits: opt.PositiveInt | None = None
    """Splits of donors; 5 by default."""
    n_train_donors: opt.PositiveInt | None = None
    """Donors that train the probe; half of them by default."""
    max_cells_per_donor: opt.PositiveInt | None = None
    """Limit on the cells per donor."""
    max_cells_per_donor_and_class: opt.PositiveInt | None = None
    """Limit on the cells per donor and class, for targets of --cell-level."""
    protocol: Literal["stratified", "paper"] | None = None
    """How donors and folds are drawn and classes are scored: stratified by default; paper is that of Dong et al."""
    n_bootstrap: opt.NonNegativeInt | None = None
    """Bootstrap resamples of donors, for intervals; by default 500 of a probe that is kept, else none."""


@opt.options("Kept probe")
class Kept:
    """Arguments of ``fit_probe``."""

    save: opt.InPath | None = None
    """Folder for a probe fitted to all donors, in place of scores of splits; takes one embedding and one target."""
    model: opt.InPath | None = None
    """Folder of the model that made the embedding; makes it from the counts if the file lacks it."""
    calibration: Literal["sigmoid", "isotonic", "none"] = "sigmoid"
    """Curves from logits to probabilities, fitted to predictions for held-out donors."""
    reject: Annotated[float | None, opt.one(opt.fraction, "FRACTION")] = None
    """Share of known cells that may be called unknown; none is by default."""


def probe(
    input: Annotated[opt.InPath, opt.doc("AnnData with embeddings: an .h5ad file or a .zarr store.")],
    /,
    *,
    use_rep: Annotated[opt.Names, opt.doc("Embeddings in obsm, layers, or X, used as they are.")],
    targets: Targets,
    donor_key: DonorKey,
    output: Annotated[opt.OutPath | None, opt.doc("File for the score of every split (.csv).")] = None,
    force: opt.Force = False,
    seed: Annotated[opt.NonNegativeInt, opt.doc("Random seed for the splits.")] = 0,
    scale: Scale = "no",
    splits: Splits = Splits(),
    kept: Kept = Kept(),
    counts: opt.Counts = opt.Counts(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Score embeddings by linear probes on held-out donors.

    Fit linear models to embeddings of some donors and score them on the others: balanced accuracy, macro F1 and
    macro AUROC for classes, Spearman's correlation for numbers, by cell and by donor. With --save, fit a probe to
    all donors, score it on donors held out, and keep it for `scr2mae predict`.

    Examples
    --------
    scr2mae probe embedded.h5ad --use-rep X_r2mae --donor-key donor \
        --target cell_type:classification
    scr2mae probe embedded.h5ad --use-rep X_r2mae X_pca --donor-key donor \
        --target disease:classification --target age:regression -o scores.csv
    scr2mae probe embedded.h5ad --use-rep X_r2mae --donor-key donor \
        --target age:regression --n-train-donors 8 --scale both
    scr2mae probe embedded.h5ad --use-rep X_r2mae --donor-key donor \
        --target disease:classification --save probe/
    """
    kinds: dict[str, Any] = kinds_of(targets)
    if kept.save is None and kept != Kept():
        raise opt.UsageError("--model, --calibration and --reject belong to a probe that is kept; add --save")
    if counts != opt.Counts() and kept.model is None:
        raise opt.UsageError(
            "--layer and --use-raw name counts, which a model embeds; add --save and --model"
        )
    if kept.save is not None and (len(use_rep) > 1 or len(kinds) > 1 or scale == "both"):
        raise opt.UsageError("--save takes one embedding, one target and one scaling")
    of_splits = opt.given(splits, "sample_key", "cell_level", "n_bootstrap")
    if kept.save is not None and of_splits:
        flags = ", ".join("--" + name.replace("_", "-") for name in of_splits)
        raise opt.UsageError(f"--save fits to all donors and their cells; leave out {flags}")
    check_counts(input)
    check_exists(kept.model)
    if output is not None:
        check_output(output, force=force)
    if kept.save is not None:
        check_output(kept.save, folder=True, force=force)
    columns = {"--target": list(kinds), "--donor-key": donor_key, "--sample-key": splits.sample_key}
    if kept.model is None:
        check_input(input, columns=columns, use_rep=use_rep, numbers=numbers_of(kinds))
    else:
        check_input(input, columns=columns, counts=counts, model=kept.model, numbers=numbers_of(kinds))
    with loading():
        from scr2mae.probe import linear_probe

    model = None
    if kept.model is not None:
        from scr2mae.model import R2MAEModel

        model = R2MAEModel.load(kept.model)
    with opened_cells(input, model, counts, use_rep=use_rep) as adata:
        if adata.isbacked and any(name not in adata.obsm for name in use_rep):
            adata = adata.to_memory()
        logger.info("Probing %d cells of %s.", adata.n_obs, input)
        if kept.save is not None:
            options: dict[str, Any] = (
                {} if splits.n_bootstrap is None else {"n_bootstrap": splits.n_bootstrap}
            )
            frame = _keep(
                place_counts(adata, model, counts),
                kept,
                use_rep[0],
                *kinds.items(),
                model=model,
                force=force,
                donor_key=donor_key,
                sample_key=splits.sample_key,
                cell_level=splits.cell_level,
                scale=scale == "yes",
                seed=seed,
                **options,
            )
        else:
            frame = linear_probe(
                adata,
                use_rep=use_rep,
                targets=kinds,
                donor_key=donor_key,
                seeds=(seed,),
                scale=SCALINGS[scale],
                **{"n_splits": N_SPLITS, "n_bootstrap": 0} | opt.given(splits),
            )
    if output is not None:
        with replacing(output) as part:
            frame.to_csv(part, index=False)
    table = frame if kept.save is not None else _summary(frame)
    return table.to_csv(sep="\t", index=False, float_format="%.4f", na_rep="nan")


def _keep(
    adata: AnnData,
    kept: Kept,
    use_rep: str,
    target: tuple[str, Any],
    *,
    model: R2MAEModel | None,
    force: bool,
    **options: Any,
) -> pd.DataFrame:
    """Fit and save a probe; return its scores on held-out donors."""
    from scr2mae.probe import fit_probe

    fitted = fit_probe(
        adata,
        use_rep=use_rep,
        target=target[0],
        kind=target[1],
        model=model,
        calibration=None if kept.calibration == "none" else kept.calibration,
        reject=kept.reject,
        **options,
    )
    assert kept.save is not None
    fitted.save(kept.save, overwrite=force)
    return fitted.scores


def kinds_of(targets: Sequence[str]) -> dict[str, str]:
    """Return column to kind from ``COLUMN:KIND``; a column may itself contain colons."""
    kinds: dict[str, str] = {}
    for text in targets:
        column, _, kind = text.rpartition(":")
        if not column or kind not in _KINDS:
            raise opt.UsageError(f"--target: expected COLUMN:{' or COLUMN:'.join(_KINDS)}, got {text!r}")
        if column in kinds:
            raise opt.UsageError(f"--target names {column!r} more than once")
        kinds[column] = kind
    return kinds


def numbers_of(kinds: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of the targets that are numbers, by column."""
    return {name: f"--target {name}:{kind}" for name, kind in kinds.items() if kind == "regression"}


def _summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and standard deviation of each score over splits."""
    return frame.groupby(_SUMMARIZED_BY, sort=False)["value"].agg(["mean", "std"]).reset_index()
