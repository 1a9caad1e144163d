"""``scr2mae text``: pack text, pretrain RoBERTa on it, score hidden tokens, fine-tune, rank."""

from __future__ import annotations

import argparse

from scr2mae.cli import arguments
from scr2mae.cli import text_jobs as run
from scr2mae.cli.command import Command, CommandGroup

__all__ = ["COMMAND"]

# The names of the sizes and of the tasks, without loading PyTorch; a test compares.
SIZES = ("tiny", "medium", "base")
TASKS = ("mnli", "qqp", "sst2", "qnli")


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="TEXT", type=arguments.path, nargs="*", help="UTF-8 text files, .gz or not"
    )
    arguments.add_output(parser, "PACKED/", "folder to write the packed text to")
    parser.add_argument(
        "--unit",
        choices=["line", "paragraph", "file"],
        default="paragraph",
        help="what is one document (default: %(default)s, lines up to an empty one)",
    )
    hub = parser.add_argument_group("in place of files")
    hub.add_argument(
        "--hub", metavar="NAME", help="stream a data set of the Hugging Face hub, HuggingFaceFW/fineweb say"
    )
    hub.add_argument("--hub-config", metavar="NAME", help="its configuration, sample-10BT say")
    hub.add_argument("--column", metavar="NAME", default="text", help="its text (default: %(default)s)")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=arguments.path,
        help="tokenizer.json, or a folder with one, such as packed text or a model (default: learn one)",
    )
    tokens.add_argument(
        "--vocab-size",
        metavar="N",
        type=arguments.positive_int,
        default=50_265,
        help="symbols to learn at most (default: %(default)s)",
    )
    tokens.add_argument(
        "--tokenizer-documents",
        metavar="N",
        type=arguments.positive_int,
        default=1_000_000,
        help="documents to learn them from, the first ones (default: %(default)s)",
    )
    tokens.add_argument(
        "--length",
        metavar="N",
        type=arguments.positive_int,
        default=128,
        help="tokens a block (default: %(default)s)",
    )
    tokens.add_argument("--max-blocks", metavar="N", type=arguments.positive_int, help="stop after so many")


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="PACKED/", type=arguments.path, help="text packed by scr2mae text pack"
    )
    arguments.add_output(parser, "MODEL/", "folder to save the model in, which transformers reads too")
    arguments.add_force(parser, "the model")
    network = parser.add_argument_group("network and scheme")
    network.add_argument("--size", choices=SIZES, default="medium", help="of RoBERTa (default: %(default)s)")
    arguments.add_scheme(network, "text")
    arguments.add_mask_ratio(network, "tokens")
    arguments.add_seed(network, "weights, masks, order and dropout")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--validation", metavar="PACKED/", type=arguments.path, help="held-out text, scored after each epoch"
    )
    training.add_argument(
        "--max-epochs",
        metavar="N",
        type=arguments.positive_int,
        default=1,
        help="passes over the text (default: %(default)s)",
    )
    training.add_argument(
        "--batch-size",
        metavar="N",
        type=arguments.positive_int,
        default=256,
        help="blocks a micro-batch and device, each with a ratio of its own (default: %(default)s)",
    )
    arguments.add_accumulate(training, default=8)
    training.add_argument(
        "--lr",
        metavar="RATE",
        type=arguments.positive_float,
        help="peak learning rate (default: the paper's for the size)",
    )
    arguments.add_compute(training)
    arguments.add_checkpoints(training)


