import numpy as np
import pytest

from scr2mae import theory

MODELS = {
    "isotropic": lambda d: theory.isotropic_covariance(d),
    "spiked": lambda d: theory.spiked_covariance(d, spike=8.0, seed=1),
    "uniform": lambda d: theory.uniform_covariance(d, seed=1),
    "beta": lambda d: theory.beta_covariance(d, seed=1),
    "latent": lambda d: theory.latent_covariance(d, n_factors=d // 4, seed=1),
    "low rank": lambda d: theory.low_rank_covariance(d, rank=d // 10, strength=30.0, seed=1),
    # variances from 0.2 to 5, so that masking changes the eigenvectors
    "unequal variances": lambda d: theory.Covariance(
        np.sqrt(np.outer(np.geomspace(0.2, 5, d), np.geomspace(0.2, 5, d)))
        * 0.6 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    ),
}
FIXED = (0.1, 0.25, 0.5, 0.75)
RANGES = ((0.1, 0.4), (0.3, 0.8))
DISCRETE = ([0.15, 0.5, 0.7], [0.4, 0.3, 0.3])


def signals(model):
    random = np.random.default_rng(4).standard_normal(model.n_features)
    return np.stack([model.eigenvector(1.0), model.eigenvector(0.5), random / np.linalg.norm(random)], axis=1)


def away(gamma, ratio):
    return abs(ratio / gamma - 1) >= 0.2


def check_against_simulation(name, *, d, gamma, noise, n_draws, tolerance):
    """Compare general_risk, general_terms.power and r2mae_risk with simulated means."""
    model = MODELS[name](d)
    betas = signals(model)
    fixed = [p for p in FIXED if away(gamma, p)]
    ranges = [
        law
        for law in (*RANGES, DISCRETE)
        if away(gamma, theory.RatioLaw.discrete(*law).mean if np.ndim(law[0]) else np.mean(law))
    ]
    run = theory.simulate_risk(
        [*fixed, *ranges],
        gamma=gamma,
        covariance=model,
        beta=betas,
        noise_variance=noise,
        n_draws=n_draws,
        seed=7,
    )
    # gamma must be that of the rows simulated
    args = {"gamma": d / round(d / gamma), "covariance": model, "noise_variance": noise}
    precise = run.standard_error < 0.01 * run.mean
    assert precise.mean() > 0.9
    powers, power_errors = run.powers.mean(axis=0), run.powers.std(axis=0, ddof=1) / np.sqrt(n_draws)
    for column, beta in enumerate(betas.T):
        terms = theory.general_terms(fixed, beta=beta, **args)
        randomised = [theory.r2mae_risk(law, beta=beta, **args) for law in ranges]
        formula = np.r_[terms.risk, randomised]
        bound = 3 * run.standard_error[:, column] + tolerance * run.mean[:, column]
        off = np.abs(formula - run.mean[:, column])
        assert (off <= bound)[precise[:, column]].all(), (off / run.mean[:, column], beta[:3])
        n_fixed = len(fixed)
        off = np.abs(terms.power - powers[:n_fixed, column])
        assert (off <= 3 * power_errors[:n_fixed, column] + tolerance * powers[:n_fixed, column]).all()


@pytest.mark.parametrize("gamma", [0.35, 1.6, 4.0])
@pytest.mark.parametrize("name", MODELS)
def test_formulas_agree_with_simulation_at_300_covariates(name, gamma):
    noise = {0.35: 1.0, 1.6: 0.2, 4.0: 0.02}[gamma]
    check_against_simulation(name, d=300, gamma=gamma, noise=noise, n_draws=80, tolerance=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.35, 1.6, 4.0])
@pytest.mark.parametrize("name", MODELS)
def test_formulas_agree_with_simulation_at_1000_covariates(name, gamma):
    noise = {0.35: 1.0, 1.6: 0.2, 4.0: 0.02}[gamma]
    check_against_simulation(name, d=1000, gamma=gamma, noise=noise, n_draws=60, tolerance=0.01)


def check_theorem_1(*, d, gamma, noise, n_draws, tolerance):
    p = np.array([p for p in FIXED if away(gamma, p)])
    beta = 1.5 * theory.isotropic_covariance(d).eigenvector(0.5)
    beta = theory.haar_orthogonal(d, seed=3) @ beta
    run = theory.simulate_risk(
        p, gamma=gamma, covariance=np.eye(d), beta=beta, noise_variance=noise, n_draws=n_draws, seed=2
    )
    closed = theory.isotropic_risk(p, gamma=d / round(d / gamma), signal=beta @ beta, noise_variance=noise)
    precise = run.standard_error < 0.01 * run.mean
    assert precise.sum() >= p.size - 1
    off = np.abs(closed - run.mean)
    assert (off <= 3 * run.standard_error + tolerance * run.mean)[precise].all()


@pytest.mark.parametrize(("gamma", "noise"), [(0.35, 1.0), (1.6, 0.5), (4.0, 0.05)])
def test_theorem_1_agrees_with_simulation_at_300_covariates(gamma, noise):
    check_theorem_1(d=300, gamma=gamma, noise=noise, n_draws=100, tolerance=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "noise"), [(0.35, 1.0), (1.6, 0.5), (4.0, 0.05)])
def test_theorem_1_agrees_with_simulation_at_1000_covariates(gamma, noise):
    check_theorem_1(d=1000, gamma=gamma, noise=noise, n_draws=60, tolerance=0.01)


