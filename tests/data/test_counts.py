"""Counts as CSR, and rows of them."""

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scr2mae.data.counts import as_csr, take_rows


def test_a_container_other_than_a_matrix_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Expected counts as a NumPy array.*, got list"):
        as_csr([[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "indices",
    [slice(None), slice(3, 9), slice(9, 2, -3), np.array([5, 5, 0, 119]), np.array([], dtype=int)],
    ids=str,
)
def test_taking_rows_never_converts_all_columns_whatever_the_width_of_offsets(
    adata: AnnData, indices: object
) -> None:
    mixed = sp.csr_matrix(adata.X)
    mixed.indptr = mixed.indptr.astype(np.int64)
    assert mixed.indices.dtype == np.int32

    class Columns(np.ndarray):
        """Column indices that must not be converted as a whole."""

        def astype(self, *args: object, **kwargs: object) -> np.ndarray:
            raise AssertionError("all columns of the matrix were converted")

    mixed.indices = mixed.indices.view(Columns)
    rows = take_rows(mixed, indices)
    np.testing.assert_array_equal(rows.toarray(), adata.X[indices].toarray())
    np.testing.assert_array_equal(take_rows(adata.X, indices).toarray(), adata.X[indices].toarray())
