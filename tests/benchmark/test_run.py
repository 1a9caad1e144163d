"""Rows of a benchmark, the cells that pretraining sees, and invalid input."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scr2mae
from scr2mae import benchmark
from scr2mae.nn.curriculum import Curriculum
from scr2mae.probe import check_no_donor_leak, linear_probe


def probe_rows(result, method):
    rows = result.results
    return rows[(rows["part"] == "probe") & (rows["method"] == method)].reset_index(drop=True)


# --- the rows


def test_every_method_has_a_row_for_each_seed_split_scaling_and_score(finished):
    result, _ = finished
    counts = result.results[result.results["part"] == "probe"].groupby("method", sort=False).size()
    # Two classification targets and one number: 3 + 3 (donor level of disease) + 2 scores, and 3 of cell type.
    by_fit = 2 * 2 * (3 + 3 + 2 + 3)
    assert counts.to_dict() == {
        "lognorm": by_fit,
        "pca": by_fit,
        "scvi": 2 * by_fit,
        "r2mae": 2 * by_fit,
        "X_mine": by_fit,
    }
    seeds = result.results.groupby("method")["seed"].unique().map(lambda s: sorted(s.dropna()))
    assert seeds["r2mae"] == seeds["scvi"] == [0, 1]
    assert seeds["pca"] == seeds["lognorm"] == seeds["X_mine"] == []


def test_the_rows_of_a_given_embedding_are_those_of_linear_probe(finished, cells, quick):
    result, _ = finished
    splits = [scr2mae.probe.DonorSplit.from_manifest(manifest) for manifest in result.about["splits"]]
    expected = linear_probe(
        cells,
        use_rep="X_mine",
        targets=quick["targets"],
        donor_key="donor",
        splits=splits,
        scale=(False, True),
        n_bootstrap=0,
    )
    got = probe_rows(result, "X_mine")
    for column in ("target", "metric", "level", "unit", "scale", "split", "value", "penalty", "split_hash"):
        np.testing.assert_array_equal(got[column].to_numpy(), expected[column].to_numpy(), err_msg=column)


def test_all_methods_and_tasks_share_the_splits(finished):
    result, _ = finished
    probed = result.results[result.results["part"] == "probe"]
    hashes = probed.groupby(["method", "target", "split"])["split_hash"].unique()
    assert hashes.map(len).eq(1).all()
    assert hashes.map(lambda h: h[0]).groupby("split").nunique().tolist() == [1, 1]
    for manifest in result.about["splits"]:
        check_no_donor_leak(manifest["train_donors"], manifest["test_donors"])


def test_every_row_records_versions_seconds_and_memory(finished):
    result, _ = finished
    rows = result.results
    assert (rows["seconds"] >= 0).all()
    assert (rows["probe_seconds"] > 0).all()
    assert (rows["peak_memory_mb"] > 50).all()
    assert rows["versions"].str.contains(f"scr2mae {scr2mae.__version__}").all()
    release = torch.__version__.partition("+")[0]
    assert rows["versions"].str.contains(f"torch {release}", regex=False).all()


def test_only_methods_that_decode_reconstruct(finished):
    result, _ = finished
    table = result.reconstruction()
    assert table.index.tolist() == ["scvi", "r2mae"]
    assert table.columns.tolist() == [0.1, 0.2, 0.3, 0.5, 0.7]
    assert table.notna().all().all()


def test_fitted_embeddings_beat_a_random_one(finished):
    result, _ = finished
    table = result.table()
    assert (
        table.index[-1] == "X_mine"
        or table.loc["X_mine", ("Rank", "", "")] > table.loc["pca", ("Rank", "", "")]
    )
    assert table.loc["pca", ("cell_type", "balanced_accuracy", "cell")] > 0.9
    assert table.loc["X_mine", ("cell_type", "balanced_accuracy", "cell")] < 0.7


# --- cells that pretraining sees


@pytest.mark.parametrize("name", ["pca", "scvi", "r2mae"])
def test_pretraining_on_the_training_donors_does_not_depend_on_the_test_donors(name, cells, fit_one):
    before, design = fit_one(cells, name, pretrain_on="train", split=0)
    test = np.isin(cells.obs["donor"].astype(str), design.splits[0].test_donors)
    cells.X = sp.csr_matrix(np.where(test[:, None], 2 * cells.X.toarray() + 1, cells.X.toarray()))
    after, _ = fit_one(cells, name, pretrain_on="train", split=0)
    np.testing.assert_array_equal(np.asarray(after.matrix)[~test], np.asarray(before.matrix)[~test])
    assert not np.allclose(np.asarray(after.matrix)[test], np.asarray(before.matrix)[test])


@pytest.mark.parametrize("name", ["pca", "scvi", "r2mae"])
def test_pretraining_on_all_cells_depends_on_the_test_donors(name, cells, fit_one):
    before, design = fit_one(cells, name)
    test = np.isin(cells.obs["donor"].astype(str), design.splits[0].test_donors)
    cells.X = sp.csr_matrix(np.where(test[:, None], 2 * cells.X.toarray() + 1, cells.X.toarray()))
    after, _ = fit_one(cells, name)
    assert not np.array_equal(np.asarray(after.matrix)[~test], np.asarray(before.matrix)[~test])


def test_methods_are_trained_once_per_split_if_pretraining_sees_the_training_donors(cells, one):
    result = benchmark.run(
        cells, methods=["lognorm", "r2mae"], seeds=(0,), pretrain_on="train", **(one | {"n_splits": 2})
    )
    rows = result.results
    assert rows.groupby("method")["pretrained_on"].unique().map(list).to_dict() == {
        "lognorm": ["training donors"],
        "r2mae": ["training donors"],
    }
    seconds = rows[rows["method"] == "r2mae"].groupby("split")["seconds"].unique()
    assert seconds.map(len).tolist() == [1, 1]
    assert seconds[0] != seconds[1]
    assert rows[rows["part"] == "reconstruction"]["split"].value_counts().to_dict() == {0: 5, 1: 5}
    assert "none of the test donors'" in result.to_markdown()
    assert "cells of the test donors" in result.to_markdown()


def test_validation_cells_are_scored_and_are_the_same_for_every_method(cells, fit_one):
    _, design = fit_one(cells, "lognorm")
    seen = design.pretraining(None)
    np.testing.assert_array_equal(seen.scored, seen.validation)
    assert len(seen.validation) == 12
    assert not set(seen.train) & set(seen.validation)
    by_split = design.pretraining(0)
    donors = design.obs["donor"].to_numpy()
    assert set(donors[by_split.scored]) == set(design.splits[0].test_donors)
    assert set(donors[by_split.seen]) == set(design.splits[0].train_donors)


def test_the_data_are_not_modified(cells, one, unchanged):
    with unchanged(cells):
        benchmark.run(cells, methods=["scvi", "mae"], seeds=(0,), batch_key="batch", **one)
    assert list(cells.obsm) == ["X_mine"]
    assert not [name for name in cells.uns if "scvi" in name]


# --- invalid input


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"methods": ["r3mae"]},
            ValueError,
            r"No method \['r3mae'\]; choose from \['lognorm', 'pca', 'pca_1e4'",
        ),
        ({"methods": []}, ValueError, "Wanted at least one method"),
        ({"methods": ["pca", "pca"]}, ValueError, "each of them once"),
        ({"seeds": ()}, ValueError, "Wanted distinct seeds"),
        ({"seeds": (1, 1)}, ValueError, "Wanted distinct seeds"),
        ({"n_splits": 0}, ValueError, "at least one split"),
        ({"pretrain_on": "test"}, ValueError, "pretrain_on must be one of"),
        ({"scale": ()}, ValueError, "Wanted scale to be True, False or a pair"),
        ({"model_kwargs": {"mask_ratio": 0.2}}, ValueError, r"model_kwargs sets \['mask_ratio'\]"),
        ({"scvi_train_kwargs": {"train_size": 1.0}}, ValueError, r"scvi_train_kwargs sets \['train_size'\]"),
        ({"donor_key": "patient"}, KeyError, "No 'patient' in adata.obs"),
        ({"batch_key": "chip"}, KeyError, "No 'chip' in adata.obs"),
        ({"layer": "spliced"}, KeyError, "No 'spliced' in adata.layers"),
        ({"targets": {"sex": "classification"}}, KeyError, "No 'sex' in adata.obs"),
        ({"targets": {"donor": "classification"}}, ValueError, "names both a task and the donors"),
        ({"scale": (True, True)}, ValueError, "Wanted scale to be True, False or a pair"),
        ({"ratios": (0.1, 1.5)}, ValueError, "Wanted distinct ratios between 0 and 1"),
        ({"confidence": 95}, ValueError, "confidence between 0 and 1, got 0 and 95"),
        ({"max_cells_per_donor": 0}, ValueError, "Wanted a cap of at least one cell"),
        ({"targets": {"cell_type": "regression"}}, ValueError, "holds text such as 'type"),
        ({"targets": {"age": "number"}}, ValueError, "to be one of"),
        ({"targets": {"constant": "classification"}}, ValueError, "needs two classes"),
        ({"n_train_donors": 8}, ValueError, "Wanted n_train_donors between 1 and 7"),
        ({"n_train_donors": 1}, ValueError, "n_train_donors >= 2, got 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_fitted(settings, error, message, cells, quick, tmp_path):
    cells.obs["constant"] = "same"
    with pytest.raises(error, match=message):
        benchmark.run(cells, **(quick | {"methods": ["pca"], "out": tmp_path / "out"} | settings))
    assert not (tmp_path / "out").exists()


def test_a_batch_of_test_donors_only_is_refused_if_pretraining_does_not_see_them(cells, quick):
    settings = quick | {"batch_key": "donor", "methods": ["r2mae"], "seeds": (0,)}
    with pytest.raises(ValueError, match="belong to test donors of split 0 only"):
        benchmark.run(cells, pretrain_on="train", **settings)


def test_cells_without_counts_and_logged_counts_are_refused(cells, quick):
    cells.X = sp.csr_matrix(cells.X.toarray() * (np.arange(120) > 1)[:, None])
    with pytest.raises(ValueError, match=r"2 cell.* have no counts; drop them"):
        benchmark.run(cells, methods=["pca"], **quick)
    cells.X = cells.X.log1p()
    with pytest.raises(ValueError, match=r"Expected raw counts in adata\.X"):
        benchmark.run(cells, methods=["pca"], **quick)


def test_an_embedding_with_the_name_of_a_method_is_refused(cells, quick):
    cells.obsm["pca"] = cells.obsm["X_mine"]
    with pytest.raises(ValueError, match="name both a method and an entry of"):
        benchmark.run(cells, methods=["pca"], **quick)


def test_an_embedding_with_nan_is_refused(cells, quick):
    cells.obsm["X_mine"][0, 0] = np.nan
    with pytest.raises(ValueError, match="'X_mine' holds 1 NaN"):
        benchmark.run(cells, methods=["X_mine"], **quick)


def test_a_cell_without_a_batch_and_too_few_donors_are_refused(cells, quick):
    cells.obs["chip"] = pd.Categorical(np.where(np.arange(cells.n_obs) < 3, None, "chip 1"))
    with pytest.raises(ValueError, match=r"3 cell.* have no 'chip'; drop them or name their 'chip'"):
        benchmark.run(cells, **(quick | {"methods": ["pca"], "batch_key": "chip"}))
    two = cells[cells.obs["donor"].isin(cells.obs["donor"].unique()[:2])].copy()
    with pytest.raises(ValueError, match="two donors to train and one to test, got 2"):
        benchmark.run(two, **(quick | {"methods": ["pca"]}))


def test_the_table_has_the_epochs_of_each_method(finished):
    result, _ = finished
    epochs = result.results.drop_duplicates("method").set_index("method")["epochs"]
    assert epochs[["scvi", "r2mae"]].tolist() == [1, 1]
    assert epochs[["lognorm", "X_mine"]].isna().all()
    heading = next(line for line in result.to_markdown().splitlines() if line.startswith("| Method"))
    assert "Epochs" in heading


@pytest.mark.parametrize("given", [{"schemes": "hlca"}, {"curriculum": Curriculum(n_ratios=4)}])
def test_steps_of_an_atlas_and_settings_of_a_curriculum_reach_the_model(cells, monkeypatch, fit_one, given):
    seen = []
    monkeypatch.setattr(scr2mae.R2MAEModel, "train", lambda self, **_: seen.append(self) or 1 / 0)
    for name in ("cl", "dynamic"):
        with pytest.raises(ZeroDivisionError):
            fit_one(cells, name, **given)
    domain = given.get("schemes", "single_cell")
    expected = scr2mae.schemes(domain, curriculum=given.get("curriculum"))
    assert seen[0].curriculum == expected["cl"].curriculum
    assert seen[1].mask_ratio == expected["dynamic"].mask_ratio
