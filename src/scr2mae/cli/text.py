"""Masked language models of text."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from cyclopts import Parameter

from scr2mae._paper import scheme_names
from scr2mae.cli import options as opt
from scr2mae.cli.files import check_exists, check_output, replacing
from scr2mae.cli.process import is_first_process, last_losses, loading, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.extra.text import BytePairTokenizer

logger = logging.getLogger(__name__)

# Repeated from the package, which would load PyTorch; a test compares them.
Size = Literal["tiny", "medium", "base"]
Task = Literal["mnli", "qqp", "sst2", "qnli"]
SIZES, TASKS = get_args(Size), get_args(Task)
_RATIOS = (0.05, 0.15, 0.3, 0.4, 0.6, 0.8, 0.95)

ModelPath = Annotated[opt.InPath, opt.doc("Folder of a pretrained model.")]


@opt.options("Data")
class Hub:
    """A data set of the Hugging Face hub."""

    hub: opt.Name | None = None
    """Data set of the Hugging Face hub to stream, such as HuggingFaceFW/fineweb."""
    hub_config: opt.Name | None = None
    """Configuration of the data set, such as sample-10BT."""
    column: opt.Name = "text"
    """Column with the text."""


@opt.options("Tokens")
class Tokens:
    """The tokenizer and the blocks."""

    tokenizer: opt.InPath | None = None
    """A tokenizer.json, or a folder with one, such as packed text or a model; trained by default."""
    hub_tokenizer: opt.Name | None = None
    """Tokenizer of the Hugging Face hub: FacebookAI/roberta-base is that of RoBERTa, the paper's."""
    vocab_size: opt.PositiveInt = 50_265
    """Symbols to learn at most."""
    tokenizer_documents: opt.PositiveInt = 1_000_000
    """Number of documents to learn them from, the first ones."""
    length: opt.PositiveInt = 128
    """Tokens per block."""
    max_blocks: opt.PositiveInt | None = None
    """Stop after this many blocks."""