def check_corollary_1(*, d, gamma, spike, n_draws, tolerance):
    p = np.array([p for p in (0.2, 0.4, 0.6, 0.8) if p < 0.8 * gamma])
    model = theory.spiked_covariance(d, spike=spike, direction="ones")
    alignments = (0.3, 0.8)
    betas = np.stack([theory.aligned_signal(np.ones(d), alignment=c, seed=5) for c in alignments], axis=1)
    run = theory.simulate_risk(
        p, gamma=gamma, covariance=model, beta=betas, noise_variance=0.1, n_draws=n_draws, seed=2
    )
    for column, alignment in enumerate(alignments):
        limit = theory.spiked_risk(
            p, gamma=d / round(d / gamma), spike=spike, alignment=alignment, noise_variance=0.1
        )
        precise = run.standard_error[:, column] < 0.01 * run.mean[:, column]
        assert precise.sum() >= p.size - 1
        off = np.abs(limit - run.mean[:, column])
        bound = 3 * run.standard_error[:, column] + tolerance * run.mean[:, column]
        assert (off <= bound)[precise].all(), off / run.mean[:, column]


@pytest.mark.parametrize(("gamma", "spike"), [(1.5, 4.0), (3.0, 5.0)])
def test_corollary_1_agrees_with_simulation_at_300_covariates(gamma, spike):
    check_corollary_1(d=300, gamma=gamma, spike=spike, n_draws=120, tolerance=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "spike"), [(1.5, 4.0), (3.0, 10.0)])
def test_corollary_1_agrees_with_simulation_at_1000_covariates(gamma, spike):
    check_corollary_1(d=1000, gamma=gamma, spike=spike, n_draws=100, tolerance=0.02)


@pytest.fixture(scope="module")
def small():
    model = theory.uniform_covariance(40, seed=0)
    return {"gamma": 2.0, "covariance": model, "beta": model.eigenvector(1.0), "noise_variance": 0.1}


def test_a_range_of_no_width_equals_the_fixed_ratio_to_the_bit(small):
    run = theory.simulate_risk([0.55, (0.55, 0.55), (0.3, 0.8)], n_draws=10, seed=42, **small)
    np.testing.assert_array_equal(run.risks[:, 0], run.risks[:, 1])
    assert (run.risks[:, 0] != run.risks[:, 2]).all()
    alone = theory.simulate_risk((0.55, 0.55), n_draws=10, seed=42, **small)
    np.testing.assert_array_equal(alone.risks[:, 0], run.risks[:, 0])


def test_one_seed_reproduces_and_another_differs(small):
    first, again, other = (theory.simulate_risk(0.4, n_draws=5, seed=s, **small).risks for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_more_draws_continue_the_same_sequence(small):
    few = theory.simulate_risk([0.2, 0.4], n_draws=3, seed=1, **small)
    many = theory.simulate_risk([0.2, 0.4], n_draws=6, seed=1, **small)
    np.testing.assert_array_equal(few.risks, many.risks[:3])


def test_the_number_of_processes_changes_nothing(small):
    serial = theory.simulate_risk([0.2, (0.3, 0.7)], n_draws=6, seed=3, **small)
    parallel = theory.simulate_risk([0.2, (0.3, 0.7)], n_draws=6, seed=3, n_jobs=2, **small)
    np.testing.assert_array_equal(serial.risks, parallel.risks)
    np.testing.assert_array_equal(serial.powers, parallel.powers)


def test_several_signals_equal_their_separate_runs(small):
    betas = np.stack([small["beta"], np.linspace(-1, 1, 40)], axis=1)
    together = theory.simulate_risk([0.2, 0.6], n_draws=4, **(small | {"beta": betas}))
    for column, beta in enumerate(betas.T):
        alone = theory.simulate_risk([0.2, 0.6], n_draws=4, **(small | {"beta": beta}))
        np.testing.assert_allclose(alone.risks, together.risks[..., column], rtol=1e-9)


def test_summaries_are_those_of_numpy(small):
    run = theory.simulate_risk(0.4, n_draws=9, **small)
    assert run.mean == pytest.approx(np.mean(run.risks, axis=0))
    assert run.standard_error == pytest.approx(np.std(run.risks, axis=0, ddof=1) / 3)


def test_without_rows_the_prediction_is_zero(small):
    # p = 1e-6 keeps no row of 20, so the risk is the null risk
    run = theory.simulate_risk(1e-6, n_draws=3, **small)
    beta, matrix = small["beta"], small["covariance"].matrix
    np.testing.assert_allclose(run.risks, beta @ matrix @ beta)
    np.testing.assert_array_equal(run.powers, 0.0)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_minimum_norm_equals_the_pseudo_inverse(shape):
    rng = np.random.default_rng(0)
    rows, targets = rng.standard_normal(shape), rng.standard_normal((shape[0], 2))
    np.testing.assert_allclose(
        theory.minimum_norm(rows, targets), np.linalg.pinv(rows) @ targets, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_minimum_norm_equals_the_pseudo_inverse_of_rank_deficient_rows(shape):
    rng = np.random.default_rng(1)
    rows, targets = rng.standard_normal(shape), rng.standard_normal((shape[0], 1))
    rows[2] = 0.0
    rows[:, 3] = rows[:, 4]
    rows[5] = rows[6]
    np.testing.assert_allclose(
        theory.minimum_norm(rows, targets), np.linalg.pinv(rows) @ targets, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 100.0}, "At least one row"),
        ({"n_draws": 0}, "At least one row, draw and job"),
        ({"n_jobs": 0}, "At least one row, draw and job"),
        ({"beta": np.ones(3)}, "beta must have 40 rows"),
        ({"noise_variance": -0.1}, "noise_variance must be"),
    ],
)
def test_bad_arguments_are_refused(small, change, message):
    with pytest.raises(ValueError, match=message):
        theory.simulate_risk(0.3, **(small | change))
