"""What the subcommands of ``scr2mae dna`` do."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scr2mae.cli.command import UsageError, loading
from scr2mae.cli.files import check_free, check_writable, replacing
from scr2mae.cli.training import check_checkpoints, mask_ratio, trainer_options

if TYPE_CHECKING:
    from scr2mae.extra.dna import GenomeMSA, GPNMSAForMaskedLM, MSAWindowDataset, Track

__all__ = ["score", "train"]

logger = logging.getLogger(__name__)

_TRAINING = ("max_steps", "batch_size", "lr", "warmup", "seed")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _kind(path: Path) -> str:
    """Suffix of a file, without that of its compression."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _only_chrom(args: argparse.Namespace) -> str | None:
    """Chromosome of what is in .npy, which is of one."""
    return args.chrom[0] if args.chrom and len(args.chrom) == 1 else None


def _check_alignment(args: argparse.Namespace, path: Path, *tracks: Path | None) -> None:
    if not path.exists():
        raise FileNotFoundError(f"No alignment {path}.")
    kind = _kind(path)
    if kind == ".npy" and _only_chrom(args) is None:
        raise UsageError("an alignment in .npy needs --chrom, the name of its chromosome")
    if args.start and not any(place is not None and _kind(place) == ".npy" for place in (path, *tracks)):
        raise UsageError("--start is for .npy files; others have their own coordinates")
    if kind != ".maf" and (args.reference or args.species):
        raise UsageError("--reference and --species are for MAF files")
    if not path.is_dir() and kind not in (".maf", ".npy", ".zip"):
        raise ValueError(
            f"An alignment is a Zarr group (a folder or .zip), .maf, .maf.gz or .npy, got {path.name}."
        )


def _open_alignment(
    args: argparse.Namespace, path: Path, species: tuple[str, ...] | None = None
) -> GenomeMSA:
    """Open an alignment; ``species`` is the order of a MAF file's columns where none is given."""
    import numpy as np

    from scr2mae.extra import dna

    kind = _kind(path)
    if path.is_dir() or kind == ".zip":
        msa = dna.GenomeMSA.from_zarr(path, chroms=args.chrom)
    elif kind == ".maf":
        msa = dna.GenomeMSA.from_maf(
            path, reference=args.reference, species=args.species or species, chroms=args.chrom
        )
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged or no .npy file: {error}") from error
        msa = dna.GenomeMSA.from_numpy(array, chrom=str(_only_chrom(args)), start=args.start)
    logger.info("Read %r from %s.", msa, path)
    return msa


def _open_track(args: argparse.Namespace, path: Path | None) -> Track | None:
    from scr2mae.extra import dna

    return None if path is None else dna.open_track(path, chrom=_only_chrom(args), start=args.start)


def _check_train(args: argparse.Namespace) -> None:
    """Refuse whatever would stop the run later, before anything heavy is loaded."""
    _check_alignment(args, args.input, args.phastcons, args.phylop)
    mask_ratio(args)
    if args.top < 1 and args.phastcons is None:
        raise UsageError("--top ranks windows by --phastcons, which is not given")
    for name in ("phastcons", "phylop"):
        place = getattr(args, name)
        if place is not None and not place.is_file():
            raise FileNotFoundError(f"No track {place}.")
        if place is not None and _kind(place) == ".npy" and _only_chrom(args) is None:
            raise UsageError(f"--{name} in .npy needs --chrom, the name of its chromosome")
    check_free(args.output, folder=True, force=args.force)
    check_writable(args.output)
    check_checkpoints(args)


def _open_windows(
    args: argparse.Namespace, msa: GenomeMSA
) -> tuple[MSAWindowDataset, MSAWindowDataset | None]:
    """Windows that train, and those that validate if any do."""
    from scr2mae.extra import dna

    tracks = {name: _open_track(args, getattr(args, name)) for name in ("phastcons", "phylop")}
    windows = dna.make_windows(msa, size=args.window_size, step=args.step, both_strands=not args.forward_only)
    if args.top < 1 and tracks["phastcons"] is not None:
        windows = dna.select_windows(
            windows, tracks["phastcons"], top=args.top, random=args.random, seed=args.seed
        )
    weights: dict[str, Any] = {"repeat_weight": args.repeat_weight, **tracks}
    if args.validation_size == 0:
        return dna.MSAWindowDataset(msa, windows, **weights), None
    split = dna.split_windows(
        windows, validation_size=args.validation_size, block_size=args.block_size, seed=args.seed
    )
    return (
        dna.MSAWindowDataset(msa, split.train, **weights),
        dna.MSAWindowDataset(msa, split.validation, flip_probability=0.0, **weights),
    )


def _build(args: argparse.Namespace, n_species: int) -> GPNMSAForMaskedLM:
    import scr2mae
    from scr2mae.extra import dna

    config = dna.GPNMSAConfig(
        n_species=n_species,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        max_position_embeddings=max(args.window_size, dna.GPNMSAConfig.max_position_embeddings),
        curriculum=scr2mae.schemes("dna")[args.scheme].curriculum,
        **{name: getattr(args, name) for name in _SIZES},
    )
    return dna.GPNMSAForMaskedLM(config, seed=args.seed)


def train(args: argparse.Namespace) -> str:
    """Pretrain on an alignment."""
    _check_train(args)
    with loading():
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        from scr2mae.extra import dna

    msa = _open_alignment(args, args.input)
    data, validation = _open_windows(args, msa)
    network = dna.pretrain(
        _build(args, msa.n_species),
        data,
        validation,
        scheme=args.scheme,
        mask_ratio=mask_ratio(args),
        **{name: getattr(args, name) for name in _TRAINING},
        **trainer_options(args),
    )
    if getattr(rank_zero_only, "rank", 0):
        return ""  # one of several processes writes
    network.save_pretrained(args.output, overwrite=True)
    rows: dict[str, Any] = {"model": args.output, "windows_train": len(data)}
    rows |= {} if validation is None else {"windows_validation": len(validation)}
    history = network.history_ or {}
    rows["steps"] = len(history["train_loss_step"]) // args.accumulate
    for name in ("train_loss", "validation_loss"):
        if name in history:
            rows[name] = f"{history[name][name].iloc[-1]:.4f}"
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())


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
    msa = _open_alignment(args, args.alignment, None if model is None else model.species_)
    if model is None:
        scored = dna.alignment_scores(msa, variants)
    else:
        scored = dna.score(
            model,
            msa,
            variants,
            window_size=args.window_size,
            batch_size=args.batch_size,
            accelerator=args.accelerator,
            progress=not args.quiet,
        )
    with replacing(args.output) as part:
        # The score alone is rounded; other columns are the user's.
        scored.assign(score=scored["score"].map("{:.6g}".format, na_action="ignore")).to_csv(
            part, sep="\t", index=False
        )
    counts = scored["status"].value_counts()
    rows = {"output": args.output, "variants": len(scored)}
    rows |= {status: int(counts[status]) for status in dna.STATUSES if status in counts}
    return "\n".join(f"{name}\t{value}" for name, value in rows.items())
