"""Inputs that are no AnnData, counts in raw, unusual units, forks, threads, and what a save leaves behind."""

import functools
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info, threadpool_limits

from scr2mae import R2MAEModel, benchmark, datasets
from scr2mae.probe import (
    LogisticProbe,
    Probe,
    RidgeProbe,
    compare_representations,
    design_table,
    donor_split,
    donor_splits,
    fit_probe,
    gene_attribution,
    linear_probe,
    permutation_test,
    score_without_genes,
)
from scr2mae.train import NonFiniteError

TINY = {"n_hidden": 8, "n_latent": 2}
QUICK = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}
TARGET = {"disease": "classification"}
DISEASE = {"target": "disease", "kind": "classification"}
LABELS = {"use_rep": "X", "donor_key": "donor", **DISEASE}
FIT = {"n_bootstrap": 0, "cv": 2, **LABELS}


# --- what is no AnnData


class MuData:
    """Stands for the class of that name."""

    mod = {"rna": None}  # noqa: RUF012


class AnnCollection:
    """Stands for the class of that name."""


FOREIGN: dict[str, tuple[Any, str]] = {
    "MuData": (MuData(), "got MuData; pass one of its modalities, such as mdata['rna']"),
    "AnnCollection": (AnnCollection(), "adata = collection[:].to_adata()"),
    "DataFrame": (pd.DataFrame(np.ones((3, 3))), "anndata.AnnData(frame)"),
    "array": (np.ones((3, 3)), "anndata.AnnData(X)"),
    "path": ("counts.h5ad", "anndata.read_h5ad(path), or scr2mae.data.open_store(path)"),
    "Path": (Path("counts.h5ad"), "read the file first"),
    "number": (3, "pass an AnnData of raw counts"),
}
USES: dict[str, Callable[[Any, Any, Path], Any]] = {
    "setup": lambda a, m, p: R2MAEModel.setup_anndata(a),
    "class": lambda a, m, p: R2MAEModel(a, **TINY),
    "embed": lambda a, m, p: m.get_latent_representation(a),
    "expression": lambda a, m, p: m.get_normalized_expression(a),
    "prepare": lambda a, m, p: R2MAEModel.prepare_query_anndata(a, m),
    "query": lambda a, m, p: R2MAEModel.load_query_data(a, m),
    "probe": lambda a, m, p: linear_probe(a, use_rep="X", targets=TARGET, donor_key="donor"),
    "splits": lambda a, m, p: donor_splits(a, targets=TARGET, donor_key="donor"),
    "benchmark": lambda a, m, p: benchmark.run(a, targets=TARGET, donor_key="donor", methods=["pca"]),
    "parameters": lambda a, m, p: m.get_likelihood_parameters(a),
    "draws": lambda a, m, p: m.posterior_predictive_sample(a),
    "fit_probe": lambda a, m, p: fit_probe(a, **FIT),
    "predict": lambda a, m, p: kept().predict(a),
    "predict_proba": lambda a, m, p: kept().predict_proba(a),
    "predict_donors": lambda a, m, p: kept().predict_donors(a),
    "genes": lambda a, m, p: gene_attribution(kept(), a, model=m),
    "without genes": lambda a, m, p: score_without_genes(kept(), a, ["gene0"], model=m),
    "permutations": lambda a, m, p: permutation_test(a, **LABELS),
    "comparison": lambda a, m, p: compare_representations(a, **{**LABELS, "use_rep": ("X", "X")}),
    "design": lambda a, m, p: design_table(a, donor_key="donor", columns=["batch"], **DISEASE),
    "preprocess": lambda a, m, p: datasets.preprocess(a),
    "ranking": lambda a, m, p: datasets.highly_variable_genes(a),
}


