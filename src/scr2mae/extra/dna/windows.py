"""Tables of windows of an alignment: cutting, selection by conservation, and splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scr2mae._utils.files import as_path
from scr2mae.extra.dna.alignment import row_slices
from scr2mae.extra.dna.alphabet import GAP_ID, encode
from scr2mae.extra.dna.chromosomes import find_chrom
from scr2mae.extra.dna.tables import read_table
from scr2mae.extra.files import file_type

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.tracks import Track

__all__ = ["WINDOW_COLUMNS", "WindowSplit", "make_windows", "read_windows", "select_windows", "split_windows"]

WINDOW_COLUMNS = ("chrom", "start", "end", "strand")


def _count_known(msa: GenomeMSA, chrom: str) -> np.ndarray:
    """Return the cumulative number of known reference bases along a chromosome, starting with 0."""
    first, last = msa.span(chrom)
    known = [
        encode(msa.get(chrom, rows.start, rows.stop)[:, 0]) != GAP_ID for rows in row_slices(first, last)
    ]
    return np.concatenate([[0], np.cumsum(np.concatenate(known))])


def make_windows(
    msa: GenomeMSA,
    *,
    size: int = 128,
    step: int = 64,
    both_strands: bool = True,
    max_unknown: float = 0.0,
    chroms: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Cut an alignment into windows.

    Parameters
    ----------
    msa
        The alignment.
    size, step
        Length of a window, and distance between the starts of neighbors; 128 and 64 in GPN-MSA.
    both_strands
        Whether to return each window a second time, read from the other strand.
    max_unknown
        Largest share of unknown reference bases in a window.
    chroms
        Chromosomes to cut; None for all.

    Returns
    -------
    Columns ``chrom``, ``start``, ``end`` (0-based, half-open) and ``strand``, one row per window.

    Raises
    ------
    KeyError
        If a chromosome is missing.
    ValueError
        If an argument is out of range, no window fits, or every window has too many unknown bases.
    """
    if size < 2 or step < 1:
        raise ValueError(f"Windows need size >= 2 and step >= 1, got size={size} and step={step}.")
    if not 0 <= max_unknown <= 1:
        raise ValueError(f"max_unknown must lie in [0, 1], got {max_unknown!r}.")
    names = (
        msa.chroms
        if chroms is None
        else [find_chrom(chrom, msa.chroms, place="the alignment") for chrom in chroms]
    )
    spans = {name: msa.span(name) for name in names}
    longest = max(last - first for first, last in spans.values())
    if longest < size:
        raise ValueError(
            f"Windows of {size} positions are longer than the longest chromosome, {longest}; choose a smaller size."
        )
    frames = []
    for name, (first, last) in spans.items():
        starts = np.arange(first, last - size + 1, step)
        before = _count_known(msa, name)
        n_known = before[starts - first + size] - before[starts - first]
        starts = starts[n_known >= (1 - max_unknown) * size]
        frames.append(pd.DataFrame({"chrom": name, "start": starts, "end": starts + size, "strand": "+"}))
    windows = pd.concat(frames, ignore_index=True)
    if windows.empty:
        raise ValueError(
            f"Every window has more than {max_unknown:.0%} unknown reference bases; increase max_unknown or choose other chromosomes."
        )
    if not both_strands:
        return windows
    return pd.concat([windows, windows.assign(strand="-")], ignore_index=True)


def read_windows(path: str | Path, msa: GenomeMSA) -> pd.DataFrame:
    """Read windows that were chosen elsewhere, such as the published ones of GPN-MSA.

    Parameters
    ----------
    path
        Tab- or comma-separated, gzipped or not, or Parquet, with the columns ``chrom``, ``start``, ``end`` (0-based,
        half-open) and, if given, ``strand``; a ``.bed`` file has no header.
    msa
        The alignment; its names of the chromosomes are used.

    Returns
    -------
    Columns as of :func:`make_windows`. If the file has no strands, each window is returned once per strand.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    KeyError
        If a column is missing, or a chromosome is not in the alignment.
    ValueError
        If the file is damaged, windows differ in length or extend beyond their chromosome, or a strand is neither + nor -.
    """
    place = as_path(path)
    if file_type(place) == ".bed":
        table = read_table(place, header=None, usecols=[0, 1, 2], names=list(WINDOW_COLUMNS[:3]))
    else:
        table = read_table(place, comment="#")
    if missing := [name for name in WINDOW_COLUMNS[:3] if name not in table]:
        raise KeyError(f"{place} lacks the columns {missing}; it has {list(table)}.")
    table = table[[name for name in WINDOW_COLUMNS if name in table]]
    names = {
        each: find_chrom(each, msa.chroms, place="the alignment")
        for each in table["chrom"].astype(str).unique()
    }
    windows = table.assign(chrom=table["chrom"].astype(str).map(names))
    lengths = np.unique(windows["end"] - windows["start"])
    if len(lengths) != 1:
        raise ValueError(f"{place} must have windows of one length, got {lengths[:5].tolist()}.")
    for chrom, rows in windows.groupby("chrom"):
        first, last = msa.span(str(chrom))
        if rows["start"].min() < first or rows["end"].max() > last:
            raise ValueError(
                f"Windows of {chrom} in {place} extend beyond its positions {first} to {last}; are they of this assembly?"
            )
    if "strand" not in windows:
        return pd.concat([windows.assign(strand="+"), windows.assign(strand="-")], ignore_index=True)
    if wrong := set(windows["strand"]) - {"+", "-"}:
        raise ValueError(f"A strand must be + or -, got {sorted(map(str, wrong))[:5]} in {place}.")
    return windows.reset_index(drop=True)


