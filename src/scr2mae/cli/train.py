"""``scr2mae train``: from a file of counts to a model folder."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from scr2mae._paper import scheme_names
from scr2mae.cli import options as opt
from scr2mae.cli.cells import open_counts, read_with_genes_of_paper
from scr2mae.cli.columns import check_input
from scr2mae.cli.files import check_counts
from scr2mae.cli.process import is_first_process, last_losses, loading, results

if TYPE_CHECKING:
    from scr2mae.model import R2MAEModel

logger = logging.getLogger(__name__)


@opt.options("Run")
class Run(opt.Run):
    """A run on any number of machines."""

    precision: Annotated[str, Parameter(choices=("auto", "32-true", "16-mixed", "bf16-mixed"))] = "auto"
    """Precision of the arithmetic; auto is bf16-mixed where the hardware supports it."""
    counts_on: Literal["auto", "device", "memory", "disk"] = "auto"
    """Where the counts are kept; auto uses the first with enough room."""
    num_nodes: Annotated[opt.PositiveInt | None, Parameter(name="--nodes")] = None
    """Number of machines; --devices is per machine; 1 by default."""
    checkpoint_every_n_steps: Annotated[opt.PositiveInt | None, Parameter(name="--checkpoint-every")] = None
    """Also save a checkpoint every N steps within an epoch."""


@opt.options("Data")
class Data:
    """Arguments of ``R2MAEModel.setup_anndata``."""

    layer: opt.Layer | None = None
    use_raw: bool = False
    """Take the counts from raw, as in files of CELLxGENE, of the genes in X; scr2mae prepare takes all of raw."""
    batch_key: opt.Name | None = None
    """Column of obs with the batch, used as input to the network."""
    labels_key: opt.Name | None = None
    """Column of obs with cell types; stored but not used as input."""
    study_key: opt.Name | None = None
    """Column of obs with the study, if studies have measured different genes; found by itself after prepare --join outer."""
    donor_key: opt.Key | None = None
    """Column of obs with donor IDs, or several that together name a donor; a donor is either in training or in validation."""
    size_factor_key: opt.Name | None = None
    """Column that replaces the total count."""
    categorical_covariate_keys: Annotated[opt.Names | None, Parameter(name="--categorical-covariate-key")] = (
        None
    )
    """Further categorical columns used as input to the network; may be repeated."""
    continuous_covariate_keys: Annotated[opt.Names | None, Parameter(name="--continuous-covariate-key")] = (
        None
    )
    """Further continuous columns used as input to the network; may be repeated."""
    no_check_counts: bool = False
    """Accept non-integer counts, e.g. from SoupX or CellBender."""

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of obs, by flag."""
        keys = {name: value for name, value in vars(self).items() if "_key" in name}
        return {"--" + name.replace("_", "-").removesuffix("s"): value for name, value in keys.items()}

    @property
    def numbers(self) -> dict[str, str]:
        """Flags of the columns that must hold numbers, by column."""
        found = dict.fromkeys(self.continuous_covariate_keys or (), "--continuous-covariate-key")
        return found if self.size_factor_key is None else {**found, self.size_factor_key: "--size-factor-key"}


@opt.options("Network")
class Network(opt.Widths):
    """Arguments of ``R2MAEModel``."""

    scheme: Annotated[str, Parameter(choices=scheme_names("single_cell"))] = "r2mae"
    """Masking scheme, with the paper's ratios."""
    mask_ratio: opt.MaskRatio | None = None
    seed: opt.Seed = 0
    from_model: Annotated[opt.InPath | None, Parameter(name="--from")] = None
    """Folder of a trained model to start from, with its network; genes that it lacks are added."""


@opt.options("Training")
class Training(opt.Epochs):
    """Arguments of ``R2MAEModel.train``."""

    train_size: opt.Fraction = 0.9
    """Fraction of cells to train on; the rest are used for validation."""
    split_key: opt.Key | None = None
    """Column whose groups stay together; the donor by default, if given."""
    split_cells: bool = False
    """Split cell by cell even if donors are given."""
    early_stopping: bool = False
    """Stop when the validation loss stops improving."""
    no_integration: bool = False
    """Do not align the batches of --batch-key in the embedding."""


