import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import approx_fprime
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from scr2mae.probe import LogisticProbe, RidgeProbe
from scr2mae.probe import multinomial as solvers


@parametrize_with_checks([RidgeProbe(), LogisticProbe()])
def test_follows_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_default_grids_are_those_of_the_paper(make_cells):
    cells = make_cells(n_obs=80)
    ridge = RidgeProbe().fit(cells.X, cells.age, groups=cells.donors)
    logistic = LogisticProbe().fit(cells.X, cells.y, groups=cells.donors)
    assert ridge.cv_mse_.shape == (5, 20)
    assert logistic.cv_scores_.shape == (5, 10)
    assert ridge.alpha_ in np.logspace(0, 8, 20)
    assert logistic.C_ in np.logspace(-6, 2, 10)


class TestRidgeProbe:
    @pytest.mark.parametrize("shape", [(600, 20), (60, 90)], ids=["primal", "dual"])
    @pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csr_array])
    def test_equals_a_grid_search_over_scikit_learns_ridge(self, make_cells, shape, layout):
        cells = make_cells(n_obs=shape[0], n_features=shape[1])
        alphas = np.logspace(-2, 5, 12)
        search = GridSearchCV(
            Ridge(solver="cholesky", alpha=1.0),
            {"alpha": alphas},
            cv=GroupKFold(5),
            scoring="neg_mean_squared_error",
        ).fit(cells.X, cells.age, groups=cells.donors)
        probe = RidgeProbe(alphas).fit(layout(cells.X), cells.age, groups=cells.donors)
        assert probe.alpha_ == search.best_params_["alpha"]
        np.testing.assert_allclose(
            probe.cv_mse_.mean(axis=0), -search.cv_results_["mean_test_score"], rtol=1e-8
        )
        np.testing.assert_allclose(probe.coef_, search.best_estimator_.coef_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(probe.predict(layout(cells.X)), search.predict(cells.X), rtol=1e-9)

    def test_several_targets_equal_separate_probes(self, make_cells):
        cells = make_cells()
        rng = np.random.default_rng(1)
        Y = np.column_stack([cells.age, rng.normal(size=len(cells.age)), cells.X[:, 3] ** 2])
        together = RidgeProbe().fit(cells.X, Y, groups=cells.donors)
        assert together.predict(cells.X).shape == Y.shape
        for j in range(3):
            alone = RidgeProbe().fit(cells.X, Y[:, j], groups=cells.donors)
            assert together.alpha_[j] == alone.alpha_
            np.testing.assert_allclose(together.coef_[j], alone.coef_, rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(together.predict(cells.X)[:, j], alone.predict(cells.X), rtol=1e-9)

    def test_a_distant_origin_loses_no_precision(self, make_cells):
        cells = make_cells()
        near = RidgeProbe().fit(cells.X, cells.age, groups=cells.donors)
        far = RidgeProbe().fit(cells.X + 1e6, cells.age, groups=cells.donors)
        np.testing.assert_allclose(far.predict(cells.X + 1e6), near.predict(cells.X), rtol=1e-7)

    def test_does_not_modify_its_input(self, make_cells):
        cells = make_cells(n_obs=80)
        before = cells.X.copy()
        RidgeProbe().fit(cells.X, cells.age, groups=cells.donors)
        np.testing.assert_array_equal(cells.X, before)

    def test_accepts_a_splitter_whose_folds_do_not_cover_the_cells(self, make_cells):
        cells = make_cells()
        folds = [(np.arange(0, 300), np.arange(300, 400)), (np.arange(100, 500), np.arange(500, 600))]

        class Fixed:
            def split(self, X, y=None, groups=None):
                return iter(folds)

        probe = RidgeProbe([1.0, 100.0], cv=Fixed()).fit(cells.X, cells.age)
        for fold, (train, test) in enumerate(folds):
            for j, alpha in enumerate([1.0, 100.0]):
                error = (
                    Ridge(alpha).fit(cells.X[train], cells.age[train]).predict(cells.X[test])
                    - cells.age[test]
                )
                assert probe.cv_mse_[fold, j] == pytest.approx(np.mean(error**2))


class TestLogisticProbe:
    @pytest.mark.parametrize("n_classes", [2, 4])
    @pytest.mark.parametrize("layout", [np.asarray, sp.csr_matrix, sp.csr_array])
    @pytest.mark.parametrize("C", [1e-4, 1e-1, 1e2])
    def test_converges_to_scikit_learns_coefficients(self, make_cells, n_classes, layout, C):
        cells = make_cells(n_classes=n_classes)
        reference = LogisticRegression(C=C, tol=1e-12, max_iter=10_000, solver="newton-cg").fit(
            cells.X, cells.y
        )
        probe = LogisticProbe([C], tol=1e-9).fit(layout(cells.X), cells.y, groups=cells.donors)
        scale = np.abs(reference.coef_).max()
        np.testing.assert_allclose(probe.coef_, reference.coef_, atol=1e-5 * scale)
        np.testing.assert_allclose(probe.intercept_, reference.intercept_, atol=1e-4 * scale)
        np.testing.assert_allclose(
            probe.predict_proba(layout(cells.X)), reference.predict_proba(cells.X), atol=1e-5
        )
        np.testing.assert_allclose(
            probe.decision_function(cells.X), reference.decision_function(cells.X), atol=1e-4 * scale
        )

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_chooses_the_penalty_of_a_converged_grid_search(self, make_cells, n_classes):
        cells = make_cells(n_classes=n_classes)
        Cs = np.logspace(-5, 1, 6)
        search = GridSearchCV(
            LogisticRegression(tol=1e-8, max_iter=1000, solver="newton-cholesky"),
            {"C": Cs},
            cv=StratifiedGroupKFold(5),
            scoring="balanced_accuracy",
        ).fit(cells.X, cells.y, groups=cells.donors)
        probe = LogisticProbe(Cs, tol=1e-7).fit(cells.X, cells.y, groups=cells.donors)
        np.testing.assert_allclose(
            probe.cv_scores_.mean(axis=0), search.cv_results_["mean_test_score"], atol=2e-3
        )
        assert search.best_params_["C"] == probe.C_

    def test_probabilities_at_the_default_tolerance_are_within_a_hundredth(self, make_cells):
        cells = make_cells(n_obs=1500)
        for C in np.logspace(-6, 2, 5):
            loose = LogisticProbe([C]).fit(cells.X, cells.y, groups=cells.donors)
            tight = LogisticProbe([C], tol=1e-9).fit(cells.X, cells.y, groups=cells.donors)
            np.testing.assert_allclose(loose.predict_proba(cells.X), tight.predict_proba(cells.X), atol=1e-2)

    def test_without_a_decomposition_finds_the_same_coefficients(self, make_cells, monkeypatch):
        cells = make_cells()
        decomposed = LogisticProbe([0.1], tol=1e-8).fit(cells.X, cells.y)
        monkeypatch.setattr(solvers, "_MAX_DECOMPOSED", 5)
        diagonal = LogisticProbe([0.1], tol=1e-8).fit(cells.X, cells.y)
        assert diagonal.n_iter_ > decomposed.n_iter_
        np.testing.assert_allclose(diagonal.coef_, decomposed.coef_, atol=1e-6)

    def test_the_order_of_the_grid_does_not_matter(self, make_cells):
        cells = make_cells()
        Cs = np.logspace(-4, 1, 5)
        up = LogisticProbe(Cs).fit(cells.X, cells.y, groups=cells.donors)
        down = LogisticProbe(Cs[::-1]).fit(cells.X, cells.y, groups=cells.donors)
        assert up.C_ == down.C_
        np.testing.assert_array_equal(up.cv_scores_, down.cv_scores_[:, ::-1])

    def test_a_class_of_one_donor_is_scored_as_missed_if_held_out(self, make_cells):
        cells = make_cells(n_donors=4)
        y = np.where(cells.donors == "d0", "only", np.where(cells.y > 1, "high", "low"))
        probe = LogisticProbe(cv=GroupKFold(4)).fit(cells.X, y, groups=cells.donors)
        held_out = [set(cells.donors[test]) for _, test in GroupKFold(4).split(cells.X, y, cells.donors)]
        np.testing.assert_array_equal(probe.cv_scores_[held_out.index({"d0"})], 0.0)
        assert probe.classes_.tolist() == ["high", "low", "only"]

    def test_folds_that_test_one_class_do_not_choose_a_constant_probe(self):
        rng = np.random.default_rng(0)
        donors = np.repeat(np.arange(6), 40)
        y = np.repeat([0, 0, 0, 0, 1, 1], 40)
        X = rng.normal(size=(240, 5)) + rng.normal(scale=0.8, size=(6, 5))[donors]
        X[:, 0] += 1.5 * y
        probe = LogisticProbe().fit(X, y, groups=donors)
        assert (
            probe.cv_scores_.mean(axis=0).argmax() == 0
        )  # one class for all cells is perfect in three of five folds
        assert probe.C_ > 1e-3
        assert recall_score(y, probe.predict(X), average="macro") > 0.8

    def test_folds_that_train_on_one_class_are_constant(self, make_cells):
        cells = make_cells(n_donors=2)
        probe = LogisticProbe().fit(cells.X, cells.donors == "d0", groups=cells.donors)
        np.testing.assert_array_equal(probe.cv_scores_, 0.0)

    def test_warns_if_it_did_not_converge(self, make_cells):
        cells = make_cells()
        with pytest.warns(ConvergenceWarning, match="max_iter=2 steps; raise max_iter or scale"):
            LogisticProbe([1.0], max_iter=2).fit(cells.X, cells.y)

    def test_the_gradient_is_that_of_the_objective(self, make_cells):
        cells = make_cells(n_obs=40, n_features=3, n_classes=3)
        path = solvers.MultinomialPath(cells.X, cells.y, tol=1e-4, max_iter=10)
        curvature = np.diag([0.2, 0.3, 0.4]) - np.outer([0.2, 0.3, 0.4], [0.2, 0.3, 0.4])
        frame = solvers._Frame.of(path._moment, curvature, 0.1)
        z = np.random.default_rng(0).normal(size=12)
        numeric = approx_fprime(z, lambda v: path._objective(v, frame, 0.1)[0], 1e-7)
        np.testing.assert_allclose(path._objective(z, frame, 0.1)[1], numeric, atol=1e-6)

    def test_the_frame_round_trips(self, make_cells):
        cells = make_cells(n_obs=40, n_features=3, n_classes=3)
        path = solvers.MultinomialPath(cells.X, cells.y, tol=1e-4, max_iter=10)
        frame = solvers._Frame.of(path._moment, np.diag([0.2, 0.1, 0.3]), 0.1)
        coef, intercept = np.arange(9.0).reshape(3, 3), np.array([1.0, -2.0, 1.0])
        back = frame.from_frame(frame.to_frame(coef, intercept))
        np.testing.assert_allclose(back[0], coef, atol=1e-12)
        np.testing.assert_allclose(back[1], intercept, atol=1e-12)


@pytest.mark.parametrize("probe", [RidgeProbe(), LogisticProbe()], ids=["ridge", "logistic"])
class TestGroups:
    def test_donors_share_a_fold(self, probe, make_cells):
        # The cells of a donor are equal, so that only folds that split donors can predict the target.
        rng = np.random.default_rng(0)
        X = np.repeat(rng.normal(size=(20, 30)), 15, axis=0)
        donors, target = np.repeat(np.arange(20), 15), np.repeat(np.arange(20) % 2, 15)
        grouped = clone(probe).fit(X, target, groups=donors)
        shuffled = clone(probe).fit(X, target, groups=rng.permutation(donors))
        if isinstance(probe, RidgeProbe):
            assert grouped.cv_mse_.mean(axis=0).min() > 0.2
            assert shuffled.cv_mse_.mean(axis=0).min() < 0.01
        else:
            assert grouped.cv_scores_.mean(axis=0).max() < 0.75
            assert shuffled.cv_scores_.mean(axis=0).max() > 0.99

    def test_the_order_of_cells_does_not_matter(self, probe, make_cells):
        cells = make_cells(n_obs=300)
        y = cells.age if isinstance(probe, RidgeProbe) else cells.y
        order = np.random.default_rng(0).permutation(300)
        if isinstance(probe, LogisticProbe):
            probe = clone(probe).set_params(tol=1e-8)
        one = clone(probe).fit(cells.X, y, groups=cells.donors)
        other = clone(probe).fit(cells.X[order], y[order], groups=cells.donors[order])
        np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-5 * np.abs(one.coef_).max())

    def test_fewer_donors_than_folds_leave_one_out(self, probe, make_cells):
        cells = make_cells(n_obs=90, n_donors=3)
        y = cells.age if isinstance(probe, RidgeProbe) else cells.y
        fitted = clone(probe).fit(cells.X, y, groups=cells.donors)
        scores = fitted.cv_mse_ if isinstance(probe, RidgeProbe) else fitted.cv_scores_
        assert len(scores) == 3

    def test_bad_input_is_refused(self, probe, make_cells):
        cells = make_cells(n_obs=60)
        y = cells.age if isinstance(probe, RidgeProbe) else cells.y
        with pytest.raises(ValueError, match=r"needs two group \(donor\)s, got 1"):
            clone(probe).fit(cells.X, y, groups=["d"] * 60)
        with pytest.raises(ValueError, match="one group for each of 60 cells, got 59"):
            clone(probe).fit(cells.X, y, groups=cells.donors[1:])
        with pytest.raises(ValueError, match=r"1 cell\(s\) have no group"):
            clone(probe).fit(cells.X, y, groups=[None, *cells.donors[1:]])
        grid = "alphas" if isinstance(probe, RidgeProbe) else "Cs"
        with pytest.raises(ValueError, match=f"Wanted {grid} to be a list of positive numbers"):
            clone(probe).set_params(**{grid: [1.0, 0.0]}).fit(cells.X, y)
        with pytest.raises(ValueError, match="cv >= 2 folds, got 1"):
            clone(probe).set_params(cv=1).fit(cells.X, y)
        with pytest.raises(ValueError, match="contains NaN"):
            clone(probe).fit(np.where(cells.X > 4, np.nan, cells.X), y)


def test_one_class_is_refused(make_cells):
    cells = make_cells(n_obs=20)
    with pytest.raises(ValueError, match=r"one class only: \['a'\]"):
        LogisticProbe().fit(cells.X, ["a"] * 20)


def test_a_rare_class_raises_no_warning(make_cells):
    cells = make_cells(n_obs=100)
    y = np.where(np.arange(100) < 2, "rare", "common")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = LogisticProbe([0.1]).fit(cells.X, y, groups=cells.donors)
    assert probe.classes_.tolist() == ["common", "rare"]
