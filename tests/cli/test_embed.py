"""``scr2mae embed``: what it writes, and what it leaves alone."""

import os
import shlex
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.tests.helpers import assert_equal

from scr2mae.cli import main


def test_embed_adds_the_embedding_and_keeps_all_else(counts, model_folder, trained, capsys):
    assert (
        main(["embed", "counts.h5ad", "--model", "model", "-o", "deep/out.h5ad", "--accelerator", "cpu"]) == 0
    )
    out, err = capsys.readouterr()
    assert dict(line.split("\t") for line in out.splitlines()) == {
        "output": "deep/out.h5ad",
        "key": "X_r2mae",
        "cells": "120",
        "dimensions": "4",
    }
    assert "Embedding 120 cells" in err
    got = anndata.read_h5ad("deep/out.h5ad")
    expected = anndata.read_h5ad("counts.h5ad")
    expected.obsm["X_r2mae"] = trained.get_latent_representation(expected)
    expected.uns["scr2mae"] = {"X_r2mae_model": trained.fingerprint}
    assert_equal(got, expected, exact=True)


def test_a_file_of_cell_ranger_becomes_an_anndata_with_its_counts(counts, model_folder, trained):
    by_genes = sp.csc_matrix(counts.X.T)
    with h5py.File("counts.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = np.array(counts.obs_names, dtype="S"), by_genes.shape
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(by_genes, part)
        names = np.array(counts.var_names, dtype="S")
        for name, values in {"id": names, "name": names, "genome": names, "feature_type": names}.items():
            group[f"features/{name}"] = values
    assert main(["embed", "counts.h5", "--model", "model", "-o", "out.h5ad", "-q"]) == 0
    got = anndata.read_h5ad("out.h5ad")
    np.testing.assert_array_equal(got.X.toarray(), counts.X.toarray())
    np.testing.assert_allclose(got.obsm["X_r2mae"], trained.get_latent_representation(counts), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Few shared genes:UserWarning")
def test_embed_takes_other_genes_in_another_order(counts, model_folder, trained):
    query = counts[:50, np.random.default_rng(0).permutation(60)[:45]].copy()
    query.write_h5ad("query.h5ad")
    line = "embed query.h5ad --model model -o out.h5ad --key X_other --batch-size 7 --accelerator cpu -q"
    assert main(shlex.split(line)) == 0
    np.testing.assert_allclose(
        anndata.read_h5ad("out.h5ad").obsm["X_other"], trained.get_latent_representation(query), atol=1e-6
    )


def test_a_new_file_has_the_usual_permissions(counts, model_folder):
    umask = os.umask(0o027)
    try:
        assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 0
    finally:
        os.umask(umask)
    assert Path("out.h5ad").stat().st_mode & 0o777 == 0o640


def test_an_embedding_of_that_name_in_the_input_is_replaced_only_with_force(
    counts, model_folder, capsys, files
):
    counts.obsm["X_r2mae"] = np.ones((120, 4))
    counts.write_h5ad("counts.h5ad")
    before = files()
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    assert (
        "counts.h5ad has 'X_r2mae' in obsm already; choose another --key or pass --force."
        in capsys.readouterr().err
    )
    assert files() == before
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--force"]) == 0
    assert not (anndata.read_h5ad("out.h5ad").obsm["X_r2mae"] == 1).any()


def test_a_file_may_be_embedded_in_place(counts, model_folder, trained, folder):
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "counts.h5ad", "-q", "--force"]) == 0
    np.testing.assert_array_equal(
        anndata.read_h5ad("counts.h5ad").obsm["X_r2mae"], trained.get_latent_representation(counts)
    )
    assert sorted(path.name for path in folder.iterdir()) == ["counts.h5ad", "model"]


def test_a_failure_while_writing_leaves_what_was_there(counts, model_folder, monkeypatch, capsys, files):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    Path("out.h5ad").write_text("an older result")
    before = files()
    monkeypatch.setattr("anndata.io.write_elem", full)
    for output in ("out.h5ad", "new.h5ad"):
        assert main(["embed", "counts.h5ad", "--model", "model", "-o", output, "-q", "--force"]) == 1
        assert capsys.readouterr().err == "scr2mae: error: No space left on device\n"
        assert files() == before


