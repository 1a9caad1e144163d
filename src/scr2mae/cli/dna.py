"""Masked language models of DNA over alignments, and scores of variants."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from scr2mae._paper import scheme_names
from scr2mae.cli import options as opt
from scr2mae.cli.files import check_output, replacing
from scr2mae.cli.process import is_first_process, last_losses, loading, results

if TYPE_CHECKING:
    from scr2mae.extra.dna import GenomeMSA, MSAWindowDataset

logger = logging.getLogger(__name__)


_TOP = 0.05  # of the paper

AlignmentPath = Annotated[
    opt.InPath,
    opt.doc(
        "Zarr group (one array per chromosome), .maf, .maf.gz, or .npy of one chromosome (needs --chrom)."
    ),
]


@opt.options("Data")
class Reading:
    """How an alignment is read."""

    reference: opt.Name | None = None
    """MAF: assembly whose coordinates count; that of the first row by default."""
    species: opt.Names | None = None
    """MAF: the other assemblies, in the order of the network's columns; all, or those of --model, by default."""
    chrom: opt.Names | None = None
    """Chromosomes to read, all by default; for .npy, alignment or track, the chromosome in the file."""
    start: opt.NonNegativeInt = 0
    """For .npy: 0-based coordinate of the first row."""

    @property
    def only_chrom(self) -> str | None:
        """Chromosome of a .npy file, which contains one."""
        return self.chrom[0] if self.chrom and len(self.chrom) == 1 else None

    def check(self, path: Path, *tracks: Path | None) -> None:
        """Raise for an alignment that is missing, or is not read with these options."""
        if not path.exists():
            raise FileNotFoundError(f"No alignment {path}.")
        kind = _kind(path)
        if kind == ".npy" and self.only_chrom is None:
            raise opt.UsageError("an alignment in .npy needs --chrom, the name of its chromosome")
        if self.start and not any(place is not None and _kind(place) == ".npy" for place in (path, *tracks)):
            raise opt.UsageError("--start is for .npy files; others have their own coordinates")
        if kind != ".maf" and (self.reference or self.species):
            raise opt.UsageError("--reference and --species are for MAF files")
        if not path.is_dir() and kind not in (".maf", ".npy", ".zip"):
            raise ValueError(
                f"An alignment is a Zarr group (a folder or .zip), .maf, .maf.gz or .npy, got {path.name}."
            )

    def open(self, path: Path, species: tuple[str, ...] | None = None) -> GenomeMSA:
        """Open an alignment; ``species`` is the order of a MAF file's columns unless --species gives one."""
        import numpy as np

        from scr2mae.extra import dna

        kind = _kind(path)
        if path.is_dir() or kind == ".zip":
            msa = dna.GenomeMSA.from_zarr(path, chroms=self.chrom)
        elif kind == ".maf":
            msa = dna.GenomeMSA.from_maf(
                path, reference=self.reference, species=self.species or species, chroms=self.chrom
            )
        else:
            try:
                array = np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path} is damaged or not a .npy file: {error}") from error
            msa = dna.GenomeMSA.from_numpy(array, chrom=str(self.only_chrom), start=self.start)
        logger.info("Read %r from %s.", msa, path)
        return msa


