"""Sinkhorn balance, weights, scale of the gradient, and the schemes by name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import scr2mae
from scr2mae._paper import Scheme
from scr2mae.masking import DecayRatio, DiscreteRatio, FixedRatio, UniformDecayRatio, UniformRatio
from scr2mae.nn.curriculum import (
    Curriculum,
    CurriculumWeights,
    GradientSchedule,
    balance_errors,
    scale_gradient,
    sinkhorn,
)


def _numpy_sinkhorn(weights: np.ndarray, n_iter: int) -> np.ndarray:
    """Alternating scaling, in NumPy."""
    weights = weights.copy()
    n_features, n_ratios = weights.shape
    for _ in range(n_iter):
        weights *= n_ratios / weights.sum(axis=1, keepdims=True)
        weights *= n_features / weights.sum(axis=0, keepdims=True)
    return weights


@pytest.mark.parametrize("n_iter", [1, 5, 50])
def test_sinkhorn_agrees_with_plain_iteration(n_iter):
    weights = np.random.default_rng(0).uniform(0.1, 3, size=(40, 6))
    ours = sinkhorn(torch.tensor(weights), n_iter=n_iter).numpy()
    np.testing.assert_allclose(ours, _numpy_sinkhorn(weights, n_iter), rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(n_features=st.integers(2, 60), n_ratios=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_sinkhorn_conserves_mass(n_features, n_ratios, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = 10 ** (2 * torch.rand(n_features, n_ratios, generator=generator, dtype=torch.double) - 1)
    rows, columns = balance_errors(sinkhorn(weights, n_iter=500))
    assert rows < 1e-4
    assert columns < 1e-12
    assert balance_errors(sinkhorn(weights, n_iter=1))[1] < 1e-12


def test_entries_from_1e_minus_9_to_1e9_stay_finite_in_float32():
    generator = torch.Generator().manual_seed(0)
    weights = 10 ** (18 * torch.rand(30, 5, generator=generator) - 9)
    weights.requires_grad_()
    balanced = sinkhorn(weights, n_iter=20)
    (grad,) = torch.autograd.grad((balanced**2).sum(), weights)
    assert torch.isfinite(balanced).all()
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(balanced.sum(0), torch.full((5,), 30.0), rtol=1e-4, atol=0)
    exact = sinkhorn(weights.detach().double(), n_iter=20)
    torch.testing.assert_close(balanced.detach().double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_sinkhorn_passes_gradcheck(masked):
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(2, 6, 3, generator=generator, dtype=torch.double) + 0.05).requires_grad_()
    valid = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]], dtype=torch.bool) if masked else None
    assert torch.autograd.gradcheck(lambda w: sinkhorn(w, n_iter=4, valid=valid), weights)


def test_padding_changes_nothing_and_weighs_nothing():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 8, 4, generator=generator, dtype=torch.double) + 0.1
    valid = torch.rand(3, 8, generator=generator) < 0.6
    whole = sinkhorn(weights, n_iter=10, valid=valid)
    assert bool((whole[~valid] == 0).all())
    for matrix, keep, out in zip(weights, valid, whole, strict=True):
        torch.testing.assert_close(out[keep], sinkhorn(matrix[keep], n_iter=10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), "must be positive"),
        (lambda: sinkhorn(torch.tensor([[1.0, torch.nan], [1.0, 1.0]])), "must be positive"),
        (lambda: sinkhorn(torch.ones(3)), "shape"),
        (lambda: sinkhorn(torch.ones(3, 2), n_iter=0), "n_iter must be at least 1"),
        (
            lambda: sinkhorn(torch.ones(2, 3, 2), valid=torch.tensor([[True] * 3, [False] * 3])),
            "nothing to balance",
        ),
        (lambda: CurriculumWeights(5, 1), "at least 2"),
        (lambda: CurriculumWeights(5, 3, offset=0.0), "offset must be positive"),
        (lambda: Curriculum(n_ratios=1), "every weight one"),
        (lambda: Curriculum(rank=0), "at least 1"),
        (lambda: GradientSchedule(frozen=-1), "frozen must be >= 0"),
        (lambda: GradientSchedule(end=1.5), "fraction of the run must be <= 1"),
        (lambda: GradientSchedule(start=0.6, end=0.5), "start must come before end"),
        (lambda: GradientSchedule(start=100, end=50), "start must come before end"),
        (lambda: GradientSchedule(start=100, end=0.1)(500, 500), "start at 100 and end at 50"),
        (lambda: GradientSchedule()(-1, 10), "step must be >= 0"),
        (lambda: Curriculum.named("cl2"), "must be 'cl', 'cl_k0'"),
        (lambda: Curriculum().ratio_schedule(DecayRatio()), "needs a fixed ratio, a range"),
        (lambda: Curriculum().ratio_schedule((0.5, 0.1)), "low <= high"),
        (lambda: Curriculum().ratio_schedule(DiscreteRatio((0.1, 0.2))), "n_ratios=10"),
        (lambda: scr2mae.schemes("audio"), "domain must be one of"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_schedule_is_frozen_then_falls_from_one_to_minus_one():
    schedule = GradientSchedule(frozen=10, start=20, end=40)
    assert [schedule(step, 100) for step in (0, 9)] == [0.0, 0.0]
    assert schedule.is_frozen(9, 100)
    assert not schedule.is_frozen(10, 100)
    np.testing.assert_allclose([schedule(s, 100) for s in (10, 20, 25, 30, 40, 99)], [1, 1, 0.5, 0, -1, -1])
    shares = GradientSchedule(frozen=0.1, start=0.2, end=0.4)
    assert [shares(s, 100) for s in range(100)] == pytest.approx([schedule(s, 100) for s in range(100)])
    constant = GradientSchedule(frozen=10, start=20, end=40, final=1.0)
    assert {constant(s, 100) for s in range(10, 100)} == {1.0}


def test_scaled_gradient_leaves_the_value_alone():
    x = torch.randn(4, requires_grad=True)
    y = scale_gradient(x, -0.5)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    torch.testing.assert_close(x.grad, -x.detach())


def _learned(grad_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of 60 genes after training against a fixed element loss, and that loss."""
    torch.manual_seed(0)
    network = CurriculumWeights(60, 5, n_features=60, n_iter=20)
    element_loss = torch.linspace(0.1, 2.0, 60)[torch.randperm(60)]
    x = torch.rand(32, 60)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (scale_gradient(network(x), grad_scale)[:, 2] * element_loss).mean().backward()
        optimizer.step()
    return network(x).detach(), element_loss


