"""What the training commands of DNA, images and text have in common."""

from __future__ import annotations

import argparse
from typing import Any

from scr2mae.cli.command import UsageError
from scr2mae.cli.files import check_writable

__all__ = ["check_checkpoints", "mask_ratio", "trainer_options"]


def mask_ratio(args: argparse.Namespace) -> float | tuple[float, float] | None:
    """Return ``--mask-ratio`` as a number or a pair; None leaves it to the scheme.

    Raises
    ------
    UsageError
        If there are more than two numbers, or they fall.
    """
    ratios = args.mask_ratio
    if ratios is None:
        return None
    if len(ratios) > 2 or ratios != sorted(ratios):
        raise UsageError(
            f"--mask-ratio takes one number, or a low and a high one; got {' '.join(map(str, ratios))}"
        )
    return ratios[0] if len(ratios) == 1 else (ratios[0], ratios[1])


def check_checkpoints(args: argparse.Namespace) -> None:
    """Refuse to resume from nothing, and to write over the checkpoint of another run.

    Raises
    ------
    FileNotFoundError
        If ``--resume`` names no checkpoint.
    FileExistsError
        If ``--checkpoint-dir`` has one, and neither ``--resume`` nor ``--force`` is given.
    """
    if args.resume is not None and not (args.resume / "last.ckpt").is_file() and not args.resume.is_file():
        raise FileNotFoundError(
            f"No checkpoint {args.resume}; give a .ckpt file or an earlier --checkpoint-dir."
        )
    if args.checkpoint_dir is not None:
        check_writable(args.checkpoint_dir)
        last = args.checkpoint_dir / "last.ckpt"
        if last.exists() and args.resume is None and not args.force:
            raise FileExistsError(f"{last} exists; go on from it with --resume, or replace it with --force.")


def trainer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options that every training function passes on."""
    return {
        "accelerator": args.accelerator,
        "devices": args.devices,
        "precision": args.precision,
        "accumulate_grad_batches": args.accumulate,
        "checkpoint_dir": args.checkpoint_dir,
        "resume": args.resume,
        "enable_progress_bar": not args.quiet,
    }
