import numpy as np
import pytest
from scipy import stats

from scr2mae import theory


@pytest.fixture(scope="module")
def model():
    return theory.latent_covariance(80, n_factors=20, seed=1)


@pytest.fixture(scope="module")
def beta():
    return np.random.default_rng(2).standard_normal(80) / 9


@pytest.mark.parametrize("gamma", [0.2, 0.9, 1.3, 4.0])
@pytest.mark.parametrize("p", [0.05, 0.4, 0.75])
def test_one_node_gives_the_fixed_ratio_formula(gamma, p, model, beta):
    args = {"gamma": gamma, "covariance": model, "beta": beta, "noise_variance": 0.05}
    fixed = theory.general_risk(p, **args)
    assert theory.r2mae_risk((p, p), **args) == pytest.approx(fixed, rel=1e-9)
    assert theory.r2mae_risk(([p], [1.0]), **args) == pytest.approx(fixed, rel=1e-9)
    assert theory.r2mae_risk(([p, p], [0.3, 0.7]), **args) == pytest.approx(fixed, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_a_narrow_range_tends_to_the_fixed_ratio(gamma, model, beta):
    args = {"gamma": gamma, "covariance": model, "beta": beta, "noise_variance": 0.05}
    fixed = theory.general_risk(0.5, **args)
    gaps = [abs(theory.r2mae_risk((0.5 - h, 0.5 + h), **args) / fixed - 1) for h in (0.1, 0.01)]
    # the first-order term cancels by symmetry, so the gap falls with the square of the width
    assert gaps[1] < gaps[0] / 50
    assert gaps[0] > 1e-4


@pytest.mark.parametrize("gamma", [0.3, 3.0])
def test_sixteen_nodes_suffice_for_the_uniform_law(gamma, model, beta):
    args = {"gamma": gamma, "covariance": model, "beta": beta, "noise_variance": 0.05}
    fine = theory.r2mae_risk(theory.RatioLaw.uniform(0.35, 0.85, n_nodes=64), **args)
    assert theory.r2mae_risk((0.35, 0.85), **args) == pytest.approx(fine, rel=1e-8)


def test_a_uniform_density_is_the_uniform_law(model, beta):
    args = {"gamma": 3.0, "covariance": model, "beta": beta, "noise_variance": 0.05}
    law = theory.RatioLaw.from_density(lambda p: np.full(p.shape, 2.0), low=0.3, high=0.8)
    assert theory.r2mae_risk(law, **args) == pytest.approx(theory.r2mae_risk((0.3, 0.8), **args), rel=1e-6)


def test_a_density_is_the_limit_of_discrete_laws(model, beta):
    args = {"gamma": 3.0, "covariance": model, "beta": beta, "noise_variance": 0.05}
    density = stats.beta(3.0, 4.0)
    nodes = (np.arange(2000) + 0.5) / 2000
    weights = density.pdf(nodes) / density.pdf(nodes).sum()
    discrete = theory.r2mae_risk((nodes, weights), **args)
    assert theory.r2mae_risk(density.pdf, **args) == pytest.approx(discrete, rel=1e-5)


def test_identity_covariance_gives_theorem_1_for_one_node(beta):
    risk = theory.r2mae_risk(0.3, gamma=2.0, covariance=np.eye(80), beta=beta, noise_variance=0.1)
    closed = theory.isotropic_risk(0.3, gamma=2.0, signal=beta @ beta, noise_variance=0.1)
    assert risk == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_the_order_of_nodes_does_not_matter(gamma, model, beta):
    args = {"gamma": gamma, "covariance": model, "beta": beta, "noise_variance": 0.05}
    one = theory.r2mae_risk(([0.2, 0.5, 0.8], [0.5, 0.2, 0.3]), **args)
    other = theory.r2mae_risk(([0.8, 0.2, 0.5], [0.3, 0.5, 0.2]), **args)
    assert one == pytest.approx(other, rel=1e-12)


def test_the_fixed_point_converges_close_to_the_pole(model, beta):
    for gamma in (0.499, 0.501):
        risk = theory.r2mae_risk((0.2, 0.8), gamma=gamma, covariance=model, beta=beta, noise_variance=0.05)
        assert np.isfinite(risk)
        assert risk > 20 * (beta @ model.matrix @ beta)


def test_the_pole_is_at_the_mean_ratio(model, beta):
    with pytest.raises(ValueError, match="mean ratio equals gamma"):
        theory.r2mae_risk((0.4, 0.6), gamma=0.5, covariance=model, beta=beta, noise_variance=0.1)


@pytest.mark.parametrize(
    ("law", "error", "message"),
    [
        ((0.5, 0.3), ValueError, "low <= high"),
        ((0.2, 1.0), ValueError, "high < 1"),
        (([0.2, 0.4], [0.5, 0.4]), ValueError, "sum to one"),
        (([0.2, 0.4], [1.0]), ValueError, "equal length"),
        (([0.2, 1.4], [0.5, 0.5]), ValueError, "strictly between 0 and 1"),
        (lambda p: p, ValueError, "integrate to one"),
        ("uniform", TypeError, "masking ratio must be given as"),
        ((0.1, 0.2, 0.3), TypeError, "masking ratio must be given as"),
    ],
)
def test_invalid_distributions_are_rejected(law, error, message, model, beta):
    with pytest.raises(error, match=message):
        theory.r2mae_risk(law, gamma=3.0, covariance=model, beta=beta, noise_variance=0.1)


def test_a_density_needs_a_support_within_the_unit_interval():
    with pytest.raises(ValueError, match="support must satisfy"):
        theory.RatioLaw.from_density(np.ones_like, low=0.5, high=1.5)


@pytest.mark.parametrize(
    "law",
    [
        theory.RatioLaw.uniform(0.2, 0.7),
        theory.RatioLaw.discrete([0.3, 0.6, 0.8], [0.2, 0.5, 0.3]),
        theory.RatioLaw.from_density(stats.beta(2.0, 5.0).pdf),
    ],
    ids=["uniform", "discrete", "density"],
)
def test_samples_follow_the_law(law):
    draws = law.sample((np.arange(20_000) + 0.5) / 20_000)
    assert draws.mean() == pytest.approx(law.mean, abs=1e-3)
    assert draws.var() == pytest.approx(law.weights @ (law.nodes - law.mean) ** 2, rel=0.01)


def test_nearly_as_many_rows_as_covariates_raise_or_are_solved(model, beta):
    args = {"gamma": 0.5, "covariance": model, "beta": beta, "noise_variance": 0.05}
    with pytest.raises(ValueError, match="diverges if the mean ratio equals gamma"):
        theory.r2mae_risk((0.4, 0.6), **args)
    with pytest.raises(RuntimeError, match="too close to the number of covariates"):
        theory.r2mae_risk((0.4, 0.6 + 1e-7), **args)
    # the pole is simple: ten times nearer, ten times the risk
    near, nearer = (theory.r2mae_risk((0.4 - h, 0.6), **args) for h in (1e-5, 1e-6))
    assert nearer / near == pytest.approx(10, rel=1e-3)
