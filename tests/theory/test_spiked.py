from functools import partial

import numpy as np
import pytest

from scr2mae import theory

RATIOS = np.array([0.05, 0.2, 0.5, 0.8])


def test_without_a_spike_corollary_1_is_theorem_1():
    spiked = theory.spiked_risk(RATIOS, gamma=1.5, spike=0.0, alignment=0.7, signal=2.0, noise_variance=0.1)
    closed = theory.isotropic_risk(RATIOS, gamma=1.5, signal=2.0, noise_variance=0.1)
    np.testing.assert_allclose(spiked, closed, rtol=1e-12)


def test_terms_add_up_to_the_risk():
    terms = theory.spiked_terms(RATIOS, gamma=2.0, spike=8.0, alignment=0.9, noise_variance=0.1)
    np.testing.assert_allclose(terms.bulk + terms.quadratic + terms.projection, terms.bias)
    np.testing.assert_allclose(
        terms.bias + terms.variance,
        theory.spiked_risk(RATIOS, gamma=2.0, spike=8.0, alignment=0.9, noise_variance=0.1),
    )


def relative_gaps(terms, limit):
    pairs = ((terms.bias, limit.bias), (terms.variance, limit.variance), (terms.risk, limit.risk))
    return np.array([found / expected - 1 for found, expected in pairs])


@pytest.mark.parametrize("gamma", [1.5, 4.0])
@pytest.mark.parametrize("spike", [4.0, 10.0])
@pytest.mark.parametrize("formula", ["general", "theorem 2"])
def test_finite_d_formulas_tend_to_bias_and_variance_of_corollary_1_like_one_over_d(formula, gamma, spike):
    p = np.array([0.2, 0.5, 0.8])
    limit = theory.spiked_terms(p, gamma=gamma, spike=spike, alignment=0.8, noise_variance=0.04)
    gaps = []
    for n_features in (250, 1000):
        beta = theory.aligned_signal(np.ones(n_features), alignment=0.8, seed=0)
        if formula == "general":
            model = theory.spiked_covariance(n_features, spike=spike, direction="ones")
            terms = theory.general_terms(p, gamma=gamma, covariance=model, beta=beta, noise_variance=0.04)
        else:
            terms = theory.spiked_spectral_terms(
                p, gamma=gamma, spike=spike, direction=np.ones(n_features), beta=beta, noise_variance=0.04
            )
        gaps.append(relative_gaps(terms, limit))
    assert np.abs(gaps[1]).max() < 0.05
    assert np.abs(gaps[1][2]).max() < 0.025
    np.testing.assert_allclose(4 * gaps[1], gaps[0], rtol=0.25, atol=2e-3)


def test_theorem_2_tends_to_corollary_1_for_a_spike_of_unequal_entries():
    limit = theory.spiked_terms(RATIOS[1:], gamma=2.5, spike=6.0, alignment=0.8, noise_variance=0.04)
    gaps = []
    for n_features in (150, 600):
        vector = theory.spiked_covariance(n_features, spike=6.0, seed=1).eigenvector(1.0)
        terms = theory.spiked_spectral_terms(
            RATIOS[1:],
            gamma=2.5,
            spike=6.0,
            direction=vector,
            beta=theory.aligned_signal(vector, alignment=0.8, seed=0),
            noise_variance=0.04,
        )
        gaps.append(np.abs(relative_gaps(terms, limit)))
    assert gaps[1].max() < 0.025
    assert gaps[1].max() < gaps[0].max() / 2.5


def test_the_quadratic_term_vanishes_at_the_sweet_spot():
    for gamma, spike in ((0.7, 3.0), (1.5, 10.0), (3.0, 10.0), (5.0, 100.0)):
        spot = theory.sweet_spot(gamma=gamma, spike=spike)
        assert 0 < spot < min(gamma, 1)
        terms = theory.spiked_terms(
            [spot, 0.5 * spot], gamma=gamma, spike=spike, alignment=1.0, noise_variance=0.1
        )
        assert terms.quadratic[0] < 1e-18
        assert terms.quadratic[1] > 1e-3


def test_stronger_features_have_a_higher_optimal_ratio_and_gain_more():
    best = [
        theory.optimal_ratio(
            partial(theory.spiked_risk, gamma=2.0, spike=10.0, alignment=c, noise_variance=0.1), gamma=2.0
        )
        for c in (0.3, 0.6, 0.9)
    ]
    assert best[0].ratio < best[1].ratio < best[2].ratio
    null = [1 + 10 * c**2 for c in (0.3, 0.6, 0.9)]
    gains = [b.risk / n for b, n in zip(best, null, strict=True)]
    assert gains == sorted(gains, reverse=True)


def test_too_many_rows_are_rejected():
    for formula in (
        partial(theory.spiked_risk, alignment=0.5),
        partial(theory.spiked_spectral_terms, direction=np.ones(10), beta=np.ones(10)),
    ):
        with pytest.raises(ValueError, match=r"p < gamma = 0.5.*too many rows"):
            formula([0.2, 0.7], gamma=0.5, spike=3.0, noise_variance=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike": -1.0}, "spike must be"),
        ({"alignment": 1.2}, "must not exceed the signal"),
        ({"signal": -1.0}, "signal must be"),
        ({"noise_variance": np.inf}, "noise_variance must be"),
    ],
)
def test_invalid_parameters_are_rejected(change, message):
    args = {"gamma": 2.0, "spike": 3.0, "alignment": 0.5, "noise_variance": 0.1} | change
    with pytest.raises(ValueError, match=message):
        theory.spiked_risk(0.3, **args)


def test_a_spike_too_weak_for_a_sweet_spot_is_rejected():
    with pytest.raises(ValueError, match="no sweet spot for gamma"):
        theory.sweet_spot(gamma=3.0, spike=2.0)
