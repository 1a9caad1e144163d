import sys

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr, spearmanr
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from scr2mae import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestClassification:
    def test_balanced_accuracy_and_f1_are_sklearns_where_every_class_is_true_somewhere(self, rng):
        y_true, y_pred = rng.integers(0, 4, size=(2, 200))
        assert metrics.balanced_accuracy(y_true, y_pred) == balanced_accuracy_score(y_true, y_pred)
        assert metrics.macro_f1(y_true, y_pred) == f1_score(y_true, y_pred, average="macro")

    def test_a_class_that_is_only_predicted_is_left_out_of_the_average(self):
        y_true, y_pred = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
        assert metrics.balanced_accuracy(y_true, y_pred) == 0.75
        assert metrics.macro_f1(y_true, y_pred) == pytest.approx((2 / 3 + 1) / 2)

    def test_macro_auroc_is_the_mean_of_sklearns_binary_areas(self, rng):
        y = rng.integers(0, 3, size=150)
        scores = rng.dirichlet(np.ones(3), size=150)
        expected = roc_auc_score(y, scores, multi_class="ovr", average="macro")
        assert metrics.macro_auroc(y, scores, classes=[0, 1, 2]) == pytest.approx(expected, abs=1e-12)

    def test_macro_auroc_averages_over_the_classes_present(self, rng):
        y = np.array(["b", "d", "b", "d", "d"])
        scores = rng.normal(size=(5, 4))
        expected = (roc_auc_score(y == "b", scores[:, 1]) + roc_auc_score(y == "d", scores[:, 3])) / 2
        assert metrics.macro_auroc(y, scores, classes=["a", "b", "c", "d"]) == pytest.approx(expected)

    def test_macro_auroc_of_one_class_is_nan_with_a_reason(self):
        with pytest.warns(UndefinedMetricWarning, match=r"two classes.*\['a'\]"):
            assert np.isnan(metrics.macro_auroc(["a", "a"], np.eye(2), classes=["a", "b"]))

    def test_macro_auroc_names_labels_without_a_column(self):
        with pytest.raises(ValueError, match=r"labels \['z'\]"):
            metrics.macro_auroc(["a", "z"], np.eye(2), classes=["a", "b"])
        with pytest.raises(ValueError, match="2 columns of scores for 3 classes"):
            metrics.macro_auroc(["a", "b"], np.eye(2), classes=["a", "b", "c"])


class TestSpearman:
    def test_is_scipys(self, rng):
        a, b = rng.integers(0, 8, size=(2, 60))
        assert metrics.spearman(a, b) == spearmanr(a, b).statistic

    def test_of_a_constant_is_nan_with_a_reason(self):
        with pytest.warns(UndefinedMetricWarning, match="y_pred is constant"):
            assert np.isnan(metrics.spearman([1.0, 2.0], [3.0, 3.0]))


