"""Panels in a mini-batch: masks, sums, scores and start values."""

import numpy as np
import pytest
import torch

from scr2mae.masking import draw_mask
from scr2mae.nn.curriculum import CurriculumWeights
from scr2mae.nn.panel_start import panel_components, panel_frequencies, panel_theta
from scr2mae.nn.panels import MEASURED_KEY, PANEL_KEYS, CellPanels, measured_genes
from scr2mae.nn.projection import LinearPath, _components, measure_counts

N_OBS, N_VARS = 60, 40


def panels_of(measured: torch.Tensor, of_cell: torch.Tensor) -> CellPanels:
    classes, gene_class = torch.unique(measured, dim=1, return_inverse=True)
    return CellPanels(of_cell, classes, gene_class)


@pytest.fixture
def measured() -> torch.Tensor:
    table = torch.ones(3, N_VARS, dtype=torch.bool)
    table[0, :12] = False
    table[1, 30:] = False
    return table


@pytest.fixture
def panels(measured: torch.Tensor) -> CellPanels:
    return panels_of(measured, torch.arange(N_OBS) % 3)


@pytest.fixture
def counts(panels: CellPanels) -> torch.Tensor:
    rng = np.random.default_rng(0)
    depth = rng.gamma(5.0, 20.0, (N_OBS, 1))
    profile = rng.gamma(1.0, 1.0, (1, N_VARS)) * rng.gamma(3.0, 1.0, (N_OBS, N_VARS))
    x = rng.poisson(depth * profile / profile.sum(axis=1, keepdims=True))
    return torch.from_numpy(x).float() * panels.measured()


def test_measured_genes_of_each_cell_are_those_of_its_panel(panels, measured):
    tensors = dict(zip(PANEL_KEYS, panels, strict=True))
    assert torch.equal(measured_genes(tensors), measured[panels.of_cell])
    genes = torch.tensor([3, 35, 20])
    assert torch.equal(panels.measured(genes), measured[panels.of_cell][:, genes])
    assert torch.equal(measured_genes({MEASURED_KEY: measured[0]}), measured[0])
    assert measured_genes({}) is None


def test_sums_and_products_are_those_over_the_genes_of_each_panel(panels, measured):
    axes = torch.randn(N_VARS, 5, generator=torch.Generator().manual_seed(0))
    for p, genes in enumerate(measured):
        torch.testing.assert_close(panels.sums(axes)[p], axes[genes].sum(dim=0))
        torch.testing.assert_close(panels.products(axes, 3)[p], axes[genes, :3].T @ axes[genes])
        some = torch.arange(N_VARS).flip(0)[::2]
        seen = axes[some][genes[some]]
        torch.testing.assert_close(panels.products(axes[some], 5, some)[p], seen.T @ seen)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.33, 0.5, 0.99])
