from functools import partial

import numpy as np
import pytest

from scr2mae import theory

RATIOS = np.array([0.05, 0.2, 0.35, 0.6, 0.9])


@pytest.fixture(scope="module")
def model():
    return theory.uniform_covariance(60, seed=1)


@pytest.fixture(scope="module")
def beta():
    return np.random.default_rng(2).standard_normal(60) / 8


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 4.0])
def test_identity_covariance_gives_theorem_1(gamma, beta):
    args = {"gamma": gamma, "noise_variance": 0.3}
    general = theory.general_risk(RATIOS, covariance=np.eye(60), beta=beta, **args)
    closed = theory.isotropic_risk(RATIOS, signal=beta @ beta, **args)
    np.testing.assert_allclose(general, closed, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_scaled_identity_gives_theorem_1_for_the_scaled_signal(scale, beta):
    general = theory.general_risk(
        RATIOS, gamma=1.7, covariance=scale * np.eye(60), beta=beta, noise_variance=0.1
    )
    closed = theory.isotropic_risk(RATIOS, gamma=1.7, signal=scale * beta @ beta, noise_variance=0.1)
    np.testing.assert_allclose(general, closed, rtol=1e-9)


def test_theorem_1_starts_at_the_null_risk_with_its_slope():
    gamma, signal, noise, p = 2.0, 3.0, 0.5, 1e-6
    risk = theory.isotropic_risk(p, gamma=gamma, signal=signal, noise_variance=noise)
    assert risk == pytest.approx(signal, rel=1e-5)
    assert (risk - signal) / p == pytest.approx((noise - signal) / gamma, rel=1e-4)


def test_theorem_1_has_a_minimum_inside_only_if_the_signal_exceeds_the_noise():
    inside = partial(theory.isotropic_risk, gamma=2.0, signal=1.0, noise_variance=0.2)
    outside = partial(theory.isotropic_risk, gamma=2.0, signal=1.0, noise_variance=1.5)
    assert 0.05 < theory.optimal_ratio(inside, gamma=2.0).ratio < 0.9
    assert theory.optimal_ratio(outside, gamma=2.0).ratio == pytest.approx(0.01, abs=1e-4)


def test_theorem_1_diverges_on_both_sides_of_gamma():
    near = theory.isotropic_risk([0.5 - 1e-6, 0.5 + 1e-6], gamma=0.5, signal=1.0, noise_variance=0.1)
    assert (near > 1e4).all()


@pytest.mark.parametrize("gamma", [0.4, 1.0, 3.0])
def test_the_constant_diagonal_shortcut_agrees_with_the_general_path(gamma):
    # a tiny change of one variance switches the shortcut off
    matrix = np.array(theory.spiked_covariance(40, spike=5.0, direction="ones").matrix)
    bumped = matrix.copy()
    bumped[0, 0] *= 1 + 1e-11
    assert theory.Covariance(matrix).has_constant_diagonal
    assert not theory.Covariance(bumped).has_constant_diagonal
    beta = np.linspace(-1, 1, 40)
    risks = [
        theory.general_risk(RATIOS, gamma=gamma, covariance=m, beta=beta, noise_variance=0.1)
        for m in (matrix, bumped)
    ]
    np.testing.assert_allclose(risks[0], risks[1], rtol=1e-8)


@pytest.mark.parametrize("gamma", [0.4, 3.0])
def test_risk_does_not_depend_on_the_units_of_all_covariates_together(gamma, model, beta):
    args = {"gamma": gamma, "noise_variance": 0.2}
    risk = theory.general_risk(RATIOS, covariance=model, beta=beta, **args)
    scaled = theory.general_risk(RATIOS, covariance=4.0 * model.matrix, beta=beta / 2, **args)
    np.testing.assert_allclose(risk, scaled, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.4, 3.0])
def test_risk_does_not_depend_on_the_order_of_covariates(gamma, model, beta):
    order = np.random.default_rng(0).permutation(60)
    args = {"gamma": gamma, "noise_variance": 0.2}
    risk = theory.general_risk(RATIOS, covariance=model, beta=beta, **args)
    shuffled = theory.general_risk(
        RATIOS, covariance=model.matrix[np.ix_(order, order)], beta=beta[order], **args
    )
    np.testing.assert_allclose(risk, shuffled, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.4, 3.0])
def test_risk_is_homogeneous_in_the_target(gamma, model, beta):
    risk = theory.general_risk(RATIOS, gamma=gamma, covariance=model, beta=beta, noise_variance=0.2)
    tripled = theory.general_risk(RATIOS, gamma=gamma, covariance=model, beta=3 * beta, noise_variance=1.8)
    np.testing.assert_allclose(tripled, 9 * risk, rtol=1e-10)


def test_a_vanishing_ratio_gives_the_null_risk_and_no_predictions(model, beta):
    terms = theory.general_terms(1e-7, gamma=2.0, covariance=model, beta=beta, noise_variance=0.2)
    assert terms.risk == pytest.approx(beta @ model.matrix @ beta, rel=1e-4)
    assert terms.power == pytest.approx(0, abs=1e-4)


