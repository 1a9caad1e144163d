"""Figures show the data and change nothing else."""

import io
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import colors
from matplotlib.figure import Figure

from scr2mae import pl
from scr2mae.pl import embeddings as _embedding


@pytest.fixture
def ax():
    return Figure().add_subplot()


@pytest.fixture
def history():
    epochs = pd.Index(range(12), name="epoch")
    names = ["train_loss", "validation_loss", "validation_loss_0.5", "validation_loss_0.1"]
    return {
        name: pd.DataFrame({name: np.linspace(2, 1, 12) + i}, index=epochs) for i, name in enumerate(names)
    }


@pytest.fixture
def cells():
    """Three distant groups of 20 cells in eight dimensions."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 20)
    obs = pd.DataFrame(
        {"group": pd.Categorical(groups), "depth": np.arange(60.0)}, index=[f"c{i}" for i in range(60)]
    )
    centers = 20 * np.eye(3, 8)
    values = centers[np.repeat([0, 1, 2], 20)] + rng.normal(size=(60, 8))
    return AnnData(np.zeros((60, 1), np.float32), obs=obs, obsm={"X_r2mae": values.astype(np.float32)})


@pytest.fixture
def layouts(monkeypatch):
    """Replace UMAP by the first two columns and return the recorded calls."""
    calls = []

    def first_two(values, **settings):
        calls.append(settings)
        return values[:, :2]

    monkeypatch.setattr(_embedding, "_umap", first_two)
    return calls


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curves_are_those_of_the_history(history, ax):
    lines = pl.training_curves(history, ax=ax).get_lines()
    drawn = {line.get_label(): line for line in lines}
    assert list(drawn) == ["Training", "Validation, mean", "Validation, 10% masked", "Validation, 50% masked"]
    for label, name in zip(
        drawn, [*list(history)[:2], "validation_loss_0.1", "validation_loss_0.5"], strict=True
    ):
        np.testing.assert_array_equal(drawn[label].get_xdata(), range(12))
        np.testing.assert_array_equal(drawn[label].get_ydata(), history[name][name])
    assert labels(ax) == list(drawn)


def test_training_curves_take_a_model(trained, ax):
    lines = pl.training_curves(trained, ax=ax).get_lines()
    np.testing.assert_array_equal(lines[0].get_ydata(), trained.history["train_loss"]["train_loss"])
    assert len(lines) == sum(not name.endswith("_step") for name in trained.history)


def test_a_run_without_validation_has_one_curve(history, ax):
    pl.training_curves({"train_loss": history["train_loss"]}, ax=ax)
    assert labels(ax) == ["Training"]


def test_a_single_epoch_can_be_seen(history, ax):
    pl.training_curves({name: frame[:1] for name, frame in history.items()}, ax=ax)
    assert all(line.get_marker() == "o" for line in ax.get_lines())


@pytest.mark.parametrize("empty", [{}, {"loss": pd.DataFrame()}])
def test_a_model_that_was_not_trained_has_no_curves(empty, ax):
    with pytest.raises(ValueError, match=r"'train_loss'.*call model\.train\(\) first"):
        pl.training_curves(empty, ax=ax)


def test_reconstruction_draws_frames_by_name_against_percent(ax):
    frames = {
        name: pd.DataFrame({"pearson": values}, index=pd.Index([0.5, 0.1], name="ratio"))
        for name, values in {"R²MAE": [0.4, 0.6], "MAE": [0.3, 0.5]}.items()
    }
    lines = pl.reconstruction(frames, ax=ax).get_lines()
    assert labels(ax) == ["R²MAE", "MAE"]
    np.testing.assert_allclose(lines[0].get_xydata(), [[10, 0.6], [50, 0.4]])
    np.testing.assert_allclose(lines[1].get_xydata(), [[10, 0.5], [50, 0.3]])


def test_reconstruction_scores_a_model_on_its_validation_cells(trained, ax):
    (line,) = pl.reconstruction(trained, ax=ax).get_lines()
    expected = trained.get_masked_reconstruction(indices=trained.validation_indices)["pearson"]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert ax.get_legend() is None


def test_reconstruction_needs_a_frame_with_pearson(ax):
    with pytest.raises(ValueError, match=r"'pearson', got \['nll'\]"):
        pl.reconstruction(pd.DataFrame({"nll": [1.0]}), ax=ax)
    with pytest.raises(ValueError, match="at least one model or frame"):
        pl.reconstruction({}, ax=ax)


def test_umap_separates_distant_groups_and_is_reproducible(cells, ax):
    again = cells.copy()
    pl.embedding(cells, color="group", ax=ax)
    points, group = cells.obsm["X_r2mae_umap"], cells.obs["group"].to_numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).all()
    pl.embedding(again, ax=Figure().add_subplot())
    np.testing.assert_array_equal(again.obsm["X_r2mae_umap"], points)


def test_embedding_writes_only_its_own_keys(cells, layouts, ax):
    cells.obsm["X_umap"] = np.ones((60, 2))
    cells.uns["neighbors"] = {"mine": 1}
    pl.embedding(cells, ax=ax)
    assert set(cells.obsm) == {"X_r2mae", "X_umap", "X_r2mae_umap"}
    assert (cells.obsm["X_umap"] == 1).all()
    assert set(cells.uns) == {"neighbors", "scr2mae"}
    assert not cells.obsp
    assert list(cells.obs) == ["group", "depth"]


def test_a_stored_umap_is_reused_until_the_embedding_or_a_setting_changes(cells, layouts, ax):
    for _ in range(2):
        pl.embedding(cells, ax=ax)
    assert len(layouts) == 1
    pl.embedding(cells, seed=1, ax=ax)
    assert layouts[1]["seed"] == 1
    cells.obsm["X_r2mae"] = cells.obsm["X_r2mae"] + 1
    pl.embedding(cells, seed=1, ax=ax)
    assert len(layouts) == 3
    np.testing.assert_array_equal(cells.obsm["X_r2mae_umap"], cells.obsm["X_r2mae"][:, :2])


def test_a_stored_umap_survives_a_file(cells, layouts, ax, tmp_path):
    import anndata

    pl.embedding(cells, ax=ax)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    pl.embedding(anndata.read_h5ad(tmp_path / "cells.h5ad"), ax=ax)
    assert len(layouts) == 1


def test_a_view_is_drawn_and_stays_a_view(cells, layouts, ax):
    view = cells[:30]
    pl.embedding(view, color="group", ax=ax)
    assert view.is_view
    assert set(cells.obsm) == {"X_r2mae"}


def test_a_basis_of_two_columns_is_drawn_without_umap(cells, layouts, ax):
    cells.obsm["X_pair"] = cells.obsm["X_r2mae"][:, :2]
    pl.embedding(cells, "X_pair", ax=ax)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), cells.obsm["X_pair"])
    assert ax.get_xlabel() == "X_pair 1"
    assert not layouts


def test_each_category_is_drawn_at_its_cells_in_the_order_of_the_categories(cells, layouts, ax):
    cells.obs["group"] = cells.obs["group"].cat.reorder_categories(["c", "a", "b"])
    pl.embedding(cells, color="group", ax=ax)
    assert labels(ax) == ["c", "a", "b"]
    for dots in ax.collections:
        np.testing.assert_allclose(
            dots.get_offsets(), cells.obsm["X_r2mae"][cells.obs["group"] == dots.get_label(), :2]
        )


def test_cells_without_a_category_are_gray_and_labeled_missing(cells, layouts, ax):
    cells.obs["group"] = cells.obs["group"].cat.remove_categories(["b"])
    pl.embedding(cells, color="group", ax=ax)
    assert labels(ax) == ["a", "c", "missing"]
    missing = next(dots for dots in ax.collections if dots.get_label() == "missing")
    assert len(missing.get_offsets()) == 20
    assert len(set(missing.get_facecolor()[0, :3])) == 1


@pytest.mark.parametrize("n_categories", [8, 48])
def test_categories_differ_in_color_or_marker(cells, layouts, ax, n_categories, caplog):
    cells.obs["many"] = [f"k{i % n_categories:02}" for i in range(60)]
    pl.embedding(cells, color="many", ax=ax)
    looks = {
        (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in ax.collections
    }
    assert len(looks) == n_categories
    assert {colors.to_hex(color).upper() for color, _ in looks} == set(pl.OKABE_ITO)
    assert not caplog.records


def test_too_many_categories_to_tell_apart_are_logged(cells, layouts, ax, caplog):
    cells.obs["many"] = [f"k{i}" for i in range(60)]
    with caplog.at_level(logging.WARNING):
        pl.embedding(cells, color="many", ax=ax)
    assert "'many' has 60 categories" in caplog.text


def test_numbers_get_a_color_bar_and_missing_ones_are_gray(cells, layouts, ax):
    cells.obs.loc["c7", "depth"] = np.nan
    pl.embedding(cells, color="depth", ax=ax)
    missing, known = ax.collections
    assert len(missing.get_offsets()) == 1
    np.testing.assert_array_equal(known.get_array(), np.delete(np.arange(60.0), 7))
    assert [each.get_ylabel() for each in ax.figure.axes[1:]] == ["depth"]


def test_booleans_are_categories(cells, layouts, ax):
    cells.obs["old"] = cells.obs["depth"] > 30
    pl.embedding(cells, color="old", ax=ax)
    assert labels(ax) == ["False", "True"]


def test_a_list_of_columns_gives_a_panel_each_at_the_positions_of_one_umap(cells, layouts):
    axes = pl.embedding(cells, color=["group", "depth", None, "group"])
    assert len(axes) == 4
    assert len({axis.figure for axis in axes}) == len(layouts) == 1
    assert labels(axes[0]) == labels(axes[3]) == ["a", "b", "c"]
    np.testing.assert_array_equal(axes[1].collections[0].get_array(), np.arange(60.0))
    np.testing.assert_allclose(axes[2].collections[0].get_offsets(), cells.obsm["X_r2mae"][:, :2])
    assert [axis.get_subplotspec().get_gridspec().get_geometry() for axis in axes] == [(2, 3)] * 4
    assert isinstance(pl.embedding(cells, color=["group"]), list)
    plt.close("all")


def test_a_list_of_columns_is_not_drawn_on_one_axes(cells, layouts, ax):
    with pytest.raises(ValueError, match="ax takes one panel, but color has 2; leave out ax"):
        pl.embedding(cells, color=["group", "depth"], ax=ax)
    with pytest.raises(KeyError, match=r"No 'donor' in adata\.obs"):
        pl.embedding(cells, color=["group", "donor"])


@pytest.mark.parametrize("color", [None, "group", "depth"])
def test_many_cells_are_drawn_as_pictures_in_a_pdf(color):
    rng, n_obs = np.random.default_rng(0), 50_000
    obs = pd.DataFrame(
        {"group": pd.Categorical(rng.choice(["a", "b", "c"], n_obs)), "depth": rng.random(n_obs)}
    )
    points = rng.normal(size=(n_obs, 2)).astype(np.float32)
    cells = AnnData(None, obs=obs.set_index(obs.index.astype(str)), obsm={"X_umap": points})
    ax = pl.embedding(cells, "X_umap", color=color, ax=Figure().add_subplot())
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == n_obs
    file = io.BytesIO()
    ax.figure.savefig(file, format="pdf")
    assert len(file.getvalue()) < 300_000  # 770,000 or more if each cell is a shape


def test_an_error_about_an_unknown_basis_or_column_lists_the_known_ones(cells, ax):
    with pytest.raises(KeyError, match=r"No 'X_pca' in adata\.obsm; choose one of \['X_r2mae'\]"):
        pl.embedding(cells, "X_pca", ax=ax)
    with pytest.raises(KeyError, match=r"No 'donor' in adata\.obs; choose one of \['group', 'depth'\]"):
        pl.embedding(cells, color="donor", ax=ax)


def test_an_embedding_without_a_umap_is_refused(cells, ax):
    with pytest.raises(ValueError, match="at least four cells, got 3"):
        pl.embedding(cells[:3].copy(), ax=ax)
    with pytest.raises(ValueError, match="n_neighbors must be at least 2, got 1"):
        pl.embedding(cells, n_neighbors=1, ax=ax)
    cells.obsm["X_r2mae"][5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        pl.embedding(cells, ax=ax)
    assert set(cells.obsm) == {"X_r2mae"}


def test_given_axes_are_returned_and_pyplot_is_not_used(cells, layouts, history, ax):
    before, figures = dict(plt.rcParams), plt.get_fignums()
    assert pl.embedding(cells, color="group", ax=ax) is ax
    assert pl.training_curves(history, ax=ax) is ax
    assert pl.reconstruction(pd.DataFrame({"pearson": [0.5]}, index=[0.1]), ax=ax) is ax
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == figures


def test_without_axes_a_new_figure_is_made_each_time(history, monkeypatch):
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a library must not show figures"))
    try:
        first, second = pl.training_curves(history), pl.training_curves(history)
        assert first.figure is not second.figure
        assert len(first.get_lines()) == len(second.get_lines()) == 4
    finally:
        plt.close(first.figure)
        plt.close(second.figure)


@pytest.fixture
def weights():
    """Three genes, two ratios; the first gene has the largest weight at the largest ratio."""
    return pd.DataFrame(
        [[0.5, 2.0], [1.0, 1.0], [1.6, 0.4]], index=list("abc"), columns=pd.Index([0.1, 0.5], name="ratio")
    )


@pytest.fixture
def curriculum_curves():
    epochs = pd.Index(range(6), name="epoch")
    multipliers = [0.0, 0.0, 1.0, 0.5, -0.5, -1.0]
    values = {
        f"curriculum_weight_{r}_decile_{d}": [d + i / 10 for i in range(6)]
        for r in ("0.1", "0.5")
        for d in (1, 2)
    }
    values |= {"curriculum_multiplier": multipliers, "train_loss": [1.0] * 6}
    return {name: pd.DataFrame({name: column}, index=epochs) for name, column in values.items()}


def test_curriculum_weights_are_drawn_as_logarithms_sorted_by_their_ratio(weights, ax):
    assert pl.curriculum_weights(weights, ax=ax) is ax
    drawn = ax.images[0].get_array()
    np.testing.assert_allclose(drawn, np.log2(weights.loc[["c", "b", "a"]]))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "50"]


def test_with_one_ratio_the_columns_are_not_called_ratios(weights, ax):
    pl.curriculum_weights(weights.set_axis(range(2), axis=1), ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), np.log2(weights))
    assert ax.get_xlabel() == "Column of weights, the first in use"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1"]


def test_a_weight_of_one_is_white(weights, ax):
    image = pl.curriculum_weights(weights, ax=ax).images[0]
    np.testing.assert_allclose(image.cmap(image.norm(0.0))[:3], 1.0, atol=0.04)


def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match=r"positive weights, genes by ratios, got a frame of shape \(3, 2\)"):
        pl.curriculum_weights(weights - 1.0)


def test_the_history_of_a_curriculum_shows_each_decile_at_the_largest_ratio(curriculum_curves, ax):
    pl.curriculum_history(curriculum_curves, ax=ax)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 6]
    assert [list(line.get_ydata()) for line in lines] == [
        list(curriculum_curves[f"curriculum_weight_0.5_decile_{d}"].iloc[:, 0]) for d in (1, 2)
    ]
    assert ax.get_ylabel() == "Mean loss weight, 50 % masked"


def test_the_history_of_a_curriculum_marks_what_is_frozen_and_where_the_gradient_turns(curriculum_curves, ax):
    pl.curriculum_history(curriculum_curves, ax=ax)
    (ground,) = ax.patches
    assert (ground.get_x(), ground.get_x() + ground.get_width()) == (-0.5, 1.5)
    assert ax.lines[-1].get_xdata()[0] == 3.5


def test_a_history_without_a_curriculum_is_refused(history):
    with pytest.raises(ValueError, match="trained with a curriculum such as 'cl'"):
        pl.curriculum_history(history)


def test_a_trained_curriculum_can_be_drawn_from_its_model(adata, ax):
    from scr2mae import R2MAEModel

    model = R2MAEModel(adata, n_hidden=16, n_latent=4, curriculum="cl")
    model.train(2, enable_progress_bar=False, accelerator="cpu")
    assert pl.curriculum_weights(model, ax=ax).images[0].get_array().shape == (adata.n_vars, 10)
    assert len(pl.curriculum_history(model).lines) >= 10


def test_integration_scores_are_circles_and_bars_with_the_best_total_on_top(ax):
    table = pd.DataFrame(
        {"nmi": [0.5, 0.7], "ilisi": [0.9, 0.2], "total": [0.6, 0.8]}, index=["PCA", "Harmony"]
    )
    assert pl.integration_scores(table, ax=ax) is ax
    assert [text.get_text() for text in ax.get_yticklabels()] == ["Harmony", "PCA"]
    assert [text.get_text() for text in ax.texts] == ["0.70", "0.50", "0.20", "0.90", "0.80", "0.60"]
    assert [round(bar.get_width(), 2) for bar in ax.patches] == [0.72, 0.54]
    assert len(ax.collections) == 4


def test_integration_scores_without_a_total_are_refused(ax):
    with pytest.raises(ValueError, match="scores with 'total'"):
        pl.integration_scores(pd.DataFrame({"nmi": [1.0]}), ax=ax)