class TestMaskedPearson:
    @pytest.fixture
    def counts(self, rng):
        return rng.poisson(rng.gamma(1.0, 3.0, size=40), size=(12, 40)).astype(np.float64)

    @pytest.fixture
    def rho(self, rng):
        return rng.dirichlet(np.ones(40), size=12)

    def test_is_scipys_correlation_of_log_normalized_expression_over_the_masked_genes(self, rng, counts, rho):
        mask = rng.random(40) < 0.4
        observed = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        expected = [
            pearsonr(np.log1p(1e4 * r)[mask], o[mask]).statistic for r, o in zip(rho, observed, strict=True)
        ]
        np.testing.assert_allclose(metrics.masked_pearson(rho, counts, mask), expected, rtol=1e-12)

    def test_takes_a_mask_of_each_cell(self, rng, counts, rho):
        mask = rng.random(counts.shape) < 0.4
        cell_by_cell = [
            metrics.masked_pearson(rho[[i]], counts[[i]], mask[i]).item() for i in range(len(counts))
        ]
        np.testing.assert_allclose(metrics.masked_pearson(rho, counts, mask), cell_by_cell, rtol=1e-10)

    def test_takes_sparse_counts_and_a_given_library(self, counts, rho):
        mask = np.arange(40) < 15
        library = counts.sum(axis=1) * 2
        observed = np.log1p(1e4 * counts / library[:, None])
        expected = [
            pearsonr(np.log1p(1e4 * r[:15]), o[:15]).statistic for r, o in zip(rho, observed, strict=True)
        ]
        got = metrics.masked_pearson(rho, sp.csr_matrix(counts), mask, library=library)
        np.testing.assert_allclose(got, expected, rtol=1e-12)

    def test_ignores_the_genes_that_were_not_masked(self, counts, rho):
        mask = np.arange(40) < 15
        library = counts.sum(axis=1)
        other_rho, other_counts = rho.copy(), counts.copy()
        other_rho[:, 15:], other_counts[:, 15:] = 0.9, 77.0
        np.testing.assert_array_equal(
            metrics.masked_pearson(rho, counts, mask, library=library),
            metrics.masked_pearson(other_rho, other_counts, mask, library=library),
        )

    def test_is_nan_for_a_cell_without_a_masked_count(self, counts, rho):
        mask = np.arange(40) < 15
        counts[3, :15] = 0
        assert np.flatnonzero(np.isnan(metrics.masked_pearson(rho, counts, mask))).tolist() == [3]

    def test_is_nan_for_a_constant_prediction(self, counts):
        assert np.isnan(metrics.masked_pearson(np.full((12, 40), 1 / 40), counts, np.arange(40) < 15)).all()

    def test_refuses_shapes_that_do_not_match(self, counts, rho):
        with pytest.raises(ValueError, match="same cells and genes"):
            metrics.masked_pearson(rho[:, 1:], counts, np.ones(40, dtype=bool))
        with pytest.raises(ValueError, match="boolean mask"):
            metrics.masked_pearson(rho, counts, np.ones(40))
        with pytest.raises(ValueError, match=r"two masked genes per cell, got 1"):
            metrics.masked_pearson(rho, counts, np.arange(40) < 1)
        counts[0] = 0
        with pytest.raises(ValueError, match="positive library"):
            metrics.masked_pearson(rho, counts, np.arange(40) < 15)


class TestGroupMeans:
    def test_are_the_means_of_each_group(self, rng):
        values, groups = rng.normal(size=(50, 3)), rng.choice(["c", "a", "b"], size=50)
        names, means = metrics.group_means(values, groups)
        assert names.tolist() == ["a", "b", "c"]
        np.testing.assert_allclose(means, [values[groups == g].mean(axis=0) for g in names])

    def test_leave_nan_out(self):
        names, means = metrics.group_means([1.0, np.nan, 3.0, np.nan], ["a", "a", "a", "b"])
        assert names.tolist() == ["a", "b"]
        np.testing.assert_array_equal(means, [2.0, np.nan])


class TestKnnLabelRecovery:
    def test_without_groups_is_leave_one_out_of_sklearn(self, rng):
        X, y = rng.normal(size=(60, 3)), rng.integers(0, 3, size=60)
        predicted = np.empty_like(y)
        for i in range(60):
            rest = np.arange(60) != i
            predicted[i] = KNeighborsClassifier(5).fit(X[rest], y[rest]).predict(X[[i]]).item()
        expected = balanced_accuracy_score(y, predicted)
        assert metrics.knn_label_recovery(X, y, n_neighbors=5) == pytest.approx(expected)

    def test_with_groups_uses_neighbors_of_other_groups_only(self, rng):
        # Donors are far apart and the label is the donor's: the nearest cells of other donors carry the wrong label.
        donor = np.repeat([0, 1, 2, 3], 20)
        X = rng.normal(size=(80, 2)) + 100.0 * np.array([[0, 0], [0, 1], [5, 0], [5, 1]])[donor]
        label = donor % 2
        assert metrics.knn_label_recovery(X, label, n_neighbors=5) == 1.0
        assert metrics.knn_label_recovery(X, label, groups=donor, n_neighbors=5) == 0.0

    def test_refuses_one_group_and_too_few_neighbors(self, rng):
        X, y = rng.normal(size=(10, 2)), np.arange(10) % 2
        with pytest.raises(ValueError, match="at least two groups"):
            metrics.knn_label_recovery(X, y, groups=["d"] * 10)
        with pytest.raises(ValueError, match="Wanted 15 neighbors"):
            metrics.knn_label_recovery(X, y, groups=["d"] * 5 + ["e"] * 5)


