"""Permutations of labels over donors, pairs of representations, power, and designs."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import kstest, mannwhitneyu
from sklearn.linear_model import Ridge

from scr2mae.probe import compare_representations, design_table, donor_power, fit_probe, permutation_test
from scr2mae.probe.designs import covariate_features, level_folds
from scr2mae.probe.ridge import ALPHAS, UnitMoments

DISEASE = {"target": "disease", "kind": "classification", "donor_key": "donor"}


def donors(n_donors=16, n_cells=6, n_features=5, effect=0.0, seed=0):
    """An embedding with an effect of each donor, and one of its disease; age goes with disease by chance only."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    disease = rng.permutation(n_donors) % 2
    Z = rng.normal(size=(len(donor), n_features)) + rng.normal(size=(n_donors, n_features))[donor]
    Z[:, 0] += effect * disease[donor]
    obs = pd.DataFrame(
        {
            "donor": [f"d{i:02d}" for i in donor],
            "disease": np.array(["control", "case"])[disease[donor]],
            "age": rng.uniform(20, 80, n_donors)[donor],
            "batch": np.array(["b0", "b1"])[np.arange(n_donors) % 4 // 2][donor],
            "state": np.array(["before", "after"])[np.arange(len(donor)) % 2],
        },
        index=[f"c{i}" for i in range(len(donor))],
    )
    return AnnData(obs=obs, obsm={"Z": Z})


@pytest.mark.parametrize(
    "target", [{"target": "disease", "kind": "classification"}, {"target": "age", "kind": "regression"}]
)
def test_p_values_are_uniform_under_the_null(target):
    """200 data sets without an effect; donors are as many as make the statistic nearly continuous."""
    p = [
        permutation_test(
            donors(20, 3, 3, seed=seed),
            use_rep="Z",
            donor_key="donor",
            n_permutations=79,
            seed=seed,
            **target,
        ).p_value
        for seed in range(200)
    ]
    # p-values are multiples of 1/80; a uniform jitter makes them continuous.
    jittered = np.array(p) - np.random.default_rng(0).uniform(0, 1 / 80, len(p))
    assert kstest(jittered, "uniform").pvalue > 0.01
    assert abs(np.mean(np.array(p) <= 0.1) - 0.1) < 3 * np.sqrt(0.09 / 200)


def test_a_planted_effect_is_found():
    found = permutation_test(donors(effect=4.0), use_rep="Z", n_permutations=199, **DISEASE)
    assert found.p_value == found.smallest == 1 / 200
    assert found.statistic > 0.95
    assert len(found.null) == 199
    assert found.unit == "donor"
    assert found.n_units == 16


def test_few_donors_bound_the_p_value():
    found = permutation_test(donors(6, effect=9.0), use_rep="Z", n_permutations=999, **DISEASE)
    assert found.smallest == 2 / math.comb(6, 3)  # exchanging the names of the classes changes nothing
    assert found.p_value >= 1.5 / math.comb(6, 3)


def test_labels_are_permuted_within_strata():
    """Disease that goes with the batch is no evidence within batches."""
    adata = donors(16, seed=3)
    by_donor = adata.obs["donor"].str[1:].astype(int)
    adata.obs["disease"] = np.where((adata.obs["batch"] == "b0") ^ (by_donor % 8 == 0), "case", "control")
    adata.obsm["Z"][:, 0] += 5 * (adata.obs["batch"] == "b0")
    free = permutation_test(adata, use_rep="Z", n_permutations=199, **DISEASE)
    within = permutation_test(adata, use_rep="Z", strata=["batch"], n_permutations=199, **DISEASE)
    assert free.p_value < 0.05
    assert within.p_value > 0.1
    with pytest.raises(ValueError, match="'state' varies within a unit"):
        permutation_test(adata, use_rep="Z", strata=["state"], **DISEASE)
    with pytest.raises(ValueError, match="no other labeling is possible"):
        permutation_test(adata, use_rep="Z", strata=["disease"], **DISEASE)


def test_before_and_after_are_exchanged_within_donors():
    adata = donors(8, 10)
    state = {"target": "state", "kind": "classification", "donor_key": "donor"}
    null = permutation_test(adata, use_rep="Z", n_permutations=199, **state)
    assert null.unit == "donor, labels within donors"
    assert null.n_units == 16
    assert null.smallest == 2 / 2**8
    adata.obsm["Z"][adata.obs["state"] == "after", 1] += 3
    assert permutation_test(adata, use_rep="Z", n_permutations=199, **state).p_value < 0.04
    probe = fit_probe(adata, use_rep="Z", n_bootstrap=0, **state)
    paired = probe.scores.set_index("metric")["value"]["paired_accuracy"]
    assert paired > 0.9
    assert null.p_value > 0.04


def test_labels_of_cells_cannot_be_permuted_over_donors():
    adata = donors(6, 4)
    adata.obs["cell_type"] = [f"t{i}" for i in np.arange(adata.n_obs) % 4]
    with pytest.raises(ValueError, match="varies from cell to cell"):
        permutation_test(adata, use_rep="Z", target="cell_type", kind="classification", donor_key="donor")
    with pytest.raises(ValueError, match="Wanted n_permutations >= 1"):
        permutation_test(adata, use_rep="Z", n_permutations=0, **DISEASE)


def test_predictions_from_moments_are_ridge_regression_s():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(9), 7)
    fold = np.arange(9) % 3
    X, Y = rng.normal(size=(63, 4)) + 3, rng.normal(size=(9, 5))
    alphas = np.array(ALPHAS[:6])
    found = UnitMoments(X, units, fold).held_out(Y, alphas)
    expected = np.empty_like(Y)
    for t in range(5):
        y = Y[units, t]
        for f in range(3):
            errors = []
            for alpha in alphas:
                model = [np.nan] * 3
                for g in set(range(3)) - {f}:
                    train = ~np.isin(fold[units], (f, g))
                    each = Ridge(alpha=alpha).fit(X[train], y[train])
                    inner = fold[units] == g
                    model[g] = np.square(each.predict(X[inner]) - y[inner]).mean()
                errors.append(np.nansum(model))
            train = fold[units] != f
            best = Ridge(alpha=alphas[int(np.argmin(errors))]).fit(X[train], y[train])
            for u in np.flatnonzero(fold == f):
                expected[u, t] = best.predict(X[units == u]).mean() - y[train].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


