"""Studies joined over the union of their genes, and errors of tables of measured genes."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scr2mae import R2MAEModel
from scr2mae.data import Panels, find_copies, join_studies, open_store
from scr2mae.datasets import prepare, simulate_donors


def make(counts, genes, prefix: str = "c") -> anndata.AnnData:
    counts = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    names = pd.Index([f"{prefix}{i}" for i in range(counts.shape[0])])
    return anndata.AnnData(counts, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=pd.Index(genes)))


def pair() -> dict[str, anndata.AnnData]:
    return {
        "a": make([[1, 2, 0], [3, 0, 1]], ["g1", "g2", "g3"], "x"),
        "b": make([[5, 6, 7]], ["g3", "g4", "g2"], "y"),
    }


def test_the_union_has_the_counts_and_the_table_says_what_was_measured():
    joined = join_studies(pair())
    assert joined.var_names.tolist() == ["g1", "g2", "g3", "g4"]
    assert joined.X.toarray().tolist() == [[1, 2, 0, 0], [3, 0, 1, 0], [0, 7, 5, 6]]
    assert joined.obs["study"].tolist() == ["a", "a", "b"]
    table = joined.varm["scr2mae_measured"]
    assert table["a"].tolist() == [True, True, True, False]
    assert table["b"].tolist() == [False, True, True, True]


def test_order_of_studies_and_genes_changes_only_the_order():
    one, parts = join_studies(pair()), pair()
    parts["a"] = parts["a"][:, ::-1].copy()
    other = join_studies({"b": parts["b"], "a": parts["a"]})[one.obs_names, one.var_names]
    assert (one.X != other.X).nnz == 0
    pd.testing.assert_frame_equal(one.varm["scr2mae_measured"], other.varm["scr2mae_measured"][["a", "b"]])


def test_versions_of_ensembl_ids_are_one_gene():
    parts = {
        "a": make([[1, 2]], ["ENSG00000141510.18", "ENSG00000000003.1"]),
        "b": make([[3]], ["ENSG00000141510"]),
    }
    joined = join_studies(parts)
    assert joined.var_names.tolist() == ["ENSG00000141510.18", "ENSG00000000003.1"]
    assert joined.X.toarray().tolist() == [[1, 2], [3, 0]]


def test_names_spelled_in_another_case_are_hinted_at():
    genes = [f"gene{i}" for i in range(200)]
    parts = {
        "a": make(np.ones((2, 200)), genes),
        "b": make(np.ones((2, 200)), [g.upper() for g in genes], "d"),
    }
    with pytest.warns(UserWarning, match="shares 0 of its 200 genes .* But for case"):
        join_studies(parts)


def test_genes_of_a_panel_within_a_study_stay_unmeasured():
    parts = pair()
    parts["a"].var["scr2mae_measured"] = [True, False, True]
    joined = join_studies(parts)
    assert joined.varm["scr2mae_measured"]["a"].tolist() == [True, False, True, False]
    assert joined.X.toarray()[0].tolist() == [1, 0, 0, 0]


def test_files_are_joined_like_objects(tmp_path):
    for name, adata in pair().items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    joined = join_studies({name: tmp_path / f"{name}.h5ad" for name in "ab"})
    assert (joined.X != join_studies(pair()).X).nnz == 0


@pytest.mark.parametrize(
    ("studies", "error", "message"),
    [
        ([1, 2], TypeError, "studies must be a dict"),
        ({}, TypeError, "studies must be a dict"),
        ({1: make([[1]], ["g"])}, TypeError, "must be text"),
        ({"a": 3}, TypeError, "A study must be an AnnData"),
        (
            {"a": make([[0.5, 2]], ["g", "h"])},
            ValueError,
            r"raw counts in adata\.X of study 'a', got 0\.5 .*pass layer=",
        ),
    ],
)
def test_what_cannot_be_joined_is_an_error(studies, error, message):
    with pytest.raises(error, match=message):
        join_studies(studies)


def test_a_store_of_an_outer_join_says_what_was_measured(tmp_path):
    adata = simulate_donors(n_donors=4, n_cells_per_donor=20, n_genes=60)
    adata[:40, :45].copy().write_h5ad(tmp_path / "one.h5ad")
    adata[40:, 20:].copy().write_h5ad(tmp_path / "two.h5ad")
    for suffix in ("zarr", "h5ad"):
        store = prepare(
            [tmp_path / "one.h5ad", tmp_path / "two.h5ad"],
            tmp_path / f"store.{suffix}",
            n_top_genes=None,
            join="outer",
            progressbar=False,
        )
        stored = open_store(store)
        table = stored.varm["scr2mae_measured"]
        assert table.sum().to_dict() == {"one": 45, "two": 40}
        R2MAEModel.setup_anndata(stored)
        model = R2MAEModel(stored, n_hidden=8, n_latent=16)
        assert model.registry["setup_args"]["study_key"] == "file"
        assert model._cells(None, on_disk=True).panels.measured.sum(axis=1).tolist() == [40, 45]


def test_an_outer_join_of_equal_genes_has_no_table(tmp_path):
    adata = simulate_donors(n_donors=2, n_cells_per_donor=20, n_genes=30)
    for name, part in {"one": adata[:20], "two": adata[20:]}.items():
        part.copy().write_h5ad(tmp_path / f"{name}.h5ad")
    options = {"n_top_genes": None, "join": "outer", "progressbar": False}
    prepare([tmp_path / "one.h5ad", tmp_path / "two.h5ad"], tmp_path / "store.h5ad", **options)
    assert not open_store(tmp_path / "store.h5ad").varm


def test_the_spread_of_a_gene_is_judged_where_it_was_measured(tmp_path):
    """The zeros of cells whose file lacks a gene are no part of its mean and dispersion."""
    adata = simulate_donors(n_donors=4, n_cells_per_donor=20, n_genes=40)
    adata[:40].copy().write_h5ad(tmp_path / "all.h5ad")
    adata[40:, 1:].copy().write_h5ad(tmp_path / "rest.h5ad")
    options = {"n_top_genes": None, "join": "outer", "progressbar": False}
    prepare([tmp_path / "all.h5ad", tmp_path / "rest.h5ad"], tmp_path / "both.h5ad", **options)
    prepare(tmp_path / "all.h5ad", tmp_path / "alone.h5ad", **options)
    both, alone = (open_store(tmp_path / f"{name}.h5ad").var.loc["gene00"] for name in ("both", "alone"))
    assert both[["means", "dispersions"]].tolist() == pytest.approx(alone[["means", "dispersions"]].tolist())


def studies_and_table() -> anndata.AnnData:
    return join_studies(pair() | {"c": make([[1, 1]], ["g1", "g4"], "z")})


def test_counts_of_an_unmeasured_gene_name_gene_study_and_cells():
    adata = studies_and_table()
    counts = adata.X.toarray()
    counts[2, 0] = 4
    adata.X = sparse.csr_matrix(counts)
    with pytest.raises(ValueError, match=r"Gene 'g1' has counts in 1 cells, such as \['y0'\], of study 'b'"):
        R2MAEModel.setup_anndata(adata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: setattr(a, "obs", a.obs.assign(study=a.obs["study"].where(a.obs["study"] != "b"))), "1 missing values"),
        (lambda a: a.varm.__setitem__("scr2mae_measured", np.ones((4, 2))), "column for each of the 3 studies"),
        (lambda a: a.varm.__setitem__("scr2mae_measured", np.ones((4, 3)) * 0.5), "must hold True and False"),
        (lambda a: a.varm.__setitem__("scr2mae_measured", np.full((4, 3), np.nan)), "4 missing values"),
        (lambda a: a.varm.__setitem__("scr2mae_measured", a.varm["scr2mae_measured"][["a", "b"]]), "lacks the genes of 1 studies"),
    ],
)  # fmt: skip
def test_wrong_tables_are_an_error(change, message):
    adata = studies_and_table()
    change(adata)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.setup_anndata(adata, study_key="study")


def test_a_study_without_a_gene_is_an_error():
    adata = studies_and_table()
    adata.varm["scr2mae_measured"] = adata.varm["scr2mae_measured"].assign(c=False)
    with pytest.raises(ValueError, match="Study 'c' has measured no gene"):
        R2MAEModel.setup_anndata(adata)


def test_the_column_of_the_studies_is_found_or_asked_for():
    adata = studies_and_table()
    adata.obs["copy"] = adata.obs["study"]
    with pytest.raises(ValueError, match=r"each of \['study', 'copy'\] of adata.obs .* pass study_key="):
        R2MAEModel.setup_anndata(adata)
    with pytest.raises(KeyError, match=r"No 'other' in adata\.varm"):
        R2MAEModel.setup_anndata(adata, study_key="study", measured_key="other")
    with pytest.raises(KeyError, match=r"No 'file' in adata\.obs"):
        R2MAEModel.setup_anndata(adata, study_key="file")


def test_without_a_table_zeros_of_a_study_are_named_and_taken_as_unmeasured_when_asked():
    adata = studies_and_table()
    del adata.varm["scr2mae_measured"]
    with pytest.raises(ValueError, match="need study_key="):
        R2MAEModel.setup_anndata(adata, infer_measured=True)
    with pytest.warns(UserWarning, match=r"b lacks 1, such as \['g1'\]; c lacks 2"):
        R2MAEModel.setup_anndata(adata, study_key="study")
    assert R2MAEModel(adata, n_hidden=4, n_latent=4)._cells(None).panels is None
    R2MAEModel.setup_anndata(adata, study_key="study", infer_measured=True)
    measured = R2MAEModel(adata, n_hidden=4, n_latent=4).spec.studies.measured
    assert {name: genes.tolist() for name, genes in measured.items()} == {
        "a": [True, True, True, False],
        "b": [False, True, True, True],
        "c": [True, False, False, True],
    }


def test_panels_do_not_depend_on_the_order_of_studies():
    measured = np.random.default_rng(0).random((30, 4)) < 0.6
    codes = np.random.default_rng(1).integers(0, 4, 50)
    order = np.array([2, 0, 3, 1])
    one, other = (
        Panels.from_table(measured, codes),
        Panels.from_table(measured[:, order], np.argsort(order)[codes]),
    )
    assert all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("of_cell", "classes", "gene_class")
    )
    assert np.array_equal(one.measured[one.of_cell], measured[:, codes].T)


def test_copies_are_found_by_the_genes_that_two_studies_share():
    adata = simulate_donors(n_donors=2, n_cells_per_donor=20, n_genes=90)
    joined = join_studies({"own": adata[:25, :60].copy(), "public": adata[20:, 10:].copy()})
    assert np.flatnonzero(find_copies(joined)).tolist() == list(range(25, 30))
    assert not find_copies(joined, min_genes=80).any()
