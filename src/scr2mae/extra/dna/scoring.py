"""Scores of variants from a network, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scr2mae._utils.progress import progress as progress_bar
from scr2mae.extra.dna.alphabet import BASE_TOKENS, BASES, MASK_ID, encode, reverse_complement
from scr2mae.extra.dna.compatibility import check_species
from scr2mae.extra.dna.inference import evaluating
from scr2mae.extra.dna.variants import find_scorable

if TYPE_CHECKING:
    import pandas as pd

    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["score"]

_COMPLEMENT = [BASES.index(base) for base in "TGCA"]  # indices of A, C, G and T on the other strand


def _base_indices(column: pd.Series) -> np.ndarray:
    return column.str.upper().map(BASES.index).to_numpy(dtype=int)


def _center_logits(
    network: GPNMSAForMaskedLM,
    msa: GenomeMSA,
    sites: list[tuple[str, int]],
    window_size: int,
    device: torch.device,
) -> np.ndarray:
    """Return the logits of A, C, G and T at masked sites, averaged over both strands; shape (n_sites, 4)."""
    half = window_size // 2
    forward = np.stack([msa.get(chrom, pos - half, pos - half + window_size) for chrom, pos in sites])
    total = np.zeros((len(sites), len(BASES)))
    for symbols, center, order in (
        (forward, half, slice(None)),
        (reverse_complement(forward, axis=1), window_size - 1 - half, _COMPLEMENT),
    ):
        tokens = torch.from_numpy(encode(symbols)).to(device)
        human = tokens[..., 0].long()
        human[:, center] = MASK_ID
        hidden = network.encode(human, tokens[..., 1:])[:, center]
        total += network.predict(hidden)[:, BASE_TOKENS].double().cpu().numpy()[:, order]
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
    """Score substitutions without labels: the logit of the alternative base minus that of the reference base.

    The center of a window is masked; the network sees the other species there. Scores are averaged over both strands. The
    lower a score, the less the alternative is expected.

    Parameters
    ----------
    network
        The network.
    msa
        The alignment, with the species that the network was trained with, in the same order.
    variants
        Columns ``chrom``, ``pos`` (1-based), ``ref`` and ``alt``; see :func:`read_variants`.
    window_size
        Positions per window.
    batch_size
        Sites per batch.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
    progress
        Whether to show a progress bar, if standard error is a terminal.

    Returns
    -------
    The table with columns ``score``, NaN for variants that cannot be scored, and ``status``, the reason (see
    :func:`check_variants`). The number without a score is logged as a warning. Existing columns of these names are
    replaced.

    Raises
    ------
    ValueError
        If the table is empty or lacks columns, the species differ in number, name or order, or the window is longer than
        the network allows.
    KeyError
        If no variant lies on a chromosome of the alignment.
    """
    check_species(network, msa)
    longest = network.config.max_position_embeddings
    if not 2 <= window_size <= longest:
        raise ValueError(
            f"window_size must lie between 2 and the network's max_position_embeddings={longest}, got {window_size}."
        )
    frame, scorable = find_scorable(msa, variants, window_size=window_size)
    chosen = frame[scorable]
    # Alternatives at one site share the forward passes.
    site_index: dict[tuple[str, int], int] = {}
    places = zip(chosen["chrom"], (chosen["pos"] - 1).tolist(), strict=True)
    site_of_variant = np.array([site_index.setdefault(place, len(site_index)) for place in places], dtype=int)
    sites = list(site_index)
    logits = np.zeros((len(sites), len(BASES)))
    with (
        evaluating(network, accelerator) as device,
        progress_bar(total=len(sites), desc="Scoring", unit="sites", show=progress) as bar,
    ):
        for first in range(0, len(sites), batch_size):
            part = sites[first : first + batch_size]
            logits[first : first + len(part)] = _center_logits(network, msa, part, window_size, device)
            bar.update(len(part))
    alt, ref = (logits[site_of_variant, _base_indices(chosen[name])] for name in ("alt", "ref"))
    scores = np.full(len(frame), np.nan)
    scores[scorable] = alt - ref
    return frame.assign(score=scores)
