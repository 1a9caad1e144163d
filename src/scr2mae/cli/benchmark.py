"""``scr2mae benchmark``: methods times tasks, as a table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scr2mae.cli import options as opt
from scr2mae.cli.files import check_input_file, check_output
from scr2mae.cli.probe import SCALINGS, DonorKey, Scale, Splits, Targets, kinds_of
from scr2mae.cli.process import loading

if TYPE_CHECKING:
    from scr2mae.benchmark import Benchmark

logger = logging.getLogger(__name__)

_MARKER = "benchmark.json"


@opt.options("Methods")
class Methods:
    """Arguments of ``benchmark.run`` on what is compared."""

    layer: opt.Layer | None = None
    use_raw: bool = False
    """Read the counts from raw, as in files of CELLxGENE."""
    batch_key: opt.Name | None = None
    """Column of obs with the batch, used as input to the networks."""
    methods: opt.Names | None = None
    """Any of lognorm, pca, pca_1e4, pca_residuals, pca_ranks, scvi, scvi_joint, masking schemes (mae, r2mae, ...), and names in obsm; all methods by default."""
    seeds: opt.Seeds = (0, 1, 2)
    """Training seeds."""
    pretrain_on: Literal["all", "train"] = "all"
    """Pretrain on all cells, or on those of each split's training donors."""
    accelerator: opt.Accelerator = "auto"


def benchmark(
    input: Annotated[opt.InPath, opt.doc("AnnData with raw counts (.h5ad).")],
    /,
    *,
    output: Annotated[opt.OutPath, opt.doc("Folder to write to, or to continue in.")],
    force: Annotated[bool, opt.doc("Write to a folder that holds other files.")] = False,
    targets: Targets | None = None,
    atlas: Annotated[
        Literal["hlca", "sea_ad"] | None, opt.doc("Use the paper's tasks on this atlas.")
    ] = None,
    donor_key: DonorKey,
    methods: Methods = Methods(),
    widths: opt.Widths = opt.Widths(),
    epochs: opt.Epochs = opt.Epochs(),
    scvi_max_epochs: Annotated[opt.PositiveInt | None, opt.doc("Maximum number of epochs for scVI.")] = None,
    scale: Scale = "both",
    splits: Splits = Splits(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Compare methods on your own data.

    Train the masking schemes, scVI, PCA and others, probe their embeddings on held-out donors, and write tables
    with the paper's score and rank. Rerun the same command to resume an interrupted benchmark.

    Examples
    --------
    scr2mae benchmark counts.h5ad --donor-key donor -o bench/ \
        --target disease:classification --target age:regression
    scr2mae benchmark counts.h5ad --donor-key donor -o bench/ \
        --target cell_type:classification --methods pca scvi r2mae X_harmony
    scr2mae benchmark counts.h5ad --donor-key donor -o bench_train/ \
        --target disease:classification --pretrain-on train --n-splits 3
    scr2mae benchmark hlca.h5ad --atlas hlca --donor-key donor_id \
        --batch-key dataset --max-cells-per-donor 500 -o hlca/
    """
    kinds: dict[str, Any] = kinds_of(targets or ())
    if bool(kinds) == (atlas is not None):
        raise opt.UsageError("give either --target or --atlas")
    if len(set(methods.seeds)) < len(methods.seeds):
        raise opt.UsageError(f"--seeds must differ, got {' '.join(map(str, methods.seeds))}")
    check_input_file(input)
    # The folder of an earlier benchmark is continued in; nothing that was computed there is lost.
    check_output(output, folder=True, force=force or (output / _MARKER).is_file())
    with loading():
        from scr2mae import benchmark as api
        from scr2mae.data.store import read_file

    adata = read_file(input)
    logger.info("Read %d cells and %d genes from %s.", adata.n_obs, adata.n_vars, input)
    try:
        result = api.run(
            adata,
            targets=kinds if atlas is None else api.tasks(atlas),
            out=output,
            donor_key=donor_key,
            scale=SCALINGS[scale],
            model_kwargs=opt.given(widths),
            train_kwargs=opt.given(epochs),
            scvi_train_kwargs={} if scvi_max_epochs is None else {"max_epochs": scvi_max_epochs},
            **vars(methods),
            **vars(splits),
            enable_progress_bar=not messages.quiet,
        )
    except KeyboardInterrupt:
        logger.warning("Finished fits are kept; the same command continues in %s.", output)
        raise
    logger.info("Wrote the tables and figures to %s.", output)
    return _summary(result)


def _summary(result: Benchmark) -> str:
    """Return a table with the score and the rank of each method, best rank first."""
    summary = result.table()[["Score", "Rank"]].droplevel([1, 2], axis="columns")
    lines = [f"{name}\t{row['Score']:.4f}\t{row['Rank']:.2f}" for name, row in summary.iterrows()]
    return "\n".join(["method\tscore\trank", *lines])
