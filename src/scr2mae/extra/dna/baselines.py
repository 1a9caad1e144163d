"""Predictions and scores without a network: base frequencies, and counts of the other species' bases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scr2mae.extra.dna.alphabet import BASE_TOKENS, VOCABULARY
from scr2mae.extra.dna.variants import find_scorable

if TYPE_CHECKING:
    import pandas as pd

    from scr2mae.extra.dna.alignment import GenomeMSA

__all__ = ["alignment_log_probs", "alignment_scores", "unigram_log_probs"]


def _check_pseudocount(pseudocount: float) -> None:
    if not pseudocount > 0:
        raise ValueError(f"pseudocount must be positive, got {pseudocount!r}.")


def unigram_log_probs(tokens: np.ndarray) -> np.ndarray:
    """Return the log-frequencies of A, C, G and T in the reference, shape (4,).

    Parameters
    ----------
    tokens
        Tokens of an alignment, shape (..., 1 + n_species), the reference first.
    """
    counts = np.bincount(tokens[..., 0].ravel(), minlength=len(VOCABULARY))[BASE_TOKENS]
    return np.log((counts + 1) / (counts + 1).sum())


def alignment_log_probs(tokens: np.ndarray, prior: np.ndarray, *, pseudocount: float = 1.0) -> np.ndarray:
    """Predict the reference base of each position from the bases of the other species there.

    Parameters
    ----------
    tokens
        Tokens of an alignment, shape (..., 1 + n_species); those of the reference are ignored.
    prior
        Log-probabilities without any species, shape (4,), such as :func:`unigram_log_probs` returns.
    pseudocount
        Weight of the prior, in species, > 0.

    Returns
    -------
    Log-probabilities of A, C, G and T, shape (..., 4).

    Raises
    ------
    ValueError
        If the pseudocount is not positive.
    """
    _check_pseudocount(pseudocount)
    bases = np.arange(len(VOCABULARY))[BASE_TOKENS]
    counts = (tokens[..., 1:, None] == bases).sum(axis=-2) + pseudocount * np.exp(prior)
    return np.log(counts / counts.sum(axis=-1, keepdims=True))


def alignment_scores(msa: GenomeMSA, variants: pd.DataFrame, *, pseudocount: float = 1.0) -> pd.DataFrame:
    """Score substitutions by the log ratio of species with the alternative base to species with the reference base.

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
    _check_pseudocount(pseudocount)
    frame, scorable = find_scorable(msa, variants)
    chosen = frame[scorable]
    scores = np.full(len(frame), np.nan)
    scores[scorable] = [
        _log_ratio(msa.tokens(chrom, pos - 1, pos)[0, 1:], ref.upper(), alt.upper(), pseudocount)
        for chrom, pos, ref, alt in zip(
            *(chosen[name].tolist() for name in ("chrom", "pos", "ref", "alt")), strict=True
        )
    ]
    return frame.assign(score=scores)


def _log_ratio(tokens: np.ndarray, ref: str, alt: str, pseudocount: float) -> float:
    n_alt, n_ref = ((tokens == VOCABULARY.index(base)).sum() for base in (alt, ref))
    return np.log((n_alt + pseudocount) / (n_ref + pseudocount))
