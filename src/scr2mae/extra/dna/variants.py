"""Tables of variants: readers, and the check against an alignment."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scr2mae._utils.files import as_path
from scr2mae.extra.dna.alphabet import BASES
from scr2mae.extra.dna.chromosomes import match_chrom
from scr2mae.extra.dna.tables import read_table
from scr2mae.extra.files import file_type, open_text

if TYPE_CHECKING:
    from scr2mae.extra.dna.alignment import GenomeMSA

__all__ = ["STATUSES", "check_variants", "find_scorable", "read_variants"]

logger = logging.getLogger(__name__)

STATUSES = ("scored", "not_a_substitution", "contig_missing", "off_end", "reference_mismatch")
"""Status of a variant; only the first has a score."""

_COLUMNS = ("chrom", "pos", "ref", "alt")
_POSITIVE = {"1", "1.0", "true", "pathogenic", "likely_pathogenic", "positive"}
_NEGATIVE = {"0", "0.0", "false", "benign", "likely_benign", "common", "neutral", "negative"}


def _read_vcf(path: Path) -> pd.DataFrame:
    """Read the first five columns; a line with several alternatives becomes several rows."""
    rows: list[tuple[str, int, str, str, str]] = []
    with open_text(path, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("#") or not line.strip():
                continue
            parts = line.rstrip("\n").split("\t")
            if len(parts) < 5 or not parts[1].isdigit():
                raise ValueError(
                    f"{path}, line {number}: expected CHROM, POS, ID, REF and ALT separated by tabs, "
                    f"got {line.strip()[:60]!r}."
                )
            chrom, pos, name, ref, alts = parts[:5]
            rows += [(chrom, int(pos), name, ref, alt) for alt in alts.split(",")]
    return pd.DataFrame(rows, columns=["chrom", "pos", "id", "ref", "alt"])


def _parse_labels(column: pd.Series) -> pd.Series:
    """Convert 0 and 1, or words, to booleans."""
    words = column.astype(str).str.strip().str.lower().str.replace(" ", "_")
    if unknown := sorted(set(words) - _POSITIVE - _NEGATIVE):
        raise ValueError(
            f"Labels must be 0 and 1, or words such as Pathogenic, Benign and Common; got {unknown[:6]}. "
            "Remove these variants, or rename the column to score them without labels."
        )
    return words.isin(_POSITIVE)


def _check_table(variants: pd.DataFrame, place: str) -> pd.DataFrame:
    """Return a copy with columns of the right types; raise if it is not a table of variants."""
    if not isinstance(variants, pd.DataFrame):
        raise TypeError(
            f"Variants must be a pandas.DataFrame, got {type(variants).__name__}; read a file with read_variants."
        )
    if missing := [name for name in _COLUMNS if name not in variants]:
        raise ValueError(
            f"{place} lacks the columns {missing}; it has {list(map(str, variants.columns))[:12]}."
        )
    if variants.empty:
        raise ValueError(f"{place} contains no variants.")
    frame = variants.copy()
    pos = pd.to_numeric(frame["pos"], errors="coerce")
    if (wrong := pos.isna() | (pos < 1) | (pos % 1 != 0)).any():
        raise ValueError(
            f"{place} has a position that is not an integer >= 1: {frame['pos'][wrong].iloc[0]!r} (positions are 1-based)."
        )
    frame["pos"] = pos.astype(np.int64)
    for name in ("chrom", "ref", "alt"):
        frame[name] = frame[name].astype(str)
    return frame


def read_variants(path: str | Path) -> pd.DataFrame:
    """Read variants from a VCF file or a table.

    Parameters
    ----------
    path
        ``.vcf``, or a table with a header: ``.tsv``, ``.txt``, ``.csv`` (each also ``.gz``) or ``.parquet`` (needs pyarrow).
        Tables have columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``, as the ClinVar, gnomAD and OMIM tables of
        GPN-MSA do. A column ``label`` is converted to booleans, True for pathogenic; others, such as ``consequence``, are
        kept.

    Returns
    -------
    One row per variant; ``chrom`` as text.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, of another type or empty, lacks columns, or contains invalid positions or labels.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No variants at {path}.")
    suffix = file_type(path)
    if suffix == ".vcf":
        frame = _read_vcf(path)
    elif suffix in (".tsv", ".txt", ".csv", ".parquet"):
        frame = read_table(path)
    else:
        raise ValueError(
            f"Variants are read from .vcf, .tsv, .txt, .csv (or .gz of them) and .parquet, got {path.name}."
        )
    frame = _check_table(frame, str(path))
    if "label" in frame:
        frame["label"] = _parse_labels(frame["label"])
    return frame


def check_variants(msa: GenomeMSA, variants: pd.DataFrame, *, window_size: int = 1) -> pd.DataFrame:
    """Check which variants can be scored on an alignment.

    Parameters
    ----------
    msa
        The alignment.
    variants
        Columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``; others are kept, except ``status``.
    window_size
        Number of positions needed around a variant: half of them before it, the others from it on.

    Returns
    -------
    The table with a column ``status``: ``"scored"``, ``"not_a_substitution"`` of one known base by another,
    ``"contig_missing"``, ``"off_end"`` if the window extends beyond the alignment, or ``"reference_mismatch"`` if the
    alignment has another base there.

    Raises
    ------
    ValueError
        If columns are missing or there are no variants.
    KeyError
        If no variant lies on a chromosome of the alignment.
    """
    frame = _check_table(variants, "The table of variants")
    names = {chrom: match_chrom(chrom, msa.chroms) for chrom in frame["chrom"].unique()}
    if not any(names.values()):
        raise KeyError(
            f"None of the variants' chromosomes {list(names)[:8]} is in the alignment, which has {msa.chroms[:8]}."
        )
    frame["status"] = [
        _status(msa, names[chrom], pos, ref.upper(), alt.upper(), window_size)
        for chrom, pos, ref, alt in zip(*(frame[name].tolist() for name in _COLUMNS), strict=True)
    ]
    return frame


def _status(msa: GenomeMSA, chrom: str | None, pos: int, ref: str, alt: str, window_size: int) -> str:
    """Return whether a variant can be scored, or why not."""
    if len(ref) != 1 or len(alt) != 1 or ref not in BASES or alt not in BASES or ref == alt:
        return "not_a_substitution"
    if chrom is None:
        return "contig_missing"
    first, last = msa.span(chrom)
    start = pos - 1 - window_size // 2
    if start < first or start + window_size > last:
        return "off_end"
    found = msa.get(chrom, pos - 1, pos)[0, 0].decode().upper()
    return "scored" if found == ref else "reference_mismatch"


def find_scorable(
    msa: GenomeMSA, variants: pd.DataFrame, *, window_size: int = 1
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of :func:`check_variants` and a boolean array of what can be scored; log how many cannot."""
    frame = check_variants(msa, variants, window_size=window_size)
    scorable = (frame["status"] == "scored").to_numpy()
    if not scorable.all():
        counts = {str(status): int(n) for status, n in frame["status"][~scorable].value_counts().items()}
        logger.warning("%d of %d variants have no score: %s.", int((~scorable).sum()), len(frame), counts)
    return frame, scorable
