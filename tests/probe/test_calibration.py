"""Calibration against scikit-learn, cross-fitting over donors, and the rate of unknown cells."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from scr2mae.metrics import calibration_error
from scr2mae.probe.calibration import cross_calibrate, fit_calibration, reliability
from scr2mae.probe.linear import HeldOut, log_odds
from scr2mae.probe.rejection import Surprises, _thresholds, fit_novelty, fit_rejection, surprise


class Scores(ClassifierMixin, BaseEstimator):
    """An estimator whose features are its scores."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0] if X.shape[1] == 1 else X

    def predict(self, X):
        return self.classes_[X.argmax(axis=1)]


def draw(n, seed=0, slope=0.4):
    """Log-odds that are too large by a factor, and classes drawn with the true ones."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 4, n)
    return odds, (rng.random(n) < expit(slope * odds + 0.3)).astype(int)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_curves_are_those_of_scikit_learn(method):
    odds, y = draw(800)
    curves = fit_calibration(np.column_stack([-odds, odds]), y, method)
    scores = FrozenEstimator(Scores().fit(odds[:, None], y))
    theirs = CalibratedClassifierCV(scores, method=method, ensemble=False).fit(odds[:, None], y)
    ours = curves(np.column_stack([-odds, odds]))
    np.testing.assert_allclose(ours, theirs.predict_proba(odds[:, None]), atol=3e-4)


def test_curves_of_several_classes_are_scikit_learn_s_one_against_the_rest():
    rng = np.random.default_rng(1)
    odds = rng.normal(size=(600, 3)) * 3
    y = (odds + rng.gumbel(size=odds.shape) * 2).argmax(axis=1)
    ours = fit_calibration(odds, y, "sigmoid")(odds)
    theirs = CalibratedClassifierCV(FrozenEstimator(Scores().fit(odds, y)), ensemble=False).fit(odds, y)
    np.testing.assert_allclose(ours, theirs.predict_proba(odds), atol=3e-4)
    np.testing.assert_allclose(ours.sum(axis=1), 1)


def test_a_sigmoid_recovers_the_true_curve():
    odds, y = draw(20_000)
    slope, intercept = fit_calibration(np.column_stack([-odds, odds]), y, "sigmoid").curves[0]
    np.testing.assert_allclose([slope[0], intercept[0]], [0.4, 0.3], atol=0.03)


def test_calibration_lowers_the_error_of_overconfident_odds():
    odds, y = draw(4000)
    raw = np.column_stack([1 - expit(odds), expit(odds)])
    found = fit_calibration(np.column_stack([-odds, odds]), y, "isotonic")
    new_odds, new_y = draw(4000, seed=1)
    after = found(np.column_stack([-new_odds, new_odds]))
    assert calibration_error(y, raw) > 0.12
    assert calibration_error(new_y, after) < 0.03


def test_the_calibration_error_of_a_small_table_is_the_one_by_hand():
    p = np.array([[0.95, 0.05], [0.92, 0.08], [0.45, 0.55], [0.2, 0.8]])
    y = np.array([0, 1, 1, 1])
    by_hand = (abs(0.95 + 0.92 - 1) + abs(0.55 - 1) + abs(0.8 - 1)) / 4
    assert calibration_error(y, p) == pytest.approx(by_hand)
    table = reliability(y, p)
    assert (table["n"] * (table["probability"] - table["correct"]).abs()).sum() / 4 == pytest.approx(by_hand)
    assert calibration_error(np.array([1, 1]), np.eye(2)[[1, 1]]) == 0


def test_a_fold_is_calibrated_by_the_others_alone():
    odds, y = draw(300)
    outputs = np.column_stack([-odds / 2, odds / 2])
    fold = np.repeat([0, 1, 2], 100)
    held_out = HeldOut(outputs, outputs, fold, ())
    before = cross_calibrate(held_out, y, "sigmoid")
    flipped = np.where(fold == 1, 1 - y, y)
    after = cross_calibrate(held_out, flipped, "sigmoid")
    np.testing.assert_array_equal(before[fold == 1], after[fold == 1])
    assert np.abs(before[fold == 0] - after[fold == 0]).max() > 0.05


def test_log_odds_of_two_classes_are_the_difference_of_logits():
    logits = np.array([[1.0, 3.0], [0.5, -2.0]])
    np.testing.assert_allclose(log_odds(logits)[:, 1], logits[:, 1] - logits[:, 0])
    three = np.array([[0.1, 0.5, -1.0]])
    p = np.exp(three) / np.exp(three).sum()
    np.testing.assert_allclose(log_odds(three), np.log(p / (1 - p)))


def cells_of_donors(n_donors=30, n_cells=60, seed=0):
    rng = np.random.default_rng(seed)
    donors = np.repeat(np.arange(n_donors), n_cells)
    codes = rng.integers(3, size=len(donors))
    centers = 6 * np.eye(3, 8)
    X = centers[codes] + rng.normal(size=(len(donors), 8)) + 0.3 * rng.normal(size=(n_donors, 8))[donors]
    return X, codes, donors


def folds_of(donors, k=5):
    members = donors % k
    return [(np.flatnonzero(members != i), np.flatnonzero(members == i)) for i in range(k)]


def test_the_distance_is_that_of_mahalanobis_to_the_nearest_class():
    X, codes, _ = cells_of_donors()
    novelty = fit_novelty(X, codes)
    covariance = np.linalg.inv(novelty.whitening @ novelty.whitening.T)
    gaps = X[:50, None] - novelty.means
    squared = np.einsum("ncp,pq,ncq->nc", gaps, np.linalg.inv(covariance), gaps)
    np.testing.assert_allclose(novelty(X[:50]), np.sqrt(squared.min(axis=1)), rtol=1e-8)
    np.testing.assert_allclose(novelty.means[1], X[codes == 1].mean(axis=0))


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("with_surprise", [False, True])
def test_known_cells_of_new_donors_are_unknown_at_the_nominal_rate(rate, with_surprise):
    X, codes, donors = cells_of_donors()
    new, _, new_donors = cells_of_donors(60, 100, seed=1)
    rng = np.random.default_rng(0)

    def draw(n):
        return Surprises(rng.chisquare(50, n) / 50, np.ones(n), 100) if with_surprise else None

    rule, expected = fit_rejection(X, codes, donors, folds_of(donors), rate=rate, found=draw(len(X)))
    share = pd.Series(rule(new, draw(len(new)))).groupby(new_donors).mean().mean()
    assert abs(share - rate) < 0.02
    assert abs(expected - rate) < 0.02


def test_a_kind_of_cell_that_the_reference_lacks_is_unknown():
    X, codes, donors = cells_of_donors()
    known = codes < 2
    rule, _ = fit_rejection(X[known], codes[known], donors[known], folds_of(donors[known]), rate=0.05)
    assert rule(X[~known]).mean() > 0.95
    assert rule(X[known]).mean() < 0.1


def test_surprise_is_one_without_structure_and_large_where_neighbors_share_it():
    rng = np.random.default_rng(0)
    residuals, X = rng.normal(size=(600, 300)), rng.normal(size=(600, 5))
    X[:100] += 20  # a group of its own ...
    assert surprise(residuals, X).mean() == pytest.approx(1, abs=0.05)
    residuals[:100, :30] += 2  # ... whose cells have thirty genes that the network does not expect
    found = surprise(residuals, X)
    assert found[:100].min() > 2 > 1.6 > found[100:].max()
    for n in (1, 3):
        assert surprise(residuals[-n:], X[-n:]).mean() == pytest.approx(1, abs=0.2)


def test_genes_that_were_not_measured_add_no_surprise():
    rng = np.random.default_rng(0)
    residuals, X = rng.normal(size=(50, 40)), rng.normal(size=(50, 5))
    panel = residuals.copy()
    panel[:, 20:] = np.nan
    np.testing.assert_allclose(surprise(panel, X), surprise(residuals[:, :20], X))


def test_a_surprising_cell_is_unknown_if_as_many_genes_were_measured():
    X, codes, donors = cells_of_donors()
    drawn = np.random.default_rng(1).chisquare(50, len(X)) / 50
    found = Surprises(drawn, np.ones(len(X)), 100)
    rule, _ = fit_rejection(X, codes, donors, folds_of(donors), rate=0.1, found=found)
    surprising = found._replace(values=drawn + 2)
    assert rule(X, surprising).all()
    assert not rule(X, found).all()
    np.testing.assert_array_equal(rule(X, surprising._replace(n_genes=50)), rule(X))


def test_surprise_is_relative_to_the_donor_up_to_a_limit():
    X, codes, donors = cells_of_donors()
    drawn = np.random.default_rng(1).chisquare(50, len(X)) / 50
    found = Surprises(drawn, np.ones(len(X)), 100)
    rule, _ = fit_rejection(X, codes, donors, folds_of(donors), rate=0.1, found=found)
    assert rule.usual == 1.0
    worse = Surprises(1.8 * drawn, np.full(len(X), 1.8), 100)  # a donor that the network fits less well
    np.testing.assert_array_equal(rule(X, worse), rule(X, found))
    strange = Surprises(20 * drawn, np.full(len(X), 20.0), 100)  # most of its cells are of another kind
    assert rule(X, strange).all()


def test_the_rate_is_of_donors_not_of_cells():
    """Of four donors, one has most cells, all far out: it is a quarter of the donors, not most of them."""
    scores = np.append(np.full(3000, 10.0), np.tile(np.linspace(0, 1, 100), 3))
    owners = np.append(np.zeros(3000), np.repeat([1, 2, 3], 100))
    grid, level = _thresholds([scores], owners, 0.3)
    assert level == 0.7
    assert np.interp(0.7, np.linspace(0, 1, len(grid)), grid) == pytest.approx(0.7 / 0.75, abs=0.01)
