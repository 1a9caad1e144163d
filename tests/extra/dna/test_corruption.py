"""Masked bases, their replacements, and label flips."""

import numpy as np
import pytest
import torch

from scr2mae.extra.dna.corruption import corrupt, draw_base_mask, flip_labels


def test_the_share_of_known_bases_is_masked_and_gaps_never_are(random_tokens):
    human, _ = random_tokens(50, 40)
    human[:, ::4] = 0
    for ratio in (0.05, 0.15, 0.3):
        mask = draw_base_mask(human, ratio, seed=0, step=1)
        assert int(mask.sum()) == round(ratio * int((human > 0).sum()))
        assert not bool((mask & (human == 0)).any())


def test_windows_without_bases_are_refused():
    with pytest.raises(
        ValueError, match=r"Only 0 of 16 positions in a mini-batch have a known base; leave such windows out"
    ):
        draw_base_mask(torch.zeros(2, 8, dtype=torch.uint8), 0.3, seed=0, step=0)


def test_eighty_percent_of_masked_bases_become_the_mask_token_ten_are_random_ten_kept():
    human = torch.ones(200, 200, dtype=torch.uint8)
    mask = draw_base_mask(human, 0.5, seed=0, step=0)
    corrupted = corrupt(human, mask, seed=0, step=0)
    assert torch.equal(corrupted[~mask], human[~mask])
    shares = torch.bincount(corrupted[mask].long(), minlength=6) / int(mask.sum())
    # a random base is the old one a quarter of the time
    wanted = [0, 0.1 + 0.025, 0.025, 0.025, 0.025, 0.8]
    np.testing.assert_allclose(shares.numpy(), wanted, atol=0.01)


def test_labels_flip_with_their_probability_and_else_stay():
    labels = torch.ones(40_000, dtype=torch.long)
    probability = torch.zeros(40_000)
    probability[20_000:] = 0.5
    flipped = flip_labels(labels, probability, seed=0, step=0)
    assert torch.equal(flipped[:20_000], labels[:20_000])
    shares = torch.bincount(flipped[20_000:], minlength=5)[1:] / 20_000
    np.testing.assert_allclose(shares.numpy(), [0.5 + 0.125, 0.125, 0.125, 0.125], atol=0.01)


def test_draws_differ_from_step_to_step_and_repeat(random_tokens):
    human, _ = random_tokens(20, 40)
    masks = [draw_base_mask(human, 0.2, seed=0, step=step) for step in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
