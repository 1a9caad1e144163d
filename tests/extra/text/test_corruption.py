"""Masked tokens: exact shares, 80/10/10, never a special token, a pure function of seed and step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scr2mae.extra.text import corrupt


@pytest.fixture(scope="module")
def tokens(blocks):
    return torch.from_numpy(blocks.tokens[:24].astype("int64"))


@pytest.fixture(scope="module")
def many(tokens):
    return tokens.repeat(60, 1)


@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(0, 1), seed=st.integers(0, 2**40), step=st.integers(0, 10**7))
def test_exactly_the_asked_share_of_ordinary_tokens_is_masked(tokens, tokenizer, ratio, seed, step):
    corrupted = corrupt(tokens, ratio, tokenizer=tokenizer, seed=seed, step=step)
    ordinary = ~torch.isin(tokens.flatten(), torch.tensor(tokenizer.special_ids))
    n = int(ordinary.sum())
    assert len(corrupted.positions) == min(max(round(ratio * n), 1), n - 1)
    assert bool(ordinary[corrupted.positions].all())
    assert torch.equal(tokens.flatten()[corrupted.positions], corrupted.targets)
    untouched = torch.ones(tokens.numel(), dtype=torch.bool)
    untouched[corrupted.positions] = False
    assert torch.equal(corrupted.tokens.flatten()[untouched], tokens.flatten()[untouched])


def test_eighty_percent_of_masked_tokens_become_the_mask_ten_random_and_ten_stay(many, tokenizer):
    corrupted = corrupt(many, 0.5, tokenizer=tokenizer, seed=0, step=4)
    seen = corrupted.tokens.flatten()[corrupted.positions]
    masked, kept = seen == tokenizer.mask_id, seen == corrupted.targets
    n, chance = len(seen), 1 / (len(tokenizer) - 5)  # a random token may be the old one
    counts = [int(masked.sum()), int(kept.sum()), int((~masked & ~kept).sum())]
    expected = [0.8 * n, (0.1 + 0.1 * chance) * n, 0.1 * (1 - chance) * n]
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_random_tokens_are_all_ordinary_ones_with_equal_chances(many, tokenizer):
    drawn = []
    for step in range(20):
        corrupted = corrupt(many, 0.9, tokenizer=tokenizer, seed=0, step=step)
        seen = corrupted.tokens.flatten()[corrupted.positions]
        drawn.append(seen[(seen != tokenizer.mask_id) & (seen != corrupted.targets)])
    counts = torch.bincount(torch.cat(drawn), minlength=len(tokenizer))
    assert counts[list(tokenizer.special_ids)].sum() == 0
    # Words of the text come up less often than chance, by the draws that repeat what was there.
    absent = torch.ones(len(tokenizer), dtype=torch.bool)
    absent[many.unique()] = False
    absent[list(tokenizer.special_ids)] = False
    assert stats.chisquare(counts[absent].numpy()).pvalue > 0.01


def test_what_is_masked_does_not_reach_the_network(tokens, tokenizer):
    corrupted = corrupt(tokens, 0.4, tokenizer=tokenizer, seed=1, step=2)
    seen = corrupted.tokens.flatten()[corrupted.positions]
    where = corrupted.positions[seen == tokenizer.mask_id]
    other = tokens.flatten().clone()
    other[where] = (other[where] + 1).clamp(max=len(tokenizer) - 1)
    again = corrupt(other.view_as(tokens), 0.4, tokenizer=tokenizer, seed=1, step=2)
    assert torch.equal(again.tokens, corrupted.tokens)
    assert not torch.equal(again.targets, corrupted.targets)


def test_masks_are_pure_functions_of_seed_and_step_and_nested_in_the_ratio(tokens, tokenizer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = corrupt(tokens, 0.3, tokenizer=tokenizer, seed=0, step=9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(corrupt(tokens, 0.3, tokenizer=tokenizer, seed=0, step=9).tokens, first.tokens)
    assert not torch.equal(corrupt(tokens, 0.3, tokenizer=tokenizer, seed=0, step=8).tokens, first.tokens)
    larger = corrupt(tokens, 0.6, tokenizer=tokenizer, seed=0, step=9)
    assert set(first.positions.tolist()) < set(larger.positions.tolist())


def test_text_without_two_ordinary_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least two items"):
        corrupt(torch.full((2, 4), tokenizer.pad_id), 0.5, tokenizer=tokenizer, seed=0, step=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_masks_the_same(tokens, tokenizer):
    here = corrupt(tokens, 0.3, tokenizer=tokenizer, seed=0, step=1)
    there = corrupt(tokens.cuda(), 0.3, tokenizer=tokenizer, seed=0, step=1)
    assert torch.equal(there.tokens.cpu(), here.tokens)
    assert torch.equal(there.positions.cpu(), here.positions)