def test_few_covariates_and_many_rows_leave_only_the_bias_of_masking(model, beta):
    p, gamma = 0.5, 1e-6
    terms = theory.general_terms(p, gamma=gamma, covariance=model, beta=beta, noise_variance=0.2)
    masked = (1 - p) ** 2 * model.matrix + p * (1 - p) * np.diag(model.diagonal)
    error = (1 - p) * np.linalg.solve(masked, model.matrix @ beta) - beta
    assert terms.risk == pytest.approx(error @ model.matrix @ error, rel=1e-4)


def test_the_signal_of_theorem_3_is_the_eigenvector(model):
    risk = theory.eigenvector_risk(
        RATIOS, gamma=3.0, covariance=model, quantile=1.0, signal=2.0, noise_variance=0.04
    )
    beta = np.sqrt(2) * model.eigenvectors[:, -1]
    direct = theory.general_risk(RATIOS, gamma=3.0, covariance=model, beta=beta, noise_variance=0.04)
    np.testing.assert_allclose(risk, direct, rtol=1e-12)


def test_stronger_eigenvectors_have_higher_optimal_ratios(model):
    best = [
        theory.optimal_ratio(
            partial(
                theory.eigenvector_risk, gamma=3.0, covariance=model, quantile=quantile, noise_variance=0.04
            ),
            gamma=3.0,
            n_grid=30,
        ).ratio
        for quantile in (0.2, 0.6, 1.0)
    ]
    assert best == sorted(best)
    assert best[-1] - best[0] > 0.1


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("formula", ["isotropic", "general", "spiked"])
def test_risks_have_the_shape_of_the_ratios(formula, shape, model, beta):
    p = np.full(shape, 0.3)
    risks = {
        "isotropic": lambda: theory.isotropic_risk(p, gamma=2.0, signal=1.0, noise_variance=0.1),
        "general": lambda: theory.general_risk(p, gamma=2.0, covariance=model, beta=beta, noise_variance=0.1),
        "spiked": lambda: theory.spiked_risk(p, gamma=2.0, spike=3.0, alignment=0.5, noise_variance=0.1),
    }
    assert np.shape(risks[formula]()) == shape


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.3, np.nan])
def test_ratios_outside_the_open_unit_interval_are_rejected(bad, model, beta):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        theory.isotropic_risk([0.2, bad], gamma=2.0, signal=1.0, noise_variance=0.1)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        theory.general_risk(bad, gamma=2.0, covariance=model, beta=beta, noise_variance=0.1)


def test_the_pole_is_rejected(model, beta):
    with pytest.raises(ValueError, match=r"diverges at p = gamma = 0\.5"):
        theory.isotropic_risk([0.2, 0.5], gamma=0.5, signal=1.0, noise_variance=0.1)
    with pytest.raises(ValueError, match=r"diverges at p = gamma = 0\.5"):
        theory.general_risk(0.5, gamma=0.5, covariance=model, beta=beta, noise_variance=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma must be a positive"),
        ({"noise_variance": -1.0}, "noise_variance must be a non-negative"),
        ({"beta": np.ones(3)}, r"beta must have shape \(60,\)"),
        ({"beta": np.full(60, np.nan)}, "not finite"),
        ({"covariance": np.diag(np.r_[-1.0, np.ones(59)])}, "positive definite"),
        ({"covariance": np.triu(np.ones((60, 60)))}, "symmetric"),
    ],
)
def test_general_risk_rejects_bad_arguments(change, message, model, beta):
    args = {"gamma": 2.0, "covariance": model, "beta": beta, "noise_variance": 0.1} | change
    with pytest.raises(ValueError, match=message):
        theory.general_risk(0.3, **args)


def test_optimal_ratio_matches_a_fine_grid(model, beta):
    risk = partial(theory.general_risk, gamma=3.0, covariance=model, beta=beta, noise_variance=0.01)
    grid = np.linspace(0.01, 0.99, 981)
    values = risk(grid)
    best = theory.optimal_ratio(risk, gamma=3.0)
    assert best.ratio == pytest.approx(grid[values.argmin()], abs=2e-3)
    assert best.risk <= values.min() * (1 + 1e-9)


def test_optimal_ratio_searches_both_sides_of_the_pole():
    risk = partial(theory.isotropic_risk, gamma=0.05, signal=1.0, noise_variance=0.001)
    best = theory.optimal_ratio(risk, gamma=0.05)
    grid = np.r_[np.linspace(0.01, 0.049, 100), np.linspace(0.051, 0.99, 900)]
    assert best.ratio == pytest.approx(grid[risk(grid).argmin()], abs=3e-3)
    assert best.ratio > 0.05


def test_optimal_ratio_rejects_invalid_bounds():
    with pytest.raises(ValueError, match="bounds must satisfy"):
        theory.optimal_ratio(lambda p: p, gamma=2.0, bounds=(0.0, 0.5))
