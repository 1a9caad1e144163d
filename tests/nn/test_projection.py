"""Fixed linear path: formulas, panels, sparse rows, start values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from scr2mae.nn.layers import SparseRows
from scr2mae.nn.linear_mlp import LinearMLPModule
from scr2mae.nn.projection import LinearPath, measure_counts

N_OBS, N_VARS, N_COMPONENTS = 200, 40, 6


@pytest.fixture(scope="module")
def counts() -> torch.Tensor:
    """Counts with three groups of cells and depths from 20 to 400."""
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(N_VARS, 0.5), size=3)[rng.integers(3, size=N_OBS)]
    return torch.from_numpy(rng.poisson(profiles * rng.uniform(20, 400, (N_OBS, 1))).astype(np.float32))


@pytest.fixture(scope="module")
def library(counts: torch.Tensor) -> torch.Tensor:
    return counts.sum(dim=1, keepdim=True).clamp(min=1.0)


@pytest.fixture(scope="module")
def path(counts: torch.Tensor, library: torch.Tensor) -> LinearPath:
    fitted = LinearPath(N_VARS, N_COMPONENTS)
    fitted.fit(counts, library, measure_counts(counts, library)[0], seed=0)
    return fitted


def transformed(path: LinearPath, counts: np.ndarray, library: np.ndarray) -> list[np.ndarray]:
    """Log-normalized counts and clipped Pearson residuals, in double precision."""
    median = float(path.median_library)
    y, mean = counts / library * median, path.frequencies.double().numpy() * median
    return [np.log1p(y), np.clip((y - mean) / np.sqrt(mean + mean**2 / 100), -5, 5)]


def test_scores_are_those_on_principal_components_of_both_transforms(
    path: LinearPath, counts: torch.Tensor, library: torch.Tensor
) -> None:
    blocks = path(counts, library.log()).numpy().reshape(N_OBS, 2, N_COMPONENTS).transpose(1, 0, 2)
    assert float(path.median_library) == float(library.median())
    for block, weight, x in zip(
        blocks, (1.0, 0.5), transformed(path, counts.double().numpy(), library.double().numpy()), strict=True
    ):
        u, d, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        expected = (u * d)[:, :N_COMPONENTS]
        expected *= weight * 3.0 / np.sqrt((expected**2).sum(axis=1).mean())
        signs = np.sign((expected * block).sum(axis=0))
        # Three groups of cells make two components that a randomized decomposition finds to the digit.
        np.testing.assert_allclose(block[:, :2], (expected * signs)[:, :2], atol=5e-3 * weight)
        np.testing.assert_allclose(block, expected * signs, atol=0.15 * weight)


def test_sparse_rows_give_the_scores_of_dense_ones(
    path: LinearPath, counts: torch.Tensor, library: torch.Tensor
) -> None:
    matrix = sparse.csr_matrix(counts.numpy())
    rows = SparseRows(*(torch.from_numpy(each) for each in (matrix.indices, matrix.indptr[:-1], matrix.data)))
    for visible in (None, torch.arange(N_VARS) % 3 > 0):
        given = (library.log(), visible)
        torch.testing.assert_close(
            path.forward_sparse(rows, *given), path(counts, *given), rtol=1e-5, atol=1e-5
        )


def test_hidden_counts_are_not_read(path: LinearPath, counts: torch.Tensor, library: torch.Tensor) -> None:
    visible = torch.arange(N_VARS) % 2 == 0
    scores = path(counts, library.log(), visible)
    torch.testing.assert_close(path(counts + 7 * ~visible, library.log(), visible), scores)
    everything = torch.ones(N_VARS, dtype=torch.bool)
    torch.testing.assert_close(
        path(counts, library.log(), everything), path(counts, library.log()), rtol=1e-4, atol=1e-4
    )


def test_scores_of_visible_genes_are_their_conditional_mean(
    path: LinearPath, counts: torch.Tensor, library: torch.Tensor
) -> None:
    visible = np.arange(N_VARS) % 3 > 0
    blocks = path(counts, library.log(), torch.from_numpy(visible)).chunk(2, dim=1)
    for name, block, x in zip(
        ("logged", "residual"),
        blocks,
        transformed(path, counts.double().numpy(), library.double().numpy()),
        strict=True,
    ):
        axes = getattr(path, f"{name}_axes").double().numpy()
        scale = np.linalg.norm(axes, axis=0).max()
        axes = axes / scale
        centered = x - x.mean(axis=0)
        variances = ((centered @ axes) ** 2).mean(axis=0)
        noise = (centered.var(axis=0).sum() - variances.sum()) / N_VARS
        # Scores and genes are jointly normal: E[s | x_v] = cov(s, x_v) cov(x_v)^-1 x_v.
        seen = axes[visible]
        covariance = seen * variances @ seen.T + noise * np.eye(visible.sum())
        expected = centered[:, visible] @ np.linalg.solve(covariance, seen * variances)
        expected *= scale * (1 + noise / variances)  # as if all genes were visible, without shrinkage
        np.testing.assert_allclose(block, expected, atol=5e-3)


def test_scores_are_float32_under_autocast(
    path: LinearPath, counts: torch.Tensor, library: torch.Tensor
) -> None:
    for visible in (None, torch.arange(N_VARS) % 2 == 0):
        expected = path(counts, library.log(), visible)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(path(counts, library.log(), visible), expected, rtol=0, atol=0)


def test_the_fit_depends_on_the_seed_alone(
    path: LinearPath, counts: torch.Tensor, library: torch.Tensor
) -> None:
    torch.manual_seed(123)
    again = LinearPath(N_VARS, N_COMPONENTS)
    again.fit(counts, library, measure_counts(counts, library)[0], seed=0)
    torch.testing.assert_close(again.state_dict(), path.state_dict(), rtol=0, atol=0)
    assert path.is_fitted
    assert not LinearPath(N_VARS, N_COMPONENTS).is_fitted


def test_the_fit_does_not_depend_on_the_threads_of_numpy() -> None:
    counts = torch.from_numpy(np.random.default_rng(0).poisson(0.5, (1000, 1000)).astype(np.float32))
    frequencies, library = counts.sum(dim=0) / counts.sum(), counts.sum(dim=1, keepdim=True)
    axes = []
    for n_threads in (1, 2):
        path = LinearPath(1000, 50)
        with threadpool_limits(n_threads, user_api="blas"):
            path.fit(counts, library, frequencies, seed=0)
        axes.append(path.logged_axes)
    assert torch.equal(*axes)


@pytest.mark.parametrize("n_obs", [1, 2, 4])
def test_few_cells_leave_axes_empty_and_scores_finite(n_obs: int, counts: torch.Tensor) -> None:
    few, path = counts[:n_obs], LinearPath(N_VARS, N_COMPONENTS)
    library = few.sum(dim=1, keepdim=True)
    path.fit(few, library, measure_counts(few, library)[0], seed=0)
    assert (path.logged_axes != 0).any(dim=0).sum() == n_obs - 1
    assert path(counts, counts.sum(dim=1, keepdim=True).log()).isfinite().all()


def test_a_gene_that_no_cell_expresses_has_no_part_in_the_scores(
    counts: torch.Tensor, library: torch.Tensor
) -> None:
    silent = counts * (torch.arange(N_VARS) != 7)
    path = LinearPath(N_VARS, N_COMPONENTS)
    frequencies, theta = measure_counts(silent, library)
    path.fit(silent, library, frequencies, seed=0)
    assert not path.logged_axes[7].any()
    assert not path.residual_axes[7].any()
    assert frequencies[7] > 0
    assert theta.isfinite().all()


def test_dispersions_start_near_those_of_the_counts() -> None:
    rng = np.random.default_rng(1)
    theta = np.repeat([0.3, 1.0, 3.0], 20)
    mean = rng.uniform(2, 20, 60)
    counts = torch.from_numpy(
        rng.negative_binomial(theta, theta / (theta + mean), (4000, 60)).astype(np.float32)
    )
    library = torch.full((4000, 1), float(counts.sum(dim=1).median()))
    frequencies, found = measure_counts(counts, library)
    np.testing.assert_allclose(frequencies.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found, theta, rtol=0.25)


def test_a_rare_gene_with_high_counts_starts_with_a_wide_distribution() -> None:
    counts = torch.ones(500, 30)
    counts[3, 0], counts[:, 0] = 1000.0, 0.0
    counts[3, 0] = 1000.0
    _, theta = measure_counts(counts, counts.sum(dim=1, keepdim=True))
    assert theta[0] < 0.01
    assert (theta[1:] > 1).all()


@pytest.fixture
def started(counts: torch.Tensor, library: torch.Tensor) -> Callable[..., LinearMLPModule]:
    def build(**kwargs: int) -> LinearMLPModule:
        torch.manual_seed(0)
        module = LinearMLPModule(N_VARS, n_hidden=16, n_latent=16, n_layers_decoder=0, **kwargs)
        assert module.needs_start
        module.start_from(counts, library.log(), seed=0)
        return module.eval()

    return build


def test_the_network_starts_from_measured_frequencies_and_dispersions(
    started: Callable[..., LinearMLPModule], counts: torch.Tensor, library: torch.Tensor
) -> None:
    module = started()
    assert not module.needs_start
    frequencies, theta = measure_counts(counts, library)
    torch.testing.assert_close(module.to_logits.bias.softmax(0), frequencies)
    torch.testing.assert_close(module.log_theta.exp(), theta)
    slow, fast = module.parameter_groups(1e-4)
    assert {id(p) for p in fast["params"]} == {id(module.to_logits.bias), id(module.log_theta)}
    assert (fast["lr_scale"], fast["weight_decay"]) == (10.0, 0.0)
    assert len(slow["params"]) + 2 == len(list(module.parameters()))


def test_the_latent_vector_has_the_leading_scores_of_both_blocks(
    started: Callable[..., LinearMLPModule], counts: torch.Tensor, library: torch.Tensor
) -> None:
    module = started()
    scores = module.linear(counts, library.log())
    with torch.inference_mode():
        z = module.inference(counts)["z"]
        embedding = module.embedding(z)
    assert z.shape == (N_OBS, 16)
    torch.testing.assert_close(z[:, 6:11], scores[:, :5])
    torch.testing.assert_close(z[:, 11:], scores[:, 40:45])
    torch.testing.assert_close(embedding.norm(dim=1), torch.full((N_OBS,), 4.0))
    torch.testing.assert_close(embedding * z.norm(dim=1, keepdim=True) / 4, z)