@pytest.mark.parametrize("grad_scale", [1.0, -1.0])
def test_plus_one_favors_the_easy_and_minus_one_the_hard(grad_scale):
    weights, loss = _learned(grad_scale)
    assert grad_scale * stats.spearmanr(weights[:, 2], loss).statistic < -0.8
    rows, columns = balance_errors(weights)
    assert max(rows, columns) < 1e-4


def test_one_class_serves_mini_batches_cells_and_tokens():
    torch.manual_seed(0)
    x = torch.rand(7, 30)
    batch = CurriculumWeights(30, 4, n_features=30)
    assert batch(x).shape == (30, 4)
    each = CurriculumWeights(30, 4, n_features=30, per_cell=True)
    each.load_state_dict(batch.state_dict())
    assert each(x).shape == (7, 30, 4)
    torch.testing.assert_close(each(x[:1])[0], batch(x[:1]))
    tokens = CurriculumWeights(16, 4, hidden=(8, 8), offset=0.5)
    valid = torch.arange(5) < torch.tensor([[5], [3]])
    weights = tokens(torch.randn(2, 5, 16), valid=valid)
    assert weights.shape == (2, 5, 4)
    assert bool((weights[1, 3:] == 0).all())
    torch.testing.assert_close(weights.sum(1), torch.tensor([[5.0] * 4, [3.0] * 4]))


def test_unmeasured_genes_have_no_mass():
    torch.manual_seed(0)
    measured = torch.arange(30) % 3 > 0
    weights = CurriculumWeights(30, 4, n_features=30)(torch.rand(7, 30), valid=measured)
    assert bool((weights[~measured] == 0).all())
    torch.testing.assert_close(weights.sum(0), torch.full((4,), 20.0))


def test_a_range_becomes_one_ratio_per_column():
    schedule = Curriculum(n_ratios=5).ratio_schedule((0.1, 0.5), seed=3)
    assert isinstance(schedule, DiscreteRatio)
    assert schedule.seed == 3
    np.testing.assert_allclose(schedule.values, np.linspace(0.1, 0.5, 5))
    assert Curriculum().ratio_schedule(0.25) == FixedRatio(0.25)
    given_values = DiscreteRatio((0.1, 0.4))
    assert Curriculum(n_ratios=2).ratio_schedule(given_values) is given_values


def test_the_schemes_are_the_papers_rows():
    rows = scr2mae.schemes()
    assert list(rows) == [
        *("mae", "mae_low", "mae_high", "mdlm", "dynamic", "r2mae", "r2mae_dynamic"),
        *("cl", "cl_k0", "r2mae_cl", "r2mae_cl_k0"),
    ]
    assert rows["r2mae"].mask_ratio == UniformRatio(0.1, 0.5)
    assert rows["r2mae_cl"].mask_ratio == rows["r2mae"].mask_ratio
    assert rows["cl_k0"].mask_ratio == rows["mae"].mask_ratio == FixedRatio(0.25)
    assert scr2mae.schemes("dna")["mae_high"].mask_ratio == FixedRatio(0.3)
    assert scr2mae.schemes("vision")["dynamic"].mask_ratio == DecayRatio(0.9, 0.6)
    text = scr2mae.schemes("text", seed=2)
    assert set(rows) - set(text) == {"mae_low"}
    assert text["r2mae_dynamic"].mask_ratio == UniformDecayRatio(0.15, 0.40, seed=2)
    assert text["r2mae_cl"] == Scheme(UniformRatio(0.15, 0.40, seed=2), "cl")
    assert not {"cl", "r2mae_dynamic"} & set(scr2mae.schemes("vision"))
    assert scr2mae.schemes(seed=7)["mdlm"].mask_ratio.seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frozen": float("nan")}, "frozen must be a finite number"),
        ({"frozen": True}, "frozen must be a finite number"),
        ({"final": 5.0}, "final must be between -1 and 1"),
    ],
)
def test_impossible_times_and_scales_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientSchedule(**arguments)


def test_a_share_in_single_precision_is_a_share():
    schedule = GradientSchedule(frozen=np.float32(0.5), start=0.5, end=1.0)
    assert schedule.is_frozen(40, 100)
    assert not schedule.is_frozen(60, 100)


def test_a_fall_that_would_end_before_it_starts_is_refused_at_the_first_step():
    with pytest.raises(ValueError, match="the fall would start at 50 and end at 10"):
        GradientSchedule(start=50, end=0.1)(0, 100)


def test_a_scheme_unpacks_into_its_ratio_and_its_curriculum():
    ratio, curriculum = scr2mae.schemes()["r2mae_cl"]
    assert ratio(0, 1) == scr2mae.schemes()["r2mae"].mask_ratio(0, 1)
    assert curriculum == "cl"
