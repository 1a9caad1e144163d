"""Genes aligned by name; covariates and counts read as a model's registry says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae import R2MAEModel
from scr2mae.data import CellSpec, align_genes, read_cells
from scr2mae.data.cells import check_overlap, reorder_columns
from scr2mae.data.counts import take_rows

SYMBOLS = st.lists(st.text("ABCXYZ019-", min_size=1, max_size=4), min_size=2, max_size=12, unique=True)
few = settings(max_examples=40, deadline=None)


@few
@given(genes=SYMBOLS, data=st.data())
def test_any_order_of_the_genes_is_undone(genes: list[str], data: st.DataObject) -> None:
    shuffled = np.array(data.draw(st.permutations(genes)))
    position = align_genes(shuffled, np.array(genes))
    np.testing.assert_array_equal(shuffled[position], genes)


@few
@given(genes=SYMBOLS, data=st.data())
def test_exactly_the_lost_genes_are_absent(genes: list[str], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(genes), min_size=1, unique=True))
    query = np.array([*kept, "a gene of the query's own"])
    position = align_genes(query, np.array(genes))
    np.testing.assert_array_equal(position < 0, ~np.isin(genes, kept))
    found = position >= 0
    np.testing.assert_array_equal(query[position[found]], np.array(genes)[found])


@few
@given(
    numbers=st.lists(st.integers(0, 10**11 - 1), min_size=2, max_size=8, unique=True),
    versions=st.lists(st.integers(1, 30), min_size=16, max_size=16),
)
def test_versions_of_ensembl_ids_do_not_matter(numbers: list[int], versions: list[int]) -> None:
    ids = [f"ENSMUSG{number:011d}" for number in numbers]
    reference = np.array([f"{name}.{version}" for name, version in zip(ids, versions, strict=False)])
    query = np.array([f"{name}.{version}" for name, version in zip(ids, versions[8:], strict=False)])
    np.testing.assert_array_equal(align_genes(query[::-1], reference), np.arange(len(ids))[::-1])
    np.testing.assert_array_equal(align_genes(np.array(ids), reference), np.arange(len(ids)))


@few
@given(genes=SYMBOLS)
def test_two_versions_of_one_wanted_gene_are_refused(genes: list[str]) -> None:
    query = ["ENSG00000000003.1", "ENSG00000000003.2", *genes]
    with pytest.raises(ValueError, match=r"\['ENSG00000000003'\] occur in several versions"):
        align_genes(query, np.array(["ENSG00000000003", *genes]))
    # They do no harm where the reference does not ask for that gene.
    position = align_genes(query, np.array([*genes, "absent"]))
    np.testing.assert_array_equal(position, [*range(2, len(genes) + 2), -1])


@pytest.mark.parametrize("name", ["RP11-34P13.7", "AC000001.1", "ENSG00000182378.14_PAR_Y", "MT-CO1"])
def test_a_dot_in_another_name_is_no_version(name: str) -> None:
    position = align_genes([name.rpartition(".")[0] or "x", "B"], np.array([name, "B"]))
    np.testing.assert_array_equal(position, [-1, 1])


def test_an_exact_name_is_found_beside_another_version_of_the_gene() -> None:
    names = ["ENSG00000000003.1", "ENSG00000000003.2"]
    np.testing.assert_array_equal(align_genes(names, np.array(names)), [0, 1])


def test_reordered_columns_equal_dense_indexing_with_zeros_for_the_absent() -> None:
    counts = sp.random(20, 7, density=0.4, format="csr", random_state=0)
    position = np.array([6, -1, 0, 3, -1, 2])
    aligned = reorder_columns(counts, position)
    expected = np.where(position >= 0, counts.toarray()[:, position], 0)
    np.testing.assert_array_equal(aligned.toarray(), expected)
    assert isinstance(aligned, sp.csr_matrix)
    assert aligned.nnz == np.count_nonzero(expected)


@pytest.mark.parametrize(
    ("n_shared", "min_shared", "message"),
    [
        (0, 0.0, "No shared genes: the query has 0 of the reference's 100"),
        (1, 0.0, "Too few shared genes"),
        (
            9,
            0.1,
            r"Too few shared genes: the query has 9 of the reference's 100 genes \(9%\), min_shared=0.1",
        ),
        (79, 0.8, "Too few shared genes"),
    ],
)
def test_too_small_an_overlap_is_refused(n_shared: int, min_shared: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_overlap(n_shared, 100, min_shared=min_shared)


def test_an_overlap_below_half_warns_and_one_above_does_not() -> None:
    with pytest.warns(UserWarning, match=r"Few shared genes: .* 49 of .* 100 genes \(49%\)"):
        check_overlap(49, 100, min_shared=0.1)
    check_overlap(50, 100, min_shared=0.1)
    check_overlap(100, 100, min_shared=1.0)


@pytest.fixture
def spec(adata: AnnData, covariates: dict[str, Any]) -> CellSpec:
    R2MAEModel.setup_anndata(adata, **covariates)
    return R2MAEModel(adata, n_hidden=4, n_latent=2).spec


def test_the_specification_names_what_the_network_reads_and_nothing_else(spec: CellSpec) -> None:
    assert spec.var_names.tolist() == [f"gene{i}" for i in range(60)]
    assert [(key, categories.tolist()) for key, categories in spec.categorical] == [
        ("batch", ["b0", "b1"]),
        ("chemistry", ["v2", "v3"]),
    ]
    assert spec.continuous == ("age",)
    assert (spec.layer, spec.size_factor_key, spec.integers) == (None, None, True)


def test_codes_follow_the_names_of_categories_not_their_order(
    spec: CellSpec, simulate: Callable[..., AnnData]
) -> None:
    query = simulate(seed=5)
    expected = query.obs["batch"].cat.codes.to_numpy()
    query.obs["batch"] = query.obs["batch"].cat.reorder_categories(["b1", "b0"])
    query.obs["chemistry"] = query.obs["chemistry"].astype(str)
    cells = read_cells(query, spec)
    np.testing.assert_array_equal(cells.categories[:, 0], expected)
    np.testing.assert_array_equal(cells.categories[:, 1], (query.obs["chemistry"] == "v3").astype(int))
    np.testing.assert_array_equal(cells.continuous[:, 0], query.obs["age"])


def test_a_mini_batch_holds_the_chosen_cells_dense(spec: CellSpec, adata: AnnData) -> None:
    where = np.array([7, 0, 119])
    batch = read_cells(adata, spec).batch(where)
    np.testing.assert_array_equal(batch["X"], adata.X[where].toarray())
    assert {key: value.shape for key, value in batch.items()} == {
        "X": (3, 60),
        "batch": (3, 1),
        "extra_categorical_covs": (3, 1),
        "extra_continuous_covs": (3, 1),
    }


def test_reading_shares_the_counts_memory(spec: CellSpec, adata: AnnData) -> None:
    assert np.shares_memory(read_cells(adata, spec).counts.data, adata.X.data)


@pytest.mark.parametrize(
    ("column", "values", "error", "message"),
    [
        ("batch", None, KeyError, "No 'batch' in adata.obs; choose one of"),
        ("batch", [None, *["b0"] * 119], ValueError, "has 1 missing values"),
        (
            "chemistry",
            ["v9"] * 120,
            ValueError,
            r"holds \['v9'\], which the model has not seen; it knows \['v2', 'v3'\]",
        ),
        ("age", None, KeyError, "No 'age' in adata.obs"),
        ("age", ["old"] * 120, ValueError, "must be numeric, got (object|str)"),
        ("age", [np.inf] * 120, ValueError, "missing or infinite"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused(
    column: str, values: Any, error: type[Exception], message: str, spec: CellSpec, adata: AnnData
) -> None:
    if values is None:
        del adata.obs[column]
    else:
        adata.obs[column] = values
    with pytest.raises(error, match=message):
        read_cells(adata, spec)


def test_a_container_that_is_no_matrix_is_refused() -> None:
    from scr2mae.data.counts import as_csr

    with pytest.raises(TypeError, match=r"Expected counts as a NumPy array.*, got list"):
        as_csr([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "where",
    [slice(None), slice(3, 9), slice(9, 2, -3), np.array([5, 5, 0, 119]), np.array([], dtype=int)],
    ids=str,
)
def test_rows_cost_what_they_hold_whatever_the_width_of_offsets(adata: AnnData, where: object) -> None:
    mixed = sp.csr_matrix(adata.X)
    mixed.indptr = mixed.indptr.astype(np.int64)
    assert mixed.indices.dtype == np.int32

    class Columns(np.ndarray):
        """Refuses to be converted as a whole."""

        def astype(self, *args: object, **kwargs: object) -> np.ndarray:
            raise AssertionError("all columns of the matrix were converted")

    mixed.indices = mixed.indices.view(Columns)
    rows = take_rows(mixed, where)
    np.testing.assert_array_equal(rows.toarray(), adata.X[where].toarray())
    np.testing.assert_array_equal(take_rows(adata.X, where).toarray(), adata.X[where].toarray())
