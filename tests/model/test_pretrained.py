"""Models that start from trained ones: same embedding of known genes, rows for new genes, warm training."""

import warnings

import numpy as np
import pytest
from scipy import sparse

from scr2mae import R2MAEModel
from scr2mae.datasets import simulate_donors

ENCODERS = ("linear+mlp", "mlp")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 32}


def cells(seed: int = 0, n_genes: int = 60):
    return simulate_donors(n_donors=6, n_cells_per_donor=20, n_genes=n_genes, seed=seed)


def reference(encoder: str = "linear+mlp", genes=slice(None), **setup) -> R2MAEModel:
    adata = cells()[:, genes].copy()
    R2MAEModel.setup_anndata(adata, **setup)
    model = R2MAEModel(adata, n_hidden=16, n_latent=32, encoder=encoder)
    model.train(max_epochs=8, **QUIET)
    return model


@pytest.mark.parametrize("encoder", ENCODERS)
def test_embeds_like_the_trained_model_before_any_training(encoder):
    trained, mine = reference(encoder), cells(1)
    model = R2MAEModel.from_pretrained(trained, mine)
    assert np.array_equal(model.get_latent_representation(), trained.get_latent_representation(mine))


def test_a_gene_that_is_missing_stays_masked(tmp_path):
    trained, mine = reference(), cells(1)[:, 2:].copy()
    trained.save(tmp_path / "model")
    model = R2MAEModel.from_pretrained(tmp_path / "model", mine)
    assert model.adata.n_vars == 60
    assert model._cells(None).measured.tolist() == [False] * 2 + [True] * 58
    model.train(max_epochs=1, **QUIET)
    assert np.isfinite(model.get_latent_representation(mine)).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_new_genes_are_predicted_and_known_ones_embedded_as_before(encoder):
    trained, mine = reference(encoder, slice(0, 50)), cells(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = R2MAEModel.from_pretrained(trained, mine)
    assert model.spec.var_names.tolist() == cells().var_names.tolist()
    known = mine[:, :50].copy()
    with pytest.warns(UserWarning, match="Few shared genes"):
        z = model.get_latent_representation(known)
    np.testing.assert_allclose(z, trained.get_latent_representation(known), rtol=1e-3, atol=1e-3)
    expression = model.get_normalized_expression(library_size="observed", return_numpy=True)
    total, observed = expression[:, 50:].sum(axis=0), np.asarray(mine.X.sum(axis=0)).ravel()[50:]
    np.testing.assert_allclose(total, observed, rtol=0.35)
    constant = np.outer(np.asarray(mine.X.sum(axis=1)).ravel(), observed / mine.X.sum())
    counts = mine.X.toarray()[:, 50:]

    def poisson(mean):
        return float((mean - counts * np.log(mean)).mean())

    assert poisson(expression[:, 50:]) < poisson(constant)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_likelihood_of_cells_with_other_frequencies_is_better_from_the_start(encoder):
    trained, mine = reference(encoder), cells(1)
    counts = mine.X.toarray()
    counts[:, ::3] *= 3
    counts[:, 1] = 0
    mine.X = sparse.csr_matrix(counts)
    mine.obs["donor"] = mine.obs["donor"].astype(str)
    is_mine = mine.obs["donor"].isin(mine.obs["donor"].unique()[:3]).to_numpy()
    model = R2MAEModel.from_pretrained(trained, mine[is_mine].copy())
    predicted = model.get_normalized_expression(library_size="observed", return_numpy=True).sum(axis=0)
    np.testing.assert_allclose(predicted, counts[is_mine].sum(axis=0), rtol=0.05, atol=5)
    before, after = (
        m.get_masked_reconstruction(mine[~is_mine].copy(), ratios=(0.3,))["nll"].item()
        for m in (trained, model)
    )
    assert after < before - 0.1


def test_genes_that_are_not_measured_keep_the_dispersion_of_the_trained_model():
    trained = reference()
    model = R2MAEModel.from_pretrained(trained, cells(1)[:, 2:].copy())
    theta = trained.module.log_theta.detach()
    np.testing.assert_allclose(model.module.log_theta.detach()[:2], theta[:2], rtol=1e-5, atol=1e-5)
    assert not np.allclose(model.module.log_theta.detach()[2:], theta[2:], rtol=1e-3)


def test_training_is_short_slow_and_stops_by_itself():
    trained, mine = reference(donor_key="donor"), cells(1)
    model = R2MAEModel.from_pretrained(trained, mine)
    assert model.registry["setup_args"]["donor_key"] == "donor"
    model.train(**QUIET)
    run = model.runs_[-1]
    assert run["arguments"]["train"]["early_stopping"]
    assert len(model.runs_) == 2
    assert len(model.history["train_loss"]) <= 8  # a quarter of 33
    assert model.split_.key == "donor"
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_warm_training_reaches_the_likelihood_of_scratch_in_a_quarter_of_the_steps():
    mine = cells(0)
    donors = mine.obs["donor"].isin(mine.obs["donor"].cat.categories[:3]).to_numpy()
    first = mine[donors].copy()
    R2MAEModel.setup_anndata(first, donor_key="donor")
    trained = R2MAEModel(first, n_hidden=16, n_latent=32)
    trained.train(max_epochs=40, **QUIET)
    rest = mine[~donors].copy()
    R2MAEModel.setup_anndata(rest)
    scratch = R2MAEModel(rest, n_hidden=16, n_latent=32)
    scratch.train(max_epochs=20, train_size=0.7, **QUIET)
    warm = R2MAEModel.from_pretrained(trained, rest)
    warm.train(max_epochs=5, train_size=0.7, early_stopping=False, **QUIET)
    losses = [model.history["validation_loss"].iloc[-1].item() for model in (warm, scratch)]
    assert losses[0] < losses[1] + 0.01


def test_batches_keep_their_rows_and_new_ones_start_at_the_mean():
    trained, mine = reference(batch_key="batch"), cells(1)
    mine.obs["batch"] = mine.obs["batch"].astype(str)
    mine.obs.loc[mine.obs_names[:20], "batch"] = "new"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = R2MAEModel.from_pretrained(trained, mine)
    old, new = (m.module.encoder.first.tables["0"].reference.detach() for m in (trained, model))
    names = [m.spec.categorical[0][1].tolist() for m in (trained, model)]
    for i, name in enumerate(names[1]):
        expected = old.mean(dim=0) if name == "new" else old[names[0].index(name)]
        np.testing.assert_allclose(new[i].numpy(), expected.numpy(), rtol=1e-6)


def test_what_cannot_start_is_an_error(tmp_path):
    trained, mine = reference(), cells(1)
    foreign = mine.copy()
    foreign.var_names = [f"other{i}" for i in range(60)]
    with pytest.raises(ValueError, match="No shared genes"):
        R2MAEModel.from_pretrained(trained, foreign)
    with pytest.raises(RuntimeError, match="not trained"):
        R2MAEModel.from_pretrained(R2MAEModel(cells(), n_hidden=4, n_latent=4), mine)
    with pytest.raises(FileNotFoundError):
        R2MAEModel.from_pretrained(tmp_path / "nothing", mine)
    batched = reference(batch_key="batch")
    R2MAEModel.setup_anndata(mine)
    with pytest.raises(ValueError, match=r"has the covariates .*'batch_key': 'batch'"):
        R2MAEModel.from_pretrained(batched, mine)


def test_the_callers_cells_do_not_change():
    mine = cells(1)[:, 2:].copy()
    before = mine.copy()
    R2MAEModel.from_pretrained(reference(), mine)
    assert mine.var_names.equals(before.var_names)
    assert list(mine.uns) == list(before.uns)
    assert (sparse.csr_matrix(mine.X) != sparse.csr_matrix(before.X)).nnz == 0
