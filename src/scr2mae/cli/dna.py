"""``scr2mae dna``: pretrain on an alignment, score variants."""

from __future__ import annotations

import argparse

from scr2mae.cli import arguments
from scr2mae.cli import dna_jobs as run
from scr2mae.cli.command import Command, CommandGroup

__all__ = ["COMMAND"]

_ALIGNMENT = "Zarr group (one array a chromosome), .maf, .maf.gz, or .npy of one chromosome (give --chrom)"


def _add_alignment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("alignment")
    group.add_argument(
        "--reference",
        metavar="NAME",
        help="for MAF: assembly whose coordinates count (default: that of the first row)",
    )
    group.add_argument(
        "--species",
        metavar="NAME",
        nargs="+",
        help="for MAF: the other assemblies, in the order of the network's columns (default: all, or those of --model)",
    )
    group.add_argument(
        "--chrom",
        metavar="NAME",
        nargs="+",
        help="chromosomes to read (default: all); for .npy, alignment or track, the one that it is of",
    )
    group.add_argument(
        "--start",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="for .npy: 0-based coordinate of the first row (default: %(default)s)",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="ALIGNMENT", type=arguments.path, help=_ALIGNMENT)
    arguments.add_output(parser, "MODEL/", "folder to save the network in")
    arguments.add_force(parser, "the network")
    _add_alignment(parser)
    _add_windows(parser.add_argument_group("windows"))
    _add_network(parser.add_argument_group("network"))
    _add_training(parser.add_argument_group("training"))


def _add_windows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--window-size",
        metavar="N",
        type=arguments.positive_int,
        default=128,
        help="positions (default: %(default)s)",
    )
    group.add_argument(
        "--step",
        metavar="N",
        type=arguments.positive_int,
        default=64,
        help="from window to window (default: %(default)s)",
    )
    group.add_argument("--forward-only", action="store_true", help="leave the other strand out")
    for name in ("phastcons", "phylop"):
        group.add_argument(
            f"--{name}",
            metavar="FILE",
            type=arguments.path,
            help="track that weighs the loss: .bw (needs pyBigWig), .wig, .wig.gz or .npy (see --chrom)",
        )
    group.add_argument(
        "--top",
        metavar="SHARE",
        type=arguments.fraction,
        default=1.0,
        help="share of windows kept for their conservation, by --phastcons (default: all; GPN-MSA: 0.05)",
    )
    group.add_argument(
        "--random",
        metavar="SHARE",
        type=arguments.fraction,
        default=0.001,
        help="share of the others kept all the same (default: %(default)s)",
    )
    group.add_argument(
        "--repeat-weight",
        metavar="WEIGHT",
        type=arguments.positive_float,
        default=0.1,
        help="weight of lower-case bases (default: %(default)s)",
    )
    group.add_argument(
        "--validation-size",
        metavar="SHARE",
        type=arguments.fraction,
        default=0.1,
        help="share of blocks of positions that validate; 0 for none (default: %(default)s)",
    )
    group.add_argument(
        "--block-size",
        metavar="N",
        type=arguments.positive_int,
        default=5000,
        help="positions a block (default: %(default)s)",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    for name, default, what in (
        ("hidden-size", 768, "width"),
        ("num-hidden-layers", 12, "layers"),
        ("num-attention-heads", 12, "attention heads a layer"),
        ("intermediate-size", 3072, "width inside the feed-forward blocks"),
    ):
        group.add_argument(
            f"--{name}",
            metavar="N",
            type=arguments.positive_int,
            default=default,
            help=f"{what} (default: %(default)s)",
        )
    group.add_argument(
        "--dropout",
        metavar="SHARE",
        type=arguments.fraction,
        default=0.1,
        help="in training (default: %(default)s)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    arguments.add_scheme(group, "dna")
    arguments.add_mask_ratio(group, "human bases")
    group.add_argument(
        "--max-steps", metavar="N", type=arguments.positive_int, default=30_000, help="(default: %(default)s)"
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=arguments.positive_int,
        default=2048,
        help="windows a mini-batch and device (default: %(default)s)",
    )
    arguments.add_accumulate(group)
    group.add_argument(
        "--lr", metavar="RATE", type=arguments.positive_float, default=1e-4, help="(default: %(default)s)"
    )
    group.add_argument(
        "--warmup",
        metavar="N",
        type=arguments.non_negative_int,
        default=1000,
        help="steps over which the rate rises (default: %(default)s)",
    )
    arguments.add_seed(group, "weights, masks, split and order")
    arguments.add_compute(group)
    arguments.add_checkpoints(group)


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="VARIANTS",
        type=arguments.path,
        help="VCF, or a table with columns chrom, pos (1-based), ref and alt",
    )
    parser.add_argument(
        "--alignment", metavar="ALIGNMENT", type=arguments.path, required=True, help=_ALIGNMENT
    )
    parser.add_argument(
        "--model",
        metavar="MODEL/",
        type=arguments.path,
        help="folder of the network; without, species are counted",
    )
    arguments.add_output(parser, "OUT.tsv", "table to write")
    parser.add_argument(
        "--window-size",
        metavar="N",
        type=arguments.positive_int,
        default=128,
        help="positions (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=arguments.positive_int,
        default=256,
        help="sites at a time (default: %(default)s)",
    )
    arguments.add_accelerator(parser)
    arguments.add_force(parser, "OUT.tsv")
    _add_alignment(parser)


_TRAIN = Command(
    name="train",
    summary="pretrain a masked language model on an alignment",
    description=(
        "Cut an alignment into windows, hold blocks of positions out, train a GPN-MSA network to predict hidden bases of the\n"
        "reference, and save it as a folder."
    ),
    examples="""
scr2mae dna train 89.zarr -o model/ --phastcons phastCons.bw --phylop phyloP.bw --top 0.05 --devices 4 --batch-size 512
scr2mae dna train 89.zarr -o model/ --chrom 20 21 22 --batch-size 256 --accumulate 8 --precision bf16-mixed
scr2mae dna train chr22.maf.gz -o model/ --reference hg38 --hidden-size 64 --num-hidden-layers 2 --num-attention-heads 4
scr2mae dna train chr22.npy -o model/ --chrom chr22 --scheme r2mae_cl --checkpoint-dir run1/ --resume run1/
""",
    add_arguments=_add_train,
    run=run.train,
)
_SCORE = Command(
    name="score",
    summary="score variants without labels",
    description=(
        "Write a table of variants with a column score, the logit of the alternative base minus that of the reference base\n"
        "(the lower, the less expected), and a column status, which says why a score is missing."
    ),
    examples="""
scr2mae dna score variants.vcf --alignment 89.zarr --model model/ -o scores.tsv
scr2mae dna score clinvar.tsv --alignment chr22.maf.gz --reference hg38 --model model/ -o scores.tsv
scr2mae dna score clinvar.tsv --alignment 89.zarr -o counts.tsv
""",
    add_arguments=_add_score,
    run=run.score,
)
COMMAND = CommandGroup(
    name="dna",
    summary="masked language models of DNA over alignments, and scores of variants",
    commands=(_TRAIN, _SCORE),
)
