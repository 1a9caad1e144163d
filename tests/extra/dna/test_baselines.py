"""Predictions and scores without a network."""

import numpy as np
import pytest

from scr2mae.extra import dna


def test_alignment_scores_are_log_ratios_of_counts(variant_table, small_alignment):
    variants = variant_table(
        ["1", 101, "A", "T"], ["1", 101, "A", "G"], ["1", 102, "C", "G"], ["1", 102, "G", "C"]
    )
    scored = dna.alignment_scores(small_alignment, variants)
    np.testing.assert_allclose(scored["score"], [np.log(2 / 2), np.log(1 / 2), np.log(1 / 4), np.nan])
    half = dna.alignment_scores(small_alignment, variants, pseudocount=0.5)["score"]
    np.testing.assert_allclose(half[:3], np.log([1.5 / 1.5, 0.5 / 1.5, 0.5 / 3.5]))
    with pytest.raises(ValueError, match=r"pseudocount must be positive"):
        dna.alignment_scores(small_alignment, variants, pseudocount=0)


def test_baselines_predict_frequencies():
    tokens = np.array([[1, 1, 1, 0], [1, 2, 1, 1], [2, 0, 0, 0], [0, 4, 4, 4]], dtype=np.uint8)
    prior = dna.unigram_log_probs(tokens)
    np.testing.assert_allclose(np.exp(prior), np.array([3, 2, 1, 1]) / 7)
    found = np.exp(dna.alignment_log_probs(tokens, prior, pseudocount=2.0))
    np.testing.assert_allclose(found[2], np.exp(prior))
    np.testing.assert_allclose(found[1], (np.array([2, 1, 0, 0]) + 2 * np.exp(prior)) / 5)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    with pytest.raises(ValueError, match=r"pseudocount must be positive, got 0"):
        dna.alignment_log_probs(tokens, prior, pseudocount=0)