# --- pairs


def test_a_better_representation_wins_in_pairs_over_donors():
    adata = donors(14, 8, effect=3.0)
    adata.obsm["noise"] = np.random.default_rng(1).normal(size=(adata.n_obs, 5))
    found = compare_representations(adata, use_rep=("Z", "noise"), **DISEASE)
    assert found["p_value"] < 0.01
    assert found["low"] > 0
    assert found["difference"] == pytest.approx(found["Z"] - found["noise"])
    assert found["n_donors"] == 14
    back = compare_representations(adata, use_rep=("noise", "Z"), **DISEASE)
    assert back["difference"] == pytest.approx(-found["difference"])


def test_a_representation_ties_with_itself():
    adata = donors(10, effect=2.0)
    for target, kind in (("disease", "classification"), ("age", "regression"), ("state", "classification")):
        found = compare_representations(
            adata, use_rep=("Z", "Z"), target=target, kind=kind, donor_key="donor", cell_level=("state",)
        )
        assert found["difference"] == 0
        assert found["p_value"] == 1


# --- power


def held_out(n=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.array(["control", "case"])[np.arange(n) % 2]
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + (truth == "case"))))
    return pd.DataFrame({"truth": truth, "p_case": p, "p_control": 1 - p})


def test_power_is_that_of_a_normal_simulation():
    power = donor_power(held_out(2000), positive="case", auroc=(0.8,), n_donors=(12, 24), n_simulations=1500)
    rng = np.random.default_rng(1)
    shift = math.sqrt(2) * 0.8416212335729143  # AUROC .8 of two normals
    for n in (12, 24):
        a, b = rng.normal(shift, 1, (3000, n // 2)), rng.normal(0, 1, (3000, n // 2))
        expected = (mannwhitneyu(a, b, alternative="greater", axis=1).pvalue <= 0.05).mean()
        assert power.loc[n, 0.8] == pytest.approx(expected, abs=0.05)


def test_power_is_the_level_without_a_difference_and_grows():
    power = donor_power(held_out(), positive="case", auroc=(0.5, 0.7, 0.9), n_donors=(10, 40))
    assert (power[0.5] < 0.09).all()
    assert (power.loc[40] >= power.loc[10] - 0.02).all()
    assert (power.diff(axis=1).iloc[:, 1:] > 0).all().all()


def test_power_says_what_it_needs():
    with pytest.raises(KeyError, match=r"No class 'sick' .* choose one of \['case', 'control'\]"):
        donor_power(held_out(), positive="sick")
    with pytest.raises(ValueError, match="Wanted two donors with and without 'case', got 1"):
        donor_power(held_out(6).iloc[[0, 1, 2, 4]], positive="case")
    with pytest.raises(ValueError, match=r"Wanted AUROCs in \[0.5, 1\)"):
        donor_power(held_out(), positive="case", auroc=(1.0,))


# --- designs


def test_a_column_that_determines_the_target_is_named():
    adata = donors()
    adata.obs["study"] = np.where(adata.obs["disease"] == "case", "s1", "s2")
    with pytest.warns(UserWarning, match="'study' determines 'disease': all 16 units"):
        table = design_table(adata, columns=["study", "batch", "age", "donor"], **DISEASE)
    assert table.loc["study", "association"] == pytest.approx(1)
    assert table["determines"].tolist() == [True, False, False, False]
    assert table["identifies"].tolist() == [False, False, False, True]
    assert table.loc["batch", "association"] < 0.6
    assert table.loc["batch", "n_levels"] == 2


def test_associations_are_those_of_the_textbook():
    obs = pd.DataFrame(
        {
            "donor": [f"d{i:02d}" for i in range(24) for _ in range(2)],
            "disease": [x for i in range(24) for x in [["case", "control"][i % 2]] * 2],
            "sex": [x for i in range(24) for x in [["f", "m", "m"][i % 3]] * 2],
            "age": [x for i in range(24) for x in [20.0 + i + 5 * (i % 2)] * 2],
            "score": [x for i in range(24) for x in [float(i**2)] * 2],
        },
        index=[f"c{i}" for i in range(48)],
    )
    adata = AnnData(obs=obs)
    one = obs.iloc[::2]
    table = design_table(adata, columns=["sex", "age"], **DISEASE)
    counts = pd.crosstab(one["sex"], one["disease"]).to_numpy()
    expected = counts.sum(1)[:, None] * counts.sum(0) / counts.sum()
    v = math.sqrt(((counts - expected) ** 2 / expected).sum() / 24)
    assert table.loc["sex", "association"] == pytest.approx(v)
    r = abs(np.corrcoef(one["age"], one["disease"] == "case")[0, 1])
    assert table.loc["age", "association"] == pytest.approx(r)
    number = {"target": "age", "kind": "regression", "donor_key": "donor"}
    table = design_table(adata, columns=["score", "disease"], **number)
    assert table.loc["score", "association"] > 0.9
    assert table.loc["disease", "association"] == pytest.approx(r)


def test_missing_and_mixed_values_are_counted(caplog):
    adata = donors(8)
    adata.obs["site"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs["donor"] == "d00", "site"] = None
    adata.obs.iloc[-1, adata.obs.columns.get_loc("site")] = "other"
    table = design_table(adata, columns=["site"], **DISEASE)
    assert table.loc["site", "missing"] == 1
    assert "1 unit(s) have several values of 'site'" in caplog.text


def test_a_probe_of_the_covariates_shows_what_the_batch_says():
    adata = donors(48, seed=1)
    number = adata.obs["donor"].str[1:].astype(int)
    # Three in four donors of the first batch are cases, one in four of the second.
    flipped = (number % 8).isin([0, 2])
    adata.obs["disease"] = np.where((adata.obs["batch"] == "b0") ^ flipped, "case", "control")
    adata.obsm["Z"][:, 0] += 3 * (adata.obs["batch"] == "b0")
    probe = fit_probe(
        adata, use_rep="Z", design_keys=["batch"], holdout_key="batch", n_bootstrap=0, **DISEASE
    )
    scores = probe.scores.set_index(["method", "level", "metric"])["value"]
    assert scores["covariates", "cell", "macro_auroc"] > 0.6
    assert scores["embedding", "cell", "macro_auroc"] > 0.6
    assert scores["embedding, batch held out", "cell", "macro_auroc"] < 0.6
    assert probe.design.loc["batch", "n_levels"] == 2


def test_a_batch_that_cannot_be_held_out_is_reported():
    adata = donors(12)
    adata.obs["study"] = np.where(adata.obs["disease"] == "case", "s1", "s2")
    with pytest.warns(UserWarning, match="determines"):
        probe = fit_probe(
            adata, use_rep="Z", design_keys=["study"], holdout_key="study", n_bootstrap=0, **DISEASE
        )
    rows = probe.scores[probe.scores["method"] == "embedding, study held out"]
    assert rows["value"].isna().all()
    assert rows["note"].str.contains("no fold leaves two donors and two values").all()


def test_the_donors_of_a_held_out_batch_are_not_trained_on():
    levels, owners = np.array(["a", "b", "a", "b", "b"]), np.array([0, 0, 1, 2, 3])
    folds = level_folds(levels, owners)
    assert [(train.tolist(), test.tolist()) for train, test in folds] == [([3, 4], [0, 2]), ([2], [1, 3, 4])]


def test_covariates_are_standardized_numbers_and_indicators():
    obs = pd.DataFrame({"age": [*range(11), np.nan], "sex": ["f", "m"] * 5 + [None, "f"]})
    features = covariate_features(obs, ["age", "sex"])
    assert features.shape == (12, 4)
    np.testing.assert_allclose(features.mean(axis=0)[0], 0, atol=1e-12)
    np.testing.assert_array_equal(features[:, 1:].sum(axis=1), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        covariate_features(obs, ["sex"])
