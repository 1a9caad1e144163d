"""Scores of variants without labels: what a network, or the alignment alone, makes of an alternative base."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scr2mae._utils.progress import progress as progress_bar
from scr2mae.extra.dna.alphabet import BASES, MASK_ID, VOCABULARY, encode, reverse_complement
from scr2mae.extra.dna.compatibility import check_species
from scr2mae.extra.dna.inference import evaluating
from scr2mae.extra.dna.variants import check_variants

if TYPE_CHECKING:
    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["alignment_scores", "score"]

logger = logging.getLogger(__name__)

_BASE_TOKENS = [VOCABULARY.index(base) for base in BASES]
_COMPLEMENT = [BASES.index(base) for base in "TGCA"]  # where A, C, G and T stand on the other strand


def _report(frame: pd.DataFrame) -> None:
    counts = frame["status"].value_counts()
    left_out = {str(status): int(n) for status, n in counts.items() if status != "scored"}
    if left_out:
        logger.warning("%d of %d variants have no score: %s.", sum(left_out.values()), len(frame), left_out)


def _base_index(column: pd.Series) -> np.ndarray:
    return column.str.upper().map(BASES.index).to_numpy(dtype=int)


def _center_logits(
    network: GPNMSAForMaskedLM, msa: GenomeMSA, sites: list[tuple[str, int]], window_size: int
) -> np.ndarray:
    """Logits of A, C, G and T at some sites, hidden, averaged over both strands; shape (n_sites, 4)."""
    half, device = window_size // 2, network.cos.device
    forward = np.stack([msa.get(chrom, pos - half, pos - half + window_size) for chrom, pos in sites])
    total = np.zeros((len(sites), len(BASES)))
    for symbols, center, order in (
        (forward, half, slice(None)),
        (reverse_complement(forward, axis=1), window_size - 1 - half, _COMPLEMENT),
    ):
        tokens = torch.from_numpy(encode(symbols)).to(device)
        human = tokens[..., 0].long()
        human[:, center] = MASK_ID
        states = network.encode(human, tokens[..., 1:])[:, center]
        total += network.predict(states)[:, _BASE_TOKENS].double().cpu().numpy()[:, order]
    return total / 2


def score(
    network: GPNMSAForMaskedLM,
    msa: GenomeMSA,
    variants: pd.DataFrame,
    *,
    window_size: int = 128,
    batch_size: int = 256,
    accelerator: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Score substitutions without labels: logit of the alternative base minus that of the reference base.

    The center of a window is hidden from the network, which sees the other species there; the mean over both strands counts.
    The lower a score, the less the alternative is expected.

    Parameters
    ----------
    network
        The network.
    msa
        The alignment, with the species that the network was trained with, in their order.
    variants
        Columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``; see :func:`read_variants`.
    window_size
        Positions that the network sees.
    batch_size
        Sites at a time.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
    progress
        Whether to show a progress bar; it stays quiet where standard error is not a terminal.

    Returns
    -------
    The table with ``score``, NaN where there is none, and ``status``, which says why (see :func:`check_variants`). How many have none
    is logged as a warning. Columns of these names that were there are replaced.

    Raises
    ------
    ValueError
        If the table is empty or lacks columns, species differ in number, name or order, or the window is longer than the
        network takes.
    KeyError
        If no variant lies on a chromosome of the alignment.
    """
    check_species(network, msa)
    if not 2 <= window_size <= network.config.max_position_embeddings:
        raise ValueError(
            f"window_size must lie between 2 and the network's max_position_embeddings={network.config.max_position_embeddings}, "
            f"got {window_size}."
        )
    frame = check_variants(msa, variants, window_size=window_size)
    _report(frame)
    good = (frame["status"] == "scored").to_numpy()
    chosen = frame[good]
    # Alternatives at one site share the network's passes.
    site_index: dict[tuple[str, int], int] = {}
    places = zip(chosen["chrom"], (chosen["pos"] - 1).tolist(), strict=True)
    site_of_variant = np.array([site_index.setdefault(place, len(site_index)) for place in places], dtype=int)
    sites = list(site_index)
    logits = np.zeros((len(sites), len(BASES)))
    with (
        evaluating(network, accelerator),
        progress_bar(total=len(sites), desc="Scoring", unit="sites", show=progress) as bar,
    ):
        for first in range(0, len(sites), batch_size):
            part = sites[first : first + batch_size]
            logits[first : first + len(part)] = _center_logits(network, msa, part, window_size)
            bar.update(len(part))
    by_variant = logits[site_of_variant]
    rows = np.arange(len(chosen))
    scores = np.full(len(frame), np.nan)
    scores[good] = by_variant[rows, _base_index(chosen["alt"])] - by_variant[rows, _base_index(chosen["ref"])]
    return frame.assign(score=scores)


def alignment_scores(msa: GenomeMSA, variants: pd.DataFrame, *, pseudocount: float = 1.0) -> pd.DataFrame:
    """Score substitutions by counts alone: log of the species with the alternative base over those with the reference base.

    Parameters
    ----------
    msa
        The alignment; its reference column is not counted.
    variants
        As for :func:`score`.
    pseudocount
        Added to both counts, > 0.

    Returns
    -------
    As from :func:`score`.

    Raises
    ------
    ValueError
        If the table is empty or lacks columns, or the pseudocount is not positive.
    KeyError
        If no variant lies on a chromosome of the alignment.

    Notes
    -----
    The baseline of Benegas et al. (2025), where the pseudocount is 1.
    """
    if not pseudocount > 0:
        raise ValueError(f"pseudocount must be positive, got {pseudocount!r}.")
    frame = check_variants(msa, variants)
    _report(frame)
    scores = np.full(len(frame), np.nan)
    for i, (chrom, pos, ref, alt, status) in enumerate(
        zip(*(frame[name].tolist() for name in ("chrom", "pos", "ref", "alt", "status")), strict=True)
    ):
        if status == "scored":
            tokens = msa.tokens(chrom, pos - 1, pos)[0, 1:]
            n_alt, n_ref = ((tokens == VOCABULARY.index(base.upper())).sum() for base in (alt, ref))
            scores[i] = np.log((n_alt + pseudocount) / (n_ref + pseudocount))
    return frame.assign(score=scores)
