"""Table 3: pathogenic variants ranked by networks of each masking scheme, by conservation, and by published scores.

    python benchmarks/dna_table_3.py --data FOLDER -o OUT --accelerator gpu
    python benchmarks/dna_table_3.py --data FOLDER -o OUT --accelerator gpu --train --devices 4 --batch-size 512
    python benchmarks/dna_table_3.py -o OUT --dry-run

``FOLDER`` has

- ``clinvar.*`` and ``omim.*``: variants with a column ``label``; those of OMIM with their class in ``consequence``;
- ``alignment.zarr`` (or ``.maf.gz``), and with ``--train`` ``tracks/phastcons.*``, ``tracks/phylop.*``, ``windows.*``;
- ``models/NAME/``: networks of ``scr2mae dna train --paper``. ``--train`` trains the missing ones of the eleven schemes;
- ``tracks/NAME.*``: conservation along the genome, one row of the table each: phastCons-100v, phyloP-241m, phyloP-100v;
- ``scores/NAME.*``: tables with ``chrom``, ``pos``, ``ref``, ``alt`` and ``score``, one row each, such as CADD and NT.

Missing files have no row. High scores of a table are pathogenic, unless its name is given with ``--low``. Scores are
merged by chromosome, position, reference and alternative base. ``--dry-run`` generates a small folder and runs all steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common_setup import make_parser
from scr2mae._paper import scheme_names
from scr2mae.cli import main as scr2mae
from scr2mae.extra import dna

LABELS = {
    "mae": "GPN-MSA (MLM)",
    "mae_low": "– MR 5%",
    "mae_high": "– MR 30%",
    "mdlm": "MDLM",
    "dynamic": "Dynamic MR",
    "cl": "CL-MAE",
    "cl_k0": "CL-MAE (k=0)",
    "r2mae": "R²MAE",
    "r2mae_dynamic": "+ Dynamic MR",
    "r2mae_cl": "+ CL",
    "r2mae_cl_k0": "+ CL (k=0)",
}
# Words in the consequence of a variant that put it into a class of the table.
CLASSES = {
    "5'UTR": ("5_prime", "5'", "5utr"),
    "3'UTR": ("3_prime", "3'", "3utr"),
    "ncRNA": ("non_coding", "ncrna"),
}
COLUMNS = (
    *(("ClinVar", "all", "auroc"), ("ClinVar", "all", "auprc")),
    *(("OMIM", "all", "pauroc"), ("OMIM", "all", "auprc")),
    *(("OMIM", name, "auprc") for name in CLASSES),
)
PLACE = ["chrom", "pos", "ref", "alt"]


def find(folder: Path, stem: str) -> Path | None:
    """Return the file or folder of this name, whatever its suffix."""
    return next((path for path in sorted(folder.glob(f"{stem}.*"))), None)


def class_of(consequence: Any) -> str | None:
    """Return the class of a consequence, None for others."""
    text = str(consequence).lower().replace(" ", "_")
    return next((name for name, words in CLASSES.items() if any(word in text for word in words)), None)


def by_track(variants: pd.DataFrame, path: Path) -> np.ndarray:
    """Return the value of a track at each variant."""
    track = dna.open_track(path)
    places = zip(variants["chrom"], variants["pos"], strict=True)
    return np.array([track.values(chrom, pos - 1, pos)[0] for chrom, pos in places], dtype=float)


def by_network(
    variants: pd.DataFrame, network: Any, msa: dna.GenomeMSA, options: argparse.Namespace
) -> pd.Series:
    """Return the score of each variant by a network, with its sign turned."""
    common = {"window_size": options.window_size, "accelerator": options.accelerator}
    return -dna.score(network, msa, variants, **common)["score"]


def by_table(variants: pd.DataFrame, path: Path, *, sign: int = 1) -> np.ndarray:
    """Return the published score of each variant times ``sign``, NaN where the table has none."""
    table = dna.read_variants(path)
    if "score" not in table:
        raise ValueError(f"{path} has no column 'score'; it has {list(table)}.")
    keys = [frame.assign(chrom=frame["chrom"].str.removeprefix("chr"))[PLACE] for frame in (variants, table)]
    merged = keys[0].merge(keys[1].assign(score=table["score"]).drop_duplicates(PLACE), on=PLACE, how="left")
    return sign * merged["score"].to_numpy(dtype=float)


def evaluate(variants: dict[str, pd.DataFrame], score: Any, shared_negatives: bool) -> dict[str, float]:
    """Return the seven columns of the table, and how many variants have a score; high is pathogenic."""
    row: dict[str, float] = {}
    for name, frame in variants.items():
        values = np.asarray(score(frame), dtype=float)
        known = np.isfinite(values)
        groups = None
        if "consequence" in frame:
            groups = frame["consequence"].map(class_of)[known].to_numpy(object)
        found = dna.variant_metrics(
            frame["label"][known], values[known], groups=groups, shared_negatives=shared_negatives
        )
        row[f"{name} scored"] = int(known.sum())
        for place, group, metric in COLUMNS:
            if place == name and group in found.index:
                row[f"{name} {group} {metric}"] = float(found.loc[group, metric])
    return row


def train(folder: Path, names: list[str], options: argparse.Namespace) -> None:
    """Train the missing networks as the paper does."""
    given = {f"--{name}": find(folder / "tracks", name) for name in ("phastcons", "phylop")}
    given["--windows"] = find(folder, "windows")
    line = ["--paper", "--accelerator", options.accelerator, *options.more]
    for option, path in given.items():
        line += [] if path is None else [option, str(path)]
    for name in names:
        out = folder / "models" / name
        if (out / "config.json").is_file():
            continue
        command = ["dna", "train", str(find(folder, "alignment")), "-o", str(out), "--scheme", name, *line]
        run = folder / "runs" / name
        command += ["--checkpoint-dir", str(run)]
        command += ["--resume", str(run)] if (run / "last.ckpt").is_file() else []
        if code := scr2mae(command):
            raise SystemExit(code)


def make_folder(folder: Path) -> None:
    """Write an alignment with conserved blocks, variants of which those in them are pathogenic, and scores of them."""
    msa, conservation = dna.simulate_alignment(6000, 3, seed=1)
    for name in ("tracks", "scores"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    msa.to_zarr(folder / "alignment.zarr")
    values = conservation.values("chr1", 0, 6000)
    for name in ("phastcons", "phylop", "phyloP-100v"):
        text = "\n".join(f"{value:.4g}" for value in np.nan_to_num(values))
        (folder / "tracks" / f"{name}.wig").write_text(f"fixedStep chrom=chr1 start=1 step=1\n{text}\n")
    rng = np.random.default_rng(0)
    pos = np.sort(rng.choice(np.arange(200, 5800), size=400, replace=False))
    ref = np.array([msa.get("chr1", p - 1, p)[0, 0].decode().upper() for p in pos])
    keep = np.isin(ref, list("ACGT"))
    table = pd.DataFrame({"chrom": "chr1", "pos": pos[keep], "ref": ref[keep]})
    table["alt"] = [{"A": "G", "C": "T", "G": "A", "T": "C"}[base] for base in table["ref"]]
    table["label"] = (values[table["pos"] - 1] > np.median(values)).astype(int)
    consequences = ("5_prime_UTR", "3_prime_UTR", "non_coding_transcript_exon", "intron")
    table["consequence"] = [f"{consequences[i // 2 % 4]}_variant" for i in range(len(table))]
    table.iloc[::2].drop(columns="consequence").to_csv(folder / "clinvar.tsv", sep="\t", index=False)
    table.iloc[1::2].to_csv(folder / "omim.tsv", sep="\t", index=False)
    scores = table[PLACE].assign(score=table["label"] + rng.normal(size=len(table)))
    scores.assign(chrom="1").to_csv(folder / "scores" / "CADD.tsv", sep="\t", index=False)
    scores.assign(score=-scores["score"]).to_csv(folder / "scores" / "NT.tsv", sep="\t", index=False)


SMALL = [
    "--hidden-size",
    "32",
    "--num-hidden-layers",
    "1",
    "--num-attention-heads",
    "4",
    "--intermediate-size",
    "32",
    "--dropout",
    "0",
    "--max-steps",
    "3",
    "--batch-size",
    "16",
    "--warmup",
    "1",
    "--window-size",
    "32",
    "--step",
    "32",
    "--block-size",
    "500",
    "--random",
    "0.1",
    "--quiet",
]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; ``more`` has the options that go to ``scr2mae dna train``."""
    parser = make_parser(__doc__, data=False)
    parser.add_argument("--data", type=Path, help="folder of alignment, variants, tracks, scores and models")
    parser.add_argument(
        "--train",
        action="store_true",
        help="train the missing networks; further options are those of scr2mae dna train",
    )
    parser.add_argument("--schemes", nargs="+", choices=scheme_names("dna"), default=list(LABELS))
    parser.add_argument("--low", nargs="+", default=["NT"], help="tables whose low scores are pathogenic")
    parser.add_argument(
        "--shared-negatives", action="store_true", help="compare the positives of a class with all negatives"
    )
    parser.add_argument("--window-size", type=int, default=128)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="run all steps on a small generated folder")
    options, options.more = parser.parse_known_args(argv)
    if options.dry_run:
        options.data, options.train, options.more, options.window_size = options.out / "data", True, SMALL, 32
    elif options.data is None:
        parser.error("--data is needed, except with --dry-run")
    if options.more and not options.train:
        parser.error(f"unknown options {options.more}; those of scr2mae dna train need --train")
    return options


