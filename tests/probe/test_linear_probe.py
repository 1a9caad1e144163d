import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score

from scr2mae.metrics import group_means, macro_auroc, spearman
from scr2mae.probe import DonorSplit, LogisticProbe, RidgeProbe, donor_splits, linear_probe

TARGETS = {
    "cell_type": "classification",
    "age": "regression",
    "disease": "classification",
    "stim": "classification",
}
FAST = {"donor_key": "donor", "n_bootstrap": 20}


@pytest.fixture
def adata():
    """Twelve donors with an embedding that predicts their disease and age, and the type and state of a cell."""
    rng = np.random.default_rng(0)
    n_obs, n_donors = 480, 12
    donor, cell_type, stim = (rng.integers(0, k, n_obs) for k in (n_donors, 3, 2))
    age, disease = rng.uniform(20, 80, n_donors), np.arange(n_donors) % 2
    Z = rng.normal(size=(n_obs, 8))
    Z[:, 0] += 3 * cell_type
    Z[:, 1] += (age[donor] - 50) / 10
    Z[:, 2] += 2 * disease[donor]
    Z[:, 3] += 2 * stim
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"d{i}" for i in donor]),
            "sample": [f"d{i}_s{j}" for i, j in zip(donor, stim, strict=True)],
            "cell_type": pd.Categorical([f"t{i}" for i in cell_type]),
            "age": age[donor],
            "disease": [f"x{i}" for i in disease[donor]],
            "stim": [f"s{i}" for i in stim],
        },
        index=[f"c{i}" for i in range(n_obs)],
    )
    adata = AnnData(X=sp.csr_matrix(rng.poisson(0.5, (n_obs, 15)).astype(np.float32)), obs=obs)
    adata.obsm["Z"] = Z.astype(np.float32)
    adata.layers["lognorm"] = adata.X.log1p()
    return adata


@pytest.fixture
def split():
    donors = [f"d{i}" for i in range(12)]
    return DonorSplit(train_donors=tuple(donors[:7]), test_donors=tuple(donors[7:]), seed=5)


