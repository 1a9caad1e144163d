"""``scr2mae vision``: pretrain on images, fine-tune, probe, embed."""

from __future__ import annotations

import argparse

from scr2mae.cli import arguments
from scr2mae.cli import vision_jobs as run
from scr2mae.cli.command import Command, CommandGroup

__all__ = ["COMMAND"]

_DATA = "folder of image files (a subfolder a class), of MNIST's idx files or of CelebA, or an .npz file"


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="DATA", type=arguments.path, help=_DATA)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--image-size",
        metavar="N",
        type=arguments.positive_int,
        help="side that images in files are scaled and cut to (default: 224, CelebA 64; with --model its own)",
    )
    group.add_argument("--gray", action="store_true", help="read image files as gray, not RGB")
    group.add_argument(
        "--workers",
        metavar="N",
        type=arguments.non_negative_int,
        default=0,
        help="threads that decode images ahead (default: %(default)s)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="MODEL/",
        type=arguments.path,
        required=True,
        help="folder of the pretrained network",
    )


def _add_output(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    arguments.add_output(parser, metavar, what)
    arguments.add_force(parser, "it")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--validation", metavar="DATA", type=arguments.path, help="images scored after each epoch"
    )
    group.add_argument(
        "--max-epochs",
        metavar="N",
        type=arguments.positive_int,
        help="passes over the images (default: the paper's)",
    )
    group.add_argument(
        "--batch-size", metavar="N", type=arguments.positive_int, help="images a mini-batch and device"
    )
    arguments.add_accumulate(group)
    group.add_argument(
        "--lr",
        metavar="RATE",
        type=arguments.positive_float,
        help="learning rate; of a ViT for 256 images a step",
    )
    group.add_argument("--no-augment", action="store_true", help="leave images as they are")
    arguments.add_seed(group, "weights, masks, order and augmentation")
    arguments.add_compute(group)
    arguments.add_checkpoints(group)


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_output(parser, "MODEL/", "folder to save the network in")
    group = parser.add_argument_group("network")
    group.add_argument(
        "--network", choices=["vit", "mlp", "unet"], default="vit", help="which (default: %(default)s)"
    )
    group.add_argument(
        "--preset", choices=["base", "tiny"], default="base", help="size of a ViT (default: %(default)s)"
    )
    group.add_argument(
        "--patch-size",
        metavar="N",
        type=arguments.positive_int,
        default=16,
        help="of a ViT (default: %(default)s)",
    )
    group.add_argument(
        "--width",
        metavar="N",
        type=arguments.positive_int,
        nargs="+",
        help="of an MLP, its two hidden layers (default: 512 64); of a U-Net, its base channels (default: 16)",
    )
    masks = group.add_mutually_exclusive_group()
    arguments.add_scheme(masks, "vision")
    arguments.add_mask_ratio(masks, "an image")
    _add_training(parser)


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_model(parser)
    _add_output(parser, "MODEL/", "folder to save the classifier in")
    _add_training(parser)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_model(parser)
    group = parser.add_argument_group("probe")
    group.add_argument(
        "--test", metavar="DATA", type=arguments.path, help="test images (default: DATA's test split)"
    )
    group.add_argument(
        "--max-epochs", metavar="N", type=arguments.positive_int, default=15, help="(default: 15)"
    )
    group.add_argument("--seed", metavar="N", type=arguments.non_negative_int, default=0, help="(default: 0)")
    arguments.add_accelerator(group)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_model(parser)
    _add_output(parser, "OUT.npy", "file for the embeddings, a row an image")
    parser.add_argument("--split", choices=["train", "validation", "test"], help="of DATA, if it is split")
    arguments.add_accelerator(parser)


COMMAND = CommandGroup(
    name="vision",
    summary="masked autoencoders of images: pretrain, fine-tune, probe, embed",
    commands=(
        Command(
            name="pretrain",
            summary="pretrain a network on images",
            description="Pretrain a ViT-MAE, an MLP or a U-Net on images, with one of the paper's masking schemes.",
            examples="""
scr2mae vision pretrain imagenet/train -o vit/ --workers 8 --precision bf16-mixed
scr2mae vision pretrain photos/ -o vit/ --preset tiny --image-size 64 --patch-size 8 --max-epochs 100
scr2mae vision pretrain mnist/ -o mlp/ --network mlp --width 512 64 --mask-ratio 0.5
scr2mae vision pretrain celeba/ -o unet/ --network unet --width 16 --scheme r2mae
scr2mae vision pretrain photos/ -o vit/ --checkpoint-dir run1/ --resume run1/
""",
            add_arguments=_add_pretrain,
            run=run.pretrain,
        ),
        Command(
            name="finetune",
            summary="fine-tune a pretrained ViT for classification",
            description="Train a classifier from a pretrained ViT, all weights of it, on images in subfolders by class.",
            examples="""
scr2mae vision finetune imagenet/train --model vit/ -o classifier/ --validation imagenet/val
""",
            add_arguments=_add_finetune,
            run=run.finetune,
        ),
        Command(
            name="probe",
            summary="score a linear classifier of a network's embeddings",
            description="Fit a linear classifier to the embeddings of training images and score it on test images.",
            examples="""
scr2mae vision probe mnist/ --model mlp/
scr2mae vision probe photos/train --model vit/ --test photos/test
""",
            add_arguments=_add_probe,
            run=run.probe,
        ),
        Command(
            name="embed",
            summary="embed images with a pretrained network",
            description="Embed whole images and write a NumPy array, a row an image.",
            examples="""
scr2mae vision embed photos/ --model vit/ -o embeddings.npy
scr2mae vision embed mnist/ --model mlp/ --split test -o embeddings.npy
""",
            add_arguments=_add_embed,
            run=run.embed,
        ),
    ),
)
"""``scr2mae vision ...``."""
