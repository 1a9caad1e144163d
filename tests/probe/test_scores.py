import numpy as np
import pytest
from scipy.stats import norm, spearmanr
from sklearn.metrics import roc_auc_score

from scr2mae.metrics import balanced_accuracy, macro_auroc, macro_f1, spearman
from scr2mae.probe import scores as probe_scores

N_DONORS, N_CLASSES = 6, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cells(rng):
    """Labels, rounded scores (for ties) and donors; the last class occurs in two donors only."""
    donors = rng.integers(0, N_DONORS, 240)
    y = np.where((donors < 2) & (rng.random(240) < 0.3), 3, rng.integers(0, 3, 240))
    scores = np.round(rng.normal(size=(240, N_CLASSES)) + 1.5 * np.eye(N_CLASSES)[y], 1)
    return y, scores, donors


@pytest.fixture
def draws(rng):
    return rng.multinomial(N_DONORS, np.full(N_DONORS, 1 / N_DONORS), size=40).astype(float)


def repeated(weights, donors):
    """Return the rows of the cells in a draw of whole donors."""
    return np.repeat(np.arange(len(donors)), weights[donors].astype(int))


class TestWeightedScoresEqualTheScoreOfRepeatedDonors:
    def test_accuracy_and_f1(self, cells, draws):
        y, scores, donors = cells
        predicted = scores.argmax(axis=1)
        accuracy, f1 = probe_scores.weighted_accuracy_and_f1(y, predicted, donors, n_classes=N_CLASSES)
        rows = [repeated(w, donors) for w in draws]
        np.testing.assert_allclose(accuracy(draws), [balanced_accuracy(y[r], predicted[r]) for r in rows])
        np.testing.assert_allclose(f1(draws), [macro_f1(y[r], predicted[r]) for r in rows])

    def test_auroc(self, cells, draws):
        y, scores, donors = cells
        rows = [repeated(w, donors) for w in draws]
        expected = [macro_auroc(y[r], scores[r], classes=np.arange(N_CLASSES)) for r in rows]
        np.testing.assert_allclose(probe_scores.weighted_auroc(y, scores, donors)(draws), expected)

    def test_spearman(self, cells, draws):
        _, scores, donors = cells
        a, b = scores[:, 0], np.round(scores[:, 0] + scores[:, 1])
        expected = [spearman(a[r], b[r]) for r in (repeated(w, donors) for w in draws)]
        np.testing.assert_allclose(probe_scores.weighted_spearman(a, b, donors)(draws), expected)


def test_a_draw_of_one_class_has_no_score():
    y, donors = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    one_donor = np.array([[2.0, 0.0]])
    for score in probe_scores.weighted_accuracy_and_f1(y, y, donors, n_classes=2):
        assert np.isnan(score(one_donor)).all()
    assert np.isnan(probe_scores.weighted_auroc(y, np.eye(2)[y], donors)(one_donor)).all()
    assert np.isnan(probe_scores.weighted_spearman(y.astype(float), y.astype(float), donors)(one_donor)).all()


class TestDonorInterval:
    def test_covers_a_mean_of_donors_like_the_normal_interval(self, rng):
        values = rng.normal(size=200)
        low, high = probe_scores.donor_interval(
            lambda w: (w @ values) / w.sum(axis=1), 200, n_draws=4000, confidence=0.9, seed=0
        )
        half = norm.ppf(0.95) * values.std() / np.sqrt(200)
        assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert high == pytest.approx(values.mean() + half, abs=0.1 * half)

    def test_is_wider_than_drawing_cells_where_donors_differ(self, rng):
        donors = np.repeat(np.arange(8), 50)
        truth = rng.normal(size=400)
        predicted = truth * np.where(np.arange(8) % 2, 1.0, -1.0)[donors]  # correct in half of the donors
        by_donor = probe_scores.weighted_spearman(truth, predicted, donors)
        by_cell = probe_scores.weighted_spearman(truth, predicted, np.arange(400))
        settings = {"n_draws": 300, "confidence": 0.95, "seed": 0}
        donor_low, donor_high = probe_scores.donor_interval(by_donor, 8, **settings)
        cell_low, cell_high = probe_scores.donor_interval(by_cell, 400, **settings)
        assert donor_high - donor_low > 3 * (cell_high - cell_low)

    def test_is_nan_for_one_donor_no_draws_and_no_defined_draw(self):
        undefined = [
            probe_scores.donor_interval(lambda w: w[:, 0], 1, n_draws=10, confidence=0.9, seed=0),
            probe_scores.donor_interval(lambda w: w[:, 0], 5, n_draws=0, confidence=0.9, seed=0),
            probe_scores.donor_interval(lambda w: w[:, 0] * np.nan, 5, n_draws=10, confidence=0.9, seed=0),
        ]
        assert np.isnan(undefined).all()


def test_equal_weights_give_the_plain_score(cells):
    y, scores, donors = cells
    ones = np.ones((1, N_DONORS))
    area = probe_scores.weighted_auroc(y, scores, donors)(ones)[0]
    assert area == pytest.approx(np.mean([roc_auc_score(y == c, scores[:, c]) for c in range(N_CLASSES)]))
    rho = probe_scores.weighted_spearman(scores[:, 0], scores[:, 1], donors)(ones)[0]
    assert rho == pytest.approx(spearmanr(scores[:, 0], scores[:, 1]).statistic)