@functools.cache
def kept() -> Probe:
    """Return a probe of noise."""
    obs = pd.DataFrame(
        {"donor": list("abcdef") * 2, "disease": list("xyxyxy") * 2}, index=list("ABCDEFGHIJKL")
    )
    return fit_probe(AnnData(np.random.default_rng(0).normal(size=(12, 2)), obs=obs), **FIT)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_anndata_is_refused_with_what_makes_one(
    kind: str, use: str, trained: R2MAEModel, tmp_path: Path
) -> None:
    value, message = FOREIGN[kind]
    with pytest.raises(TypeError, match="adata must be an AnnData, got ") as caught:
        USES[use](value, trained, tmp_path)
    assert message in str(caught.value)


def test_load_takes_false_for_no_data_and_notices_swapped_arguments(
    trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    trained.save(tmp_path / "m")
    assert R2MAEModel.load(tmp_path / "m", adata=False).adata is None
    with pytest.raises(TypeError, match=r"load takes the folder first: load\(dir_path, adata\)"):
        R2MAEModel.load(adata, tmp_path / "m")
    with pytest.raises(TypeError, match="adata must be an AnnData, got str"):
        R2MAEModel.load(tmp_path / "m", "counts.h5ad")


def test_targets_without_kinds_and_dates_as_numbers_are_explained(adata: AnnData) -> None:
    adata.obs["seen"] = pd.to_datetime(["2024-01-01", "2024-02-01"] * 60)
    with pytest.raises(TypeError, match=r"such as \{'disease': 'classification'\}.*got \['disease'\]"):
        linear_probe(adata, use_rep="X", targets=["disease"], donor_key="donor")
    with pytest.raises(ValueError, match=r"Regression target 'seen' holds dates or times.*Timedelta"):
        linear_probe(adata, use_rep="X", targets={"seen": "regression"}, donor_key="donor")


SIZES: dict[str, Callable[[AnnData, Any], Any]] = {
    "seed": lambda a, m: R2MAEModel(a, **TINY).train(**QUICK, seed=np.int64(3)),
    "seed of the model": lambda a, m: R2MAEModel(a, **TINY, seed=np.int32(3)).train(**QUICK),
    "epochs": lambda a, m: R2MAEModel(a, **TINY).train(**{**QUICK, "max_epochs": np.int16(1)}),
    "batch size": lambda a, m: R2MAEModel(a, **TINY).train(**{**QUICK, "batch_size": np.uint8(32)}),
    "devices": lambda a, m: R2MAEModel(a, **TINY).train(**QUICK, devices=np.int64(1)),
    "mask ratio": lambda a, m: R2MAEModel(a, **TINY, mask_ratio=np.float32(0.3)).train(**QUICK),
    "embedding": lambda a, m: m.get_latent_representation(batch_size=np.int64(7)),
    "draws": lambda a, m: m.posterior_predictive_sample(
        n_samples=np.int64(2), n_folds=np.int64(2), seed=np.int64(1)
    ),
    "splits": lambda a, m: linear_probe(
        a, use_rep="X", targets=TARGET, donor_key="donor", n_splits=np.int64(1), n_train_donors=np.int64(3),
        scale=np.True_, seeds=np.array([1]), max_cells_per_donor=np.int64(9),
    ),
    "kept probe": lambda a, m: fit_probe(a, **{**FIT, "cv": np.int64(2), "reject": np.float32(0.1)}),
}  # fmt: skip


@pytest.mark.parametrize("use", SIZES)
def test_sizes_may_be_numbers_of_numpy(use: str, sick: AnnData, trained: R2MAEModel) -> None:
    result = SIZES[use](sick, trained)
    assert result is None or np.size(result) > 0  # train returns nothing


@pytest.fixture
def sick(adata: AnnData) -> AnnData:
    """Cells with a disease that goes by donor."""
    adata.obs["disease"] = np.where(adata.obs["donor"].isin(["donor0", "donor2", "donor4"]), "yes", "no")
    return adata


WRONG: dict[str, tuple[Callable[[AnnData, Any], Any], str]] = {
    "batch size": (
        lambda a, m: R2MAEModel(a, **TINY).train(**{**QUICK, "batch_size": 64.0}),
        "batch_size must be an integer, got 64.0",
    ),
    "batch size of an embedding": (
        lambda a, m: m.get_latent_representation(batch_size="7"),
        "batch_size must be an integer, got '7'",
    ),
    "train size": (
        lambda a, m: R2MAEModel(a, **TINY).train(**QUICK, train_size="0.9"),
        "train_size must be a number, got '0.9'",
    ),
    "folds": (lambda a, m: fit_probe(a, **{**FIT, "cv": 2.5}), "number of folds or a splitter"),
    "rate": (
        lambda a, m: fit_probe(a, **FIT, reject="0.1"),
        "reject is a rate between 0 and 1 or None, got '0.1'",
    ),
    "target": (
        lambda a, m: fit_probe(a, **{**FIT, "target": TARGET}),
        "A target is the name of one column of adata.obs, got {'disease'",
    ),
    "representation": (lambda a, m: fit_probe(a, **{**FIT, "use_rep": ["X"]}), "the name of one entry"),
    "scale": (
        lambda a, m: linear_probe(a, use_rep="X", targets=TARGET, donor_key="donor", scale="yes"),
        "scale is True, False or a list of both, got 'y'",
    ),
    "seeds": (
        lambda a, m: linear_probe(a, use_rep="X", targets=TARGET, donor_key="donor", seeds=3),
        "seeds is a list of numbers, got 3; pass [3]",
    ),
    "donors": (
        lambda a, m: linear_probe(a, use_rep="X", targets=TARGET, donor_key="donor", n_train_donors=3.0),
        "n_train_donors must be an integer, got 3.0",
    ),
    "targets of a benchmark": (
        lambda a, m: benchmark.run(a, targets=["disease"], donor_key="donor"),
        "targets maps columns of adata.obs to kinds, such as {'disease': 'classification'}",
    ),
    "genes by position": (
        lambda a, m: m.get_normalized_expression(gene_list=[0, 1]),
        "gene_list takes names of genes, got 0; choose them: model.spec.var_names[...]",
    ),
    "genes by mask": (
        lambda a, m: m.get_normalized_expression(gene_list=np.arange(60) < 3),
        "gene_list takes names of genes, got np.True_",
    ),
}


@pytest.mark.parametrize("use", WRONG)
def test_an_argument_of_another_type_is_named_with_what_it_takes(
    use: str, sick: AnnData, trained: R2MAEModel
) -> None:
    call, message = WRONG[use]
    with pytest.raises(TypeError) as caught:
        call(sick, trained)
    assert message in str(caught.value)


def test_one_name_may_stand_for_a_list(sick: AnnData) -> None:
    sick.obs["kind"] = sick.obs["cell_type"]
    # "cell" is a part of this text, but not the name of a target.
    fitted = fit_probe(sick, design_keys="batch", cell_level="kind cell", **{**FIT, "target": "disease"})
    assert fitted.design.index.tolist() == ["batch"]
    assert not fitted.is_cell_level
    table = design_table(sick, donor_key="donor", columns="batch", **DISEASE)
    assert table.index.tolist() == ["batch"]
    assert fit_probe(sick, **{**FIT, "target": "kind"}, cell_level="kind").is_cell_level
    with pytest.raises(ValueError, match="'cell_type' varies within a unit"):
        permutation_test(sick, strata="cell_type", **LABELS)
    scores = benchmark.run(
        sick, targets=TARGET, donor_key="donor", methods="lognorm", n_splits=1, enable_progress_bar=False
    ).results
    assert set(scores["method"]) == {"lognorm"}


def test_a_run_that_breaks_off_does_not_end_as_trained(adata: AnnData) -> None:
    model = R2MAEModel(adata, **TINY)
    with pytest.raises(NonFiniteError, match="lower lr"):
        model.train(max_epochs=3, batch_size=64, accelerator="cpu", lr=1e30, enable_progress_bar=False)


@pytest.mark.parametrize("monitor", ["elbo_validation", "reconstruction_loss_validation", "kl_local_train"])
def test_a_callback_that_watches_a_metric_of_scvi_is_refused_before_training(
    monitor: str, adata: AnnData, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    for callback in (EarlyStopping(monitor), ModelCheckpoint(dirpath=tmp_path / "c", monitor=monitor)):
        with pytest.raises(ValueError, match="names a metric of scVI; there are 'train_loss' and"):
            R2MAEModel(adata, **TINY).train(**QUICK, callbacks=callback)
    assert not list(tmp_path.iterdir())


def test_a_device_of_no_kind_and_an_iterator_that_is_used_up_are_named(trained: R2MAEModel) -> None:
    with pytest.raises(ValueError, match="Wanted a device such as 'cpu', 'cuda:0' or 'mps', got 'tpu'"):
        trained.to_device("tpu")
    with pytest.raises(ValueError, match="yields no mini-batch; an iterator can be used only once"):
        trained.get_latent_representation(dataloader=iter([]))


def test_a_query_of_detections_is_warned_about(trained: R2MAEModel, adata: AnnData) -> None:
    adata.X = (adata.X > 0).astype(np.float32)
    with pytest.warns(UserWarning, match=r"All counts in adata\.X are 0 or 1"):
        trained.get_latent_representation(adata)


def test_one_gene_may_be_given_without_a_list(trained: R2MAEModel) -> None:
    one = trained.get_normalized_expression(gene_list="gene7", indices=[0, 1])
    assert one.columns.tolist() == ["gene7"]


def test_a_device_that_is_not_there_is_refused(trained: R2MAEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda:0", "cuda", 0):
        with pytest.raises(ValueError, match=r"there is no CUDA device; use accelerator='cpu'"):
            trained.to_device(device)
    assert trained.device.type == "cpu"


# --- representations


def test_probes_take_a_backed_matrix_and_a_table(adata: AnnData, tmp_path: Path) -> None:
    adata.obs["disease"] = np.where(adata.obs["donor"].isin(["donor0", "donor2", "donor4"]), "yes", "no")
    values = np.random.default_rng(0).normal(size=(120, 3))
    adata.obsm["array"] = values
    adata.obsm["table"] = pd.DataFrame(values, index=adata.obs_names, columns=list("abc"))
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    scores = {
        rep: linear_probe(cells, use_rep=rep, targets=TARGET, donor_key="donor")["value"].to_numpy()
        for rep, cells in [("array", adata), ("table", adata), ("X", adata)]
    }
    np.testing.assert_array_equal(scores["array"], scores["table"])
    on_disk = linear_probe(backed, use_rep="X", targets=TARGET, donor_key="donor")["value"].to_numpy()
    np.testing.assert_array_equal(on_disk, scores["X"])
    adata.obsm["table"]["name"] = "text"
    with pytest.raises(ValueError, match=r"'table' is a table in which \['name'\] hold no numbers"):
        linear_probe(adata, use_rep="table", targets=TARGET, donor_key="donor")


# --- counts in raw


@pytest.fixture
def portal(adata: AnnData) -> AnnData:
    """Counts in raw and log-values in X, as CELLxGENE lays its files out."""
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()
    return adata


def test_counts_in_raw_train_save_and_embed_new_data(
    portal: AnnData, simulate: Callable[..., AnnData], train_tiny: Any, tmp_path: Path
) -> None:
    plain = train_tiny(simulate(), setup={"batch_key": "batch"})
    model = train_tiny(portal, setup={"batch_key": "batch", "use_raw": True})
    z = model.get_latent_representation()
    np.testing.assert_array_equal(z, plain.get_latent_representation())
    assert portal.layers["scr2mae_raw"] is portal.raw.X
    model.save(tmp_path / "m")
    loaded = R2MAEModel.load(tmp_path / "m", accelerator="cpu")
    query = simulate()
    query.raw = query.copy()
    query.X = query.X.log1p()
    np.testing.assert_array_equal(loaded.get_latent_representation(query), z)
    query.write_h5ad(tmp_path / "q.h5ad")
    backed = anndata.read_h5ad(tmp_path / "q.h5ad", backed="r")
    np.testing.assert_array_equal(loaded.get_latent_representation(backed), z)


def test_raw_with_more_genes_is_cut_to_those_of_the_data_and_says_so(
    portal: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="scr2mae")
    R2MAEModel.setup_anndata(portal.copy(), use_raw=True)
    assert "leaving out" not in caplog.text
    fewer = portal[:, 10:50].copy()
    R2MAEModel.setup_anndata(fewer, use_raw=True)
    left_out = portal.raw.n_vars - 40
    assert f"counts of 40 genes from adata.raw and leaving out {left_out} that adata lacks" in caplog.text
    np.testing.assert_array_equal(fewer.layers["scr2mae_raw"].toarray(), portal.raw.X[:, 10:50].toarray())


def test_raw_that_is_absent_or_named_twice_is_refused(adata: AnnData, portal: AnnData) -> None:
    portal.layers["counts"] = portal.raw.X
    with pytest.raises(ValueError, match="use_raw=True and layer='counts' name two matrices"):
        R2MAEModel.setup_anndata(portal, layer="counts", use_raw=True)
    del portal.raw
    with pytest.raises(ValueError, match=r"use_raw=True, but adata\.raw is None; counts are elsewhere"):
        R2MAEModel.setup_anndata(portal, use_raw=True)


def test_the_command_line_takes_counts_of_raw(portal: AnnData, tmp_path: Path, capsys: Any) -> None:
    from scr2mae.cli import main

    portal.write_h5ad(tmp_path / "a.h5ad")
    assert main(["train", f"{tmp_path}/a.h5ad", "-o", f"{tmp_path}/m", "-q"]) == 1
    assert "whole numbers are in raw: pass --use-raw" in capsys.readouterr().err
    train = ["train", f"{tmp_path}/a.h5ad", "-o", f"{tmp_path}/m", "--use-raw", "--max-epochs", "1", "-q"]
    assert main(train) == 0
    assert (
        main(["embed", f"{tmp_path}/a.h5ad", "--model", f"{tmp_path}/m", "-o", f"{tmp_path}/e.h5ad", "-q"])
        == 0
    )
    assert "X_r2mae" in anndata.read_h5ad(tmp_path / "e.h5ad").obsm


def test_a_dask_array_is_refused_with_what_loads_it(adata: AnnData) -> None:
    dask = pytest.importorskip("dask.array")
    adata.X = dask.from_array(adata.X.toarray(), chunks=(60, 60))
    with pytest.raises(TypeError, match=r"a dask array; load them: adata\.X = adata\.X\.compute\(\)"):
        R2MAEModel.setup_anndata(adata)


# --- continuous covariates in any unit


def aged(simulate: Callable[..., AnnData], unit: Callable[[np.ndarray], np.ndarray]) -> AnnData:
    adata = simulate()
    adata.obs["age"] = unit(adata.obs["age"].to_numpy(dtype=np.float64))
    return adata


SETUP = {"continuous_covariate_keys": ["age"]}


@pytest.mark.parametrize(
    "unit",
    [lambda x: 1.7e9 + 3e7 * x, lambda x: 1e5 * x, lambda x: 1e-6 * x, lambda x: 45 + 20 * x],
    ids=["Unix time", "counts", "tiny", "years"],
)
def test_the_unit_of_a_covariate_does_not_matter(
    unit: Any, simulate: Callable[..., AnnData], train_tiny: Any
) -> None:
    plain = train_tiny(aged(simulate, lambda x: x), setup=SETUP)
    other = train_tiny(aged(simulate, unit), setup=SETUP)
    losses = [model.history["validation_loss"]["validation_loss"].iloc[-1] for model in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    np.testing.assert_allclose(
        other.get_latent_representation(), plain.get_latent_representation(), atol=2e-2
    )


def test_mean_and_scale_are_of_the_training_cells_and_saved(
    simulate: Callable[..., AnnData], train_tiny: Any, tmp_path: Path
) -> None:
    adata = aged(simulate, lambda x: 45 + 20 * x)
    model = train_tiny(adata, setup=SETUP)
    ages = adata.obs["age"].to_numpy()[model.split_.train].astype(np.float32).astype(np.float64)
    layer = model.module.standardize
    assert float(layer.mean) == pytest.approx(ages.mean(), rel=1e-6)
    assert float(layer.factor) == pytest.approx(1 / ages.std(), rel=1e-6)
    model.save(tmp_path / "m")
    loaded = R2MAEModel.load(tmp_path / "m", adata, accelerator="cpu")
    loaded.train(**QUICK)
    assert torch.equal(loaded.module.standardize.mean, layer.mean)


def test_a_covariate_that_is_constant_in_training_has_no_effect(
    simulate: Callable[..., AnnData], train_tiny: Any
) -> None:
    adata = aged(simulate, lambda x: 0 * x + 37.3)
    model = train_tiny(adata, setup=SETUP)
    query = simulate()
    query.obs["age"] = 90.0
    np.testing.assert_array_equal(
        model.get_latent_representation(query), model.get_latent_representation(adata)
    )


def test_a_query_is_standardized_by_its_reference(simulate: Callable[..., AnnData], train_tiny: Any) -> None:
    adata = aged(simulate, lambda x: 45 + 20 * x)
    reference = train_tiny(adata, setup={"batch_key": "batch", **SETUP})
    new = simulate(60, seed=2, batches=("b0", "b9"))
    new.obs["age"] = 1000.0
    query = R2MAEModel.load_query_data(new, reference, accelerator="cpu")
    query.train(**QUICK)
    assert torch.equal(query.module.standardize.mean, reference.module.standardize.mean)


# --- saving


def test_data_are_saved_with_the_model_and_found_again(
    reference: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    reference.save(tmp_path / "m", save_anndata=True)
    loaded = R2MAEModel.load(tmp_path / "m", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), reference.get_latent_representation())
    assert loaded.adata.obs_names.equals(reference.adata.obs_names)
    assert R2MAEModel.load(tmp_path / "m", adata=False).adata is None
    assert R2MAEModel.load(tmp_path / "m", adata).adata is adata
    with pytest.raises(FileExistsError):
        reference.save(tmp_path / "m", save_anndata=True)
    reference.save(tmp_path / "m", save_anndata=True, overwrite=True)
    assert len(list((tmp_path / "m").glob("adata-*.h5ad"))) == 1
    reference.save(tmp_path / "m", overwrite=True)
    assert not list((tmp_path / "m").glob("adata-*.h5ad"))
    assert R2MAEModel.load(tmp_path / "m").adata is None
    with pytest.raises(ValueError, match="save_anndata=True, but this model was made without data"):
        R2MAEModel.load(tmp_path / "m").save(tmp_path / "n", save_anndata=True)


def test_a_model_that_could_not_be_loaded_again_replaces_nothing(
    adata: AnnData, train_tiny: Any, tmp_path: Path
) -> None:
    model = train_tiny(adata, setup={"batch_key": "batch"})
    model.save(tmp_path / "m", save_anndata=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    state = model.adata_manager.registry["field_registries"]["batch"]["state_registry"]
    state["categorical_mapping"] = np.array([np.inf, np.nan])
    for options in ({}, {"save_anndata": True}):
        with pytest.raises(ValueError, match=r"Nothing was written to .*m, since it could not be read again"):
            model.save(tmp_path / "m", overwrite=True, **options)
        assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert R2MAEModel.load(tmp_path / "m").is_trained


# --- forks

FORK = """
import multiprocessing, sys
import numpy as np, torch
torch.set_num_threads(2)
from scr2mae import R2MAEModel, datasets
adata = datasets.simulate_donors(n_donors=6, n_cells_per_donor=200, n_genes=400)
model = R2MAEModel(adata, n_hidden=256, n_latent=8)
model.train(1, accelerator="cpu", enable_progress_bar=False)
expected = model.get_latent_representation()

def embed(i):
    found = model.get_latent_representation()
    return torch.get_num_threads(), bool(np.allclose(found, expected, atol=1e-5))

with multiprocessing.get_context("fork").Pool(1) as pool:
    print(*pool.map_async(embed, [0]).get(timeout=100)[0])
print(torch.get_num_threads())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks copy the state of threads on Linux")
def test_a_forked_process_embeds_on_one_thread_and_does_not_wait_forever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == ["1", "True", "2"]


# --- threads


class Watch(pl.Callback):
    """Threads of all pools at the last mini-batch, and seconds of other threads per second of this one."""

    def on_train_start(self, *_: Any) -> None:
        self._start = time.process_time(), time.thread_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.threads = count_threads()

    def on_train_end(self, *_: Any) -> None:
        process, own = time.process_time() - self._start[0], time.thread_time() - self._start[1]
        self.others = (process - own) / own


def count_threads() -> list[int]:
    """Threads of PyTorch, and of every pool of BLAS and OpenMP."""
    return [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    with threadpool_limits(limits=request.param):
        torch.set_num_threads(request.param)
        yield request.param
        torch.set_num_threads(before)


def test_training_keeps_its_threads_after_probes_components_and_splits(
    n_threads: int, adata: AnnData, train_tiny: Any
) -> None:
    given = count_threads()
    assert set(given) == {n_threads}
    model = train_tiny(adata, setup={"donor_key": "donor"})
    features = model.get_latent_representation()
    assert count_threads() == given
    donors, groups = adata.obs["donor"], adata.obs["cell_type"]
    LogisticProbe().fit(features, groups, groups=donors)
    RidgeProbe().fit(features, np.arange(adata.n_obs, dtype=float), groups=donors)
    PCA(2).fit(features)
    donor_split(donors)
    assert count_threads() == given
    watch = Watch()
    train_tiny(adata, max_epochs=10, callbacks=[watch])
    assert watch.threads == given
    if n_threads == 1:
        assert watch.others < 0.2


# --- what held before


def _int64(adata: AnnData) -> AnnData:
    X = adata.X.copy()
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    adata.X = X
    return adata


def _unsorted(adata: AnnData) -> AnnData:
    X = adata.X.copy()
    for i in range(X.shape[0]):
        part = slice(X.indptr[i], X.indptr[i + 1])
        X.indices[part], X.data[part] = X.indices[part][::-1].copy(), X.data[part][::-1].copy()
    X.has_sorted_indices = False
    adata.X = X
    return adata


def _duplicated(adata: AnnData) -> AnnData:
    X = adata.X.tocoo()
    once = X.data - 1
    rows, columns = np.r_[X.row, X.row], np.r_[X.col, X.col]
    order = np.argsort(rows, kind="stable")
    indptr = np.r_[0, np.cumsum(np.bincount(rows, minlength=X.shape[0]))]
    data = np.r_[once, np.ones_like(once)]
    adata.X = sp.csr_matrix((data[order], columns[order], indptr), shape=X.shape)
    return adata


def _explicit_zeros(adata: AnnData) -> AnnData:
    X = sp.csr_matrix(adata.X.toarray() + 1)
    X.data -= 1
    adata.X = X
    return adata


def _read_only(adata: AnnData) -> AnnData:
    X = adata.X.copy()
    for array in (X.data, X.indices, X.indptr):
        array.flags.writeable = False
    adata.X = X
    return adata


def _as(dtype: Any) -> Callable[[AnnData], AnnData]:
    def convert(adata: AnnData) -> AnnData:
        adata.X = adata.X.astype(dtype)
        return adata

    return convert


def _csc(adata: AnnData) -> AnnData:
    adata.X = adata.X.tocsc()
    return adata


HELD = {
    "int64 indices": _int64,
    "unsorted": _unsorted,
    "duplicate entries": _duplicated,
    "explicit zeros": _explicit_zeros,
    "read-only": _read_only,
    "uint8": _as(np.uint8),
    "int16": _as(np.int16),
    "CSC": _csc,
}


@pytest.mark.parametrize("kind", HELD)
def test_counts_in_every_storage_train_and_embed_alike(
    kind: str, simulate: Callable[..., AnnData], trained: R2MAEModel, train_tiny: Any
) -> None:
    expected = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(HELD[kind](simulate())), expected, atol=1e-4)
    expected = train_tiny(simulate()).get_latent_representation()
    model = train_tiny(HELD[kind](simulate()))
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-3)


@pytest.mark.filterwarnings(
    "ignore:Writing zarr v2 data:UserWarning",
    "ignore:zarr v3 autosharding:UserWarning",
    "ignore:Consolidated metadata",
)
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_2_and_3_embed_alike(version: int, trained: R2MAEModel, adata: AnnData, tmp_path: Path) -> None:
    from anndata import settings

    from scr2mae.data import open_store

    with settings.override(zarr_write_format=version):
        adata.write_zarr(tmp_path / "a.zarr")
    np.testing.assert_allclose(
        trained.get_latent_representation(open_store(tmp_path / "a.zarr")),
        trained.get_latent_representation(),
        atol=1e-6,
    )


def test_three_thousand_batches_are_set_up_saved_and_loaded(tmp_path: Path) -> None:
    n = 9000
    obs = pd.DataFrame({"batch": [f"b{i % 3000}" for i in range(n)]}, index=[f"c{i}" for i in range(n)])
    X = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (n, 5)).astype(np.float32))
    adata = AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(5)]))
    R2MAEModel.setup_anndata(adata, batch_key="batch")
    model = R2MAEModel(adata, **TINY)
    model.is_trained_ = True
    model.save(tmp_path / "m")
    assert len(R2MAEModel.load(tmp_path / "m").spec.categorical[0][1]) == 3000


@pytest.mark.parametrize("name", ["with blank and ü", "模型's"])
def test_blanks_umlauts_and_quotes_in_paths(
    name: str, trained: R2MAEModel, sick: AnnData, tmp_path: Path
) -> None:
    from scr2mae.cli import main

    place = tmp_path / name
    trained.save(place / "m")
    assert R2MAEModel.load(place / "m").is_trained
    R2MAEModel(sick.copy(), **TINY).train(**QUICK, checkpoint_dir=place / "run")
    R2MAEModel(sick.copy(), **TINY).train(**{**QUICK, "max_epochs": 3}, resume=place / "run")
    fit_probe(sick, **FIT).save(place / "probe")
    assert Probe.load(place / "probe").target == "disease"
    run = {"targets": TARGET, "donor_key": "donor", "methods": "lognorm", "n_splits": 1}
    benchmark.run(sick, out=place / "bench", enable_progress_bar=False, **run)
    assert (place / "bench" / "results.csv").is_file()
    sick.obs["donor"] = "new"
    sick.write_h5ad(place / f"{name}.h5ad")
    cells, out = str(place / f"{name}.h5ad"), str(place / "out")
    assert main(["prepare", cells, "-o", f"{out}.zarr", "-q"]) == 0
    assert main(["embed", cells, "--model", str(place / "m"), "-o", f"{out}.h5ad", "-q"]) == 0
    assert main(["predict", cells, "--probe", str(place / "probe"), "-o", f"{out}2.h5ad", "-q"]) == 0
    assert {"disease_predicted"} <= set(anndata.read_h5ad(f"{out}2.h5ad").obs)


@pytest.mark.parametrize("command", ["embed", "predict", "prepare"])
def test_an_interrupt_in_the_middle_leaves_no_output(
    command: str,
    trained: R2MAEModel,
    sick: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    from scr2mae.cli import main
    from scr2mae.data.prepare import pipeline

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    trained.save(tmp_path / "m")
    fit_probe(sick, **FIT).save(tmp_path / "probe")
    sick.obs["donor"] = "new"
    sick.write_h5ad(tmp_path / "a.h5ad")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    lines = {
        "embed": ["a.h5ad", "--model", "m", "-o", "out.h5ad"],
        "predict": ["a.h5ad", "--probe", "probe", "-o", "out.h5ad"],
        "prepare": ["a.h5ad", "-o", "out.zarr"],
    }
    monkeypatch.chdir(tmp_path)
    if command == "predict":
        monkeypatch.setattr("anndata.io.write_elem", interrupted)  # the copy of the input is there already
    elif command == "embed":
        monkeypatch.setattr(R2MAEModel, "get_latent_representation", interrupted)
    else:
        monkeypatch.setattr(pipeline, "write_counts", interrupted)
    assert main([command, *lines[command], "-q"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