def train(
    input: Annotated[
        opt.InPath, opt.doc("Raw counts: an .h5ad or Cell Ranger's .h5 file, or a .zarr store.")
    ],
    /,
    *,
    run: Run,
    data: Data = Data(),
    paper: opt.Paper = opt.Paper(),
    network: Network = Network(),
    training: Training = Training(),
) -> str:
    """Train a model on raw counts and save it as a folder.

    Examples
    --------
    scr2mae train counts.h5ad -o model/
    scr2mae train counts.h5ad -o model/ --batch-key batch --donor-key donor
    scr2mae train counts.h5ad -o model/ --mask-ratio 0.25 --n-hidden 1000
    scr2mae train hlca.h5ad -o model/ --paper --atlas hlca --scheme r2mae_cl
    scr2mae train counts.h5ad -o model/ --checkpoint-dir run1/
    scr2mae train counts.h5ad -o model/ --checkpoint-dir run1/ --resume run1/
    scr2mae train counts.h5ad -o model/ --devices 4
    scr2mae train counts.h5ad -o mine/ --from model/ --donor-key donor
    """
    if training.train_size == 0:
        raise opt.UsageError("--train-size must be above 0")
    if training.early_stopping and training.train_size == 1:
        raise opt.UsageError("--early-stopping needs validation cells; lower --train-size")
    if training.split_cells and training.split_key is not None:
        raise opt.UsageError("--split-cells is not allowed with --split-key")
    opt.check_masking(network.scheme, network.mask_ratio)
    if paper.atlas is not None and not paper.paper:
        raise opt.UsageError("--atlas needs --paper")
    if run.checkpoint_every_n_steps is not None and run.checkpoint_dir is None:
        raise opt.UsageError("--checkpoint-every needs --checkpoint-dir")
    if network.from_model is not None:
        if own := sorted(opt.given(network, "from_model", "scheme", "seed")):
            raise opt.UsageError(f"--from takes the network of the model; leave out {own}")
        if paper.paper or network.scheme != "r2mae":
            raise opt.UsageError("--from takes the settings of the model; leave out --paper and --scheme")
    check_counts(input)
    run.check()
    check_input(
        input,
        counts=opt.Counts(layer=data.layer, use_raw=data.use_raw),
        columns={**data.columns, "--split-key": training.split_key},
        # With --paper the counts may be in raw, and are checked where they are read.
        integers=not (data.no_check_counts or paper.paper),
        numbers=data.numbers,
    )
    with loading():
        from scr2mae import schemes
        from scr2mae.model import R2MAEModel

    if not is_first_process():
        logging.getLogger("scr2mae").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    keys = paper.settings().setup | opt.given(data, "no_check_counts")
    if paper.paper:
        adata = read_with_genes_of_paper(input, paper.atlas, layer=data.layer)
        keys = {name: value for name, value in keys.items() if name not in ("layer", "use_raw")}
    else:
        adata = open_counts(input, use_raw=data.use_raw)
    logger.info("Read %d cells and %d genes from %s.", adata.n_obs, adata.n_vars, input)
    R2MAEModel.setup_anndata(adata, check_counts=not data.no_check_counts, **keys)
    scheme = schemes(paper.atlas or "single_cell", seed=network.seed)[network.scheme]._asdict()
    if network.mask_ratio is not None:
        scheme["mask_ratio"] = network.mask_ratio
    sizes = paper.settings().model | opt.given(network, "scheme", "mask_ratio", "from_model")
    if network.from_model is None:
        model = R2MAEModel(adata, **scheme, **sizes)
    else:
        model = R2MAEModel.from_pretrained(network.from_model, adata)
    given = opt.given(training, "split_cells", "no_integration") | run.arguments
    arguments: dict[str, Any] = paper.settings().train | given
    if paper.paper and run.precision == "auto":
        arguments["precision"] = paper.settings().train["precision"]
    if network.from_model is not None and not training.early_stopping:
        del arguments["early_stopping"]  # stops by itself
    if training.split_cells:
        arguments["split_key"] = False
    if training.no_integration:
        arguments["integration"] = False
    try:
        model.train(**arguments)
    except KeyboardInterrupt:
        if run.last_checkpoint is not None:
            logger.warning("No model was saved; continue with --resume %s.", run.checkpoint_dir)
        else:
            logger.warning("No model was saved; with --checkpoint-dir a run can be continued.")
        raise
    if not model.trainer.is_global_zero:
        return ""  # one of several processes writes
    # Checkpoints may be in the folder by now; run.check has refused to replace a model.
    model.save(run.output, overwrite=True)
    return _summary(model, run)


def _summary(model: R2MAEModel, run: Run) -> str:
    rows: dict[str, Any] = {"model": run.output}
    if model.split_ is not None:
        rows |= {"cells_train": len(model.split_.train), "cells_validation": len(model.split_.validation)}
    return results(**rows, epochs=len(model.history["train_loss"]), **last_losses(model.history))
