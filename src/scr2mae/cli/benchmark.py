"""``scr2mae benchmark``: methods times tasks, as a table."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from scr2mae._utils.methods import check_methods, method_names
from scr2mae.cli import options as opt
from scr2mae.cli.cells import read_with_genes_of_paper
from scr2mae.cli.columns import check_input
from scr2mae.cli.files import check_exists, check_input_file, check_output
from scr2mae.cli.probe import N_SPLITS, SCALINGS, DonorKey, Scale, Splits, Targets, kinds_of, numbers_of
from scr2mae.cli.process import loading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

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
    """Any of lognorm, pca, pca_1e4, pca_residuals, pca_ranks, scvi, scvi_joint, masking schemes (mae, r2mae, ...), and names in obsm; all methods by default, the paper's with --paper."""
    seeds: opt.Seeds | None = None
    """Training seeds; 0 1 2 by default, 0 with --paper."""
    pretrain_on: Literal["all", "train"] = "all"
    """Pretrain on all cells, or on those of each split's training donors."""
    integration: bool = False
    """Also score how batches mix (needs --batch-key and scib-metrics), with Harmony, scANVI and SysVI beside."""
    accelerator: opt.Accelerator = "auto"


def benchmark(
    input: Annotated[opt.InPath, opt.doc("AnnData with raw counts (.h5ad).")],
    /,
    *,
    output: Annotated[opt.OutPath, opt.doc("Folder to write to, or to continue in.")],
    force: Annotated[bool, opt.doc("Write to a folder that holds other files.")] = False,
    targets: Targets | None = None,
    donor_key: DonorKey | None = None,
    paper: opt.Paper = opt.Paper(),
    methods: Methods = Methods(),
    widths: opt.Widths = opt.Widths(),
    epochs: opt.Epochs = opt.Epochs(),
    embeddings: Annotated[
        list[str] | None,
        opt.doc(
            "An embedding made elsewhere, joined by the names of the cells and compared too; may be repeated.",
            name="--embedding",
            metavar="NAME=FILE",
        ),
    ] = None,
    scvi_max_epochs: Annotated[opt.PositiveInt | None, opt.doc("Maximum number of epochs for scVI.")] = None,
    scale: Scale | None = None,
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
    scr2mae benchmark hlca.h5ad --atlas hlca --paper -o hlca/ \
        --n-train-donors 150 --max-cells-per-donor 500 \
        --embedding X_scgpt=scgpt.h5ad
    """
    kinds: dict[str, Any] = kinds_of(targets or ())
    if bool(kinds) == (paper.atlas is not None):
        raise opt.UsageError("give either --target or --atlas")
    if donor_key is None and not paper.settings().setup:
        raise opt.UsageError("--donor-key is needed, except with --atlas and --paper")
    seeds = methods.seeds or ()
    if len(set(seeds)) < len(seeds):
        raise opt.UsageError(f"--seeds must differ, got {' '.join(map(str, seeds))}")
    for text in embeddings or ():
        name, _, path = text.partition("=")
        if not name or not path:
            raise opt.UsageError(f"--embedding: expected NAME=FILE, got {text!r}")
        check_exists(opt.as_path(path))
    if embeddings and methods.methods is None and not paper.paper:
        raise opt.UsageError("--embedding needs --methods, or the list of --paper")
    check_input_file(input)
    # An earlier benchmark in the folder is resumed; nothing that was computed there is lost.
    check_output(output, folder=True, force=force or (output / _MARKER).is_file())
    columns = {"--target": list(kinds), "--donor-key": donor_key}
    columns |= {"--batch-key": methods.batch_key, "--sample-key": splits.sample_key}
    counts = opt.Counts(layer=methods.layer, use_raw=methods.use_raw)
    # With --paper, the step that selects genes checks the counts, which may be in raw.
    check_input(
        input,
        columns=columns,
        counts=None if paper.paper else counts,
        numbers=numbers_of(kinds),
        methods=None if methods.methods is None else partial(_check_methods, methods, embeddings or ()),
    )
    with loading():
        from scr2mae import benchmark as api
        from scr2mae.data.store import read_file

    arguments: dict[str, Any] = {"seeds": (0, 1, 2), "n_splits": N_SPLITS, "scale": SCALINGS["both"]}
    arguments |= paper.settings().benchmark | opt.given(methods) | opt.given(splits)
    if paper.paper:
        arguments.pop("use_raw")  # taken where there is one
        adata = read_with_genes_of_paper(input, paper.atlas, layer=arguments.pop("layer", None))
    else:
        adata = read_file(input)
    logger.info("Read %d cells and %d genes from %s.", adata.n_obs, adata.n_vars, input)
    if embeddings:
        added = _add_embeddings(adata, embeddings)
        if arguments.get("methods") is not None:
            arguments["methods"] = tuple(dict.fromkeys((*arguments["methods"], *added)))
    changes = {"model_kwargs": opt.given(widths), "train_kwargs": opt.given(epochs)}
    changes["scvi_train_kwargs"] = {} if scvi_max_epochs is None else {"max_epochs": scvi_max_epochs}
    for name, values in changes.items():
        arguments[name] = {**arguments.get(name, {}), **values}
    if donor_key is not None:
        arguments["donor_key"] = donor_key
    if scale is not None:
        arguments["scale"] = SCALINGS[scale]
    try:
        result = api.run(
            adata,
            targets=kinds if paper.atlas is None else api.tasks(paper.atlas),
            out=output,
            **arguments,
            enable_progress_bar=not messages.quiet,
        )
    except KeyboardInterrupt:
        logger.warning("Finished fits are kept; the same command continues in %s.", output)
        raise
    logger.info("Wrote the tables and figures to %s.", output)
    return _summary(result)


def _check_methods(methods: Methods, embeddings: Sequence[str], stored: list[str]) -> None:
    """Raise for a name that is neither a method nor an embedding."""
    given = [text.partition("=")[0] for text in embeddings]
    names = method_names(integration=methods.integration)
    check_methods(methods.methods or (), names, [*stored, *given], integration=methods.integration)


def _add_embeddings(adata: AnnData, embeddings: Sequence[str]) -> list[str]:
    """Join ``NAME=FILE`` to the cells and return the names."""
    from scr2mae.data import add_embedding

    names = []
    for text in embeddings:
        name, _, path = text.partition("=")
        add_embedding(adata, path, key=name)
        names.append(name)
    return names


def _summary(result: Benchmark) -> str:
    """Return a table with the score and the rank of each method, best rank first."""
    summary = result.table()[["Score", "Rank"]].droplevel([1, 2], axis="columns")
    lines = [f"{name}\t{row['Score']:.4f}\t{row['Rank']:.2f}" for name, row in summary.iterrows()]
    return "\n".join(["method\tscore\trank", *lines])
