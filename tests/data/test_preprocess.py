import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

from scr2mae import datasets


def _scanpy_ranking(counts: AnnData, n_top_genes: int, target_sum: float | None) -> pd.DataFrame:
    logged = counts.copy()
    sc.pp.normalize_total(logged, target_sum=target_sum)
    sc.pp.log1p(logged)
    return sc.pp.highly_variable_genes(logged, n_top_genes=n_top_genes, inplace=False)


@pytest.mark.parametrize("target_sum", [1e4, None])
@pytest.mark.parametrize("chunk_size", [37, 10_000])
def test_variable_genes_are_those_of_scanpy(atlas_like, target_sum, chunk_size):
    counts = atlas_like.raw.to_adata()
    ours = datasets.highly_variable_genes(
        atlas_like, n_top_genes=60, target_sum=target_sum, chunk_size=chunk_size
    )
    theirs = _scanpy_ranking(counts, 60, target_sum)
    assert ours["highly_variable"].sum() == 60
    np.testing.assert_array_equal(ours["highly_variable"], theirs["highly_variable"])
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ours["n_cells"], (counts.X.toarray() > 0).sum(0))
    assert list(ours.index) == list(atlas_like.raw.var_names)


def test_variable_genes_are_those_of_scanpy_on_real_counts():
    pbmc = datasets.pbmc68k()
    ours = datasets.highly_variable_genes(pbmc, n_top_genes=200)
    as_float64 = AnnData(X=pbmc.X.astype(np.float64), var=pbmc.var)
    np.testing.assert_array_equal(
        ours["highly_variable"], _scanpy_ranking(as_float64, 200, 1e4)["highly_variable"]
    )