class TestBatchMixing:
    def test_without_scib_metrics_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scib_metrics", None)
        with pytest.raises(ImportError, match=r"pip install 'scr2mae\[metrics\]'"):
            metrics.batch_mixing(np.zeros((4, 2)), [0, 1, 0, 1])

    def test_is_one_for_mixed_and_zero_for_separate_batches(self, rng):
        pytest.importorskip("scib_metrics")
        X, batch = rng.normal(size=(600, 4)), np.arange(600) % 2
        assert metrics.batch_mixing(X, batch) > 0.9
        assert metrics.batch_mixing(X + 100.0 * batch[:, None], batch) == pytest.approx(0.0, abs=1e-3)

    def test_refuses_one_batch(self, rng):
        pytest.importorskip("scib_metrics")
        with pytest.raises(ValueError, match="two batches"):
            metrics.batch_mixing(rng.normal(size=(200, 2)), np.zeros(200))


class TestIntegrationScores:
    @pytest.fixture
    def cells(self, rng):
        label, batch = np.arange(400) % 4, np.arange(400) // 4 % 2
        return 8.0 * np.eye(4)[label] + rng.normal(size=(400, 4)), batch, label

    def test_without_scib_metrics_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scib_metrics", None)
        with pytest.raises(ImportError, match=r"pip install 'scr2mae\[metrics\]'"):
            metrics.integration_scores(np.zeros((4, 2)), [0, 1, 0, 1], list("aabb"))

    def test_summaries_are_those_of_the_paper_of_scib(self, cells):
        pytest.importorskip("scib_metrics")
        scores = metrics.integration_scores(*cells)
        assert list(scores)[-3:] == ["bio_conservation", "batch_correction", "total"]
        bio, batch = list(scores.values())[:5], list(scores.values())[5:9]
        assert scores["bio_conservation"] == pytest.approx(np.mean(bio))
        assert scores["batch_correction"] == pytest.approx(np.mean(batch))
        assert scores["total"] == pytest.approx(0.6 * np.mean(bio) + 0.4 * np.mean(batch))

    def test_a_batch_effect_lowers_mixing_alone(self, cells):
        pytest.importorskip("scib_metrics")
        X, batch, label = cells
        mixed = metrics.integration_scores(X, batch, label)
        apart = metrics.integration_scores(X + 3.0 * batch[:, None], batch, label)
        assert apart["batch_correction"] < mixed["batch_correction"] - 0.2
        assert apart["clisi"] == pytest.approx(mixed["clisi"], abs=0.05)
        mixing = metrics.batch_mixing(X + 3.0 * batch[:, None], batch)
        assert apart["ilisi"] == pytest.approx(mixing, abs=1e-5)

    def test_cells_without_a_label_are_left_out(self, cells):
        pytest.importorskip("scib_metrics")
        X, batch, label = cells
        some = label.astype(object)
        some[:40] = None
        assert metrics.integration_scores(X, batch, some) == metrics.integration_scores(
            X[40:], batch[40:], label[40:]
        )

    def test_refuses_batches_without_a_common_label(self, cells):
        pytest.importorskip("scib_metrics")
        X, batch, label = cells
        with pytest.raises(ValueError, match="batches share no label"):
            metrics.integration_scores(X, label % 2, label)
        with pytest.raises(ValueError, match="more than 90 cells"):
            metrics.integration_scores(X[:50], batch[:50], label[:50])
