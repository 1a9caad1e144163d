"""Cells opened from disk: tables in memory, counts on disk, and invalid files."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset
from anndata.io import write_elem

from scr2mae import R2MAEModel
from scr2mae.data import open_store


def write(adata, path):
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        zarr = pytest.importorskip("zarr")
        write_elem(zarr.open_group(str(path), mode="w", zarr_format=2), "/", adata)
    return path


@pytest.fixture(params=["cells.h5ad", "cells.zarr"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_counts_stay_on_disk_and_rows_equal_those_written(path, adata):
    adata.layers["counts"] = adata.X * 2
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.uns["note"] = {"of": "mine"}
    store = open_store(write(adata, path))
    assert isinstance(store.X, CSRDataset)
    assert isinstance(store.layers["counts"], CSRDataset)
    assert store.shape == adata.shape
    assert (store.uns["note"]["of"], len(store.obsm)) == ("mine", 0)
    pd.testing.assert_frame_equal(store.obs, adata.obs, check_categorical=False)
    rows = [5, 3, 70]
    assert (adata.X[rows] != store[rows].X).nnz == 0
    assert (store[10:20].layers["counts"] != adata.layers["counts"][10:20]).nnz == 0


def test_arrays_of_obsm_are_read_on_request(path, adata):
    adata.obsm["X_pca"] = np.arange(2.0 * adata.n_obs).reshape(-1, 2)
    adata.obsm["X_other"] = adata.obsm["X_pca"]
    write(adata, path)
    store = open_store(path, obsm_keys=["X_pca"])
    assert list(store.obsm) == ["X_pca"]
    np.testing.assert_array_equal(store.obsm["X_pca"], adata.obsm["X_pca"])
    with pytest.raises(KeyError, match=r"No 'X_umap' in obsm of .*; choose from \['X_other', 'X_pca'\]"):
        open_store(path, obsm_keys=["X_umap"])


def test_dense_counts_stay_on_disk_too(path, adata):
    dense = AnnData(X=adata.X.toarray(), obs=adata.obs, var=adata.var)
    store = open_store(write(dense, path))
    assert not isinstance(store.X, np.ndarray)
    np.testing.assert_array_equal(store[[2, 9]].X, dense.X[[2, 9]])


def test_a_layer_without_x_is_accepted(path, adata):
    layered = AnnData(X=None, obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    store = open_store(write(layered, path))
    assert store.X is None
    assert isinstance(store.layers["counts"], CSRDataset)


def test_counts_stored_by_gene_are_refused_and_such_layers_left_out(path, adata, caplog):
    adata.layers["by_gene"] = adata.X.tocsc()
    assert not [name for name in open_store(write(adata, path)).layers if name]
    assert "['by_gene'] of" in caplog.text
    adata.X = adata.X.tocsc()
    with pytest.raises(ValueError, match=r"stored by gene \(CSC\).*adata.X.tocsr\(\)"):
        open_store(write(adata, path))


def test_files_other_than_anndata_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file or folder .*absent.zarr; expected"):
        open_store(tmp_path / "absent.zarr")
    with pytest.raises(ValueError, match="a folder without a zarr group"):
        open_store(tmp_path)
    (tmp_path / "text.h5ad").write_text("text")
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        open_store(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "half.h5ad", "w") as file:
        write_elem(file, "X", sp.csr_matrix((3, 2)))
        write_elem(file, "var", pd.DataFrame(index=["a", "b"]))
    with pytest.raises(ValueError, match="not a whole AnnData: it has no obs"):
        open_store(tmp_path / "half.h5ad")
    empty = anndata.AnnData(obs=pd.DataFrame(index=["1", "2"]), var=pd.DataFrame(index=["a", "b"]))
    with pytest.raises(ValueError, match="no matrix of counts: neither X nor a layer"):
        open_store(write(empty, tmp_path / "empty.h5ad"))


def test_an_opened_store_registers_like_counts_in_memory(path, adata):
    store = open_store(write(adata, path))
    R2MAEModel.setup_anndata(store, batch_key="batch", donor_key="donor")
    assert R2MAEModel(store).summary_stats.n_vars == adata.n_vars
