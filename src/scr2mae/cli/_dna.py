"""What the subcommands of ``scr2mae dna`` do."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli._command import UsageError, loading
from scr2mae.cli._files import check_free, check_writable, replacing

if TYPE_CHECKING:
    from scr2mae.extra.dna import GenomeMSA, Track

__all__ = ["score", "train"]

logger = logging.getLogger(__name__)

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _kind(path: Path) -> str:
    """Suffix of a file, without that of its compression."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _check_alignment(args: argparse.Namespace, path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"No alignment {path}.")
    kind = _kind(path)
    if kind == ".npy" and args.chrom is None:
        raise UsageError("an alignment in .npy needs --chrom, the name of its chromosome")
    if kind != ".maf" and (args.reference or args.species):
        raise UsageError("--reference and --species are for MAF files")
    if not path.is_dir() and kind not in (".maf", ".npy", ".zip"):
        raise ValueError(
            f"An alignment is a Zarr group (a folder or .zip), .maf, .maf.gz or .npy, got {path.name}."
        )


def _open_alignment(args: argparse.Namespace, path: Path) -> GenomeMSA:
    import numpy as np

    from scr2mae.extra import dna

    kind = _kind(path)
    if path.is_dir() or kind == ".zip":
        msa = dna.GenomeMSA.from_zarr(path)
    elif kind == ".maf":
        msa = dna.GenomeMSA.from_maf(path, reference=args.reference, species=args.species)
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged or no .npy file: {error}") from error
        msa = dna.GenomeMSA.from_numpy(array, chrom=args.chrom, start=args.start)
    logger.info("Read %r from %s.", msa, path)
    return msa


def _open_track(args: argparse.Namespace, path: Path | None) -> Track | None:
    from scr2mae.extra import dna

    return None if path is None else dna.open_track(path, chrom=args.chrom, start=args.start)


def _check_train(args: argparse.Namespace) -> None:
    """Refuse whatever would stop the run later, before anything heavy is loaded."""
    _check_alignment(args, args.input)
    ratios = args.mask_ratio
    if ratios is not None and (len(ratios) > 2 or (len(ratios) == 2 and ratios[0] > ratios[1])):
        raise UsageError(
            f"--mask-ratio takes one number, or a low and a high one; got {' '.join(map(str, ratios))}"
        )
    if args.top < 1 and args.phastcons is None:
        raise UsageError("--top ranks windows by --phastcons, which is not given")
    for name in ("phastcons", "phylop"):
        place = getattr(args, name)
        if place is not None and not place.is_file():
            raise FileNotFoundError(f"No track {place}.")
        if place is not None and _kind(place) == ".npy" and args.chrom is None:
            raise UsageError(f"--{name} in .npy needs --chrom, the name of its chromosome")
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    if args.resume is not None and not (args.resume / "last.ckpt").is_file() and not args.resume.is_file():
        raise FileNotFoundError(
            f"No checkpoint {args.resume}; give a .ckpt file or an earlier --checkpoint-dir."
        )
    if args.checkpoint_dir is not None:
        check_writable(args.checkpoint_dir)
        last = args.checkpoint_dir / "last.ckpt"
        if last.exists() and args.resume is None and not args.force:
            raise FileExistsError(f"{last} exists; go on from it with --resume, or replace it with --force.")


def train(args: argparse.Namespace) -> str:
    """Pretrain on an alignment."""
    _check_train(args)
    with loading():
        import scr2mae
        from scr2mae.extra import dna

    msa = _open_alignment(args, args.input)
    tracks: dict[str, Any] = {
        name: _open_track(args, getattr(args, name)) for name in ("phastcons", "phylop")
    }
    windows = dna.make_windows(msa, size=args.window_size, step=args.step, both_strands=not args.forward_only)
    if args.top < 1 and tracks["phastcons"] is not None:
        windows = dna.select_windows(
            windows, tracks["phastcons"], top=args.top, random=args.random, seed=args.seed
        )
    validation = None
    if args.validation_size > 0:
        split = dna.split_windows(
            windows, validation_size=args.validation_size, block_size=args.block_size, seed=args.seed
        )
        windows = split.train
        validation = dna.MSAWindowDataset(
            msa, split.validation, repeat_weight=args.repeat_weight, flip_probability=0.0, **tracks
        )
    config = dna.GPNMSAConfig(
        n_species=msa.n_species,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        max_position_embeddings=max(args.window_size, dna.GPNMSAConfig.max_position_embeddings),
        curriculum=scr2mae.schemes("dna")[args.scheme].curriculum,
        **{name: getattr(args, name) for name in _SIZES},
    )
    model = dna.GPNMSAForMaskedLM(config, seed=args.seed)
    data = dna.MSAWindowDataset(msa, windows, repeat_weight=args.repeat_weight, **tracks)
    history = dna.pretrain(model, data, validation, **_train_options(args))
    model.save_pretrained(args.output, overwrite=True)
    rows: dict[str, Any] = {"model": args.output, "windows_train": len(data)}
    rows |= {} if validation is None else {"windows_validation": len(validation)}
    rows["steps"] = len(history["train_loss_step"])
    for name in ("train_loss", "validation_loss"):
        if name in history:
            rows[name] = f"{history[name][name].iloc[-1]:.4f}"
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())


def _train_options(args: argparse.Namespace) -> dict[str, Any]:
    ratios = args.mask_ratio
    return {
        "scheme": args.scheme,
        "mask_ratio": None if ratios is None else ratios[0] if len(ratios) == 1 else tuple(ratios),
        "max_steps": args.max_steps,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "warmup": args.warmup,
        "seed": args.seed,
        "accelerator": args.accelerator,
        "devices": args.devices,
        "precision": args.precision,
        "checkpoint_dir": args.checkpoint_dir,
        "resume": args.resume,
        "enable_progress_bar": not args.quiet,
    }


def score(args: argparse.Namespace) -> str:
    """Score variants."""
    if not args.input.is_file():
        raise FileNotFoundError(f"No variants at {args.input}.")
    _check_alignment(args, args.alignment)
    check_free(args.output, folder=False, force=args.force)
    check_writable(args.output.parent)
    with loading():
        from scr2mae.extra import dna

    variants = dna.read_variants(args.input)
    model = None if args.model is None else dna.GPNMSAForMaskedLM.from_pretrained(args.model)
    msa = _open_alignment(args, args.alignment)
    if model is None:
        scored = dna.alignment_scores(msa, variants)
    else:
        scored = dna.score_variants(
            model,
            msa,
            variants,
            window_size=args.window_size,
            batch_size=args.batch_size,
            accelerator=args.accelerator,
            progress=not args.quiet,
        )
    with replacing(args.output) as part:
        scored.to_csv(part, sep="\t", index=False, float_format="%.6g")
    counts = scored["status"].value_counts()
    rows = {"output": args.output, "variants": len(scored)}
    rows |= {status: int(counts[status]) for status in dna.STATUSES if status in counts}
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())
