import math

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae import datasets


def _expected_means(adata: AnnData) -> np.ndarray:
    """The mean of each cell and gene, from the truth that the simulation returns."""
    obs, var, varm = adata.obs, adata.var, adata.varm
    decades = (obs["age"].to_numpy() - adata.uns["simulation"]["age_center"]) / 10
    log_change = (
        varm["cell_type_lfc"][:, obs["cell_type"].cat.codes].T
        + varm["donor_lfc"][:, obs["donor"].cat.codes].T
        + varm["batch_lfc"][:, obs["batch"].cat.codes].T
        + np.outer(obs["disease"] == "disease", var["disease_lfc"])
        + np.outer(decades, var["age_lfc"])
    )
    return np.outer(obs["library"], var["baseline"]) * np.exp(log_change)


def _residuals(adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Squared Pearson residuals (mean one), and a standard-normal sum per gene."""
    counts, mean = adata.X.toarray(), _expected_means(adata)
    variance = mean + mean**2 / adata.uns["simulation"]["dispersion"]
    return (counts - mean) ** 2 / variance, (counts - mean).sum(0) / np.sqrt(variance.sum(0))


def test_simulated_counts_have_the_mean_and_variance_of_the_stated_truth(simulated):
    squared, z = _residuals(simulated)
    assert np.abs(z).max() < 5
    assert np.std(z) == pytest.approx(1, abs=0.15)
    assert squared.mean() == pytest.approx(1, abs=0.02)


def test_infinite_dispersion_is_poisson():
    adata = datasets.simulate_donors(n_donors=4, n_cells_per_donor=300, n_genes=200, dispersion=math.inf)
    assert _residuals(adata)[0].mean() == pytest.approx(1, abs=0.02)


def test_effects_have_the_requested_size_and_number(simulated):
    for name, size in (("disease", 0.7), ("age", 0.2)):
        carried = simulated.var[f"{name}_lfc"]
        assert sorted(carried.unique()) == [-size, 0, size]
        assert (carried > 0).sum() == (carried < 0).sum() == 15
    assert not ((simulated.var["disease_lfc"] != 0) & (simulated.var["age_lfc"] != 0)).any()
    assert simulated.varm["cell_type_lfc"].std() == pytest.approx(1.0, abs=0.1)
    assert simulated.varm["donor_lfc"].std() == pytest.approx(0.1, abs=0.01)
    assert simulated.varm["batch_lfc"].std() == pytest.approx(0.2, abs=0.02)
    assert simulated.var["baseline"].sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["cell_type", "donor", "batch", "disease", "age"])
def test_one_effect_changes_without_changing_the_others(name):
    settings_ = {"n_donors": 4, "n_cells_per_donor": 10, "n_genes": 50, "seed": 5}
    usual = datasets.simulate_donors(**settings_)
    without = datasets.simulate_donors(**settings_, **{f"{name}_effect": 0.0})
    truth = {key: np.asarray(frame[key]) for a in (usual,) for frame in (a.var, a.varm) for key in frame}
    truth_without = {key: np.asarray(frame[key]) for frame in (without.var, without.varm) for key in frame}
    assert not truth_without.pop(f"{name}_lfc").any()
    assert truth.pop(f"{name}_lfc").any()
    for key in truth:
        np.testing.assert_array_equal(truth_without[key], truth[key])
    pd.testing.assert_frame_equal(without.obs, usual.obs)


def test_without_an_age_effect_the_counts_do_not_depend_on_age():
    young = datasets.simulate_donors(age_effect=0, age_range=(20, 30), n_cells_per_donor=5)
    old = datasets.simulate_donors(age_effect=0, age_range=(60, 90), n_cells_per_donor=5)
    assert young.obs["age"].max() < old.obs["age"].min()
    np.testing.assert_array_equal(young.X.toarray(), old.X.toarray())


def test_without_disease_and_age_effects_the_affected_genes_do_not_matter():
    none = datasets.simulate_donors(disease_effect=0, age_effect=0, effect_fraction=0.0, n_cells_per_donor=5)
    many = datasets.simulate_donors(disease_effect=0, age_effect=0, effect_fraction=0.5, n_cells_per_donor=5)
    np.testing.assert_array_equal(none.X.toarray(), many.X.toarray())


@given(n_donors=st.integers(2, 30), n_batches=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_disease_is_balanced_overall_and_in_every_batch(n_donors, n_batches, seed):
    n_batches = min(n_batches, n_donors)
    adata = datasets.simulate_donors(
        n_donors=n_donors, n_batches=n_batches, n_cells_per_donor=1, n_genes=2, n_cell_types=1, seed=seed
    )
    table = pd.crosstab(adata.obs["batch"], adata.obs["disease"], dropna=False)
    assert (table["disease"] - table["control"]).abs().max() <= 1
    assert abs(int(table["disease"].sum() - table["control"].sum())) <= 1
    assert table.to_numpy().sum(1).max() - table.to_numpy().sum(1).min() <= 1


def test_donor_properties_are_constant_within_the_donor(simulated):
    constant = simulated.obs.groupby("donor", observed=True)[["batch", "disease", "age"]].nunique()
    assert (constant == 1).all(axis=None)
    assert simulated.obs["age"].between(20, 80).all()
    assert (simulated.obs["donor"].value_counts() == 200).all()


def test_simulation_is_sparse_reproducible_and_survives_a_file(simulated, tmp_path):
    arguments = {"n_donors": 3, "n_cells_per_donor": 7, "n_genes": 11}
    first, second = (datasets.simulate_donors(**arguments, seed=1) for _ in range(2))
    other = datasets.simulate_donors(**arguments, seed=2)
    assert isinstance(first.X, sp.csr_matrix)
    assert first.X.dtype == np.float32
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert (first.X != other.X).nnz > 0
    simulated.write_h5ad(tmp_path / "simulated.h5ad")
    read = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    pd.testing.assert_frame_equal(read.obs, simulated.obs, check_categorical=False, check_index_type=False)
    assert read.uns["simulation"]["disease_effect"] == 0.7


def test_simulated_blocks_cover_donors_larger_than_one_block(monkeypatch):
    monkeypatch.setattr("scr2mae.datasets.simulate._BLOCK_ENTRIES", 100)
    adata = datasets.simulate_donors(n_donors=2, n_cells_per_donor=43, n_genes=20)
    assert adata.shape == (86, 20)
    assert np.abs(_residuals(adata)[1]).max() < 5
    assert (adata.X.sum(1) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_donors": 1}, "n_donors must be at least 2, got 1"),
        ({"n_cells_per_donor": 0}, "n_cells_per_donor must be at least 1"),
        ({"n_genes": 1}, "n_genes must be at least 2"),
        ({"n_cell_types": 0}, "n_cell_types must be at least 1"),
        ({"n_batches": 21}, r"n_batches must not exceed n_donors \(20\), got 21"),
        ({"disease_effect": -1}, "disease_effect must be finite and not negative, got -1"),
        ({"donor_effect": math.nan}, "donor_effect must be finite"),
        ({"effect_fraction": 0.6}, r"effect_fraction must lie in \[0, 0.5\], got 0.6"),
        ({"dispersion": 0}, "dispersion must be positive, got 0"),
        ({"library_size": math.inf}, "library_size must be positive, got inf"),
        ({"age_range": (80, 20)}, r"age_range must be \(low, high\) in years"),
    ],
)
def test_simulation_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.simulate_donors(**arguments)
