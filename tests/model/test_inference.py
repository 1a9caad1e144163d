"""Embedding, imputation, reconstruction errors, on whole cells and on gene panels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import stats

from scr2mae import R2MAEModel
from scr2mae.masking import draw_mask
from scr2mae.model.inference import masked_scores
from scr2mae.model.streaming import gathered
from scr2mae.nn.linear_mlp import LinearMLPModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)

TINY = {"n_hidden": 16, "n_latent": 4}


def weights(model: R2MAEModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def assert_equal_weights(first: R2MAEModel, second: R2MAEModel) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


def latent(model: R2MAEModel, adata: AnnData, **inputs: Any) -> torch.Tensor:
    """Latent vectors of an AnnData without covariates; ``inputs`` are those of the linear path."""
    module, counts = model.module, torch.from_numpy(adata.X.toarray())
    with torch.inference_mode():
        if not isinstance(module, LinearMLPModule):
            return module.to_latent(module.encoder(counts.log1p()))
        return module.inference(counts, **inputs)["z"]


def decoded(model: R2MAEModel, adata: AnnData, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the library and dispersions that the network says, float64, for an AnnData without covariates."""
    module = model.module
    with torch.inference_mode():
        logits = module.to_logits(module.decoder(latent(model, adata, **inputs))).double()
        return logits.softmax(dim=1).numpy(), module.log_theta.double().exp().numpy()


@pytest.mark.parametrize(
    "method",
    [
        "get_latent_representation",
        "get_normalized_expression",
        "get_reconstruction_error",
        "get_masked_reconstruction",
    ],
)
def test_an_untrained_model_says_so(method: str, adata: AnnData) -> None:
    with pytest.raises(RuntimeError, match=r"not trained yet; call model\.train\(\) first"):
        getattr(R2MAEModel(adata, **TINY), method)()