def test_preprocessing_keeps_raw_counts_of_variable_genes_and_of_cells_that_express_them(atlas_like):
    before = atlas_like.copy()
    kept = datasets.preprocess(atlas_like, n_top_genes=60, min_genes=20)
    ranking = datasets.highly_variable_genes(atlas_like, n_top_genes=60)
    counts = atlas_like.raw.X[:, ranking["highly_variable"].to_numpy()].toarray()
    detected = (counts > 0).sum(1)
    assert 0 < (detected < 20).sum() < len(detected)
    assert isinstance(kept.X, sp.csr_matrix)
    assert kept.X.dtype == np.float32
    np.testing.assert_array_equal(kept.X.toarray(), counts[detected >= 20])
    pd.testing.assert_frame_equal(kept.obs, atlas_like.obs[detected >= 20])
    np.testing.assert_array_equal(kept.obsm["X_other"], atlas_like.obsm["X_other"][detected >= 20])
    assert list(kept.var_names) == list(ranking.index[ranking["highly_variable"]])
    assert {"baseline", "dispersions_norm"} <= set(kept.var)
    np.testing.assert_array_equal(atlas_like.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(atlas_like.raw.X.toarray(), before.raw.X.toarray())


@pytest.mark.parametrize(
    "layout", ["backed", "backed csc", "csc", "csr_array", "dense", "integer", "layer", "X", "view"]
)
def test_the_layout_of_the_counts_does_not_change_the_result(atlas_like, layout, tmp_path):
    expected = datasets.preprocess(atlas_like, n_top_genes=60, min_genes=20)
    counts = atlas_like.raw.to_adata()
    other = AnnData(X=counts.X, obs=atlas_like.obs, var=counts.var, obsm=dict(atlas_like.obsm))
    if layout == "layer":
        other.layers["counts"] = other.X.copy()
        other.X = np.zeros(other.shape)
    elif layout != "X":
        make = {
            "csc": sp.csc_matrix,
            "backed csc": sp.csc_matrix,
            "csr_array": sp.csr_array,
            "dense": lambda X: X.toarray(),
            "integer": lambda X: X.astype(np.int64),
        }
        other.X = make.get(layout, lambda X: X)(other.X)
        other.raw = other.copy()
    if layout.startswith("backed"):
        other.write_h5ad(tmp_path / "atlas.h5ad")
        other = anndata.read_h5ad(tmp_path / "atlas.h5ad", backed="r")
    if layout == "view":
        twice = anndata.concat([other, other], index_unique="-")
        other = twice[: other.n_obs]
    found = datasets.preprocess(
        other, n_top_genes=60, min_genes=20, layer="counts" if layout == "layer" else None
    )
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert list(found.var_names) == list(expected.var_names)


def test_preprocessing_never_makes_a_dense_matrix(atlas_like, monkeypatch, tmp_path):
    atlas_like.write_h5ad(tmp_path / "atlas.h5ad")

    def refuse(self, *args, **kwargs):
        raise AssertionError(f"a sparse matrix of shape {self.shape} was made dense")

    for kind in (sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array, sp.coo_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
        monkeypatch.setattr(kind, "todense", refuse)
    for adata in (atlas_like, anndata.read_h5ad(tmp_path / "atlas.h5ad", backed="r")):
        assert datasets.preprocess(adata, n_top_genes=60, min_genes=20, chunk_size=50).n_vars == 60


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_repeated_gene_names_are_kept_apart(atlas_like):
    counts = atlas_like.raw.to_adata()
    repeated = AnnData(X=counts.X, var=pd.DataFrame(index=["gene"] * counts.n_vars))
    assert datasets.preprocess(repeated, n_top_genes=60).shape == (counts.n_obs, 60)


def test_genes_that_never_vary_are_not_kept(atlas_like, caplog):
    counts = atlas_like.raw.to_adata()
    counts.X = sp.csr_matrix(counts.X.multiply(np.arange(counts.n_vars) < 40))
    kept = datasets.preprocess(counts, n_top_genes=60)
    assert kept.n_vars == 40
    assert "Only 40 genes vary, fewer than n_top_genes=60" in caplog.text


def test_values_other_than_counts_are_named_by_cell_and_gene(atlas_like):
    first = atlas_like.obs_names[5]  # the cells before it have no count in X
    with pytest.raises(
        ValueError, match=f"Raw counts are non-negative integers, got .* in cell '{first}' and gene"
    ):
        datasets.preprocess(AnnData(X=atlas_like.X, obs=atlas_like.obs), n_top_genes=60)
    for bad in (-1.0, np.nan, np.inf, 0.5):
        X = np.ones((4, 3))
        X[2, 1] = bad
        with pytest.raises(ValueError, match=f"got {bad} in cell '2' and gene '1'"):
            datasets.highly_variable_genes(AnnData(X=X), chunk_size=2)


def test_invalid_preprocessing_arguments_are_refused(atlas_like):
    with pytest.raises(KeyError, match=r"No 'nothing' in adata.layers; choose one of \[\]"):
        datasets.preprocess(atlas_like, layer="nothing")
    with pytest.raises(ValueError, match="n_top_genes must be at least 1, got 0"):
        datasets.preprocess(atlas_like, n_top_genes=0)
    with pytest.raises(ValueError, match="min_genes must not be negative, got -1"):
        datasets.preprocess(atlas_like, min_genes=-1)
    with pytest.raises(ValueError, match="target_sum must be positive, got 0"):
        datasets.preprocess(atlas_like, target_sum=0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        datasets.preprocess(atlas_like, chunk_size=0)
    with pytest.raises(ValueError, match="No cell has 61 of the 60 genes detected"):
        datasets.preprocess(atlas_like, n_top_genes=60, min_genes=61)
    with pytest.raises(ValueError, match="no matrix in X"):
        datasets.preprocess(AnnData(obs=pd.DataFrame(index=["a", "b"])))
    with pytest.raises(ValueError, match=r"The counts are empty, shape \(0, 3\)"):
        datasets.preprocess(AnnData(X=np.zeros((0, 3))))
    with pytest.raises(ValueError, match="at least 2 cells, got 1"):
        datasets.preprocess(AnnData(X=np.ones((1, 3))))
