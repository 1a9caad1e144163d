"""What a benchmark computes, what it does not compute twice, and what it refuses."""

import json
import logging
import signal
import time

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch

import scr2mae
from scr2mae import benchmark
from scr2mae.benchmark import _methods
from scr2mae.benchmark._design import make_design
from scr2mae.benchmark._methods import SCVI_CLASSES, Options, make_methods
from scr2mae.benchmark._resources import Meter
from scr2mae.benchmark._tasks import as_tasks
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson
from scr2mae.probe import check_no_donor_leak, linear_probe


@pytest.fixture
def one(quick):
    """Settings of one target, split and scaling."""
    return quick | {"targets": {"disease": "classification"}, "n_splits": 1, "scale": False}


def probe_rows(result, method):
    rows = result.results
    return rows[(rows["part"] == "probe") & (rows["method"] == method)].reset_index(drop=True)


def fit_one(adata, name, *, seed=0, pretrain_on="all", split=None, **options):
    """Embedding of one method, without probes."""
    design = make_design(
        adata,
        as_tasks({"disease": "classification"}, []),
        donor_key="donor",
        sample_key=None,
        batch_key=None,
        layer=None,
        n_splits=1,
        n_train_donors=None,
        max_cells_per_donor=None,
        max_cells_per_donor_and_class=None,
        pretrain_on=pretrain_on,
        seed=0,
    )
    settings = {
        "model_kwargs": {"n_hidden": 8, "n_latent": 4},
        "train_kwargs": {"max_epochs": 1, "batch_size": 64},
        "scvi_model_kwargs": {"n_hidden": 8, "n_latent": 4},
        "scvi_train_kwargs": {"max_epochs": 1},
        "n_pcs": 5,
        "ratios": (0.5,),
        "accelerator": "cpu",
    }
    (method,) = make_methods([name], adata, Options(**(settings | options)))
    return method.fit(design.pretraining(split), seed), design


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
    assert rows["versions"].str.contains(f"torch {torch.__version__}", regex=False).all()
    assert (
        rows.loc[rows["method"] == "r2mae", "seconds"].min()
        > rows.loc[rows["method"] == "lognorm", "seconds"].max()
    )


def test_only_methods_that_decode_reconstruct(finished):
    result, _ = finished
    table = result.reconstruction()
    assert table.index.tolist() == ["scvi", "r2mae"]
    assert table.columns.tolist() == [0.1, 0.2, 0.3, 0.5, 0.7]
    assert table.notna().all().all()


def test_informed_embeddings_beat_one_that_knows_nothing(finished):
    result, _ = finished
    table = result.table()
    assert (
        table.index[-1] == "X_mine"
        or table.loc["X_mine", ("Rank", "", "")] > table.loc["pca", ("Rank", "", "")]
    )
    assert table.loc["pca", ("cell_type", "balanced_accuracy", "cell")] > 0.9
    assert table.loc["X_mine", ("cell_type", "balanced_accuracy", "cell")] < 0.7


# --- the files


def test_a_second_run_computes_nothing_and_gives_the_same_rows(finished, cells, quick, monkeypatch):
    result, folder = finished
    monkeypatch.setattr("scr2mae.benchmark._fits._embed", lambda *_: pytest.fail("computed again"))
    again = benchmark.run(
        cells, methods=["lognorm", "pca", "scvi", "r2mae", "X_mine"], seeds=(0, 1), out=folder, **quick
    )
    pd.testing.assert_frame_equal(again.results, result.results)


def test_another_target_probes_again_and_trains_nothing(finished, cells, quick, monkeypatch, tmp_path):
    _, folder = finished
    (tmp_path / "embeddings").symlink_to(folder / "embeddings")
    monkeypatch.setattr(scr2mae.R2MAEModel, "train", lambda *_, **__: pytest.fail("trained again"))
    result = benchmark.run(
        cells,
        methods=["r2mae"],
        seeds=(1,),
        out=tmp_path,
        **(quick | {"scale": False, "targets": {"batch": "classification"}}),
    )
    assert set(probe_rows(result, "r2mae")["target"]) == {"batch"}