def methods(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[pd.DataFrame], Any]]]:
    """Yield the label of each row, and a function that scores variants; high is pathogenic."""
    for path in sorted((folder / "scores").glob("*.*")):
        name = path.name.split(".")[0]
        yield name, partial(by_table, path=path, sign=-1 if name in options.low else 1)
    for path in sorted((folder / "tracks").glob("*.*")):
        if path.stem not in ("phastcons", "phylop"):  # these two weight the loss
            yield path.name.split(".")[0], partial(by_track, path=path)
    for name, label in LABELS.items():
        model = folder / "models" / name
        if (model / "config.json").is_file():
            network = dna.GPNMSAForMaskedLM.from_pretrained(model)
            place = find(folder, "alignment")
            if ".maf" in place.name:
                msa = dna.GenomeMSA.from_maf(place, species=network.species_)
            else:
                msa = dna.GenomeMSA.from_zarr(place)
            yield label, partial(by_network, network=network, msa=msa, options=options)


def main(argv: list[str] | None = None) -> None:
    """Score the variants with all methods, print the table and write it."""
    options = parse(argv)
    folder = options.data
    if options.dry_run:
        make_folder(folder)
    if options.train:
        train(folder, options.schemes, options)
    paths = {"ClinVar": find(folder, "clinvar"), "OMIM": find(folder, "omim")}
    variants = {name: dna.read_variants(path) for name, path in paths.items() if path is not None}
    if not variants:
        raise SystemExit(f"{folder} has neither clinvar.* nor omim.*")
    rows: dict[str, dict[str, float]] = {}
    for label, score in methods(folder, options):
        rows[label] = evaluate(variants, score, options.shared_negatives)
        print(f"{label}: {rows[label]}", flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "table_3.csv")
    shown = [f"{place} {group} {metric}" for place, group, metric in COLUMNS]
    print(table.reindex(columns=[name for name in shown if name in table]).round(3).to_markdown())


if __name__ == "__main__":
    main()