@opt.options("Windows")
class Windows:
    """Windows of the alignment, their weights and their split."""

    windows: opt.InPath | None = None
    """Table of windows in place of a selection: chrom, start, end and, if given, strand (.tsv, .bed, .parquet)."""
    window_size: opt.PositiveInt = 128
    """Positions per window."""
    step: opt.PositiveInt = 64
    """Positions from one window to the next."""
    forward_only: bool = False
    """Leave out the reverse strand."""
    phastcons: opt.InPath | None = None
    """PhastCons track that weights the loss: .bw (needs pyBigWig), .wig, .wig.gz or .npy (see --chrom)."""
    phylop: opt.InPath | None = None
    """PhyloP track that weights the loss, in the same formats."""
    top: opt.Fraction | None = None
    """Fraction of most conserved windows to keep, by --phastcons; all by default, 0.05 with --paper."""
    random: opt.Fraction = 0.001
    """Fraction of the other windows to sample."""
    repeat_weight: opt.PositiveFloat = 0.1
    """Weight of lower-case bases."""
    validation_size: opt.Fraction = 0.1
    """Fraction of blocks of positions for validation; 0 for none."""
    block_size: opt.PositiveInt = 5000
    """Positions per block."""

    def check(self, reading: Reading, *, paper: bool) -> None:
        """Raise for tracks that are missing, or are not read with these options."""
        if paper and self.phastcons is None:
            raise opt.UsageError("--paper ranks and weights windows by --phastcons, which is not given")
        if self.top is not None and self.top < 1 and self.phastcons is None:
            raise opt.UsageError("--top ranks windows by --phastcons, which is not given")
        if self.windows is not None and (self.top is not None or self.forward_only):
            raise opt.UsageError("--windows stands in place of --top and --forward-only")
        if self.windows is not None and not self.windows.is_file():
            raise FileNotFoundError(f"No windows {self.windows}.")
        for name, place in (("phastcons", self.phastcons), ("phylop", self.phylop)):
            if place is not None and not place.is_file():
                raise FileNotFoundError(f"No track {place}.")
            if place is not None and _kind(place) == ".npy" and reading.only_chrom is None:
                raise opt.UsageError(f"--{name} in .npy needs --chrom, the name of its chromosome")

    def open(
        self, msa: GenomeMSA, reading: Reading, *, seed: int, paper: bool
    ) -> tuple[MSAWindowDataset, MSAWindowDataset | None]:
        """Return the windows that train, and those that validate, if any."""
        from scr2mae.extra import dna

        tracks = {
            name: None
            if place is None
            else dna.open_track(place, chrom=reading.only_chrom, start=reading.start)
            for name, place in (("phastcons", self.phastcons), ("phylop", self.phylop))
        }
        if self.windows is not None:
            windows = dna.read_windows(self.windows, msa)
        else:
            windows = dna.make_windows(
                msa, size=self.window_size, step=self.step, both_strands=not self.forward_only
            )
        top = self.top if self.top is not None else (_TOP if paper else 1.0)
        if self.windows is None and top < 1 and tracks["phastcons"] is not None:
            windows = dna.select_windows(windows, tracks["phastcons"], top=top, random=self.random, seed=seed)
        weights: dict[str, Any] = {"repeat_weight": self.repeat_weight, **tracks}
        if self.validation_size == 0:
            return dna.MSAWindowDataset(msa, windows, **weights), None
        split = dna.split_windows(
            windows, validation_size=self.validation_size, block_size=self.block_size, seed=seed
        )
        return (
            dna.MSAWindowDataset(msa, split.train, **weights),
            dna.MSAWindowDataset(msa, split.validation, flip_probability=0.0, **weights),
        )


@opt.options("Network")
class Network:
    """Sizes of the network, named as in its config."""

    hidden_size: opt.PositiveInt = 768
    """Width."""
    num_hidden_layers: opt.PositiveInt = 12
    """Layers."""
    num_attention_heads: opt.PositiveInt = 12
    """Attention heads per layer."""
    intermediate_size: opt.PositiveInt = 3072
    """Width inside the feed-forward blocks."""
    dropout: opt.Fraction = 0.1
    """Dropout rate."""


@opt.options("Training")
class Training:
    """Arguments of ``dna.pretrain``."""

    scheme: Annotated[str, Parameter(choices=scheme_names("dna"))] = "r2mae"
    """Masking scheme, with the paper's ratios."""
    mask_ratio: opt.MaskRatio | None = None
    max_steps: opt.PositiveInt = 30_000
    """Optimizer steps."""
    batch_size: opt.PositiveInt = 2048
    """Windows per mini-batch and device."""
    accumulate_grad_batches: opt.Accumulate = 1
    lr: opt.PositiveFloat = 1e-4
    """Peak learning rate."""
    warmup: opt.NonNegativeInt = 1000
    """Warm-up steps, over which the learning rate rises."""
    seed: opt.Seed = 0
    early_stopping: bool = False
    """Stop when the validation loss stops improving."""
    paper: bool = False
    """Keep the 5 % of most conserved windows and stop early, as in the paper."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``dna.pretrain``."""
        return opt.given(self, "paper") | {"early_stopping": self.early_stopping or self.paper}