@pytest.mark.parametrize("change", ["counts", "settings", "seed", "versions"])
def test_what_an_embedding_depends_on_makes_it_anew(change, cells, one, tmp_path, monkeypatch):
    fitted = []
    real = _methods._fit_pca

    def count(*args, **kwargs):
        fitted.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(_methods, "_fit_pca", count)
    settings = one | {"methods": ["pca"], "out": tmp_path}
    benchmark.run(cells, **settings)
    benchmark.run(cells, **settings)
    assert len(fitted) == 1
    if change == "counts":
        cells.X[0, 0] += 1
    if change == "settings":
        settings["n_pcs"] = 4
    if change == "seed":
        settings["split_seed"] = 1
    if change == "versions":
        monkeypatch.setattr("scr2mae.benchmark._fits.versions", lambda: {"torch": "0"})
    benchmark.run(cells, **settings)
    assert len(fitted) == 2


def test_a_broken_run_keeps_what_is_finished(cells, one, tmp_path, monkeypatch):
    settings = one | {"methods": ["pca", "r2mae"], "seeds": (0,), "out": tmp_path}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scr2mae.R2MAEModel, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            benchmark.run(cells, **settings)
    assert [path.name.split("-")[0] for path in (tmp_path / "cells").iterdir()] == ["pca"]
    assert (tmp_path / "benchmark.json").is_file()
    assert not list(tmp_path.rglob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(_methods, "_fit_pca", lambda *_, **__: pytest.fail("computed again"))
        result = benchmark.run(cells, **settings)
    assert result.results["method"].unique().tolist() == ["pca", "r2mae"]


def test_a_damaged_file_is_computed_anew(cells, one, tmp_path, caplog):
    settings = one | {"methods": ["pca"], "out": tmp_path}
    first = benchmark.run(cells, **settings)
    for path in [*(tmp_path / "cells").iterdir(), *(tmp_path / "embeddings").iterdir()]:
        path.write_bytes(path.read_bytes()[:50])
    second = benchmark.run(cells, **settings)
    assert caplog.text.count("computing it anew") == 2
    np.testing.assert_array_equal(second.results["value"], first.results["value"])


def test_the_folder_holds_rows_tables_figures_and_settings(finished):
    result, folder = finished
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"results.csv", "table.md", "benchmark.json", "scores.png", "reconstruction.png"}
    rows = pd.read_csv(folder / "results.csv")
    np.testing.assert_allclose(rows["value"], result.results["value"], rtol=1e-12)
    assert (folder / "table.md").read_text(encoding="utf-8") == result.to_markdown()
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    assert (about["n_obs"], about["n_vars"], about["n_donors"], about["pretrain_on"]) == (120, 40, 8, "all")


def test_the_tables_say_what_pretraining_saw_and_are_one_a_scaling(finished):
    result, _ = finished
    text = result.to_markdown()
    assert "Pretraining saw the counts of all cells" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Features as they are, as in the paper",
        "## Features divided by their standard deviation",
        "## Reconstruction by share of genes hidden",
    ]
    cells_of = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "|" in line
    }
    assert cells_of["Log-normalised"] == "nothing"
    assert cells_of["PCA"] == "all cells"
    assert cells_of["X_mine"] == "not known"
    row = next(line for line in text.splitlines() if line.startswith("| PCA"))
    expected = result.table(scale=False).loc["pca"]
    assert f"{expected[('Score', '', '')]:.3f}" in row
    assert f"{expected[('Rank', '', '')]:.2f}" in row


def test_a_table_of_a_scaling_that_was_not_asked_for_is_an_error(cells, one):
    result = benchmark.run(cells, methods=["pca"], **(one | {"scale": True}))
    assert result.scalings == [True]
    with pytest.raises(ValueError, match=r"No rows with scale=False; there are \[True\]"):
        result.table(scale=False)


