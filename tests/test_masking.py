"""Masking ratios and draws: exact shares, pure functions of seed and step."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scr2mae.masking import (
    DecayRatio,
    DiscreteRatio,
    FixedRatio,
    MDLMRatio,
    RatioSchedule,
    UniformDecayRatio,
    UniformRatio,
    as_ratio_schedule,
    draw_integers,
    draw_mask,
)

ALL = [
    FixedRatio(0.3),
    UniformRatio(0.1, 0.5),
    MDLMRatio(),
    DecayRatio(0.5, 0.1),
    DecayRatio(0.5, 0.1, rate=0.05),
    UniformDecayRatio(0.1, 0.5),
    UniformDecayRatio(0.1, 0.5, rate=0.05),
    DiscreteRatio((0.1, 0.3, 0.5)),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_schedules_are_frozen_pure_functions_of_the_step(schedule):
    assert isinstance(schedule, RatioSchedule)
    forwards = [schedule(step, 50) for step in range(50)]
    backwards = [dataclasses.replace(schedule)(step, 50) for step in reversed(range(50))][::-1]
    assert forwards == backwards
    assert all(0 <= ratio <= 1 for ratio in forwards)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 0.2)


@pytest.mark.parametrize(
    ("schedule", "low", "high"), [(UniformRatio(0.1, 0.5, seed=3), 0.1, 0.5), (MDLMRatio(seed=3), 0.0, 1.0)]
)
def test_uniform_ratios_follow_the_uniform_law(schedule, low, high):
    drawn = np.array([schedule(step, 1) for step in range(4000)])
    assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.05


def test_different_seeds_give_different_sequences():
    a = [UniformRatio(0.1, 0.5, seed=0)(step, 1) for step in range(100)]
    b = [UniformRatio(0.1, 0.5, seed=1)(step, 1) for step in range(100)]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.3
    assert not set(a) & set(b)


def test_an_empty_range_is_the_fixed_ratio():
    assert {UniformRatio(0.25, 0.25)(step, 10) for step in range(10)} == {FixedRatio(0.25)(0, 10)}


def test_decay_runs_linearly_from_high_to_low_and_stays():
    ratios = [DecayRatio(0.5, 0.1)(step, 101) for step in range(101)]
    np.testing.assert_allclose(ratios, np.linspace(0.5, 0.1, 101))
    assert DecayRatio(0.5, 0.1)(1000, 101) == pytest.approx(0.1)
    assert DecayRatio(0.5, 0.1)(0, 1) == 0.5


def test_uniform_decay_has_the_mean_of_decay_and_never_falls_below_low():
    late = [
        [UniformDecayRatio(0.1, 0.5, seed=s)(90, 101) for s in range(3000)],
        DecayRatio(0.5, 0.1)(90, 101),
    ]
    assert np.mean(late[0]) == pytest.approx(late[1], abs=0.002)
    assert min(late[0]) >= 0.1
    assert max(late[0]) <= 2 * late[1] - 0.1


def test_discrete_ratios_are_drawn_equally_often_and_index_agrees_with_the_draw():
    schedule = DiscreteRatio((0.1, 0.2, 0.4), seed=1)
    drawn = [schedule(step, 1) for step in range(3000)]
    assert [schedule.values[schedule.index(step)] for step in range(3000)] == drawn
    assert stats.chisquare(np.unique(drawn, return_counts=True)[1]).pvalue > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedRatio(1.2), r"must lie in \[0, 1\], got 1.2"),
        (lambda: FixedRatio(-0.1), r"must lie in \[0, 1\]"),
        (lambda: FixedRatio(float("nan")), r"must lie in \[0, 1\]"),
        (lambda: UniformRatio(0.5, 0.1), "low <= high"),
        (lambda: DecayRatio(high=0.1, low=0.5), "low <= high"),
        (lambda: UniformDecayRatio(0.1, 0.9), "2 \\* high - low <= 1"),
        (lambda: DiscreteRatio(()), "at least one value"),
        (lambda: DiscreteRatio((0.3, 0.1)), "increase strictly"),
        (lambda: DiscreteRatio((0.3, 1.3)), r"must lie in \[0, 1\]"),
        (lambda: DecayRatio()(-1, 10), "step must be >= 0"),
        (lambda: as_ratio_schedule((0.1, 0.2, 0.3)), "a pair"),
        (lambda: draw_mask(1, 0.5, seed=0, step=0), "at least two items"),
        (lambda: draw_mask(10, 1.5, seed=0, step=0), r"must lie in \[0, 1\]"),
        (lambda: draw_mask(10, 0.5, seed=0, step=0, n_obs=-1), "n_obs must be >= 0"),
    ],
)
def test_bad_ratios_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mask_ratio_accepts_a_float_a_pair_or_a_schedule():
    schedule = MDLMRatio()
    assert as_ratio_schedule(0.25) == FixedRatio(0.25)
    assert as_ratio_schedule([0.1, 0.5], seed=4) == UniformRatio(0.1, 0.5, seed=4)
    assert as_ratio_schedule(schedule) is schedule
    for bad in ("0.25", True, None):
        with pytest.raises(TypeError, match="float, a pair"):
            as_ratio_schedule(bad)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 3000), ratio=st.floats(0, 1), seed=st.integers(0, 2**40), step=st.integers(0, 10**7))
def test_masks_have_exactly_the_requested_share(n, ratio, seed, step):
    mask = draw_mask(n, ratio, seed=seed, step=step)
    assert mask.shape == (n,)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == min(max(round(ratio * n), 1), n - 1)


def test_all_items_are_masked_equally_often_and_independently():
    masks = torch.stack([draw_mask(40, 0.3, seed=0, step=step) for step in range(3000)]).double().numpy()
    assert stats.chisquare(masks.sum(axis=0)).pvalue > 0.01
    off = np.corrcoef(masks.T)[~np.eye(40, dtype=bool)]
    # Drawing without replacement correlates items by -1 / (n - 1).
    assert off.mean() == pytest.approx(-1 / 39, abs=0.003)
    assert np.abs(off).max() < 0.09


def test_masks_of_successive_steps_are_unrelated():
    masks = torch.stack([draw_mask(2000, 0.5, seed=0, step=step) for step in range(50)]).double().numpy()
    overlap = np.corrcoef(masks)[np.triu_indices(50, 1)]
    assert np.abs(overlap).max() < 0.1


def test_masks_of_a_step_are_nested_in_the_ratio():
    small, large = (draw_mask(500, ratio, seed=1, step=7) for ratio in (0.2, 0.6))
    assert bool((large | ~small).all())


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 400), ratio=st.floats(0, 1), n_obs=st.integers(0, 20), step=st.integers(0, 10**7))
def test_masks_per_observation_have_exactly_the_requested_share_each(n, ratio, n_obs, step):
    masks = draw_mask(n, ratio, seed=3, step=step, n_obs=n_obs)
    assert masks.shape == (n_obs, n)
    assert masks.sum(dim=1).tolist() == [min(max(round(ratio * n), 1), n - 1)] * n_obs
    if n_obs:
        assert torch.equal(masks[0], draw_mask(n, ratio, seed=3, step=step))


def test_masks_of_different_observations_are_unrelated():
    masks = draw_mask(2000, 0.5, seed=0, step=0, n_obs=50).double().numpy()
    assert np.abs(np.corrcoef(masks)[np.triu_indices(50, 1)]).max() < 0.1


def test_masks_neither_use_nor_change_the_global_generators():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_mask(100, 0.3, seed=0, step=0)
    torch.manual_seed(1)
    assert torch.equal(draw_mask(100, 0.3, seed=0, step=0), first)
    torch.set_rng_state(state)
    draw_mask(100, 0.3, seed=0, step=5)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 300), high=st.integers(1, 2**32), seed=st.integers(0, 2**40), step=st.integers(0, 10**7)
)
def test_integers_lie_below_high_and_longer_draws_extend_shorter_ones(n, high, seed, step):
    drawn = draw_integers(n, high, seed=seed, step=step)
    assert drawn.shape == (n,)
    assert drawn.dtype == torch.int64
    assert bool(((drawn >= 0) & (drawn < high)).all())
    assert torch.equal(draw_integers(n + 7, high, seed=seed, step=step)[:n], drawn)


def test_integers_are_uniform_and_independent_of_other_streams_and_masks():
    drawn = draw_integers(50_000, 10, seed=0, step=3).numpy()
    assert stats.chisquare(np.bincount(drawn, minlength=10)).pvalue > 0.01
    other = draw_integers(50_000, 10, seed=0, step=3, stream=1).numpy()
    assert stats.chi2_contingency(np.histogram2d(drawn, other, bins=10)[0]).pvalue > 0.01
    mask = draw_mask(50_000, 0.5, seed=0, step=3).numpy()
    assert stats.chisquare(np.bincount(drawn[mask], minlength=10)).pvalue > 0.01


def test_integers_reject_bounds_out_of_range():
    for n, high in ((3, 0), (3, 2**32 + 1), (-1, 5)):
        with pytest.raises(ValueError, match="drawn n >= 0 times below high"):
            draw_integers(n, high, seed=0, step=0)


@pytest.mark.slow
def test_every_process_draws_the_same():
    code = (
        "from scr2mae.masking import *;"
        "print(UniformRatio(0.1, 0.5, seed=2)(17, 0), draw_mask(50, 0.3, seed=2, step=17).nonzero().flatten().tolist())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    here = f"{UniformRatio(0.1, 0.5, seed=2)(17, 0)} {draw_mask(50, 0.3, seed=2, step=17).nonzero().flatten().tolist()}\n"
    assert outputs == {here}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_draws_the_same():
    here = draw_mask(5000, 0.37, seed=11, step=123456)
    assert torch.equal(draw_mask(5000, 0.37, seed=11, step=123456, device="cuda").cpu(), here)
    here = draw_mask(196, 0.75, seed=11, step=5, n_obs=64)
    assert torch.equal(draw_mask(196, 0.75, seed=11, step=5, n_obs=64, device="cuda").cpu(), here)
