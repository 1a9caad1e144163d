"""What the subcommands of ``scr2mae text`` do."""

from __future__ import annotations

import argparse
import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli.command import UsageError, loading
from scr2mae.cli.files import check_free, check_writable, replacing
from scr2mae.cli.training import check_checkpoints, mask_ratio, trainer_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.extra.text import BytePairTokenizer, LabeledText, RobertaR2MAE

__all__ = ["finetune", "loss", "pack", "pretrain", "rank"]

logger = logging.getLogger(__name__)

_METHOD, _TASK = "method", "task"


def _check_exists(*places: Path | None) -> None:
    for place in places:
        if place is not None and not place.exists():
            raise FileNotFoundError(f"No file or folder {place}.")


def pack(args: argparse.Namespace) -> str:
    """Pack files or a stream."""
    if bool(args.input) == bool(args.hub):
        raise UsageError("give either text files or --hub")
    if args.hub_config and not args.hub:
        raise UsageError("--hub-config belongs to --hub")
    _check_exists(*args.input, args.tokenizer)
    check_free(args.output, folder=True, force=False)
    check_writable(args.output)
    with loading():
        from scr2mae.extra import text

    def documents() -> Iterator[str]:
        if args.hub:
            return text.stream_documents(args.hub, args.hub_config, column=args.column)
        return text.read_documents(args.input, unit=args.unit)

    tokenizer: BytePairTokenizer
    if args.tokenizer is not None:
        tokenizer = text.BytePairTokenizer.load(args.tokenizer)
    else:
        sample = islice(documents(), args.tokenizer_documents)
        tokenizer = text.BytePairTokenizer.train(sample, vocab_size=args.vocab_size)
        logger.info("Learned a vocabulary of %d tokens.", len(tokenizer))
    blocks = text.pack(
        documents(), tokenizer, length=args.length, max_blocks=args.max_blocks, out=args.output
    )
    return _lines(
        packed=args.output,
        vocabulary=len(tokenizer),
        blocks=len(blocks),
        length=blocks.length,
        tokens=blocks.n_tokens,
    )


def _check_pretrain(args: argparse.Namespace) -> None:
    """Refuse whatever would stop the run later, before anything heavy is loaded."""
    if mask_ratio(args) is not None and args.scheme != "r2mae":
        raise UsageError("--mask-ratio stands in place of --scheme; give one of the two")
    _check_exists(args.input, args.validation)
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    check_checkpoints(args)


def pretrain(args: argparse.Namespace) -> str:
    """Pretrain on packed text."""
    _check_pretrain(args)
    with loading():
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        from scr2mae import schemes
        from scr2mae.extra import text

    blocks = text.TokenBlocks.load(args.input)
    validation = None if args.validation is None else text.TokenBlocks.load(args.validation)
    scheme = schemes("text", seed=args.seed)[args.scheme]
    ratio = mask_ratio(args)
    model = text.RobertaR2MAE(
        blocks.tokenizer,
        size=args.size,
        mask_ratio=scheme.mask_ratio if ratio is None else ratio,
        curriculum=scheme.curriculum,
        seed=args.seed,
    )
    text.pretrain(
        model,
        blocks,
        validation=validation,
        max_epochs=args.max_epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        **trainer_options(args),
    )
    if getattr(rank_zero_only, "rank", 0):
        return ""  # one of several processes writes
    model.save_pretrained(args.output, overwrite=True)
    return _lines(model=args.output, blocks=len(blocks), epochs=args.max_epochs, **_last_losses(model))


def _last_losses(model: RobertaR2MAE) -> dict[str, str]:
    curves = ("train_loss", "validation_loss")
    return {name: f"{model.history_[name][name].iloc[-1]:.4f}" for name in curves if name in model.history_}


def loss(args: argparse.Namespace) -> str:
    """Score held-out text over ratios."""
    _check_exists(args.model, args.input)
    with loading():
        from scr2mae._utils.compat import torch_device
        from scr2mae.extra import text

    model = text.RobertaR2MAE.from_pretrained(args.model).to(torch_device(args.accelerator, "auto"))
    frame = text.score(
        model, text.TokenBlocks.load(args.input), ratios=args.ratios, batch_size=args.batch_size
    )
    return frame.to_csv(sep="\t", index=False, float_format="%.4f")


def finetune(args: argparse.Namespace) -> str:
    """Fine-tune once a seed, write the accuracies."""
    if (args.train is None) != (args.test is None):
        raise UsageError("give both --train and --test, or neither to take the task from the hub")
    _check_exists(args.model, args.train, args.test)
    check_free(args.output, folder=False, force=args.force)
    check_writable(args.output.parent)
    with loading():
        from scr2mae.extra import text

    train, test = _sides(args)
    logger.info("Fine-tuning on %d sentences, scoring on %d.", len(train), len(test))
    frame = text.finetune_scores(
        text.RobertaR2MAE.from_pretrained(args.model),
        train,
        test,
        seeds=args.seeds,
        max_epochs=args.max_epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        length=args.length,
        accelerator=args.accelerator,
        devices=args.devices,
        precision=args.precision,
        enable_progress_bar=not args.quiet,
    )
    frame.insert(0, _TASK, args.task)
    frame.insert(0, _METHOD, args.name or args.model.resolve().name)
    with replacing(args.output) as part:
        frame.to_csv(part, index=False)
    scores = frame["accuracy"]
    return _lines(
        task=args.task,
        seeds=len(scores),
        accuracy=f"{scores.mean():.4f}",
        sd=f"{scores.std(ddof=1) if len(scores) > 1 else float('nan'):.4f}",
    )


def _sides(args: argparse.Namespace) -> tuple[LabeledText, LabeledText]:
    """Training and held-out text, from tables or from the hub."""
    from scr2mae.extra import text

    if args.train is None:
        return text.load_task(args.task, split="train"), text.load_task(args.task)
    return text.read_task(args.train, task=args.task), text.read_task(args.test, task=args.task)


def rank(args: argparse.Namespace) -> str:
    """Print accuracies by method and task, and the average rank."""
    _check_exists(*args.input)
    with loading():
        import pandas as pd

        from scr2mae.extra.text import average_rank

    frames = []
    for path in args.input:
        frame = pd.read_csv(path)
        if missing := {_METHOD, _TASK, "accuracy"} - set(frame.columns):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}; expected scr2mae text finetune's.")
        frames.append(frame)
    table = pd.concat(frames).pivot_table(index=_METHOD, columns=_TASK, values="accuracy", sort=False)
    ranked = table.assign(rank=average_rank(table)).sort_values("rank", kind="stable")
    return ranked.reset_index().to_csv(sep="\t", index=False, float_format="%.4f")


def _lines(**rows: Any) -> str:
    """One quantity a line, its name and its value with a tab between."""
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())