def only(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


class TestTable:
    def test_has_a_row_per_method_target_split_scaling_level_and_metric(self, adata):
        targets = {"age": "regression", "disease": "classification"}
        frame = linear_probe(
            adata, use_rep=["Z", "X"], targets=targets, n_splits=2, seeds=(0, 1), scale=(False, True), **FAST
        )
        # One metric of the number and three of the class, for cells and for donors.
        assert len(frame) == 2 * 4 * 2 * (1 + 3) * 2
        keys = ["method", "target", "metric", "level", "scale", "split"]
        assert not frame.duplicated(keys).any()
        assert set(frame["method"]) == {"Z", "X"}
        assert frame["value"].notna().all()
        assert set(frame["note"]) == {""}

    def test_names_the_unit_of_averaging(self, adata):
        frame = linear_probe(adata, use_rep="Z", targets=TARGETS, **FAST)
        units = frame.groupby(["target", "level"])["unit"].unique().map(list).to_dict()
        assert units == {
            ("age", "cell"): ["cell"],
            ("age", "donor"): ["donor"],
            ("cell_type", "cell"): ["cell"],
            ("disease", "cell"): ["cell"],
            ("disease", "donor"): ["donor"],
            ("stim", "cell"): ["cell"],
            ("stim", "donor"): ["donor_and_class"],
        }
        assert only(frame, target="stim", level="donor", metric="macro_f1")["n_units"] == 12
        assert only(frame, target="age", level="donor")["n_units"] == 6

    def test_averages_over_samples_where_they_are_named(self, adata):
        frame = linear_probe(
            adata,
            use_rep="Z",
            targets={"stim": "classification", "age": "regression"},
            sample_key="sample",
            **FAST,
        )
        by_sample = frame[frame["level"] == "donor"]
        assert set(by_sample["unit"]) == {"sample"}
        assert set(by_sample["n_units"]) == {12}

    def test_a_number_that_varies_within_a_donor_is_neither_averaged_nor_rounded(self, adata, split):
        adata.obs["dose"] = np.where(adata.obs["stim"] == "s1", 0.25, 0.125)
        frame = linear_probe(adata, use_rep="Z", targets={"dose": "regression"}, splits=[split], **FAST)
        row = only(frame, level="donor")
        assert row["unit"] == "donor_and_value"
        assert row["n_units"] == 10
        train, test = split.rows(adata.obs["donor"])
        model = RidgeProbe().fit(
            adata.obsm["Z"][train], adata.obs["dose"].iloc[train], adata.obs["donor"].iloc[train]
        )
        units = (adata.obs["donor"].astype(str) + adata.obs["stim"]).iloc[test]
        predicted = group_means(model.predict(adata.obsm["Z"][test]), units)[1]
        truth = group_means(adata.obs["dose"].iloc[test], units)[1]
        assert row["value"] == pytest.approx(spearman(truth, predicted))

    def test_a_number_of_each_cell_has_no_donor_level(self, adata):
        adata.obs["pseudotime"] = adata.obsm["Z"][:, 0]
        frame = linear_probe(adata, use_rep="Z", targets={"pseudotime": "regression"}, **FAST)
        assert frame["level"].tolist() == ["cell"]
        assert frame["value"].item() > 0.99


class TestValues:
    def test_class_scores_are_those_of_the_estimator(self, adata, split):
        frame = linear_probe(
            adata, use_rep="Z", targets={"disease": "classification"}, splits=[split], **FAST
        )
        donors, y = adata.obs["donor"].astype(str).to_numpy(), adata.obs["disease"].to_numpy(dtype=str)
        train, test = split.rows(donors)
        model = LogisticProbe().fit(adata.obsm["Z"][train], y[train], groups=donors[train])
        probability = model.predict_proba(adata.obsm["Z"][test])
        cell = only(frame, level="cell", metric="balanced_accuracy")
        assert cell["value"] == balanced_accuracy_score(y[test], model.predict(adata.obsm["Z"][test]))
        assert cell["penalty"] == model.C_
        names, means = group_means(probability, donors[test])
        truth = [y[donors == d][0] for d in names]
        donor = only(frame, level="donor", metric="macro_auroc")
        assert donor["value"] == pytest.approx(macro_auroc(truth, means, classes=model.classes_))

    def test_number_scores_are_those_of_the_estimator(self, adata, split):
        frame = linear_probe(adata, use_rep="Z", targets={"age": "regression"}, splits=[split], **FAST)
        donors, age = adata.obs["donor"].astype(str).to_numpy(), adata.obs["age"].to_numpy()
        train, test = split.rows(donors)
        model = RidgeProbe().fit(adata.obsm["Z"][train], age[train], groups=donors[train])
        predicted = model.predict(adata.obsm["Z"][test])
        assert only(frame, level="cell")["value"] == pytest.approx(spearman(age[test], predicted))
        names, means = group_means(predicted, donors[test])
        truth = [age[donors == d][0] for d in names]
        assert only(frame, level="donor")["value"] == pytest.approx(spearman(truth, means))

    def test_scaled_features_do_not_depend_on_their_units(self, adata):
        adata.obsm["stretched"] = adata.obsm["Z"] * np.logspace(-3, 3, 8, dtype=np.float32)
        targets = {"age": "regression"}
        frame = linear_probe(adata, use_rep=["Z", "stretched"], targets=targets, scale=(False, True), **FAST)
        cells = frame[frame["level"] == "cell"].set_index(["method", "scale"])["value"]
        assert cells["stretched", True] == pytest.approx(cells["Z", True], abs=1e-6)
        assert abs(cells["stretched", False] - cells["Z", False]) > 0.01

    def test_sparse_and_dense_representations_agree(self, adata):
        adata.obsm["dense"] = adata.X.toarray()
        frame = linear_probe(adata, use_rep=["X", "dense"], targets=TARGETS, scale=(False, True), **FAST)
        sparse, dense = (frame[frame["method"] == m]["value"].to_numpy() for m in ("X", "dense"))
        np.testing.assert_allclose(sparse, dense, atol=0.01)

    def test_a_layer_and_a_data_frame_can_be_probed(self, adata):
        adata.obsm["frame"] = pd.DataFrame(adata.obsm["Z"], index=adata.obs_names).add_prefix("z")
        frame = linear_probe(adata, use_rep=["lognorm", "Z", "frame"], targets={"age": "regression"}, **FAST)
        cells = frame[frame["level"] == "cell"].set_index("method")["value"]
        assert cells["frame"] == cells["Z"] != cells["lognorm"]

    def test_the_interval_contains_the_value_of_a_predictable_target(self, adata):
        frame = linear_probe(adata, use_rep="Z", targets=TARGETS, donor_key="donor")
        cells = frame[frame["level"] == "cell"]
        assert (cells["ci_low"] <= cells["value"]).all()
        assert (cells["value"] <= cells["ci_high"]).all()
        assert (cells["ci_low"] < cells["ci_high"]).all()


class TestSplits:
    def test_given_splits_are_shared_by_methods_and_calls(self, adata):
        splits = donor_splits(
            adata, targets=TARGETS, donor_key="donor", n_train_donors=5, n_splits=2, seeds=(3,)
        )
        caps = {"max_cells_per_donor": 20}
        one = linear_probe(adata, use_rep="Z", targets=TARGETS, splits=splits, **caps, **FAST)
        two = linear_probe(adata, use_rep=["X", "Z"], targets=TARGETS, splits=splits, **caps, **FAST)
        pd.testing.assert_frame_equal(one, two[two["method"] == "Z"].reset_index(drop=True))
        assert set(one["split_hash"]) == {s.hash for many in splits.values() for s in many}
        assert one.attrs["splits"]["age"] == [s.to_manifest() for s in splits["age"]]

    def test_the_default_splits_are_those_of_donor_splits(self, adata):
        splits = donor_splits(adata, targets=TARGETS, donor_key="donor", n_splits=2, seeds=(1, 2))
        frame = linear_probe(adata, use_rep="Z", targets=TARGETS, n_splits=2, seeds=(1, 2), **FAST)
        for name, many in splits.items():
            assert frame[frame["target"] == name]["split_hash"].unique().tolist() == [s.hash for s in many]

    def test_at_least_two_donors_are_for_training(self, adata):
        three = adata[adata.obs["donor"].isin(["d0", "d1", "d2"])].copy()
        split = donor_splits(three, targets={"cell_type": "classification"}, donor_key="donor")["cell_type"][
            0
        ]
        assert len(split.train_donors) == 2

    def test_the_order_of_cells_does_not_matter(self, adata):
        shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
        caps = {"max_cells_per_donor": 25, "max_cells_per_donor_and_class": 8}
        one, two = (linear_probe(a, use_rep="Z", targets=TARGETS, **caps, **FAST) for a in (adata, shuffled))
        pd.testing.assert_frame_equal(one, two, rtol=1e-3)

    def test_training_does_not_depend_on_the_test_donors(self, adata, split):
        test = adata.obs["donor"].isin(split.test_donors).to_numpy()
        adata.obsm["moved"] = np.where(test[:, None], 1e3 * adata.obsm["Z"] + 7, adata.obsm["Z"])
        frame = linear_probe(
            adata, use_rep=["Z", "moved"], targets=TARGETS, splits=[split], scale=(False, True), **FAST
        )
        penalty = frame.pivot_table(index=["target", "scale"], columns="method", values="penalty")
        np.testing.assert_array_equal(penalty["Z"], penalty["moved"])


class TestCaps:
    def test_limit_the_cells_of_a_donor_on_both_sides(self, adata):
        frame = linear_probe(
            adata, use_rep="Z", targets={"age": "regression"}, max_cells_per_donor=10, **FAST
        )
        assert set(frame["n_train_cells"]) == set(frame["n_test_cells"]) == {60}

    def test_limit_the_cells_of_a_class_for_cell_types_only(self, adata):
        frame = linear_probe(adata, use_rep="Z", targets=TARGETS, max_cells_per_donor_and_class=4, **FAST)
        n_train = frame.groupby("target")["n_train_cells"].first()
        assert n_train["cell_type"] == 6 * 3 * 4
        assert n_train["stim"] > 6 * 2 * 4

    def test_must_be_positive(self, adata):
        with pytest.raises(ValueError, match="cap of at least one cell, got 0"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, max_cells_per_donor=0, **FAST)


class TestAbsentClasses:
    def test_absent_from_training_are_counted_and_not_scored(self, adata, split, caplog):
        adata.obs["kind"] = np.where(adata.obs["donor"] == "d9", "only", adata.obs["stim"])
        with caplog.at_level(logging.WARNING, logger="scr2mae"):
            frame = linear_probe(
                adata, use_rep="Z", targets={"kind": "classification"}, splits=[split], **FAST
            )
        assert set(frame["absent_train"]) == {"only"}
        assert set(frame["n_unseen"]) == {int((adata.obs["donor"] == "d9").sum())}
        assert only(frame, level="cell", metric="balanced_accuracy")["value"] > 0.75
        assert "in 1 of 1 splits, only training or only test donors have only (donor d9 alone)" in caplog.text

    def test_are_named_once_for_all_splits_with_the_reason_of_what_is_undefined(self, adata, caplog):
        adata.obs["kind"] = np.where(adata.obs["donor"] == "d9", "only", "rest")
        with caplog.at_level(logging.WARNING, logger="scr2mae"):
            frame = linear_probe(adata, use_rep="Z", targets={"kind": "classification"}, n_splits=5, **FAST)
        assert frame["value"].isna().all()
        lines = [record.getMessage() for record in caplog.records]
        assert [
            line for line in lines if "in 5 of 5 splits" in line and "only (donor d9 alone)" in line
        ] == lines[:1]
        assert 1 <= len(lines[1:]) <= 2
        assert all(line.startswith("Some scores are undefined: the t") for line in lines[1:])

    def test_absent_from_the_test_are_reported(self, adata, split):
        adata.obs["kind"] = np.where(adata.obs["donor"] == "d1", "only", adata.obs["stim"])
        frame = linear_probe(adata, use_rep="Z", targets={"kind": "classification"}, splits=[split], **FAST)
        assert set(frame["absent_test"]) == {"only"}
        assert set(frame["n_unseen"]) == {0}

    def test_scores_are_nan_with_a_reason_if_a_side_has_one_class(self, adata, split):
        adata.obs["kind"] = np.where(adata.obs["donor"].isin(split.test_donors), "b", adata.obs["stim"])
        adata.obs.loc[adata.obs["donor"] == "d7", "kind"] = "s0"
        frame = linear_probe(adata, use_rep="Z", targets={"kind": "classification"}, splits=[split], **FAST)
        assert frame["value"].isna().all()
        assert frame["note"].str.contains("the test donors have 1 of the classes").all()
        adata.obs["kind"] = np.where(adata.obs["donor"].isin(split.train_donors), "b", adata.obs["stim"])
        adata.obs.loc[adata.obs["donor"] == "d7", "kind"] = "b"
        frame = linear_probe(adata, use_rep="Z", targets={"kind": "classification"}, splits=[split], **FAST)
        assert frame["value"].isna().all()
        assert frame["note"].str.contains("the training donors have one class only: b").all()

    def test_scores_are_nan_with_a_reason_if_the_sides_share_no_class(self, adata, split):
        trains = adata.obs["donor"].isin(split.train_donors)
        adata.obs["kind"] = np.where(trains, "a", "b") + adata.obs["stim"]
        frame = linear_probe(adata, use_rep="Z", targets={"kind": "classification"}, splits=[split], **FAST)
        assert frame["value"].isna().all()
        assert set(frame["note"]) == {"no training donor has a class of the test donors"}
        assert set(frame["n_unseen"]) == {int((~trains).sum())}


class TestMissingLabels:
    def test_are_dropped_and_counted(self, adata, split):
        adata.obs.loc[adata.obs_names[:50], "age"] = np.nan
        frame = linear_probe(adata, use_rep="Z", targets={"age": "regression"}, splits=[split], **FAST)
        kept = adata[adata.obs["age"].notna()].copy()
        expected = linear_probe(kept, use_rep="Z", targets={"age": "regression"}, splits=[split], **FAST)
        assert set(frame["n_dropped"]) == {50}
        pd.testing.assert_frame_equal(frame.drop(columns="n_dropped"), expected.drop(columns="n_dropped"))

    def test_exclude_a_donor_without_labels_from_the_split(self, adata):
        adata.obs.loc[adata.obs["donor"] == "d3", "disease"] = None
        split = donor_splits(adata, targets={"disease": "classification"}, donor_key="donor")["disease"][0]
        assert "d3" not in split.train_donors + split.test_donors


class TestBadInput:
    def test_an_unknown_column_lists_the_columns(self, adata):
        with pytest.raises(
            KeyError, match=r"No 'sex' in adata.obs; choose one of \['donor', 'sample', 'cell_type'"
        ):
            linear_probe(adata, use_rep="Z", targets={"sex": "classification"}, **FAST)
        with pytest.raises(KeyError, match=r"No 'patient' in adata.obs"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, donor_key="patient")
        with pytest.raises(KeyError, match=r"No 'slide' in adata.obs"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, sample_key="slide", **FAST)

    def test_an_unknown_representation_lists_them(self, adata):
        with pytest.raises(KeyError, match=r"No 'X_pca' .*\['Z'\] or of \['lognorm'\]"):
            linear_probe(adata, use_rep="X_pca", targets=TARGETS, **FAST)

    def test_one_donor_is_refused(self, adata):
        with pytest.raises(ValueError, match=r"adata.obs\['donor'\] has one: 'd1'"):
            linear_probe(adata[adata.obs["donor"] == "d1"].copy(), use_rep="Z", targets=TARGETS, **FAST)

    def test_two_donors_are_refused(self, adata):
        two = adata[adata.obs["donor"].isin(["d0", "d1"])].copy()
        with pytest.raises(ValueError, match="two donors to train and one to test, got 2"):
            linear_probe(two, use_rep="Z", targets=TARGETS, **FAST)

    def test_one_labeled_donor_is_refused(self, adata):
        adata.obs.loc[adata.obs["donor"] != "d1", "age"] = np.nan
        with pytest.raises(ValueError, match=r"Only donor 'd1' has labels in adata.obs\['age'\]"):
            linear_probe(adata, use_rep="Z", targets={"age": "regression"}, **FAST)

    def test_one_class_and_one_value_are_refused(self, adata):
        adata.obs["same"], adata.obs["flat"] = "a", 1.5
        with pytest.raises(ValueError, match="two classes, all 480 labeled cells are 'a'"):
            linear_probe(adata, use_rep="Z", targets={"same": "classification"}, **FAST)
        with pytest.raises(ValueError, match=r"is 1\.5 for every labeled cell"):
            linear_probe(adata, use_rep="Z", targets={"flat": "regression"}, **FAST)

    def test_text_as_a_regression_target_is_refused(self, adata):
        adata.obs["stage"] = [f"{a:.0f}-year-old" for a in adata.obs["age"]]
        with pytest.raises(ValueError, match=r"'stage' holds text such as '\d+-year-old'; convert"):
            linear_probe(adata, use_rep="Z", targets={"stage": "regression"}, **FAST)
        adata.obs["digits"] = adata.obs["age"].round().astype(str)
        with pytest.raises(ValueError, match="holds text such as"):
            linear_probe(adata, use_rep="Z", targets={"digits": "regression"}, **FAST)

    def test_infinite_and_fractional_labels_are_refused(self, adata):
        with pytest.raises(ValueError, match=r"'age'.* holds fractions; make it a regression target"):
            linear_probe(adata, use_rep="Z", targets={"age": "classification"}, **FAST)
        adata.obs["age"] = np.where(adata.obs["donor"] == "d1", np.inf, adata.obs["age"])
        with pytest.raises(ValueError, match="infinite value"):
            linear_probe(adata, use_rep="Z", targets={"age": "regression"}, **FAST)

    def test_no_label_at_all_is_refused(self, adata):
        adata.obs["age"] = np.nan
        with pytest.raises(ValueError, match="No cell has a label"):
            linear_probe(adata, use_rep="Z", targets={"age": "regression"}, **FAST)

    @pytest.mark.parametrize(
        ("n_train_donors", "message"), [(12, "between 1 and 11"), (1, "n_train_donors >= 2")]
    )
    def test_a_number_of_training_donors_out_of_range_is_refused(self, adata, n_train_donors, message):
        with pytest.raises(ValueError, match=message):
            linear_probe(adata, use_rep="Z", targets=TARGETS, n_train_donors=n_train_donors, **FAST)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_an_embedding_that_is_not_finite_is_refused(self, adata, value):
        adata.obsm["Z"][3, 2] = value
        with pytest.raises(ValueError, match=r"'Z' holds 1 NaN or infinite value\(s\)"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, **FAST)

    def test_a_missing_donor_or_sample_is_refused(self, adata):
        adata.obs.loc[adata.obs_names[:2], "sample"] = np.nan
        with pytest.raises(ValueError, match=r"2 cell\(s\) have no 'sample'"):
            linear_probe(adata, use_rep="Z", targets={"stim": "classification"}, sample_key="sample", **FAST)
        adata.obs.loc[adata.obs_names[:3], "donor"] = np.nan
        with pytest.raises(ValueError, match=r"3 cell\(s\) have no 'donor'"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, **FAST)

    def test_a_sample_of_two_donors_is_refused(self, adata):
        with pytest.raises(ValueError, match="hold cells of several donors"):
            linear_probe(
                adata, use_rep="Z", targets={"disease": "classification"}, sample_key="cell_type", **FAST
            )

    def test_an_unknown_kind_is_refused(self, adata):
        with pytest.raises(ValueError, match=r"the kind of 'age' to be one of .*got 'ranking'"):
            linear_probe(adata, use_rep="Z", targets={"age": "ranking"}, **FAST)

    def test_empty_requests_are_refused(self, adata, split):
        for change in ({"use_rep": []}, {"targets": {}}, {"scale": ()}):
            with pytest.raises(ValueError, match="one of them is empty"):
                linear_probe(adata, **({"use_rep": "Z", "targets": TARGETS} | change), **FAST)
        with pytest.raises(ValueError, match="No splits for target 'cell_type'"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, splits={"age": [split]}, **FAST)
        with pytest.raises(ValueError, match="at least one split and one seed"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, n_splits=0, **FAST)
        with pytest.raises(ValueError, match="confidence between 0 and 1, got 95"):
            linear_probe(adata, use_rep="Z", targets=TARGETS, donor_key="donor", confidence=95)