# --- what pretraining sees


@pytest.mark.parametrize("name", ["pca", "scvi", "r2mae"])
def test_pretraining_on_the_training_donors_does_not_depend_on_the_test_donors(name, cells):
    before, design = fit_one(cells, name, pretrain_on="train", split=0)
    test = np.isin(cells.obs["donor"].astype(str), design.splits[0].test_donors)
    cells.X = sp.csr_matrix(np.where(test[:, None], 2 * cells.X.toarray() + 1, cells.X.toarray()))
    after, _ = fit_one(cells, name, pretrain_on="train", split=0)
    np.testing.assert_array_equal(np.asarray(after.matrix)[~test], np.asarray(before.matrix)[~test])
    assert not np.allclose(np.asarray(after.matrix)[test], np.asarray(before.matrix)[test])


@pytest.mark.parametrize("name", ["pca", "scvi", "r2mae"])
def test_pretraining_on_all_cells_depends_on_the_test_donors(name, cells):
    before, design = fit_one(cells, name)
    test = np.isin(cells.obs["donor"].astype(str), design.splits[0].test_donors)
    cells.X = sp.csr_matrix(np.where(test[:, None], 2 * cells.X.toarray() + 1, cells.X.toarray()))
    after, _ = fit_one(cells, name)
    assert not np.array_equal(np.asarray(after.matrix)[~test], np.asarray(before.matrix)[~test])


def test_every_split_is_trained_for_when_pretraining_sees_the_training_donors(cells, one):
    result = benchmark.run(
        cells, methods=["lognorm", "r2mae"], seeds=(0,), pretrain_on="train", **(one | {"n_splits": 2})
    )
    rows = result.results
    assert rows.groupby("method")["pretrained_on"].unique().map(list).to_dict() == {
        "lognorm": ["nothing"],
        "r2mae": ["training donors"],
    }
    seconds = rows[rows["method"] == "r2mae"].groupby("split")["seconds"].unique()
    assert seconds.map(len).tolist() == [1, 1]
    assert seconds[0] != seconds[1]
    assert rows[rows["part"] == "reconstruction"]["split"].value_counts().to_dict() == {0: 5, 1: 5}
    assert "none of the test donors'" in result.to_markdown()
    assert "cells of the test donors" in result.to_markdown()


def test_validation_cells_are_scored_and_are_the_same_for_every_method(cells):
    _, design = fit_one(cells, "lognorm")
    seen = design.pretraining(None)
    np.testing.assert_array_equal(seen.scored, seen.validation)
    assert len(seen.validation) == 12
    assert not set(seen.train) & set(seen.validation)
    by_split = design.pretraining(0)
    donors = design.obs["donor"].to_numpy()
    assert set(donors[by_split.scored]) == set(design.splits[0].test_donors)
    assert set(donors[by_split.seen]) == set(design.splits[0].train_donors)


# --- methods


def test_log_normalised_expression_and_components_are_scanpy_s(cells):
    import scanpy as sc

    expected = cells.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    got, _ = fit_one(cells, "lognorm")
    np.testing.assert_allclose(got.matrix.toarray(), expected.X.toarray(), rtol=1e-5)
    sc.pp.pca(expected, n_comps=5)
    got, _ = fit_one(cells, "pca")
    np.testing.assert_allclose(np.abs(got.matrix), np.abs(expected.obsm["X_pca"]), rtol=1e-3, atol=1e-3)


def test_a_scheme_is_the_model_of_its_name(cells):
    got, design = fit_one(cells, "mae_high", seed=3)
    seen = design.pretraining(None)
    model = scr2mae.R2MAEModel(cells.copy(), n_hidden=8, n_latent=4, mask_ratio=0.5, seed=3)
    model.train(
        1,
        batch_size=64,
        accelerator="cpu",
        split_key=False,
        enable_progress_bar=False,
        datasplitter_kwargs={"external_indexing": [seen.train, seen.validation]},
    )
    np.testing.assert_allclose(got.matrix, model.get_latent_representation(), atol=1e-5)
    expected = model.get_masked_reconstruction(indices=seen.validation, ratios=(0.5,))
    assert got.reconstruction[0.5] == pytest.approx(expected["pearson"].iloc[0], abs=1e-4)


