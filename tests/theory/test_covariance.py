import numpy as np
import pytest
from scipy import stats

from scr2mae import theory

MODELS = {
    "isotropic": lambda seed: theory.isotropic_covariance(30),
    "spiked": lambda seed: theory.spiked_covariance(30, spike=4.0, seed=seed),
    "uniform": lambda seed: theory.uniform_covariance(30, seed=seed),
    "beta": lambda seed: theory.beta_covariance(30, seed=seed),
    "latent": lambda seed: theory.latent_covariance(30, n_factors=8, seed=seed),
    "low rank": lambda seed: theory.low_rank_covariance(30, rank=3, strength=5.0, seed=seed),
}


@pytest.mark.parametrize("name", MODELS)
def test_root_squares_to_the_covariance(name):
    model = MODELS[name](1)
    np.testing.assert_allclose(model.root @ model.root, model.matrix, atol=1e-12)
    np.testing.assert_array_equal(model.root.shape, (30, 30))


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_reproduces_the_covariance_bitwise(name):
    np.testing.assert_array_equal(MODELS[name](3).matrix, MODELS[name](3).matrix)


@pytest.mark.parametrize("name", ["spiked", "uniform", "beta", "latent", "low rank"])
def test_another_seed_gives_another_covariance(name):
    assert np.abs(MODELS[name](3).matrix - MODELS[name](4).matrix).max() > 0.01


def test_the_matrix_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        theory.isotropic_covariance(3).matrix[0, 0] = 2.0


def test_the_spike_is_the_top_eigenvector():
    direction = np.arange(1.0, 21.0)
    model = theory.spiked_covariance(20, spike=6.0, direction=direction)
    np.testing.assert_allclose(model.eigenvalues, [1.0] * 19 + [7.0], atol=1e-12)
    np.testing.assert_allclose(model.eigenvector(1.0), direction / np.linalg.norm(direction), atol=1e-12)


def test_a_spike_of_equal_entries_has_equal_variances():
    assert theory.spiked_covariance(37, spike=3.0, direction="ones").has_constant_diagonal
    assert not theory.spiked_covariance(37, spike=3.0).has_constant_diagonal


@pytest.mark.parametrize("name", ["uniform", "beta"])
def test_rescaled_spectra_span_one_to_ten(name):
    np.testing.assert_allclose(MODELS[name](0).eigenvalues[[0, -1]], [1.0, 10.0], rtol=1e-12)


def test_uniform_spectrum_is_evenly_spaced():
    np.testing.assert_allclose(MODELS["uniform"](0).eigenvalues, np.linspace(1, 10, 30), rtol=1e-12)


def test_beta_spectrum_follows_the_beta_law():
    values = theory.beta_covariance(600, a=1.0, b=3.0, seed=5).eigenvalues
    shares = (values - 1) / 9
    # the rescaling by the largest of 600 draws moves the law slightly
    assert stats.kstest(shares * 0.93, stats.beta(1.0, 3.0).cdf).statistic < 0.06


def test_latent_model_has_its_top_eigenvalue_near_ten():
    assert theory.latent_covariance(800, n_factors=200, seed=2).eigenvalues[-1] == pytest.approx(10, rel=0.02)


def test_low_rank_model_has_the_strengths_on_top_of_one():
    model = theory.low_rank_covariance(25, rank=3, strength=[2.0, 5.0, 9.0], seed=1)
    np.testing.assert_allclose(model.eigenvalues, [1.0] * 22 + [3.0, 6.0, 10.0], atol=1e-12)


def test_haar_matrices_are_orthogonal_and_have_the_first_moments_of_the_law():
    draws = np.array([theory.haar_orthogonal(4, seed=seed) for seed in range(3000)])
    np.testing.assert_allclose(draws[0] @ draws[0].T, np.eye(4), atol=1e-14)
    # without the sign correction the diagonal of Q has a negative mean
    assert np.abs(draws.mean(axis=0)).max() < 4 * 0.5 / np.sqrt(3000)
    np.testing.assert_allclose((draws**2).mean(axis=0), 0.25, atol=0.02)


def test_aligned_signal_has_the_requested_alignment_and_norm():
    direction = np.random.default_rng(0).uniform(size=40)
    beta = theory.aligned_signal(direction, alignment=0.6, signal=2.0, seed=3)
    assert beta @ beta == pytest.approx(2.0)
    assert beta @ direction / np.linalg.norm(direction) == pytest.approx(0.6)


def test_eigenvector_quantiles_run_from_weakest_to_strongest():
    model = MODELS["uniform"](0)
    for quantile, value in ((0.0, 1.0), (1.0, 10.0)):
        vector = model.eigenvector(quantile)
        assert vector @ model.matrix @ vector == pytest.approx(value)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), "square"),
        (np.array([[1.0, 0.5], [0.2, 1.0]]), "symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "finite"),
    ],
)
def test_invalid_covariances_are_rejected(matrix, message):
    with pytest.raises(ValueError, match=message):
        theory.Covariance(matrix)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: theory.spiked_covariance(5, spike=-1.0), "spike must be non-negative"),
        (
            lambda: theory.spiked_covariance(5, spike=1.0, direction="random"),
            "direction must be .ones., .uniform. or a vector",
        ),
        (lambda: theory.spiked_covariance(5, spike=1.0, direction=np.zeros(5)), "non-zero vector"),
        (lambda: theory.latent_covariance(5, n_factors=0), "n_factors must be at least 1"),
        (lambda: theory.low_rank_covariance(5, rank=6, strength=1.0), "rank must lie between"),
        (lambda: theory.low_rank_covariance(5, rank=2, strength=[1.0, 2.0, 3.0]), "2 of them"),
        (lambda: theory.spectral_covariance([1.0, -1.0]), "positive finite"),
        (lambda: theory.aligned_signal(np.ones(4), alignment=1.1), "exceeds the signal"),
        (lambda: theory.isotropic_covariance(4).eigenvector(1.5), "quantile must lie"),
    ],
)
def test_invalid_models_are_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()
