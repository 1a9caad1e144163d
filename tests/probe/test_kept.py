"""Probes that are kept: what they predict, how sure they are, what they refuse, and what a folder keeps."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression, Ridge

from scr2mae import datasets
from scr2mae.metrics import group_means
from scr2mae.probe import LogisticProbe, Probe, fit_probe, linear_probe, roll_up
from scr2mae.probe.donors import conformal_width, interval_width, unit_means
from scr2mae.probe.linear import hold_out

DISEASE = {"target": "disease", "kind": "classification", "donor_key": "donor"}
AGE = {"target": "age", "kind": "regression", "donor_key": "donor"}
TYPE = {"target": "cell_type", "kind": "classification", "donor_key": "donor"}


def embedded(n_donors=16, n_cells=25, seed=0):
    """Donors with an embedding that says something about disease, age and cell type; counts are noise."""
    rng = np.random.default_rng(seed)
    n_obs = n_donors * n_cells
    donor = np.repeat(np.arange(n_donors), n_cells)
    disease, age = np.arange(n_donors) % 2, rng.uniform(20, 80, n_donors)
    cell_type = rng.integers(3, size=n_obs)
    Z = rng.normal(size=(n_obs, 6)) + 0.3 * rng.normal(size=(n_donors, 6))[donor]
    Z[:, 0] += 1.5 * disease[donor]
    Z[:, 1] += (age[donor] - 50) / 15
    Z[:, 2] += 4 * (cell_type == 1)
    Z[:, 3] += 4 * (cell_type == 2)
    obs = pd.DataFrame(
        {
            "donor": [f"d{i:02d}" for i in donor],
            "disease": np.array(["control", "case"])[disease[donor]],
            "age": age[donor],
            "cell_type": np.array(["A", "B", "C"])[cell_type],
        },
        index=[f"c{i}" for i in range(n_obs)],
    )
    return AnnData(rng.poisson(1.0, (n_obs, 4)).astype(np.float32), obs=obs, obsm={"Z": Z})


@pytest.fixture(scope="module")
def donors():
    return embedded()


@pytest.fixture
def new(donors):
    """Cells of two donors that no probe here is fitted to."""
    fresh = embedded(n_donors=4, seed=1)
    fresh.obs["donor"] = "new_" + fresh.obs["donor"]
    return fresh


@pytest.fixture(scope="module")
def disease(donors):
    return fit_probe(donors, use_rep="Z", reject=0.1, n_bootstrap=20, **DISEASE)


@pytest.fixture(scope="module")
def age(donors):
    return fit_probe(donors, use_rep="Z", reject=0.1, n_bootstrap=20, **AGE)


def test_the_weights_are_those_of_the_estimator_on_all_donors(donors, disease, age):
    X, d = donors.obsm["Z"], donors.obs["donor"]
    logistic = LogisticProbe().fit(X, donors.obs["disease"], groups=d)
    np.testing.assert_allclose(
        disease.linear.coef[:, 1] - disease.linear.coef[:, 0], logistic.coef_[0], rtol=1e-10
    )
    ridge = Ridge(alpha=age.linear.penalty).fit(X, donors.obs["age"])
    np.testing.assert_allclose(age.predict(donors_as_new(donors))["prediction"], ridge.predict(X), rtol=1e-8)


def donors_as_new(adata):
    copy = adata.copy()
    copy.obs["donor"] = "other_" + copy.obs["donor"]
    return copy


def test_scaled_features_give_the_same_probe_in_other_units(donors):
    scaled = donors.copy()
    scaled.obsm["Z"] = donors.obsm["Z"] * np.array([1, 10, 100, 0.1, 5, 2.0])
    probes = [fit_probe(a, use_rep="Z", scale=True, n_bootstrap=0, **DISEASE) for a in (donors, scaled)]
    tables = [p.predict(donors_as_new(a)) for p, a in zip(probes, (donors, scaled), strict=True)]
    np.testing.assert_allclose(tables[0]["probability"], tables[1]["probability"], rtol=1e-6)


def test_scores_are_of_donors_that_the_fit_did_not_see():
    """An embedding that names the donor fits any labels of donors, and says nothing about held-out ones."""
    names = embedded(n_donors=12, n_cells=8)
    names.obsm["Z"] = 4 * np.eye(12)[np.repeat(np.arange(12), 8)]
    probe = fit_probe(names, use_rep="Z", n_bootstrap=0, **DISEASE)
    X, y = names.obsm["Z"], names.obs["disease"].to_numpy(str)
    own = LogisticProbe(Cs=[1.0]).fit(X, y, groups=names.obs["donor"]).score(X, y)
    assert own == 1.0
    assert probe.scores.set_index(["level", "metric"])["value"]["donor", "balanced_accuracy"] <= 0.5


def test_probabilities_are_of_held_out_donors_and_calibrated(disease, donors):
    scores = disease.scores.set_index(["level", "metric"])["value"]
    assert scores["cell", "macro_auroc"] > 0.8
    assert scores["cell", "calibration_error"] < 0.08
    assert len(disease.held_out) == 16
    assert (disease.held_out["truth"] == disease.held_out["prediction"]).mean() >= 0.75


def test_a_cell_has_class_probability_and_margin(disease, new):
    table = disease.predict(new, key_added="call")
    proba = disease.predict_proba(new)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(table["probability"], proba.max(axis=1))
    np.testing.assert_allclose(table["margin"], (proba["case"] - proba["control"]).abs())
    kept = ~table["unknown"].to_numpy()
    assert (table["prediction"].astype(str)[kept] == proba.idxmax(axis=1)[kept]).all()
    assert (table["prediction"][~kept] == "unknown").all()
    assert new.obs["call"].dtype == "category"
    assert {"call", "call_probability", "call_margin", "call_unknown"} <= set(new.obs)


def test_a_donor_is_the_mean_of_its_known_cells(disease, new):
    table = disease.predict_donors(new)
    cells, proba = disease.predict(new), disease.predict_proba(new)
    kept = ~cells["unknown"].to_numpy()
    names, means = group_means(proba[kept].to_numpy(), new.obs["donor"][kept].to_numpy(str))
    assert table.index.tolist() == names.tolist()
    np.testing.assert_allclose(table[["p_case", "p_control"]], means)
    assert (table["n_cells"] == 25).all()
    assert table["n_unknown"].sum() == (~kept).sum()
    assert (table["low"] <= table["probability"]).all()
    assert (table["probability"] <= table["high"]).all()


def test_samples_of_a_donor_are_predicted_apart(disease, new):
    new.obs["sample"] = np.where(np.arange(new.n_obs) % 2, "after", "before")
    table = disease.predict_donors(new, sample_key="sample")
    assert table.index.names == ["donor", "sample"]
    assert len(table) == 8


def test_the_interval_of_a_donor_is_jackknife_and_sampling_error():
    values = np.array([[0.2], [0.4], [0.9]])
    folds = [np.array([[0.2], [0.4], [x]]) for x in (0.8, 0.9, 1.0)]
    means, variance = unit_means(values, folds, np.array([0, 0, 1]), n_units=3)
    np.testing.assert_allclose(means[:, 0], [0.3, 0.9, np.nan])
    jackknife = 2 / 3 * sum((x - 0.9) ** 2 for x in (0.8, 0.9, 1.0))
    np.testing.assert_allclose(variance[:2, 0], [0.01 / 2, jackknife])


@pytest.mark.parametrize(("confidence", "width"), [(0.5, 5.0), (0.9, 9.0), (0.95, np.inf)])
def test_a_conformal_width_is_a_quantile_of_the_errors(confidence, width):
    assert conformal_width(np.arange(1.0, 10) * [1, -1, 1, -1, 1, -1, 1, -1, 1], confidence) == width


def test_an_infinite_width_says_how_many_donors_are_needed():
    with pytest.warns(
        UserWarning, match=r"confidence 0.9 needs 9 held-out donors, the probe has 4. Pass conf.*=0.8 "
    ):
        assert interval_width(np.ones(4), 0.9) == np.inf
    assert interval_width(np.ones(4), 0.8) == 1


def test_conformal_intervals_cover_the_value_of_new_donors():
    covered, n = 0, 0
    for seed in range(8):
        probe = fit_probe(embedded(24, 6, seed=seed), use_rep="Z", n_bootstrap=0, **AGE)
        fresh = donors_as_new(embedded(40, 6, seed=100 + seed))
        table = probe.predict_donors(fresh, confidence=0.8)
        truth = fresh.obs.groupby("donor")["age"].first()[table.index]
        covered += int(((table["low"] <= truth) & (truth <= table["high"])).sum())
        n += len(truth)
    assert abs(covered / n - 0.8) < 4 * np.sqrt(0.16 / 8)  # coverage varies with the fit
    assert abs(covered / n - 0.8) < 0.08


def test_a_number_beyond_those_of_the_fit_is_flagged(age, new):
    new.obsm["Z"][:5, 1] += 30
    flags = age.predict(new)["outside_range"]
    assert flags[:5].all()
    assert flags.mean() < 0.5
    with pytest.raises(ValueError, match="'age' is a number and has no probabilities"):
        age.predict_proba(new)


def test_held_out_logits_of_folds_are_on_one_scale(make_cells):
    cells = make_cells()
    classes = np.unique(cells.y)
    train = np.flatnonzero(cells.donors != "d0")
    test = np.flatnonzero(cells.donors == "d0")
    options = {"kind": "classification", "classes": classes}
    whole = hold_out(cells.X, cells.y, cells.donors, [(train, test)], **options)
    strong = whole.maps[0]._replace(coef=whole.maps[0].coef * 7, intercept=whole.maps[0].intercept * 7)
    like = hold_out(cells.X, cells.y, cells.donors, [(train, test)], like=strong, **options)
    np.testing.assert_allclose(like.outputs[test], 7 * whole.plain[test], rtol=1e-8)
    np.testing.assert_allclose(like.plain[test], whole.plain[test])
    assert np.isnan(like.outputs[train]).all()


@pytest.mark.parametrize("scale", [False, True])
def test_a_fold_s_map_is_scikit_learn_s(make_cells, scale):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from scr2mae.probe.linear import fit_map

    cells = make_cells(n_classes=3)
    each = fit_map(cells.X, cells.y, cells.donors, kind="classification", classes=np.arange(4), scaled=scale)
    steps = [StandardScaler(with_mean=False)] if scale else []
    model = make_pipeline(*steps, LogisticRegression(C=each.penalty, tol=1e-6, max_iter=5000)).fit(
        cells.X, cells.y
    )
    logits = each(cells.X)
    odds = np.exp(logits[:, :3] - logits[:, :3].max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        odds / odds.sum(axis=1, keepdims=True), model.predict_proba(cells.X), atol=2e-3
    )
    assert (logits[:, 3] < logits[:, :3].min(axis=1) - 1).mean() > 0.99  # absent from the fit


# --- a folder


@pytest.mark.parametrize("kind", ["disease", "age"])
def test_a_saved_probe_predicts_bitwise_the_same(kind, request, new, tmp_path):
    probe = request.getfixturevalue(kind)
    probe.save(tmp_path / "model" / "probes" / kind)
    again = Probe.load(tmp_path / "model" / "probes" / kind)
    pd.testing.assert_frame_equal(again.predict(new), probe.predict(new))
    pd.testing.assert_frame_equal(again.predict_donors(new), probe.predict_donors(new))
    pd.testing.assert_frame_equal(again.scores, probe.scores, check_dtype=False)
    assert again.summary() == probe.summary()
    assert {p.suffix for p in (tmp_path / "model" / "probes" / kind).iterdir()} == {".json", ".safetensors"}


def test_isotonic_curves_are_saved_and_a_probe_without_curves_too(donors, new, tmp_path):
    for name in ("isotonic", None):
        probe = fit_probe(donors, use_rep="Z", calibration=name, n_bootstrap=0, **TYPE)
        probe.save(tmp_path / str(name))
        again = Probe.load(tmp_path / str(name))
        pd.testing.assert_frame_equal(again.predict_proba(new), probe.predict_proba(new))


def test_the_summary_of_a_probe_without_intervals_outlives_its_folder(donors, tmp_path):
    probe = fit_probe(donors, use_rep="Z", n_bootstrap=0, **DISEASE)
    probe.save(tmp_path / "probe")
    assert Probe.load(tmp_path / "probe").summary() == probe.summary()


def test_names_of_donors_can_be_left_out(disease, tmp_path):
    disease.save(tmp_path / "probe", donor_names=False)
    assert "d01" not in (tmp_path / "probe" / "probe.json").read_text()
    assert Probe.load(tmp_path / "probe").donors == ()
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        disease.save(tmp_path / "probe")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("kind", "ranking"),
        ("classes", ["case"]),
        ("classes", None),
        ("n_folds", 99),
        ("features", {"use_rep": "Z", "n_features": 5, "names": None, "fingerprint": None}),
        ("features", {"use_rep": "Z", "n_features": 6, "names": ["a"], "fingerprint": None}),
        ("calibration", {"method": "magic", "n_curves": 1}),
        ("rejection", {"rate": 0.1}),
    ],
)
def test_a_damaged_probe_is_refused(disease, tmp_path, entry, value):
    disease.save(tmp_path / "probe")
    path = tmp_path / "probe" / "probe.json"
    document = json.loads(path.read_text())
    document[entry] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"The probe in .* is damaged: "):
        Probe.load(tmp_path / "probe")


def test_a_model_folder_is_not_a_probe(trained, tmp_path):
    trained.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="not a scr2mae probe folder"):
        Probe.load(tmp_path / "model")


# --- features


def test_features_of_another_width_or_order_are_refused(disease, donors, new):
    with pytest.raises(ValueError, match="fitted to 6 features of 'Z', got 5"):
        disease.predict(AnnData(obs=new.obs, obsm={"Z": new.obsm["Z"][:, :5]}))
    with pytest.raises(KeyError, match=r"No 'Z' in adata.obsm or adata.layers"):
        disease.predict(AnnData(obs=new.obs))
    named = donors.copy()
    named.obsm["Z"] = pd.DataFrame(named.obsm["Z"], index=named.obs_names, columns=list("abcdef"))
    probe = fit_probe(named, use_rep="Z", n_bootstrap=0, **DISEASE)
    query = new.copy()
    query.obsm["Z"] = pd.DataFrame(query.obsm["Z"], index=query.obs_names, columns=list("abcdef"))
    probe.predict(query)
    query.obsm["Z"] = query.obsm["Z"][list("bacdef")]
    with pytest.raises(ValueError, match="or their order differs"):
        probe.predict(query)
    query.obsm["Z"] = query.obsm["Z"].rename(columns={"a": "x"})
    with pytest.raises(ValueError, match=r"1 of 6 are missing, such as \['a'\]"):
        probe.predict(query)


def test_genes_as_features_are_checked_by_name(donors, new):
    probe = fit_probe(donors, use_rep="X", n_bootstrap=0, **DISEASE)
    probe.predict(new)
    with pytest.raises(ValueError, match="or their order differs"):
        probe.predict(new[:, ::-1])


def test_nan_is_refused(disease, new):
    new.obsm["Z"][0, 0] = np.nan
    with pytest.raises(ValueError, match="'Z' holds 1 NaN"):
        disease.predict(new)


def test_an_empty_query_is_refused(disease, new):
    with pytest.raises(ValueError, match="adata has no cells"):
        disease.predict(new[:0])


def test_donors_of_the_fit_are_named_in_a_warning(disease, donors, new):
    with pytest.warns(UserWarning, match=r"2 donor\(s\) of the fit are among those predicted: d00, d01"):
        disease.predict(donors[:50])
    mixed = new.copy()
    mixed.obs["person"] = "d03"
    with pytest.warns(UserWarning, match="d03"):
        disease.predict_donors(mixed, "person")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disease.predict(new)


def test_a_query_that_is_all_unknown_is_flagged(disease, new):
    new.obsm["Z"] += 50
    with pytest.warns(UserWarning, match="All 100 cells differ too much from those of the fit"):
        table = disease.predict(new)
    assert (table["prediction"] == "unknown").all()
    with pytest.warns(UserWarning, match="All 100 cells"):
        donors = disease.predict_donors(new)
    assert (donors["prediction"] == "unknown").all()
    assert donors["probability"].isna().all()
    assert (donors["n_unknown"] == 25).all()


# --- designs that cannot be fitted


def test_two_donors_are_too_few(donors):
    with pytest.raises(ValueError, match="needs three donors with a 'disease'"):
        fit_probe(donors[donors.obs["donor"].isin(["d00", "d01"])], use_rep="Z", **DISEASE)


def test_a_class_with_one_donor_is_named(donors):
    rare = donors.copy()
    rare.obs.loc[rare.obs["donor"] == "d05", "disease"] = "rare"
    with pytest.raises(ValueError, match=r"\['rare'\] of 'disease' have one"):
        fit_probe(rare, use_rep="Z", **DISEASE)


def test_a_class_called_unknown_is_refused_where_cells_can_be_rejected(donors):
    other = donors.copy()
    other.obs["disease"] = other.obs["disease"].replace({"control": "unknown"})
    assert fit_probe(other, use_rep="Z", n_bootstrap=0, **DISEASE).classes.tolist() == ["case", "unknown"]
    with pytest.raises(
        ValueError, match="'unknown' is a class of 'disease' and what rejected cells are called"
    ):
        fit_probe(other, use_rep="Z", reject=0.1, **DISEASE)


def test_a_rate_outside_its_range_is_refused(donors):
    with pytest.raises(ValueError, match="Wanted reject to be a rate between 0 and 1"):
        fit_probe(donors, use_rep="Z", reject=5, **DISEASE)
    with pytest.raises(ValueError, match="Wanted calibration to be one of"):
        fit_probe(donors, use_rep="Z", calibration="beta", **DISEASE)


def test_cell_types_have_no_call_per_donor(donors, new):
    probe = fit_probe(donors, use_rep="Z", n_bootstrap=0, **TYPE)
    assert probe.held_out is None
    accuracy = (probe.predict(new)["prediction"].astype(str) == new.obs["cell_type"]).mean()
    assert accuracy > 0.9
    with pytest.raises(ValueError, match="is a property of cells"):
        probe.predict_donors(new)
    with pytest.raises(ValueError, match="Wanted confidence between 0 and 1"):
        fit_probe(donors, use_rep="Z", n_bootstrap=0, **AGE).predict_donors(new, confidence=90)


def test_a_donor_before_and_after_treatment_is_held_out_as_a_pair(donors):
    paired = donors.copy()
    after = np.arange(paired.n_obs) % 2 == 1
    paired.obs["treatment"] = np.where(after, "after", "before")
    paired.obsm["Z"][after, 4] += 3
    probe = fit_probe(
        paired, use_rep="Z", target="treatment", kind="classification", donor_key="donor", n_bootstrap=0
    )
    assert len(probe.held_out) == 32
    assert set(probe.scores["unit"]) >= {"donor_and_class"}
    assert (probe.held_out["truth"] == probe.held_out["prediction"]).all()


# --- hierarchies


def test_a_label_is_as_fine_as_its_probability_allows():
    table = pd.DataFrame(
        [[0.9, 0.05, 0.05, 0.0], [0.5, 0.4, 0.1, 0.0], [0.3, 0.2, 0.3, 0.2], [0.1, 0.1, 0.2, 0.6]],
        columns=["CD4", "CD8", "NK", "B"],
    )
    parents = {"CD4": "T", "CD8": "T", "T": "lymphoid", "NK": "lymphoid"}
    found = roll_up(table, parents, min_probability=0.75)
    assert found["prediction"].tolist() == ["CD4", "T", "lymphoid", "B"]
    np.testing.assert_allclose(found["probability"], [0.9, 0.9, 0.8, 0.6])
    assert found["depth"].tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="No class has a parent"):
        roll_up(table, {"x": "y"})
    with pytest.raises(ValueError, match="form a circle"):
        roll_up(table, {"CD4": "T", "T": "CD4"})


def test_kept_and_split_scores_agree(donors, disease):
    splits = linear_probe(
        donors,
        use_rep="Z",
        targets={"disease": "classification"},
        donor_key="donor",
        n_splits=4,
        n_bootstrap=0,
    )
    rows = splits[(splits["level"] == "cell") & (splits["metric"] == "macro_auroc")]
    kept = disease.scores.set_index(["level", "metric"])["value"]["cell", "macro_auroc"]
    assert abs(rows["value"].mean() - kept) < 0.1


def test_the_example_of_the_simulation_is_called_correctly():
    cells = datasets.simulate_donors(n_donors=12, n_cells_per_donor=15, n_genes=40, disease_effect=2.0)
    cells.obsm["Z"] = np.log1p(cells.X.toarray())
    known = cells.obs["donor"].cat.codes < 8
    probe = fit_probe(cells[known.to_numpy()], use_rep="Z", n_bootstrap=0, **DISEASE)
    calls = probe.predict_donors(cells[~known.to_numpy()])
    truth = cells.obs.groupby("donor", observed=True)["disease"].first()[calls.index].astype(str)
    assert (calls["prediction"] == truth).all()