def test_scvi_reconstructs_from_zeroed_genes_with_the_masks_of_the_schemes(cells, monkeypatch):
    kept = {}
    real = scvi.model.SCVI.train

    def train(self, *args, **kwargs):
        kept["model"] = self
        return real(self, *args, **kwargs)

    monkeypatch.setattr(scvi.model.SCVI, "train", train)
    got, design = fit_one(cells, "scvi")
    rows = design.pretraining(None).scored
    mask = draw_mask(cells.n_vars, 0.5, seed=0, step=0).numpy()
    hidden = cells[rows].copy()
    hidden.X = sp.csr_matrix(np.where(mask, 0, hidden.X.toarray()))
    hidden.obs["batch"] = "all"
    # The mean over many draws of the decoded share is near the share decoded from the mean.
    share = kept["model"].get_normalized_expression(
        hidden, n_samples=100, return_numpy=True, return_mean=True
    )
    expected = np.nanmean(masked_pearson(share, cells[rows].X, mask))
    assert got.reconstruction[0.5] == pytest.approx(expected, abs=0.05)


def test_scvi_is_a_function_of_its_seed_and_leaves_the_generators_alone(cells):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    level = logging.getLogger("scvi").level
    first, _ = fit_one(cells, "scvi", seed=1)
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert logging.getLogger("scvi").level == level
    second, _ = fit_one(cells, "scvi", seed=1)
    other, _ = fit_one(cells, "scvi", seed=2)
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert not np.array_equal(first.matrix, other.matrix)


def test_scvi_trains_where_one_cell_would_be_left_over(cells):
    got, _ = fit_one(cells, "scvi", scvi_train_kwargs={"max_epochs": 1, "batch_size": 107})
    assert np.isfinite(got.matrix).all()


def test_ctrl_c_in_scvi_is_ctrl_c(cells, monkeypatch):
    def interrupted(*_, **__):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(1)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(scvi.model.SCVI, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_one(cells, "scvi")
    assert signal.getsignal(signal.SIGINT) is before


def test_all_methods_are_there_by_default(cells):
    names = [method.name for method in make_methods(None, cells, Options())]
    assert names == ["lognorm", "pca", *SCVI_CLASSES, *scr2mae.schemes()]
    assert set(names) <= set(_methods.LABELS)


def test_joint_embedding_scvi_is_a_method_where_scvi_has_it(cells):
    has = hasattr(scvi.external, "JointEmbeddingSCVI")
    assert ("scvi_joint" in SCVI_CLASSES) == has
    if not has:
        with pytest.raises(ValueError, match=r"needs scvi-tools 1\.5 or newer"):
            make_methods(["scvi_joint"], cells, Options())


def test_the_data_are_not_changed(cells, one, unchanged):
    with unchanged(cells):
        benchmark.run(cells, methods=["scvi", "mae"], seeds=(0,), batch_key="batch", **one)
    assert list(cells.obsm) == ["X_mine"]
    assert not [name for name in cells.uns if "scvi" in name]


def test_the_meter_sees_memory_that_is_given_back_before_the_end():
    with Meter() as meter:
        block = np.ones(30_000_000)
        time.sleep(0.1)
        del block
    with Meter() as idle:
        pass
    assert meter.peak_memory_mb > idle.peak_memory_mb + 150
    assert 0.1 <= meter.seconds < 5


# --- refusals


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"methods": ["r3mae"]}, ValueError, r"No method \['r3mae'\]; choose from \['lognorm', 'pca'"),
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


def test_a_batch_of_test_donors_alone_is_refused_where_pretraining_does_not_see_them(cells, quick):
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
