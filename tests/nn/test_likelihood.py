"""The negative binomial against the formula in float64, in value and in gradient."""

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial

from scr2mae.nn.likelihood import log_mean_of_counts, nb_log_prob


def _grid(max_log10_theta: float = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts to 1e6, means to 1e6 (half of them close to the count), theta from 1e-4 to 1e8; shape (n,)."""
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    u = torch.rand(4, n, generator=generator)
    counts = torch.where(u[0] < 0.4, torch.zeros(n), torch.floor(10 ** (6 * u[1])))
    log_mean = np.log(10) * (-6 + 12 * u[2])
    near = (torch.arange(n) % 2 == 0) & (counts > 0)
    jitter = 0.01 * torch.randn(n, generator=generator)
    log_mean = torch.where(near, counts.clamp(min=1).log() + jitter, log_mean).clamp(max=np.log(1e6))
    log_theta = np.log(10) * (-4 + (4 + max_log10_theta) * u[3])
    return counts, log_mean, log_theta


def _reference(counts, log_mean, log_theta):
    """The textbook formula in float64, with its gradients by autograd."""
    x = counts.double()
    log_mean, log_theta = (t.double().requires_grad_() for t in (log_mean, log_theta))
    mean, theta = log_mean.exp(), log_theta.exp()
    value = (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        - theta * torch.log1p(mean / theta)
        - x * torch.log1p(theta / mean)
    )
    return value.detach(), *torch.autograd.grad(value.sum(), (log_mean, log_theta))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["theta of each count", "theta of the only gene"])
@pytest.mark.parametrize("max_log10_theta", [3, 8])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_value_and_gradients_agree_with_float64(autocast, max_log10_theta, shape):
    counts, log_mean, log_theta = (t.view(shape) for t in _grid(max_log10_theta))
    mean, theta = log_mean.clone().requires_grad_(), log_theta.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = nb_log_prob(counts, mean, theta)
    assert value.dtype == torch.float32
    ours = (value.detach(), *torch.autograd.grad(value.sum(), (mean, theta)))
    for name, got, want in zip(
        ("value", "d mean", "d theta"), ours, _reference(counts, log_mean, log_theta), strict=True
    ):
        error = ((got - want).abs() / (1 + want.abs())).max().item()
        assert error <= 1e-5, f"{name}: {error:.2e}"


@pytest.mark.parametrize("max_log10_theta", [3, 8])
def test_small_counts_agree_with_float64(max_log10_theta):
    counts, log_mean, log_theta = _grid(max_log10_theta)
    small = 1 + torch.arange(len(counts)) % 4.0
    counts = torch.where(torch.arange(len(counts)) % 7 == 0, counts, small)
    counts[::11] += 0.5  # neither whole nor all small
    mean, theta = log_mean.clone().requires_grad_(), log_theta.clone().requires_grad_()
    value = nb_log_prob(counts, mean, theta)
    ours = (value.detach(), *torch.autograd.grad(value.sum(), (mean, theta)))
    for got, want in zip(ours, _reference(counts, log_mean, log_theta), strict=True):
        assert ((got - want).abs() / (1 + want.abs())).max().item() <= 1e-5


@pytest.mark.parametrize("is_free", [True, False], ids=["of a CPU", "of a GPU"])
def test_compiled_value_and_gradients_agree_with_float64(is_free, monkeypatch):
    monkeypatch.setattr("scr2mae.nn.likelihood.shapes_are_free", lambda device: is_free)
    counts, log_mean, log_theta = _grid()
    mean, theta = log_mean.clone().requires_grad_(), log_theta.clone().requires_grad_()
    value = torch.compile(nb_log_prob, backend="aot_eager", fullgraph=True)(counts, mean, theta)
    assert value.dtype == torch.float32
    ours = (value.detach(), *torch.autograd.grad(value.sum(), (mean, theta)))
    for got, want in zip(ours, _reference(counts, log_mean, log_theta), strict=True):
        assert ((got - want).abs() / (1 + want.abs())).max().item() <= 1e-5


def test_value_agrees_with_scvi_and_scipy_at_everyday_counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, size=(50, 20)).astype(np.float32)
    mean, theta = rng.gamma(2, 1.5, size=(50, 20)), rng.gamma(2, 1, size=20)
    ours = nb_log_prob(
        *(torch.tensor(a, dtype=torch.float32) for a in (counts, np.log(mean), np.log(theta)))
    ).numpy()
    scvi = (
        NegativeBinomial(mu=torch.tensor(mean), theta=torch.tensor(theta))
        .log_prob(torch.tensor(counts))
        .numpy()
    )
    np.testing.assert_allclose(ours, stats.nbinom(theta, theta / (theta + mean)).logpmf(counts), atol=1e-4)
    np.testing.assert_allclose(ours, scvi, atol=1e-4)


def test_gradients_pass_gradcheck_in_double_steps():
    counts = torch.tensor([[0.0, 1.0, 7.0], [2.0, 0.0, 40.0]])
    log_mean = torch.tensor([[-1.0, 0.3, 2.0], [0.5, 1.0, 3.0]], requires_grad=True)
    log_theta = torch.tensor([0.2, -1.0, 1.5], requires_grad=True)
    nb_log_prob(counts, log_mean, log_theta).sum().backward()
    step = 1e-2
    for tensor in (log_mean, log_theta):
        for i in range(tensor.numel()):
            shift = torch.zeros(tensor.numel())
            shift[i] = step
            shift = shift.view_as(tensor)
            with torch.no_grad():
                args = [(log_mean + s * shift if tensor is log_mean else log_mean,
                         log_theta + s * shift if tensor is log_theta else log_theta) for s in (1, -1)]  # fmt: skip
                rise = [nb_log_prob(counts, *a).double().sum() for a in args]
            slope = ((rise[0] - rise[1]) / (2 * step)).item()
            assert tensor.grad.flatten()[i].item() == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_theta_broadcasts_over_cells_and_gathers_their_gradients():
    counts, log_mean = torch.poisson(torch.full((30, 5), 2.0)), torch.randn(30, 5)
    shared = torch.zeros(5, requires_grad=True)
    each = torch.zeros(30, 5, requires_grad=True)
    nb_log_prob(counts, log_mean, shared).sum().backward()
    nb_log_prob(counts, log_mean, each).sum().backward()
    torch.testing.assert_close(shared.grad, each.grad.sum(0))


@pytest.mark.parametrize("log_mean", [-100.0, 60.0])
@pytest.mark.parametrize("count", [0.0, 3.0, 1e6])
def test_extreme_means_stay_finite(log_mean, count):
    mean = torch.full((1, 1), log_mean, requires_grad=True)
    theta = torch.zeros(1, requires_grad=True)
    value = nb_log_prob(torch.full((1, 1), count), mean, theta)
    value.sum().backward()
    assert all(torch.isfinite(t).all() for t in (value, mean.grad, theta.grad))


def test_probabilities_sum_to_one():
    counts = torch.arange(0, 4000.0)[:, None]
    total = nb_log_prob(counts, torch.full((4000, 1), 2.0), torch.tensor([0.5])).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_means_add_up_to_the_library():
    logits, log_library = torch.randn(6, 30), torch.linspace(1, 8, 6)[:, None]
    torch.testing.assert_close(
        log_mean_of_counts(logits, log_library).exp().sum(1, keepdim=True),
        log_library.exp(),
        rtol=1e-5,
        atol=0,
    )


def test_missing_genes_leave_the_ratios_and_the_measured_sum_alone():
    logits, log_library = torch.randn(6, 30), torch.full((6, 1), 7.0)
    measured = torch.arange(30) % 3 > 0
    whole, part = (log_mean_of_counts(logits, log_library, measured=m) for m in (None, measured))
    torch.testing.assert_close(
        part[:, measured].exp().sum(1), torch.full((6,), np.exp(7.0)).float(), rtol=1e-5, atol=0
    )
    difference = part - whole
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        log_mean_of_counts(logits, log_library, measured=torch.ones(30, dtype=torch.bool)), whole
    )