def test_a_link_keeps_pointing_at_the_file_that_was_replaced(counts, model_folder):
    Path("store").mkdir()
    Path("store/out.h5ad").touch()
    Path("out.h5ad").symlink_to("store/out.h5ad")
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--force"]) == 0
    assert Path("out.h5ad").is_symlink()
    assert "X_r2mae" in anndata.read_h5ad("store/out.h5ad").obsm


def test_a_file_without_obsm_gets_one(counts, model_folder):
    with h5py.File("counts.h5ad", "r+") as file:
        del file["obsm"]
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 0
    assert list(anndata.read_h5ad("out.h5ad").obsm) == ["X_r2mae"]


def test_too_few_shared_genes_are_one_line_and_leave_nothing(model_folder, capsys, files):
    AnnData(np.ones((5, 4), np.float32)).write_h5ad("foreign.h5ad")
    before = files()
    assert main(["embed", "foreign.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    err = capsys.readouterr().err
    assert "error: No shared genes: the query has 0 of the reference's 60 genes" in err
    assert err.count("\n") == 1
    assert files() == before


def test_warnings_are_one_line_on_stderr(counts, model_folder, capsys):
    counts[:, :20].copy().write_h5ad("few.h5ad")
    with pytest.warns(UserWarning, match="Few shared genes"):
        assert main(["embed", "few.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--debug"]) == 0
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["embed", "few.h5ad", "--model", "model", "-o", "out2.h5ad", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("scr2mae: warning: Few shared genes: the query has 20 of the reference's 60 genes")
    assert err.count("\n") == 1
    assert out.startswith("output\tout2.h5ad\n")


def test_embed_writes_a_store_with_the_cells_and_their_embedding_alone(
    counts, model_folder, trained, capsys, files
):
    line = ["embed", "counts.h5ad", "--model", "model", "-o", "new/out.zarr", "-q"]
    assert main(line) == 0
    store = anndata.read_zarr("new/out.zarr")
    np.testing.assert_array_equal(store.obsm["X_r2mae"], trained.get_latent_representation(counts))
    assert store.obs["donor"].astype(str).tolist() == counts.obs["donor"].astype(str).tolist()
    assert store.X is None
    assert store.n_vars == 0
    before = files()
    assert main(line) == 1
    assert "exists" in capsys.readouterr().err
    assert files() == before
    assert main([*line, "--force", "--key", "X_again"]) == 0
    assert list(anndata.read_zarr("new/out.zarr").obsm) == ["X_again"]


def test_an_input_with_obsm_of_the_oldest_kind_is_refused(counts, model_folder, capsys, files):
    with h5py.File("counts.h5ad", "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(120, dtype=[("X_pca", "<f4", (2,))])
    before = files()
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    assert "written by an AnnData before 0.7, which cannot be added to" in capsys.readouterr().err
    assert files() == before


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings(
    "ignore:zarr v3 autosharding:UserWarning",
    "ignore:Consolidated metadata",
    "ignore:Writing zarr v2 data:UserWarning",
)
def test_counts_of_a_layer_or_of_raw_are_embedded_where_the_model_read_x(
    suffix, counts, model_folder, trained, capsys
):
    portal = counts.copy()
    portal.X = portal.X.log1p()
    portal = portal[:, :58].copy()  # raw keeps all genes
    portal.layers["mine"] = portal.layers["counts"]
    getattr(portal, f"write_{suffix}")(f"portal.{suffix}")
    line = f"embed portal.{suffix} --model model -q -o "
    assert main(shlex.split(f"{line} none.h5ad")) == 1
    assert (
        "whole numbers are in layers['counts'] and layers['mine'] and raw: pass --layer counts."
        in capsys.readouterr().err
    )
    assert main(shlex.split(f"{line} raw.h5ad --use-raw")) == 0
    expected = trained.get_latent_representation(counts)
    np.testing.assert_array_equal(anndata.read_h5ad("raw.h5ad").obsm["X_r2mae"], expected)
    assert main(shlex.split(f"{line} layer.h5ad --layer mine")) == 0
    expected = trained.get_latent_representation(counts[:, :58].copy())
    np.testing.assert_allclose(anndata.read_h5ad("layer.h5ad").obsm["X_r2mae"], expected, atol=1e-6)
    capsys.readouterr()
    assert main(shlex.split(f"{line} both.h5ad --layer mine --use-raw")) == 1
    assert "--use-raw and --layer mine name two matrices" in capsys.readouterr().err
