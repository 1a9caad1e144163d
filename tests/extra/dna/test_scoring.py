"""Scores of variants from a network."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from scr2mae.extra import dna


def by_hand(model, msa, pos, ref, alt, size):
    """Score of one variant, from the definition."""
    start = pos - 1 - size // 2
    scores = []
    for strand, center in (("+", size // 2), ("-", size - 1 - size // 2)):
        tokens = torch.from_numpy(msa.tokens("chr1", start, start + size, strand).astype(np.int64))[None]
        human = tokens[..., 0].clone()
        human[0, center] = dna.VOCABULARY.index("?")
        complement = dict(zip("ACGT", "TGCA", strict=True)) if strand == "-" else {b: b for b in "ACGT"}
        logits = model(human, tokens[..., 1:]).logits[0, center]
        scores.append(
            float(
                logits[dna.VOCABULARY.index(complement[alt])] - logits[dna.VOCABULARY.index(complement[ref])]
            )
        )
    return np.mean(scores)


@pytest.fixture(scope="module")
def substitutions(variant_table, msa):
    """All three alternatives at some sites of the simulated alignment."""
    rows = []
    for pos in (40, 41, 900, 2500):
        ref = msa.get("chr1", pos - 1, pos)[0, 0].decode()
        rows += [["chr1", pos, ref, alt] for alt in "ACGT" if alt != ref]
    return variant_table(*rows)


@pytest.mark.parametrize("size", [8, 9])
def test_scores_are_the_logit_differences_of_the_masked_center_on_both_strands(
    tiny, msa, substitutions, size
):
    model = tiny(initializer_range=0.3).eval()
    scored = dna.score(
        model, msa, substitutions, window_size=size, batch_size=3, accelerator="cpu", progress=False
    )
    with torch.no_grad():
        wanted = [by_hand(model, msa, *row[1:4], size) for row in substitutions.itertuples(index=False)]
    np.testing.assert_allclose(scored["score"], wanted, atol=1e-5)
    assert set(scored["status"]) == {"scored"}
    assert np.std(wanted) > 0.01


def test_scores_depend_neither_on_the_batch_nor_on_the_strand_that_is_called_forward(
    tiny, msa, substitutions
):
    model = tiny(initializer_range=0.3)
    options = {"window_size": 17, "accelerator": "cpu", "progress": False}
    scores = [dna.score(model, msa, substitutions, batch_size=n, **options)["score"] for n in (1, 100)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    turned = dna.GenomeMSA.from_numpy(msa.get("chr1", 0, 4000, "-"), chrom="chr1")
    there = substitutions.assign(
        pos=4001 - substitutions["pos"],
        **{c: substitutions[c].map(dict(zip("ACGT", "TGCA", strict=True))) for c in ("ref", "alt")},
    )
    np.testing.assert_allclose(dna.score(model, turned, there, **options)["score"], scores[0], atol=1e-5)


def test_variants_that_cannot_be_scored_are_reported_and_have_no_score(
    variant_table, tiny, msa, substitutions, caplog
):
    ref = substitutions["ref"].iloc[0]
    other = next(base for base in "ACGT" if base != ref)
    bad = variant_table(["chr1", 40, other, ref], ["chr1", 2, "A", "C"], ["chrX", 40, "A", "C"])
    variants = pd.concat([substitutions.iloc[:2], bad], ignore_index=True).assign(name=list("abcde"))
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        scored = dna.score(tiny(), msa, variants, window_size=16, accelerator="cpu", progress=False)
    assert scored["status"].tolist() == [
        "scored",
        "scored",
        "reference_mismatch",
        "off_end",
        "contig_missing",
    ]
    assert scored["score"].isna().tolist() == [False, False, True, True, True]
    assert scored["name"].tolist() == list("abcde")
    assert "3 of 5 variants have no score" in caplog.text
    assert "'reference_mismatch': 1" in caplog.text


def test_a_table_without_any_scorable_variant_has_only_missing_scores(variant_table, tiny, small_alignment):
    variants = variant_table(["1", 102, "A", "G"])
    scored = dna.score(tiny(), small_alignment, variants, window_size=2, accelerator="cpu", progress=False)
    assert scored["status"].tolist() == ["reference_mismatch"]
    assert scored["score"].isna().all()


def test_scoring_leaves_the_network_as_it_was(tiny, msa, substitutions, capsys):
    model = tiny().train()
    dna.score(model, msa, substitutions, window_size=8, accelerator="cpu")
    assert model.training
    assert capsys.readouterr().err == ""  # no terminal, no progress


def test_invalid_scoring_is_refused(tiny, msa, substitutions):
    with pytest.raises(ValueError, match=r"takes 2 species besides the reference, the alignment has 3"):
        dna.score(tiny(n_species=2), msa, substitutions)
    with pytest.raises(ValueError, match=r"between 2 and the network's max_position_embeddings=64, got 128"):
        dna.score(tiny(), msa, substitutions)
    with pytest.raises(ValueError, match=r"contains no variants"):
        dna.score(tiny(), msa, substitutions.iloc[:0], window_size=8)
