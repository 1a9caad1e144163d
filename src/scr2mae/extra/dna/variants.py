"""Tables of variants: readers, and which variants an alignment has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae.extra.dna.alphabet import BASES
from scr2mae.extra.dna.text_files import naming_damage, open_text

if TYPE_CHECKING:
    from scr2mae.extra.dna.alignment import GenomeMSA

__all__ = ["STATUSES", "check_variants", "read_variants"]

STATUSES = ("scored", "not_a_substitution", "contig_missing", "off_end", "reference_mismatch")
"""What becomes of a variant; only the first has a score."""

_NEEDED = ("chrom", "pos", "ref", "alt")
_POSITIVE = {"1", "1.0", "true", "pathogenic", "likely_pathogenic", "positive"}
_NEGATIVE = {"0", "0.0", "false", "benign", "likely_benign", "common", "neutral", "negative"}


def _read_vcf(path: Path) -> pd.DataFrame:
    """Read the first five columns; a line with several alternatives becomes several rows."""
    rows: list[tuple[str, int, str, str, str]] = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("#") or not line.strip():
                continue
            parts = line.rstrip("\n").split("\t")
            if len(parts) < 5 or not parts[1].isdigit():
                raise ValueError(
                    f"{path}, line {number}: expected CHROM, POS, ID, REF and ALT with tabs between, got {line.strip()[:60]!r}."
                )
            chrom, pos, name, ref, alts = parts[:5]
            rows += [(chrom, int(pos), name, ref, alt) for alt in alts.split(",")]
    return pd.DataFrame(rows, columns=["chrom", "pos", "id", "ref", "alt"])


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            "Reading Parquet needs pyarrow; pip install pyarrow installs it. VCF, TSV and CSV need nothing more."
        ) from error
    except (ValueError, OSError) as error:  # pyarrow's own errors derive from these
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from error


def _labels(column: pd.Series) -> pd.Series:
    """Labels as booleans, from 0 and 1 or from words."""
    words = column.astype(str).str.strip().str.lower().str.replace(" ", "_")
    if unknown := sorted(set(words) - _POSITIVE - _NEGATIVE):
        raise ValueError(
            f"Labels must be 0 and 1, or such words as Pathogenic, Benign and Common; got {unknown[:6]}. Leave such variants out, or "
            "rename the column to score them without labels."
        )
    return words.isin(_POSITIVE)


def read_variants(path: str | Path) -> pd.DataFrame:
    """Read variants from a VCF file or a table.

    Parameters
    ----------
    path
        ``.vcf``, or a table with a header: ``.tsv``, ``.txt``, ``.csv`` (each also ``.gz``) or ``.parquet`` (needs pyarrow). Tables
        have columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``, as the ClinVar, gnomAD and OMIM tables of GPN-MSA do; a column
        ``label`` is turned into booleans, True for pathogenic; others, such as ``consequence``, are kept.

    Returns
    -------
    One row a variant; ``chrom`` as text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file is Parquet and pyarrow is not installed.
    ValueError
        If the file is damaged or of another kind, lacks columns, holds positions or labels that are none, or no variants.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No variants at {path}.")
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if kind == ".vcf":
        frame = _read_vcf(path)
    elif kind in (".tsv", ".txt", ".csv"):
        try:
            with naming_damage(path):
                frame = pd.read_csv(path, sep="," if kind == ".csv" else "\t", dtype={"chrom": str})
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no table of variants: {error}") from error
    elif kind == ".parquet":
        frame = _read_parquet(path)
    else:
        raise ValueError(
            f"Variants are read from .vcf, .tsv, .txt, .csv (or .gz of them) and .parquet, got {path.name}."
        )
    frame = _checked(frame, str(path))
    if "label" in frame:
        frame["label"] = _labels(frame["label"])
    return frame


def _checked(variants: pd.DataFrame, place: str) -> pd.DataFrame:
    """Return a copy with clean columns, or say what is wrong."""
    if not isinstance(variants, pd.DataFrame):
        raise TypeError(
            f"Variants are a table (pandas.DataFrame), got {type(variants).__name__}; read a file with read_variants."
        )
    if missing := [name for name in _NEEDED if name not in variants]:
        raise ValueError(
            f"{place} lacks the columns {missing}; it has {list(map(str, variants.columns))[:12]}."
        )
    if variants.empty:
        raise ValueError(f"{place} holds no variants.")
    frame = variants.copy()
    pos = pd.to_numeric(frame["pos"], errors="coerce")
    if pos.isna().any() or (pos < 1).any() or (pos % 1 != 0).any():
        wrong = frame["pos"][pos.isna() | (pos < 1) | (pos % 1 != 0)].iloc[0]
        raise ValueError(
            f"{place} has a position that is no whole number of at least 1: {wrong!r} (positions are 1-based)."
        )
    frame["pos"] = pos.astype(np.int64)
    for name in ("chrom", "ref", "alt"):
        frame[name] = frame[name].astype(str)
    return frame


def check_variants(msa: GenomeMSA, variants: pd.DataFrame, *, window_size: int = 1) -> pd.DataFrame:
    """Say of each variant whether it can be scored on an alignment.

    Parameters
    ----------
    msa
        The alignment.
    variants
        Columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``; others are kept, but for ``status``.
    window_size
        Positions around the variant that are needed: half before, the others from it on.

    Returns
    -------
    The table with a column ``status``: ``"scored"``, ``"not_a_substitution"`` of one known base by another, ``"contig_missing"``,
    ``"off_end"`` if the window leaves the alignment, or ``"reference_mismatch"`` if the alignment has another base there.

    Raises
    ------
    ValueError
        If columns are missing or there are no variants.
    KeyError
        If no variant lies on a chromosome of the alignment.
    """
    frame = _checked(variants, "The table of variants")
    spans: dict[str, Any] = {}
    for chrom in frame["chrom"].unique():
        try:
            spans[chrom] = msa.span(chrom)
        except KeyError:
            spans[chrom] = None
    if not any(spans.values()):
        raise KeyError(
            f"None of the variants' chromosomes {list(spans)[:8]} is in the alignment, which has {msa.chroms[:8]}."
        )
    columns = (frame[name].tolist() for name in _NEEDED)
    frame["status"] = [
        _status(msa, spans[chrom], chrom, pos, ref.upper(), alt.upper(), window_size)
        for chrom, pos, ref, alt in zip(*columns, strict=True)
    ]
    return frame


def _status(msa: GenomeMSA, span: Any, chrom: str, pos: int, ref: str, alt: str, window_size: int) -> str:
    if len(ref) != 1 or len(alt) != 1 or ref not in BASES or alt not in BASES or ref == alt:
        return "not_a_substitution"
    if span is None:
        return "contig_missing"
    start = pos - 1 - window_size // 2
    if start < span[0] or start + window_size > span[1]:
        return "off_end"
    found = msa.get(chrom, pos - 1, pos)[0, 0].decode().upper()
    return "scored" if found == ref else "reference_mismatch"
