"""Genes matched by name, and counts in their order."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.data import align_genes
from scr2mae.data.genes import check_overlap, select_genes, warn_about_genes

SYMBOLS = st.lists(st.text("ABCXYZ019-", min_size=1, max_size=4), min_size=2, max_size=12, unique=True)
few = settings(max_examples=40, deadline=None)


@few
@given(genes=SYMBOLS, data=st.data())
def test_any_order_of_the_genes_is_undone(genes: list[str], data: st.DataObject) -> None:
    shuffled = np.array(data.draw(st.permutations(genes)))
    indices = align_genes(shuffled, np.array(genes))
    np.testing.assert_array_equal(shuffled[indices], genes)


@few
@given(genes=SYMBOLS, data=st.data())
def test_exactly_the_dropped_genes_are_absent(genes: list[str], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(genes), min_size=1, unique=True))
    query = np.array([*kept, "a gene of the query's own"])
    indices = align_genes(query, np.array(genes))
    np.testing.assert_array_equal(indices < 0, ~np.isin(genes, kept))
    found = indices >= 0
    np.testing.assert_array_equal(query[indices[found]], np.array(genes)[found])


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
def test_two_versions_of_one_reference_gene_are_refused(genes: list[str]) -> None:
    query = ["ENSG00000000003.1", "ENSG00000000003.2", *genes]
    with pytest.raises(ValueError, match=r"\['ENSG00000000003'\] occur in several versions"):
        align_genes(query, np.array(["ENSG00000000003", *genes]))
    # They do no harm where the reference does not ask for that gene.
    indices = align_genes(query, np.array([*genes, "absent"]))
    np.testing.assert_array_equal(indices, [*range(2, len(genes) + 2), -1])


@pytest.mark.parametrize("name", ["RP11-34P13.7", "AC000001.1", "ENSG00000182378.14_PAR_Y", "MT-CO1"])
def test_a_dot_in_another_name_is_not_a_version(name: str) -> None:
    indices = align_genes([name.rpartition(".")[0] or "x", "B"], np.array([name, "B"]))
    np.testing.assert_array_equal(indices, [-1, 1])


def test_an_exact_name_is_preferred_to_another_version_of_the_gene() -> None:
    names = ["ENSG00000000003.1", "ENSG00000000003.2"]
    np.testing.assert_array_equal(align_genes(names, np.array(names)), [0, 1])


def test_selected_genes_equal_dense_indexing_with_zeros_for_the_absent() -> None:
    counts = sp.random(20, 7, density=0.4, format="csr", random_state=0)
    indices = np.array([6, -1, 0, 3, -1, 2])
    selected = select_genes(counts, indices)
    expected = np.where(indices >= 0, counts.toarray()[:, indices], 0)
    np.testing.assert_array_equal(selected.toarray(), expected)
    assert isinstance(selected, sp.csr_matrix)
    assert selected.has_canonical_format
    assert selected.nnz == np.count_nonzero(expected)
    assert select_genes(counts, np.arange(7)) is counts


@pytest.mark.parametrize(
    ("n_shared", "min_shared", "message"),
    [
        (0, 0.0, "No shared genes: the query has 0 of the reference's 100"),
        (1, 0.0, "Too few shared genes"),
        (
            9,
            0.1,
            r"Too few shared genes: the query has 9 of the reference's 100 genes \(9%\), but min_shared=0.1",
        ),
        (79, 0.8, "Too few shared genes"),
    ],
)
def test_too_small_an_overlap_is_refused(n_shared: int, min_shared: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(n_shared, min_shared=min_shared)


def check(n_shared: int, *, min_shared: float) -> None:
    """Check a query that has the first genes of a reference of 100."""
    names = np.array([f"gene{i}" for i in range(100)])
    query = AnnData(var=pd.DataFrame(index=names[:n_shared]))
    check_overlap(query, names, np.arange(100) < n_shared, min_shared=min_shared)


def test_an_overlap_below_95_percent_warns_and_one_above_does_not() -> None:
    with pytest.warns(
        UserWarning, match=r"Few shared genes: .* 94 of .* 100 genes \(94%\).*\['gene94', 'gene95'"
    ):
        check(94, min_shared=0.1)
    check(95, min_shared=0.1)
    check(100, min_shared=1.0)


@pytest.mark.parametrize(
    ("names", "is_number"),
    [
        ([str(i + 1) for i in range(9)], True),
        ([str(7 * i) for i in range(9)][::-1], True),
        (["7157", "100131244"], False),
        (["TP53", "12"], False),
    ],
    ids=["from one", "shuffled and chosen", "Entrez ids", "symbols"],
)
def test_row_numbers_are_recognized_in_any_order(names: list[str], is_number: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_about_genes(pd.DataFrame(index=names))
    assert [str(each.message).startswith("Gene names are row numbers") for each in caught] == [
        True
    ] * is_number


@pytest.mark.parametrize(
    ("column", "values", "is_told"),
    [
        ("feature_types", ["Peaks"] * 4, True),
        ("feature_type", ["Gene Expression"] * 2 + ["Antibody Capture"] * 2, True),
        ("modality", ["rna", "adt", "adt", "rna"], True),
        ("feature_type", ["protein_coding", "lncRNA", "lncRNA", "protein_coding"], False),
        ("feature_types", ["Gene Expression"] * 4, False),
    ],
)
def test_features_that_are_no_genes_are_warned_about(column: str, values: list[str], is_told: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_about_genes(pd.DataFrame({column: values}, index=list("ABCD")))
    assert [f"var[{column!r}] has" in str(each.message) for each in caught] == [True] * is_told


@pytest.mark.parametrize(
    "spell", [lambda n: f" {n} ", lambda n: f"{n}_ENSG00000000{n[1:]}"], ids=["blanks", "ids"]
)
def test_blanks_and_ids_in_names_of_genes_are_found(spell: Any) -> None:
    reference = np.array([f"G{i}" for i in range(100, 140)])
    var = pd.DataFrame(
        [["a", "b"]] * 40, columns=["twice", "twice"], index=[spell(name) for name in reference]
    )
    with pytest.raises(ValueError, match="40 of 40 match, such as"):
        check_overlap(AnnData(var=var), reference, np.zeros(40, dtype=bool), min_shared=0.1)