def _add_loss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL/", type=arguments.path, help="folder of a pretrained model")
    parser.add_argument(
        "input", metavar="PACKED/", type=arguments.path, help="held-out text, packed with its tokenizer"
    )
    parser.add_argument(
        "--ratios",
        metavar="RATIO",
        type=arguments.fraction,
        nargs="+",
        default=[0.05, 0.15, 0.3, 0.4, 0.6, 0.8, 0.95],
        help="shares of tokens to hide (default: 0.05 to 0.95)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=arguments.positive_int,
        default=64,
        help="blocks at a time (default: %(default)s)",
    )
    arguments.add_accelerator(parser)


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL/", type=arguments.path, help="folder of a pretrained model")
    parser.add_argument("--task", choices=TASKS, required=True, help="of GLUE")
    parser.add_argument(
        "--train",
        metavar="TABLE",
        type=arguments.path,
        help=".tsv or .csv to train on (default: the task on the Hugging Face hub)",
    )
    parser.add_argument(
        "--test", metavar="TABLE", type=arguments.path, help="table to score on, labeled and held out"
    )
    arguments.add_output(parser, "OUT.csv", "file for the accuracy of every seed")
    arguments.add_force(parser, "OUT.csv")
    parser.add_argument(
        "--name", metavar="NAME", help="of the method in OUT.csv (default: that of the folder)"
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--seeds",
        metavar="N",
        type=arguments.non_negative_int,
        nargs="+",
        default=[0, 1, 2],
        help="of head, order and dropout, a run each (default: 0 1 2)",
    )
    for option, value, what in (
        ("--max-epochs", 5, "passes over the table"),
        ("--batch-size", 32, "sentences a mini-batch"),
        ("--length", 128, "tokens at most"),
    ):
        training.add_argument(
            option,
            metavar="N",
            type=arguments.positive_int,
            default=value,
            help=f"{what} (default: %(default)s)",
        )
    training.add_argument(
        "--lr",
        metavar="RATE",
        type=arguments.positive_float,
        default=2e-5,
        help="learning rate (default: %(default)s)",
    )
    arguments.add_compute(training)


def _add_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="OUT.csv", type=arguments.path, nargs="+", help="files of scr2mae text finetune"
    )


COMMAND = CommandGroup(
    name="text",
    summary="masked language models of text",
    commands=(
        Command(
            name="pack",
            summary="turn text into blocks of tokens",
            description="Learn a byte-level BPE tokenizer, or take one, and pack text into blocks of equal length.",
            examples="""
scr2mae text pack corpus.txt -o packed/
scr2mae text pack held_out.txt -o packed_held_out/ --tokenizer packed/
scr2mae text pack --hub HuggingFaceFW/fineweb --hub-config sample-10BT -o fineweb/
""",
            add_arguments=_add_pack,
            run=run.pack,
        ),
        Command(
            name="pretrain",
            summary="train a masked language model",
            description="Train RoBERTa to predict hidden tokens of packed text and save it as a folder.",
            examples="""
scr2mae text pretrain packed/ -o model/
scr2mae text pretrain packed/ -o model/ --size tiny --max-epochs 5 --batch-size 32 --accumulate 1
scr2mae text pretrain packed/ -o model/ --scheme dynamic --precision bf16-mixed --checkpoint-dir run1/
scr2mae text pretrain packed/ -o model/ --scheme dynamic --precision bf16-mixed --checkpoint-dir run1/ --resume run1/
""",
            add_arguments=_add_pretrain,
            run=run.pretrain,
        ),
        Command(
            name="loss",
            summary="score hidden tokens of held-out text",
            description="Hide several shares of the tokens of held-out text and score the predictions.",
            examples="scr2mae text loss model/ packed_held_out/ --ratios 0.15 0.4",
            add_arguments=_add_loss,
            run=run.loss,
        ),
        Command(
            name="finetune",
            summary="fine-tune on a task of GLUE and score",
            description="Fine-tune a pretrained model once a seed and score it on held-out sentences.",
            examples="""
scr2mae text finetune model/ --task sst2 --train train.tsv --test dev.tsv -o sst2.csv
scr2mae text finetune model/ --task mnli -o mnli.csv
""",
            add_arguments=_add_finetune,
            run=run.finetune,
        ),
        Command(
            name="rank",
            summary="average methods over seeds and rank them over tasks",
            description="Average accuracies over seeds, and each method's rank over tasks, as in the paper's Table 2.",
            examples="scr2mae text rank mlm_sst2.csv mlm_qnli.csv r2mae_sst2.csv r2mae_qnli.csv",
            add_arguments=_add_rank,
            run=run.rank,
        ),
    ),
)