def pack(
    inputs: Annotated[opt.InPaths, opt.doc("UTF-8 text files, .gz or not.")] = (),
    /,
    *,
    output: Annotated[opt.OutPath, opt.doc("Folder to write the packed text to.")],
    unit: Annotated[Literal["line", "paragraph", "file"], opt.doc("What one document is.")] = "paragraph",
    hub: Hub = Hub(),
    tokens: Tokens = Tokens(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Turn text into blocks of tokens.

    Train a byte-level BPE tokenizer, or use a given one, and pack text into blocks of equal length.

    Examples
    --------
    scr2mae text pack corpus.txt -o packed/
    scr2mae text pack held_out.txt -o packed_held_out/ --tokenizer packed/
    scr2mae text pack --hub HuggingFaceFW/fineweb --hub-config sample-10BT \
        --hub-tokenizer FacebookAI/roberta-base -o fineweb/
    """
    if bool(inputs) == bool(hub.hub):
        raise opt.UsageError("give either text files or --hub")
    if tokens.tokenizer is not None and tokens.hub_tokenizer is not None:
        raise opt.UsageError("give --tokenizer or --hub-tokenizer, not both")
    if hub.hub_config and not hub.hub:
        raise opt.UsageError("--hub-config belongs to --hub")
    check_exists(*inputs, tokens.tokenizer)
    check_output(output, folder=True, force=False)
    with loading():
        from scr2mae.extra import text

    def documents() -> Iterator[str]:
        if hub.hub:
            return text.stream_documents(hub.hub, hub.hub_config, column=hub.column)
        return text.read_documents(inputs, unit=unit)

    tokenizer: BytePairTokenizer
    if tokens.tokenizer is not None:
        tokenizer = text.BytePairTokenizer.load(tokens.tokenizer)
    elif tokens.hub_tokenizer is not None:
        tokenizer = text.BytePairTokenizer.from_hub(tokens.hub_tokenizer)
    else:
        sample = islice(documents(), tokens.tokenizer_documents)
        tokenizer = text.BytePairTokenizer.train(sample, vocab_size=tokens.vocab_size)
        logger.info("Learned a vocabulary of %d tokens.", len(tokenizer))
    blocks = text.pack(documents(), tokenizer, length=tokens.length, max_blocks=tokens.max_blocks, out=output)
    return results(
        packed=output,
        vocabulary=len(tokenizer),
        blocks=len(blocks),
        length=blocks.length,
        tokens=blocks.n_tokens,
    )


@opt.options("Network")
class Network:
    """Size of the network, and its masking scheme."""

    size: Size = "medium"
    """Size of RoBERTa."""
    scheme: Annotated[str, Parameter(choices=scheme_names("text"))] = "r2mae"
    """Masking scheme, with the paper's ratios."""
    mask_ratio: opt.MaskRatio | None = None
    seed: opt.Seed = 0


@opt.options("Training")
class Training:
    """Arguments of ``text.pretrain``."""

    max_epochs: opt.PositiveInt = 1
    """Passes over the text."""
    batch_size: opt.PositiveInt = 256
    """Blocks per mini-batch and device."""
    accumulate_grad_batches: opt.Accumulate = 8
    lr: opt.PositiveFloat | None = None
    """Peak learning rate; by default the paper's value for that model size."""


def pretrain(
    input: Annotated[opt.InPath, opt.doc("Text packed by scr2mae text pack.")],
    /,
    *,
    validation: Annotated[opt.InPath | None, opt.doc("Packed text, scored after each epoch.")] = None,
    run: opt.Run,
    network: Network = Network(),
    training: Training = Training(),
) -> str:
    r"""Train RoBERTa to predict masked tokens of packed text.

    Examples
    --------
    scr2mae text pretrain packed/ -o model/
    scr2mae text pretrain packed/ -o model/ --size tiny --max-epochs 5 \
        --batch-size 32 --accumulate 1
    scr2mae text pretrain packed/ -o model/ --scheme dynamic \
        --precision bf16-mixed --checkpoint-dir run1/
    scr2mae text pretrain packed/ -o model/ --scheme dynamic \
        --precision bf16-mixed --checkpoint-dir run1/ --resume run1/
    """
    opt.check_masking(network.scheme, network.mask_ratio)
    check_exists(input, validation)
    run.check()
    with loading():
        from scr2mae import schemes
        from scr2mae.extra import text

    blocks = text.TokenBlocks.load(input)
    held_out = None if validation is None else text.TokenBlocks.load(validation)
    scheme = schemes("text", seed=network.seed)[network.scheme]
    model = text.RobertaR2MAE(
        blocks.tokenizer,
        size=network.size,
        mask_ratio=scheme.mask_ratio if network.mask_ratio is None else network.mask_ratio,
        curriculum=scheme.curriculum,
        seed=network.seed,
    )
    text.pretrain(
        model,
        blocks,
        validation=held_out,
        **vars(training),
        **run.arguments,
    )
    if not is_first_process():
        return ""
    model.save_pretrained(run.output, overwrite=True)
    return results(
        model=run.output, blocks=len(blocks), epochs=training.max_epochs, **last_losses(model.history_)
    )


def loss(
    model: ModelPath,
    input: Annotated[opt.InPath, opt.doc("Held-out text, packed with the model's tokenizer.")],
    /,
    *,
    ratios: Annotated[opt.Fractions, opt.doc("Fractions of tokens to mask.")] = _RATIOS,
    batch_size: Annotated[opt.PositiveInt, opt.doc("Blocks per mini-batch.")] = 64,
    accelerator: opt.Accelerator = "auto",
    messages: opt.Messages = opt.Messages(),
) -> str:
    """Score masked tokens of held-out text at several ratios.

    Examples
    --------
    scr2mae text loss model/ packed_held_out/ --ratios 0.15 0.4
    """
    check_exists(model, input)
    with loading():
        from scr2mae._utils.compat import torch_device
        from scr2mae.extra import text

    network = text.RobertaR2MAE.from_pretrained(model).to(torch_device(accelerator, "auto"))
    blocks = text.TokenBlocks.load(input)
    frame = text.score(network, blocks, ratios=ratios, batch_size=batch_size)
    return frame.to_csv(sep="\t", index=False, float_format="%.4f")


@opt.options("Training")
class Finetuning:
    """Arguments of the finetuning runs."""

    seeds: opt.Seeds = (0, 1, 2)
    """Random seeds for head, order and dropout, one run each."""
    max_epochs: opt.PositiveInt = 5
    """Passes over the table."""
    batch_size: opt.PositiveInt = 32
    """Sentences per mini-batch."""
    length: opt.PositiveInt = 128
    """Tokens at most."""
    lr: opt.PositiveFloat = 2e-5
    """Learning rate."""


def finetune(
    model: ModelPath,
    /,
    *,
    task: Annotated[Task, opt.doc("GLUE task.")],
    train: Annotated[opt.InPath | None, opt.doc("Table to train on; from the Hub if omitted.")] = None,
    test: Annotated[opt.InPath | None, opt.doc("Table to score on, labeled and held out.")] = None,
    output: Annotated[opt.OutPath, opt.doc("File for the accuracy of every seed (.csv).")],
    force: opt.Force = False,
    name: Annotated[opt.Name | None, opt.doc("Name of the method; the folder's by default.")] = None,
    training: Finetuning = Finetuning(),
    compute: opt.Compute = opt.Compute(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Finetune a model on a GLUE task, once per seed, and score it.

    Examples
    --------
    scr2mae text finetune model/ --task sst2 --train train.tsv --test dev.tsv \
        -o sst2.csv
    scr2mae text finetune model/ --task mnli -o mnli.csv
    """
    if (train is None) != (test is None):
        raise opt.UsageError("give both --train and --test, or neither to take the task from the hub")
    check_exists(model, train, test)
    check_output(output, force=force)
    with loading():
        from scr2mae.extra import text

    if train is None or test is None:
        learned, scored = text.load_task(task, split="train"), text.load_task(task)
    else:
        learned, scored = text.read_task(train, task=task), text.read_task(test, task=task)
    logger.info("Finetuning on %d sentences, scoring on %d.", len(learned), len(scored))
    frame = text.finetune_scores(
        text.RobertaR2MAE.from_pretrained(model),
        learned,
        scored,
        **vars(training),
        **vars(compute),
        enable_progress_bar=not messages.quiet,
    )
    frame.insert(0, "task", task)
    frame.insert(0, "method", name or model.resolve().name)
    with replacing(output) as part:
        frame.to_csv(part, index=False)
    scores = frame["accuracy"]
    deviation = scores.std(ddof=1) if len(scores) > 1 else float("nan")
    return results(task=task, seeds=len(scores), accuracy=f"{scores.mean():.4f}", sd=f"{deviation:.4f}")


def rank(
    inputs: Annotated[opt.InPaths, opt.doc("Files written by scr2mae text finetune.")],
    /,
    *,
    messages: opt.Messages = opt.Messages(),
) -> str:
    """Average accuracies over seeds, and each method's rank over tasks, as in the paper's Table 2.

    Examples
    --------
    scr2mae text rank mlm_sst2.csv mlm_qnli.csv r2mae_sst2.csv r2mae_qnli.csv
    """
    check_exists(*inputs)
    with loading():
        import pandas as pd

        from scr2mae.extra.text import average_rank

    frames = []
    for path in inputs:
        frame = pd.read_csv(path)
        if missing := {"method", "task", "accuracy"} - set(frame.columns):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; expected scr2mae text finetune's.")
        frames.append(frame)
    table = pd.concat(frames).pivot_table(index="method", columns="task", values="accuracy", sort=False)
    ranked = table.assign(rank=average_rank(table)).sort_values("rank", kind="stable")
    return ranked.reset_index().to_csv(sep="\t", index=False, float_format="%.4f")


COMMANDS = (pack, pretrain, loss, finetune, rank)