def train(
    input: AlignmentPath,
    /,
    *,
    run: opt.Run,
    reading: Reading = Reading(),
    windows: Windows = Windows(),
    network: Network = Network(),
    training: Training = Training(),
) -> str:
    r"""Pretrain a masked language model on an alignment.

    Cut an alignment into windows, hold out blocks of positions, train a GPN-MSA network to predict masked bases of
    the reference, and save it as a folder.

    Examples
    --------
    scr2mae dna train 89.zarr -o model/ --phastcons phastCons.bw \
        --phylop phyloP.bw --paper --devices 4 --batch-size 512
    scr2mae dna train 89.zarr -o model/ --windows windows.parquet \
        --phastcons phastCons.bw --phylop phyloP.bw
    scr2mae dna train 89.zarr -o model/ --chrom 20 21 22 --batch-size 256 \
        --accumulate 8 --precision bf16-mixed
    scr2mae dna train chr22.maf.gz -o model/ --reference hg38 --hidden-size 64 \
        --num-hidden-layers 2 --num-attention-heads 4
    scr2mae dna train chr22.npy -o model/ --chrom chr22 --scheme r2mae_cl \
        --checkpoint-dir run1/ --resume run1/
    """
    reading.check(input, windows.phastcons, windows.phylop)
    windows.check(reading, paper=training.paper)
    if training.arguments["early_stopping"] and windows.validation_size == 0:
        raise opt.UsageError("--early-stopping needs validation windows; raise --validation-size")
    run.check()
    with loading():
        from scr2mae import schemes
        from scr2mae.extra import dna

    msa = reading.open(input)
    data, validation = windows.open(msa, reading, seed=training.seed, paper=training.paper)
    config = dna.GPNMSAConfig(
        n_species=msa.n_species,
        hidden_dropout_prob=network.dropout,
        attention_probs_dropout_prob=network.dropout,
        max_position_embeddings=max(windows.window_size, dna.GPNMSAConfig.max_position_embeddings),
        curriculum=schemes("dna")[training.scheme].curriculum,
        **opt.given(network, "dropout"),
    )
    trained = dna.pretrain(
        dna.GPNMSAForMaskedLM(config, seed=training.seed),
        data,
        validation,
        **training.arguments,
        **run.arguments,
    )
    if not is_first_process():
        return ""
    trained.save_pretrained(run.output, overwrite=True)
    counts = {"windows_train": len(data)}
    counts |= {} if validation is None else {"windows_validation": len(validation)}
    history = trained.history_ or {}
    steps = len(history["train_loss_step"]) // training.accumulate_grad_batches
    return results(model=run.output, **counts, steps=steps, **last_losses(history))


def score(
    input: Annotated[opt.InPath, opt.doc("VCF, or a table with columns chrom, pos (1-based), ref and alt.")],
    /,
    *,
    alignment: AlignmentPath,
    model: Annotated[
        opt.InPath | None, opt.doc("Folder of the network; if omitted, a species-count baseline is used.")
    ] = None,
    output: Annotated[opt.OutPath, opt.doc("Table to write (.tsv).")],
    force: opt.Force = False,
    window_size: Annotated[opt.PositiveInt, opt.doc("Positions per window.")] = 128,
    batch_size: Annotated[opt.PositiveInt, opt.doc("Sites per mini-batch.")] = 256,
    accelerator: opt.Accelerator = "auto",
    reading: Reading = Reading(),
    messages: opt.Messages = opt.Messages(),
) -> str:
    r"""Score variants without labels.

    Write a table of variants with a column score, the logit of the alternative base minus that of the reference base
    (the lower, the less expected), and a column status, which says why a score is missing.

    Examples
    --------
    scr2mae dna score variants.vcf --alignment 89.zarr --model model/ -o out.tsv
    scr2mae dna score clinvar.tsv --alignment chr22.maf.gz --reference hg38 \
        --model model/ -o scores.tsv
    scr2mae dna score clinvar.tsv --alignment 89.zarr -o counts.tsv
    """
    if not input.is_file():
        raise FileNotFoundError(f"No variants at {input}.")
    reading.check(alignment)
    check_output(output, force=force)
    with loading():
        from scr2mae.extra import dna

    variants = dna.read_variants(input)
    network = None if model is None else dna.GPNMSAForMaskedLM.from_pretrained(model)
    msa = reading.open(alignment, None if network is None else network.species_)
    if network is None:
        scored = dna.alignment_scores(msa, variants)
    else:
        scored = dna.score(
            network,
            msa,
            variants,
            window_size=window_size,
            batch_size=batch_size,
            accelerator=accelerator,
            progress=not messages.quiet,
        )
    with replacing(output) as part:
        # Only the score is rounded; other columns are the user's.
        rounded = scored["score"].map("{:.6g}".format, na_action="ignore")
        scored.assign(score=rounded).to_csv(part, sep="\t", index=False)
    counts = scored["status"].value_counts()
    found = {status: int(counts[status]) for status in dna.STATUSES if status in counts}
    return results(output=output, variants=len(scored), **found)


def _kind(path: Path) -> str:
    """Return the suffix of a file without that of its compression."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


COMMANDS = (train, score)