def test_mask_of_one_class_is_the_usual_one(ratio):
    full = panels_of(torch.ones(1, N_VARS, dtype=torch.bool), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(full.draw_mask(ratio, seed=3, step=5), draw_mask(N_VARS, ratio, seed=3, step=5))


@pytest.mark.parametrize("step", range(20))
def test_mask_takes_its_share_of_every_panel_up_to_one_gene_per_class(panels, measured, step):
    mask = panels.draw_mask(0.4, seed=0, step=step)
    for genes in measured:
        n_classes = len(panels.gene_class[genes].unique())
        assert abs(int((mask & genes).sum()) - 0.4 * int(genes.sum())) <= n_classes
    assert int(mask.sum()) == round(0.4 * N_VARS)


def test_genes_that_no_panel_has_are_never_masked():
    table = torch.ones(2, N_VARS, dtype=torch.bool)
    table[:, :10] = False
    table[0, 10:15] = False
    drawn = [
        panels_of(table, torch.zeros(1, dtype=torch.int64)).draw_mask(0.5, seed=0, step=s) for s in range(60)
    ]
    assert not torch.stack(drawn)[:, :10].any()
    assert torch.stack(drawn)[:, 10:].any(dim=0).all()


def test_every_gene_is_masked_equally_often_whatever_the_size_of_its_class():
    table = torch.ones(3, N_VARS, dtype=torch.bool)
    table[0, 0] = table[1, 1:3] = table[2, 3:15] = False
    panels = panels_of(table, torch.zeros(1, dtype=torch.int64))
    times = sum(panels.draw_mask(0.3, seed=0, step=step).double() for step in range(3000)) / 3000
    assert (times - 0.3).abs().max() < 0.042  # five standard errors


def test_a_cell_counts_as_one_whatever_its_panel(panels):
    values = torch.rand(N_OBS, N_VARS)
    of_cells, mean = panels.means(values)
    kept = panels.measured()
    expected = torch.stack([row[genes].mean() for row, genes in zip(values, kept, strict=True)])
    torch.testing.assert_close(of_cells, expected)
    torch.testing.assert_close(mean, expected.mean())


def test_a_cell_without_a_scored_gene_does_not_count(panels, measured):
    genes = torch.arange(5)  # none of panel 0
    values = torch.rand(N_OBS, 5)
    _, mean = panels.means(values, genes)
    torch.testing.assert_close(mean, values[panels.of_cell != 0].mean())
    mask = torch.zeros(N_VARS, dtype=torch.bool)
    mask[:5] = True
    everything = torch.zeros(N_OBS, N_VARS)
    everything[:, :5] = values
    torch.testing.assert_close(panels.means(everything, None, mask)[1], mean)


@pytest.mark.parametrize("is_masked", [False, True])
def test_scores_are_those_of_each_panel_alone(panels, measured, counts, is_masked):
    path = LinearPath(N_VARS, 8)
    library = counts.sum(dim=1, keepdim=True).clamp(min=1)
    path.fit(counts, library, measure_counts(counts, library)[0], seed=0)
    visible = ~panels.draw_mask(0.3, seed=0, step=0) if is_masked else None
    mixed = path(counts, library.log(), visible, panels)
    for p, genes in enumerate(measured):
        rows = panels.of_cell == p
        seen = genes if visible is None else genes & visible
        alone = path(counts[rows], library[rows].log(), seen)
        torch.testing.assert_close(mixed[rows], alone, rtol=1e-4, atol=1e-4)


def test_products_over_a_small_panel_are_those_over_its_genes():
    table = torch.ones(2, N_VARS, dtype=torch.bool)
    table[0, 6:] = False
    panels = panels_of(table, torch.arange(4) % 2)
    columns = torch.randn(2, N_VARS, 5, generator=torch.Generator().manual_seed(0))
    expected = [columns[:, genes, :4].mT @ columns[:, genes] for genes in table]
    torch.testing.assert_close(panels.products(columns, 4), torch.stack(expected))


def test_scores_follow_components_and_panels_that_change(panels, measured, counts):
    library = counts.sum(dim=1, keepdim=True).clamp(min=1)
    frequencies = measure_counts(counts, library)[0]
    path, fresh = LinearPath(N_VARS, 8), LinearPath(N_VARS, 8)
    path.fit(counts, library, frequencies, seed=0)
    before = path(counts, library.log(), None, panels)
    path.logged_axes.mul_(2.0)
    fresh.load_state_dict(path.state_dict())
    after = path(counts, library.log(), None, panels)
    assert torch.equal(after, fresh(counts, library.log(), None, panels))
    assert not torch.allclose(after, before)
    others = panels_of(measured.flip(1), panels.of_cell)
    expected = LinearPath(N_VARS, 8)
    expected.load_state_dict(path.state_dict())
    found = path(counts, library.log(), None, others)
    assert torch.equal(found, expected(counts, library.log(), None, others))
    assert not torch.allclose(found, after)


def test_frequencies_of_full_panels_are_shares_of_the_counts(counts):
    full = panels_of(torch.ones(1, N_VARS, dtype=torch.bool), torch.zeros(N_OBS, dtype=torch.int64))
    library = counts.sum(dim=1, keepdim=True).clamp(min=1)
    frequencies = panel_frequencies(counts, library.log(), full, is_total=True)
    expected, theta = measure_counts(counts, library)
    torch.testing.assert_close(frequencies, expected)
    torch.testing.assert_close(panel_theta(counts, library, frequencies, full), theta)


def test_frequencies_do_not_take_unmeasured_genes_for_rare():
    rng = np.random.default_rng(1)
    true = rng.dirichlet(np.full(N_VARS, 2.0))
    table = torch.ones(2, N_VARS, dtype=torch.bool)
    table[0, :15] = False
    panels = panels_of(table, torch.arange(400) % 2)
    x = torch.from_numpy(rng.poisson(500 * true, (400, N_VARS))).float() * panels.measured()
    found = panel_frequencies(x, x.sum(dim=1, keepdim=True).log(), panels, is_total=True)
    np.testing.assert_allclose(found.numpy(), true, rtol=0.15)


def test_components_of_unequal_panels_are_near_those_of_the_whole():
    rng = np.random.default_rng(2)
    z, axes = (
        rng.standard_normal((600, 3)) * [6.0, 4.0, 3.0],
        np.linalg.qr(rng.standard_normal((N_VARS, 3)))[0],
    )
    x = torch.from_numpy(z @ axes.T + 0.3 * rng.standard_normal((600, N_VARS))).float()
    table = torch.ones(3, N_VARS, dtype=torch.bool)
    table[1, :20] = False
    table[2, 25:] = False
    panels = panels_of(table, torch.arange(600) % 3)
    holes = torch.where(panels.measured(), x, 0.0)

    def fit(features):
        return _components(features, 3, seed=0)

    center, found, variances, noise = panel_components(holes, panels, fit)
    naive = fit(holes - holes.mean(dim=0))
    overlap = [float((torch.from_numpy(axes).float().T @ w).square().sum()) for w in (found, naive)]
    assert overlap[0] > 2.99 > overlap[1]
    assert variances[0] > variances[1] > variances[2]
    assert float(noise) == pytest.approx(0.09, rel=0.15)
    assert center.abs().max() < 1.0


def test_exposure_is_what_each_gene_has_in_the_loss(panels, measured):
    expected = (measured[panels.of_cell] / measured[panels.of_cell].sum(dim=1, keepdim=True)).mean(dim=0)
    torch.testing.assert_close(panels.exposure(), expected)


def test_curriculum_is_balanced_over_what_is_scored(panels):
    network = CurriculumWeights(N_VARS, 4, n_features=N_VARS)
    exposure = panels.exposure()
    weights = network(torch.rand(N_OBS, N_VARS), valid=exposure)
    torch.testing.assert_close((exposure.unsqueeze(1) * weights).sum(dim=0), torch.ones(4))
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(N_VARS), atol=1e-3, rtol=1e-3)
