import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae import datasets


def _log_scaled(counts: np.ndarray, target_sum: float = 1e4, decimals: int | None = None) -> np.ndarray:
    values = np.log1p(counts * (target_sum / counts.sum(1, keepdims=True).clip(1)))
    return values if decimals is None else values.round(decimals)


def test_counts_are_recovered_from_log_values_with_any_scale_per_cell():
    counts = datasets.simulate_donors(n_donors=2, n_cells_per_donor=50, n_genes=200, seed=3).X.toarray()
    np.testing.assert_array_equal(
        datasets.recover_counts(_log_scaled(counts).astype(np.float32)).toarray(), counts
    )
    small = counts.clip(max=200)
    recovered = datasets.recover_counts(sp.csr_matrix(_log_scaled(small, decimals=3)))
    assert isinstance(recovered, sp.csr_matrix)
    assert recovered.dtype == np.float32
    np.testing.assert_array_equal(recovered.toarray(), small)


def test_log_values_too_coarse_for_their_counts_are_refused():
    counts = np.concatenate([np.arange(1, 20), np.arange(3000, 3100)])[None]
    with pytest.raises(ValueError, match="with the best scale a value lies"):
        datasets.recover_counts(_log_scaled(counts, decimals=3))


@given(
    counts=st.lists(st.integers(0, 400), min_size=8, max_size=60).map(np.array),
    scale=st.floats(0.05, 50),
)
@settings(max_examples=50, deadline=None)
def test_any_cell_with_a_single_count_is_recovered_from_single_precision(counts, scale):
    counts[0] = 1
    logged = np.log1p(counts * scale).astype(np.float32)
    np.testing.assert_array_equal(datasets.recover_counts(logged[None]).toarray()[0], counts)


def test_a_cell_without_a_single_count_is_recovered_from_the_common_unit():
    counts = np.array([[2, 3, 5, 8, 13], [3, 4, 6, 11, 0], [0, 0, 0, 0, 0]])
    recovered = datasets.recover_counts(_log_scaled(counts, decimals=4))
    np.testing.assert_array_equal(recovered.toarray(), counts)


def test_recovering_does_not_change_the_input():
    logged = sp.csr_matrix(_log_scaled(np.array([[1, 0, 2, 7]])))
    before = logged.copy()
    datasets.recover_counts(logged)
    np.testing.assert_array_equal(logged.toarray(), before.toarray())


def test_values_other_than_counts_are_refused():
    values = np.random.default_rng(0).uniform(0.5, 4, size=(3, 100))
    with pytest.raises(ValueError, match="Cell 0 does not hold log1p of scaled counts"):
        datasets.recover_counts(values)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_scaled_or_missing_log_values_are_refused(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        datasets.recover_counts(np.array([[1.0, bad]]))


def test_recovery_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"tolerance must lie in \(0, 0.5\), got 0.5"):
        datasets.recover_counts(np.ones((1, 1)), tolerance=0.5)
    with pytest.raises(ValueError, match="max_smallest must be at least 1, got 0"):
        datasets.recover_counts(np.ones((1, 1)), max_smallest=0)


@pytest.fixture(scope="module")
def pbmc() -> AnnData:
    return datasets.pbmc68k()


def test_pbmc68k_holds_integer_counts_of_700_cells_by_765_genes(pbmc):
    assert pbmc.shape == (700, 765)
    assert isinstance(pbmc.X, sp.csr_matrix)
    assert pbmc.X.dtype == np.float32
    assert pbmc.var_names.is_unique
    assert pbmc.obs_names.is_unique
    assert (pbmc.X.data >= 1).all()
    assert (pbmc.X.data == np.round(pbmc.X.data)).all()


def test_pbmc68k_counts_reproduce_the_log_values_that_scanpy_ships(pbmc):
    shipped = sc.datasets.pbmc68k_reduced().raw.X.toarray()
    library = pbmc.obs["n_counts"].to_numpy(np.float64)[:, None]  # of all genes, never used in the recovery
    np.testing.assert_allclose(np.log1p(1e4 * pbmc.X.toarray() / library), shipped, rtol=0, atol=6e-4)


def test_pbmc68k_rounds_away_less_than_a_tenth_of_a_count(pbmc):
    shipped = sc.datasets.pbmc68k_reduced().raw.X
    np.testing.assert_array_equal(datasets.recover_counts(shipped, tolerance=0.1).toarray(), pbmc.X.toarray())


def test_pbmc68k_keeps_ten_cell_types_under_both_names(pbmc):
    assert pbmc.obs["bulk_labels"].nunique() == 10
    assert pbmc.obs["bulk_labels"].notna().all()
    assert (pbmc.obs["cell_type"] == pbmc.obs["bulk_labels"]).all()


def test_pbmc68k_needs_no_network_and_is_the_same_every_time(pbmc, monkeypatch):
    monkeypatch.setattr(socket, "socket", _no_network)
    again = datasets.pbmc68k()
    np.testing.assert_array_equal(again.X.toarray(), pbmc.X.toarray())
    pd.testing.assert_frame_equal(again.obs, pbmc.obs)


def _no_network(*args, **kwargs):
    raise AssertionError("the network was used")


def test_importing_opens_no_connection_and_loads_no_torch():
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('the network was used')\n"
        "socket.create_connection = socket.socket.connect = refuse\n"
        "import scr2mae.datasets\n"
        "assert 'torch' not in sys.modules and 'scvi' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