def select_windows(
    windows: pd.DataFrame,
    conservation: Track,
    *,
    top: float = 0.05,
    random: float = 0.001,
    quantile: float = 0.75,
    seed: int = 0,
) -> pd.DataFrame:
    """Select the most conserved windows and a few of the others, as in the training of GPN-MSA.

    Parameters
    ----------
    windows
        Windows from :func:`make_windows`. Both strands of a place are selected together.
    conservation
        Track such as phastCons; missing values count as 0.
    top
        Share of places selected for their conservation.
    random
        Share of the other places, selected at random.
    quantile
        Windows are ranked by this quantile of their values: the third quartile in the workflow of GPN-MSA.
    seed
        Seed of the random choice.

    Returns
    -------
    Rows of ``windows`` in the same order, with a new index.

    Raises
    ------
    ValueError
        If a share lies outside [0, 1], or nothing is left.
    """
    for name, share in (("top", top), ("random", random), ("quantile", quantile)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share!r}.")
    place_of_window, places = pd.factorize(pd.MultiIndex.from_frame(windows[list(WINDOW_COLUMNS[:3])]))
    values = np.array(
        [
            np.quantile(np.nan_to_num(conservation.values(chrom, start, end)), quantile)
            for chrom, start, end in places
        ]
    )
    rng = np.random.default_rng(seed)
    order = np.lexsort([rng.random(len(values)), -values])  # ties in random order
    n_top = round(top * len(values))
    kept = np.zeros(len(values), dtype=bool)
    kept[order[:n_top]] = True
    kept[rng.choice(order[n_top:], size=round(random * (len(values) - n_top)), replace=False)] = True
    if not kept.any():
        raise ValueError(
            f"top={top} and random={random} leave none of {len(values)} windows; increase one of them."
        )
    return windows[kept[place_of_window]].reset_index(drop=True)


@dataclass(frozen=True)
class WindowSplit:
    """Windows for training, validation and testing that share no position.

    Attributes
    ----------
    train, validation, test
        Rows of the table that was split.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split_windows(
    windows: pd.DataFrame,
    *,
    validation_size: float = 0.1,
    test_size: float = 0.0,
    block_size: int = 5000,
    seed: int = 0,
) -> WindowSplit:
    """Split windows by blocks of positions, so that held-out windows do not overlap training windows.

    Parameters
    ----------
    windows
        Windows from :func:`make_windows` or :func:`select_windows`.
    validation_size, test_size
        Shares of blocks.
    block_size
        Positions per block; blocks start at multiples of it. A window that spans blocks of two parts is dropped.
    seed
        Seed of the choice of blocks.

    Returns
    -------
    The windows of each part.

    Raises
    ------
    ValueError
        If shares are out of range, windows are longer than blocks, or a part gets no windows.
    """
    if not validation_size >= 0 or not test_size >= 0 or validation_size + test_size >= 1:
        raise ValueError(
            f"validation_size and test_size must be >= 0 and leave windows for training, got {validation_size!r} and {test_size!r}."
        )
    longest = int((windows["end"] - windows["start"]).max())
    if longest > block_size:
        raise ValueError(
            f"Windows of {longest} positions are longer than block_size={block_size}; choose larger blocks."
        )
    chrom = np.unique(windows["chrom"].to_numpy(str), return_inverse=True)[1]
    ends = np.stack([windows["start"].to_numpy(), windows["end"].to_numpy() - 1], axis=1) // block_size
    keys = np.stack([np.broadcast_to(chrom[:, None], ends.shape), ends], axis=-1).reshape(-1, 2)
    blocks, block_of_end = np.unique(keys, axis=0, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(blocks))
    n_validation, n_test = (
        0 if size == 0 else max(1, round(size * len(blocks))) for size in (validation_size, test_size)
    )
    part_of_block = np.zeros(len(blocks), dtype=int)
    part_of_block[order[:n_validation]] = 1
    part_of_block[order[n_validation : n_validation + n_test]] = 2
    first, last = part_of_block[block_of_end.reshape(-1, 2)].T
    parts = [windows[(first == k) & (last == k)].reset_index(drop=True) for k in range(3)]
    for name, part, wanted in zip(
        ("train", "validation", "test"), parts, (1.0, validation_size, test_size), strict=True
    ):
        if wanted and part.empty:
            raise ValueError(
                f"No windows are left for {name}: {len(blocks)} blocks of {block_size} positions are too few; choose smaller blocks."
            )
    return WindowSplit(*parts)