def test_the_embedding_is_the_encoder_s_output_for_whole_cells(trained: R2MAEModel) -> None:
    module, adata = trained.module, trained.adata
    expected = latent(trained, adata)
    if isinstance(module, LinearMLPModule):  # directions, of length sqrt(n_latent)
        expected = 2 * expected / expected.norm(dim=1, keepdim=True)
    embedded = trained.get_latent_representation()
    assert embedded.dtype == np.float32
    assert embedded.shape == (120, 4)
    np.testing.assert_allclose(embedded, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_nothing_is_masked_even_if_the_module_was_left_in_training_mode(
    trained: R2MAEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained.get_latent_representation()
    before = weights(trained)

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a mask was drawn")

    monkeypatch.setattr("scr2mae.nn.module.draw_mask", forbidden)
    monkeypatch.setattr("scr2mae.model.inference.draw_mask", forbidden)
    trained.module.train()
    np.testing.assert_array_equal(trained.get_latent_representation(), expected)
    torch.testing.assert_close(weights(trained), before, rtol=0, atol=0)
    assert not trained.module.training


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_an_embedding_does_not_depend_on_the_batch_that_its_cell_came_in(
    batch_size: int, reference: R2MAEModel
) -> None:
    whole = reference.get_latent_representation()
    np.testing.assert_allclose(reference.get_latent_representation(batch_size=batch_size), whole, atol=1e-5)
    shuffled = np.random.default_rng(0).permutation(120)
    embedded = reference.get_latent_representation(indices=shuffled, batch_size=batch_size)
    np.testing.assert_allclose(embedded, whole[shuffled], atol=1e-5)


def test_indices_are_positions_from_either_end_or_a_boolean_mask(trained: R2MAEModel) -> None:
    whole = trained.get_latent_representation()
    mask = np.arange(120) % 3 == 0
    for indices, expected in (([4, -1, 4], whole[[4, 119, 4]]), (mask, whole[mask]), ([], whole[:0])):
        np.testing.assert_allclose(trained.get_latent_representation(indices=indices), expected, atol=1e-6)


@pytest.mark.parametrize("columns", ["unseen", "absent"])
def test_donors_and_labels_are_no_inputs_unseen_or_absent(
    columns: str, adata: AnnData, reference: R2MAEModel, unchanged: Any
) -> None:
    expected = reference.get_latent_representation()
    if columns == "absent":
        adata.obs = adata.obs.drop(columns=["donor", "cell_type"])
    else:
        adata.obs[["donor", "cell_type"]] = "never seen"
    with unchanged(adata):
        np.testing.assert_array_equal(reference.get_latent_representation(adata), expected)


def test_normalized_expression_is_the_softmax_and_adds_up_to_the_library_asked_for(
    trained: R2MAEModel,
) -> None:
    rho, _ = decoded(trained, trained.adata)
    frame = trained.get_normalized_expression(library_size=1e4)
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.equals(trained.adata.obs_names)
    assert frame.columns.equals(trained.adata.var_names)
    np.testing.assert_allclose(frame, 1e4 * rho, rtol=1e-4)
    np.testing.assert_allclose(frame.sum(axis=1), 1e4, rtol=1e-5)
    np.testing.assert_allclose(trained.get_normalized_expression().sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("library_size", ["observed", "latent"])
def test_expression_at_observed_depth_adds_up_to_each_cell_s_counts(
    library_size: str, trained: R2MAEModel
) -> None:
    values = trained.get_normalized_expression(library_size=library_size, return_numpy=True)
    assert isinstance(values, np.ndarray)
    np.testing.assert_allclose(values.sum(axis=1), np.ravel(trained.adata.X.sum(axis=1)), rtol=1e-5)


def test_on_a_panel_measured_genes_add_up_to_the_library_and_imputed_ones_come_on_top(
    trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, 20:].copy()
    frame = trained.get_normalized_expression(panel, library_size="observed")
    assert frame.columns.equals(adata.var_names)
    np.testing.assert_allclose(frame.iloc[:, 20:].sum(axis=1), np.ravel(panel.X.sum(axis=1)), rtol=1e-5)
    assert (frame.iloc[:, :20] > 0).all(axis=None)
    np.testing.assert_allclose(trained.get_normalized_expression(panel).sum(axis=1), 1.0, rtol=1e-5)


def test_a_gene_list_chooses_columns_in_its_order(trained: R2MAEModel) -> None:
    whole = trained.get_normalized_expression()
    part = trained.get_normalized_expression(gene_list=["gene7", "gene3"], indices=[5, 2])
    pd.testing.assert_frame_equal(part, whole.iloc[[5, 2], [7, 3]], rtol=1e-4)


def test_transform_batch_decodes_as_that_batch_and_averages_over_several(reference: R2MAEModel) -> None:
    own = reference.get_normalized_expression(return_numpy=True)
    by_batch = [
        reference.get_normalized_expression(transform_batch=b, return_numpy=True) for b in ("b0", "b1")
    ]
    codes = reference.adata.obs["batch"].cat.codes.to_numpy()
    np.testing.assert_allclose(np.where(codes[:, None] == 0, *by_batch), own, rtol=1e-5)
    assert np.abs(by_batch[0] - by_batch[1]).max() > 1e-5
    both = reference.get_normalized_expression(transform_batch=["b0", "b1"], return_numpy=True)
    np.testing.assert_allclose(both, np.mean(by_batch, axis=0), rtol=1e-5)


@pytest.mark.parametrize("n_measured", [60, 40], ids=["whole", "panel"])
def test_the_reconstruction_error_is_the_negative_binomial_s(
    n_measured: int, trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, :n_measured].copy()
    zeroed = adata.copy()
    zeroed.X = adata.X.multiply(np.arange(60) < n_measured).tocsr()
    measured = None if n_measured == 60 else torch.arange(60) < n_measured
    rho, theta = (values[..., :n_measured] for values in decoded(trained, zeroed, measured=measured))
    counts = panel.X.toarray()
    mean = rho / rho.sum(axis=1, keepdims=True) * counts.sum(axis=1, keepdims=True)
    expected = -stats.nbinom.logpmf(counts, theta, theta / (theta + mean)).sum(axis=1)
    found = trained.get_reconstruction_error(panel)
    assert set(found) == {"reconstruction_loss"}
    assert found["reconstruction_loss"] == pytest.approx(expected.mean(), rel=1e-5)


def test_masked_reconstruction_scores_exactly_the_masked_genes(trained: R2MAEModel, adata: AnnData) -> None:
    ratios, indices = (0.2, 0.5), np.arange(0, 120, 2)
    table = trained.get_masked_reconstruction(indices=indices, ratios=ratios, seed=7)
    assert table.index.tolist() == list(ratios)
    assert table.index.name == "ratio"
    counts = adata.X.toarray()[indices]
    library = counts.sum(axis=1, keepdims=True)
    for ratio in ratios:
        masked = draw_mask(60, ratio, seed=7, step=0).numpy()
        seen = adata[indices].copy()
        seen.X = seen.X.multiply(~masked).tocsr()
        log_library = torch.from_numpy(library).log()
        rho, theta = decoded(trained, seen, log_library=log_library, mask=torch.from_numpy(masked))
        mean = library * rho
        nll = -stats.nbinom.logpmf(counts, theta, theta / (theta + mean))[:, masked]
        pearson = [
            np.corrcoef(np.log1p(1e4 * p[masked]), np.log1p(1e4 * x[masked] / n))[0, 1]
            for p, x, n in zip(rho, counts, library, strict=True)
            if np.ptp(x[masked]) > 0
        ]
        assert table.loc[ratio, "nll"] == pytest.approx(nll.mean(), rel=1e-5)
        assert table.loc[ratio, "pearson"] == pytest.approx(np.mean(pearson), rel=1e-4)


def test_masked_reconstruction_depends_on_its_seed_and_nothing_else(trained: R2MAEModel) -> None:
    first, again, other = (trained.get_masked_reconstruction(ratios=[0.3], seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert first.loc[0.3, "nll"] != other.loc[0.3, "nll"]


def test_masked_reconstruction_masks_only_measured_genes_of_a_panel(
    trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, :40].copy()
    cells = trained._cells(panel)
    _, nll = masked_scores(trained.module, cells, ratio=0.5, seed=3)
    masked = np.zeros(60, dtype=bool)
    masked[:40] = draw_mask(40, 0.5, seed=3, step=0).numpy()
    seen = adata.copy()
    seen.X = adata.X.multiply((np.arange(60) < 40) & ~masked).tocsr()
    counts = adata.X.toarray()
    library = counts[:, :40].sum(axis=1, keepdims=True)
    inputs = {"mask": torch.from_numpy(masked), "measured": torch.arange(60) < 40}
    rho, theta = decoded(trained, seen, log_library=torch.from_numpy(library).log(), **inputs)
    mean = library * rho / rho[:, :40].sum(axis=1, keepdims=True)
    expected = -stats.nbinom.logpmf(counts, theta, theta / (theta + mean))[:, masked].mean(axis=1)
    np.testing.assert_allclose(nll, expected, rtol=1e-4)


def test_a_size_factor_replaces_the_total_count(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    adata.obs["size"] = np.linspace(50, 150, 120)
    model = train_tiny(adata, setup={"size_factor_key": "size"})
    values = model.get_normalized_expression(library_size="observed", return_numpy=True)
    np.testing.assert_allclose(values.sum(axis=1), adata.obs["size"], rtol=1e-5)


def test_a_model_without_data_embeds_what_it_is_given_and_says_so_without(
    trained: R2MAEModel, tmp_path: Any, adata: AnnData
) -> None:
    trained.save(tmp_path / "model")
    model = R2MAEModel.load(tmp_path / "model")
    expected = trained.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    for use in (model.get_latent_representation, model.train):
        with pytest.raises(ValueError, match="loaded without data"):
            use()


def test_mini_batches_are_joined_until_they_are_large() -> None:
    batches = [(slice(i, i + 2), torch.full((2, 1), i)) for i in (0, 2, 4, 6, 8)]
    joined = list(gathered(batches, 4))
    assert [rows for rows, _ in joined] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    torch.testing.assert_close(torch.cat([z for _, z in joined]), torch.cat([z for _, z in batches]))
