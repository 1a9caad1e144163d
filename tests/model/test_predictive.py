"""Means, dispersions and draws of the predicted counts; mini-batches of a caller."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from anndata import AnnData
from scvi.criticism import PosteriorPredictiveCheck

from scr2mae import R2MAEModel, datasets
from scr2mae.data import CellLoader, read_cells
from scr2mae.model.selection import gene_folds


def test_likelihood_parameters_give_the_reconstruction_error(reference: R2MAEModel) -> None:
    found = reference.get_likelihood_parameters()
    mean, theta = (found[name].astype(np.float64) for name in ("mean", "dispersions"))
    counts = reference.adata.X.toarray()
    nll = -scipy.stats.nbinom.logpmf(counts, theta, theta / (theta + mean)).sum(axis=1)
    errors = reference.get_reconstruction_error(return_mean=False)["reconstruction_loss"]
    np.testing.assert_allclose(errors, nll, rtol=1e-4)
    assert reference.get_reconstruction_error()["reconstruction_loss"] == pytest.approx(errors.mean())
    np.testing.assert_allclose(mean.sum(axis=1), counts.sum(axis=1), rtol=1e-4)


def test_draws_have_the_mean_and_variance_of_the_likelihood(trained: R2MAEModel) -> None:
    drawn = trained.posterior_predictive_sample(indices=[0, 1, 2], n_samples=4000, seed=1).todense()
    found = trained.get_likelihood_parameters(indices=[0, 1, 2])
    mean, theta = found["mean"], found["dispersions"]
    assert drawn.shape == (3, 60, 4000)
    np.testing.assert_allclose(drawn.mean(axis=2), mean, rtol=0.2, atol=0.1)
    variance = mean + mean**2 / theta
    assert np.corrcoef(drawn.var(axis=2).ravel(), variance.ravel())[0, 1] > 0.95


def test_draws_are_repeatable_and_those_of_the_genes_asked_for(trained: R2MAEModel) -> None:
    first = trained.posterior_predictive_sample(indices=np.arange(5), gene_list=["gene7", "gene3"])
    again = trained.posterior_predictive_sample(indices=np.arange(5), gene_list=["gene7", "gene3"])
    other = trained.posterior_predictive_sample(indices=np.arange(5), gene_list=["gene7", "gene3"], seed=1)
    assert first.shape == (5, 2)
    np.testing.assert_array_equal(first.todense(), again.todense())
    assert (first.todense() != other.todense()).any()
    assert trained.posterior_predictive_sample(indices=[0], gene_list="gene3").shape == (1, 1)


@pytest.mark.parametrize("n_measured", [1, 3, 5, 60])
def test_each_measured_gene_is_in_one_fold(n_measured: int) -> None:
    measured = np.arange(60) < n_measured
    folds = list(gene_folds(measured, 5, seed=0))
    assert len(folds) == min(5, n_measured)
    assert np.sum(folds, axis=0).tolist() == measured.astype(int).tolist()


@pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)
@pytest.mark.parametrize("n_folds", [2, 5])
def test_a_draw_in_folds_does_not_know_the_count_that_it_is_compared_with(
    n_folds: int, trained: R2MAEModel, adata: AnnData
) -> None:
    parts = list(map(torch.from_numpy, gene_folds(np.ones(60, dtype=bool), n_folds, 0)))
    # Counts move between two genes of one part, so that what is seen, and the library size, stay.
    one, other = parts[0].nonzero().flatten()[:2].tolist()
    changed = adata.copy()
    X = changed.X.toarray()
    X[0, one] += X[0, other] + 7
    adata.X = sp.csr_matrix(
        adata.X + sp.csr_matrix(([7.0], ([0], [other])), shape=(120, 60), dtype=np.float32)
    )
    X[0, other] = 0
    changed.X = sp.csr_matrix(X)
    tensors = [next(iter(CellLoader(read_cells(a, trained.spec), batch_size=1))) for a in (adata, changed)]
    with torch.inference_mode():
        known, hidden = (
            [trained._mean_in_folds(each, given)[0, [one, other]] for each in tensors]
            for given in ([], parts)
        )
    torch.testing.assert_close(hidden[0], hidden[1])
    assert not torch.allclose(known[0], known[1])
    panel = trained.posterior_predictive_sample(adata[:, :50].copy(), n_folds=n_folds)
    assert panel.shape == (120, 60)


def test_draws_of_genes_hidden_in_folds_are_calibrated(train_tiny: Any) -> None:
    adata = datasets.simulate_donors(n_donors=8, n_cells_per_donor=50, n_genes=80, seed=1)
    model = train_tiny(adata, max_epochs=20, model={"n_hidden": 32, "n_latent": 8})
    drawn = model.posterior_predictive_sample(n_samples=99, n_folds=5).todense()
    counts = adata.X.toarray()[:, :, None]
    # Counts are discrete; a random rank among equal ones makes the rank of a calibrated count uniform.
    rng = np.random.default_rng(0)
    below = (drawn < counts).sum(axis=2) + rng.uniform(size=counts.shape[:2]) * (
        (drawn == counts).sum(axis=2) + 1
    )
    rank = below / 100
    outside = ((rank < 0.05) | (rank > 0.95)).mean()
    assert outside == pytest.approx(0.1, abs=0.04)  # nominal .10
    assert ((rank < 0.25) | (rank > 0.75)).mean() == pytest.approx(0.5, abs=0.06)


def test_arguments_out_of_range_are_refused(trained: R2MAEModel) -> None:
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        trained.posterior_predictive_sample(n_samples=0)
    with pytest.raises(ValueError, match="n_folds must be at least 2"):
        trained.posterior_predictive_sample(n_folds=1)


@pytest.mark.filterwarnings("ignore:Comparing two sparse matrices")  # by scvi-tools
def test_the_criticism_of_scvi_tools_takes_the_model(trained: R2MAEModel, adata: AnnData) -> None:
    dense = adata.copy()
    dense.X = dense.X.toarray()  # its check of sparse counts that are floats fails
    check = PosteriorPredictiveCheck(dense, {"r2mae": trained}, n_samples=2)
    check.coefficient_of_variation("features")
    check.zero_fraction()
    assert len(check.metrics) == 2


# --- mini-batches of a caller


def batches(model: R2MAEModel, adata: AnnData, **changes: Any) -> list[dict[str, Any]]:
    found = list(CellLoader(read_cells(adata, model.spec), batch_size=50))
    return [{**each, **{key: change(each[key]) for key, change in changes.items()}} for each in found]


def test_mini_batches_of_a_caller_give_what_the_data_give(reference: R2MAEModel, adata: AnnData) -> None:
    given = batches(reference, adata)
    np.testing.assert_allclose(
        reference.get_latent_representation(dataloader=given),
        reference.get_latent_representation(adata),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        reference.get_normalized_expression(dataloader=given, return_numpy=True),
        reference.get_normalized_expression(adata, return_numpy=True),
        rtol=1e-4,
    )
    assert reference.get_normalized_expression(dataloader=given).columns.tolist() == adata.var_names.tolist()
    for return_mean in (True, False):
        np.testing.assert_allclose(
            reference.get_reconstruction_error(dataloader=given, return_mean=return_mean)[
                "reconstruction_loss"
            ],
            reference.get_reconstruction_error(adata, return_mean=return_mean)["reconstruction_loss"],
            rtol=1e-5,
        )


REFUSED: dict[str, tuple[Callable[[R2MAEModel, AnnData], Any], str]] = {
    "genes": (lambda m, a: batches(m, a, X=lambda x: x[:, :50]), "yields 50 genes, but the model has 60"),
    "codes": (lambda m, a: batches(m, a, batch=lambda x: x + 5), "yields batch codes from 5 to 6, the model has 2"),
    "covariate": (lambda m, a: [{k: v for k, v in b.items() if "continuous" not in k} for b in batches(m, a)], "lacks ['extra_continuous_covs']"),
    "tuples": (lambda m, a: [(1, 2)], "must yield dicts with scvi-tools' keys"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(
    "method", ["get_latent_representation", "get_normalized_expression", "get_reconstruction_error"]
)
def test_mini_batches_that_do_not_fit_the_model_are_refused(
    kind: str, method: str, reference: R2MAEModel, adata: AnnData
) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match="dataloader") as caught:
        getattr(reference, method)(dataloader=make(reference, adata))
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="leave out adata, indices, batch_size"):
        getattr(reference, method)(adata, dataloader=[])


def test_pearson_residuals_are_those_of_the_predicted_distribution(
    trained: R2MAEModel, adata: AnnData
) -> None:
    parameters = trained.get_likelihood_parameters(adata)
    mean, theta = parameters["mean"], parameters["dispersions"]
    expected = (np.asarray(adata.X.todense()) - mean) / np.sqrt(mean + mean**2 / theta)
    np.testing.assert_allclose(
        trained.get_pearson_residuals(adata), np.clip(expected, -10, 10), rtol=1e-3, atol=1e-4
    )
    clipped = trained.get_pearson_residuals(adata, [2, 0], clip=1.5)
    np.testing.assert_allclose(clipped, np.clip(expected, -1.5, 1.5)[[2, 0]], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="clip must be above 0, got 0"):
        trained.get_pearson_residuals(adata, clip=0)


def test_genes_that_were_not_measured_have_no_residual(trained: R2MAEModel, adata: AnnData) -> None:
    panel = adata[:, :58].copy()
    found = trained.get_pearson_residuals(panel)
    assert np.isnan(found[:, 58:]).all()
    assert np.isfinite(found[:, :58]).all()
