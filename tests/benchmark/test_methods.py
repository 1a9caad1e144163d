"""Methods of the benchmark compared with scanpy, scvi-tools and the model."""

import logging
import signal

import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch

import scr2mae
from scr2mae._utils.methods import LABELS, method_names
from scr2mae.benchmark.integrators import INTEGRATORS
from scr2mae.benchmark.methods import BASELINES, SCVI_CLASSES, make_methods
from scr2mae.benchmark.pretraining import Options
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson


def test_log_normalized_expression_and_components_are_those_of_scanpy(cells, fit_one):
    import scanpy as sc

    for name, target_sum in (("pca", None), ("pca_1e4", 1e4)):
        expected = cells.copy()
        sc.pp.normalize_total(expected, target_sum=target_sum)
        sc.pp.log1p(expected)
        if name == "pca":
            got, _ = fit_one(cells, "lognorm")
            np.testing.assert_allclose(got.matrix.toarray(), expected.X.toarray(), rtol=1e-5)
        sc.pp.pca(expected, n_comps=5)
        got, _ = fit_one(cells, name)
        np.testing.assert_allclose(np.abs(got.matrix), np.abs(expected.obsm["X_pca"]), rtol=1e-3, atol=1e-3)


def test_components_of_residuals_are_those_of_scanpy(cells, fit_one):
    import scanpy as sc

    expected = cells.copy()
    sc.experimental.pp.normalize_pearson_residuals(expected)
    sc.pp.pca(expected, n_comps=5)
    got, _ = fit_one(cells, "pca_residuals")
    np.testing.assert_allclose(np.abs(got.matrix), np.abs(expected.obsm["X_pca"]), rtol=1e-2, atol=1e-2)


def test_components_of_ranks_do_not_depend_on_depth(cells, fit_one):
    doubled = cells.copy()
    doubled.X = (doubled.X * 2).tocsr()
    got, _ = fit_one(cells, "pca_ranks")
    again, _ = fit_one(doubled, "pca_ranks")
    np.testing.assert_allclose(again.matrix, got.matrix, atol=1e-5)


def test_baselines_are_fitted_to_the_cells_that_pretraining_sees(cells):
    seen = np.arange(0, cells.n_obs, 2)
    changed = cells.copy()
    changed.X = changed.X.multiply(1 + 3 * (np.arange(cells.n_obs) % 2)[:, None]).tocsr()
    for name, embed in BASELINES.items():
        first, second = embed(cells.X, seen), embed(changed.X, seen)
        first, second = (x.toarray() if hasattr(x, "toarray") else x for x in (first, second))
        np.testing.assert_allclose(first[seen], second[seen], rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_scheme_is_the_model_of_its_name(cells, fit_one):
    got, design = fit_one(cells, "mae_high", seed=3)
    seen = design.pretraining(None)
    model = scr2mae.R2MAEModel(cells.copy(), n_hidden=8, n_latent=4, mask_ratio=0.5, seed=3)
    model.train(
        1,
        batch_size=64,
        accelerator="cpu",
        split_key=False,
        enable_progress_bar=False,
        datasplitter_kwargs={"external_indexing": [seen.train, seen.validation]},
    )
    np.testing.assert_allclose(got.matrix, model.get_latent_representation(), atol=1e-5)
    expected = model.get_masked_reconstruction(indices=seen.validation, ratios=(0.5,))
    assert got.reconstruction[0.5] == pytest.approx(expected["pearson"].iloc[0], abs=1e-4)


def test_scvi_reconstructs_from_zeroed_genes_with_the_masks_of_the_schemes(cells, monkeypatch, fit_one):
    kept = {}
    real = scvi.model.SCVI.train

    def train(self, *args, **kwargs):
        kept["model"] = self
        return real(self, *args, **kwargs)

    monkeypatch.setattr(scvi.model.SCVI, "train", train)
    got, design = fit_one(cells, "scvi")
    rows = design.pretraining(None).scored
    mask = draw_mask(cells.n_vars, 0.5, seed=0, step=0).numpy()
    masked = cells[rows].copy()
    masked.X = sp.csr_matrix(np.where(mask, 0, masked.X.toarray()))
    masked.obs["batch"] = "all"
    # The mean of the decoded share over many samples is close to the share decoded from the mean.
    share = kept["model"].get_normalized_expression(
        masked, n_samples=100, return_numpy=True, return_mean=True
    )
    expected = np.nanmean(masked_pearson(share, cells[rows].X, mask))
    assert got.reconstruction[0.5] == pytest.approx(expected, abs=0.05)


def test_scvi_depends_on_its_seed_only_and_leaves_the_global_generators_unchanged(cells, fit_one):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    level = logging.getLogger("scvi").level
    first, _ = fit_one(cells, "scvi", seed=1)
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert logging.getLogger("scvi").level == level
    second, _ = fit_one(cells, "scvi", seed=1)
    other, _ = fit_one(cells, "scvi", seed=2)
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert not np.array_equal(first.matrix, other.matrix)


def test_scvi_trains_where_one_cell_would_be_left_over(cells, fit_one):
    got, _ = fit_one(cells, "scvi", scvi_train_kwargs={"max_epochs": 1, "batch_size": 107})
    assert np.isfinite(got.matrix).all()


def test_ctrl_c_in_scvi_raises_keyboard_interrupt(cells, monkeypatch, fit_one):
    def interrupted(*_, **__):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(1)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(scvi.model.SCVI, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_one(cells, "scvi")
    assert signal.getsignal(signal.SIGINT) is before


def test_all_methods_are_the_default(cells):
    names = [method.name for method in make_methods(None, cells, Options())]
    assert names == [*BASELINES, *SCVI_CLASSES, *scr2mae.schemes()]
    assert set(method_names(integration=False)) == {*names, "scvi_joint"}
    assert (
        set(method_names(integration=True))
        == {*LABELS}
        == {*names, "scvi_joint", "r2mae_aligned", *INTEGRATORS}
    )


def test_joint_embedding_scvi_is_a_method_if_scvi_has_it(cells):
    has = hasattr(scvi.external, "JointEmbeddingSCVI")
    assert ("scvi_joint" in SCVI_CLASSES) == has
    if not has:
        with pytest.raises(ValueError, match=r"needs scvi-tools 1\.5 or newer"):
            make_methods(["scvi_joint"], cells, Options())


@pytest.mark.skipif("scvi_joint" not in SCVI_CLASSES, reason="JointEmbeddingSCVI came with scvi-tools 1.5")
def test_joint_embedding_scvi_embeds_all_cells_and_reconstructs(cells, fit_one):
    got, _ = fit_one(cells, "scvi_joint", ratios=(0.3,), scvi_train_kwargs={"max_epochs": 1})
    assert got.matrix.shape[0] == cells.n_obs
    assert np.isfinite(got.matrix).all()
    assert -1 <= got.reconstruction[0.3] <= 1
