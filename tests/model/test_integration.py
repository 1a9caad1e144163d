"""When batches are aligned, in which embeddings, and what is refused or warned of."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData, concat, read_h5ad

from scr2mae import R2MAEModel

pytestmark = pytest.mark.filterwarnings("ignore:Few shared genes:UserWarning")

BATCH = {"batch_key": "batch"}


@pytest.fixture(scope="module")
def cells(simulate: Callable[..., AnnData]) -> AnnData:
    """Cells of two batches, the second shifted strongly; read, never change it."""
    adata = simulate(300, seed=4)
    counts, second = adata.X.toarray(), (adata.obs["batch"] == "b1").to_numpy()
    counts[np.ix_(second, np.arange(0, 60, 3))] *= 6
    adata.X = sp.csr_matrix(counts)
    return adata


@pytest.fixture(scope="module")
def model(cells: AnnData, train_tiny: Callable[..., Any]) -> R2MAEModel:
    return train_tiny(cells.copy(), setup=BATCH, max_epochs=8)


def gap(z: np.ndarray, batch: Any) -> float:
    """Distance between the means of batches, relative to the spread of cells."""
    means = [z[np.asarray(batch) == name].mean(axis=0) for name in np.unique(batch)]
    return float(np.linalg.norm(means[0] - means[1]) / z.std(axis=0).mean())


def test_a_batch_key_aligns_and_one_argument_turns_it_off(
    cells: AnnData, model: R2MAEModel, train_tiny: Callable[..., Any]
) -> None:
    raw, aligned = (model.get_latent_representation(integrated=value) for value in (False, True))
    np.testing.assert_array_equal(model.get_latent_representation(), aligned)
    assert gap(aligned, cells.obs["batch"]) < 0.5 * gap(raw, cells.obs["batch"])
    without = train_tiny(cells.copy(), setup=BATCH, max_epochs=8, integration=False)
    assert without.alignment_ is None
    np.testing.assert_array_equal(without.get_latent_representation(), raw)
    without.integrate()
    np.testing.assert_array_equal(without.get_latent_representation(), aligned)


def test_python_is_told_of_the_alignment_unless_training_is_quiet(
    cells: AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    adata = cells.copy()
    R2MAEModel.setup_anndata(adata, **BATCH)
    model = R2MAEModel(adata, n_latent=4)
    model.train(1, accelerator="cpu", enable_progress_bar=False)
    assert "alignment of the embedding" not in capsys.readouterr().err
    model.integrate()
    assert "The alignment of the embedding has 2 batches." in capsys.readouterr().err


@pytest.mark.parametrize("encoder", ["mlp", "linear+mlp"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_network_and_precision_is_aligned_and_comes_back(
    cells: AnnData, train_tiny: Callable[..., Any], tmp_path: Path, encoder: str, precision: str
) -> None:
    model = train_tiny(
        cells.copy(), setup=BATCH, model={"encoder": encoder}, max_epochs=4, precision=precision
    )
    raw, aligned = (model.get_latent_representation(integrated=value) for value in (False, True))
    assert gap(aligned, cells.obs["batch"]) < 0.7 * gap(raw, cells.obs["batch"])
    lengths = [np.linalg.norm(z, axis=1) for z in (raw, aligned)]
    if encoder == "linear+mlp":
        np.testing.assert_allclose(lengths[1], lengths[0], rtol=1e-4)
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(cells, integrated=True), aligned)


@pytest.mark.filterwarnings("ignore:Category 2 in adata.obs:UserWarning", "ignore:1 of 3 batches:UserWarning")
def test_a_batch_of_one_cell_is_finite(cells: AnnData, train_tiny: Callable[..., Any]) -> None:
    adata = cells.copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) == 5, "one", adata.obs["batch"].astype(str))
    model = train_tiny(adata, setup=BATCH, max_epochs=1)
    assert np.isfinite(model.get_latent_representation(integrated=True)).all()


def test_a_latent_vector_that_is_not_finite_is_refused(
    cells: AnnData, train_tiny: Callable[..., Any]
) -> None:
    model = train_tiny(cells.copy(), setup=BATCH, max_epochs=1, integration=False)
    with torch.no_grad():
        model.module.to_latent.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="finite latent vectors"):
        model.integrate()


def test_the_decoder_reads_the_raw_vector(model: R2MAEModel) -> None:
    before = model.get_normalized_expression(return_numpy=True), model.get_reconstruction_error()
    alignment, model.alignment_ = model.alignment_, None
    try:
        np.testing.assert_array_equal(model.get_normalized_expression(return_numpy=True), before[0])
        assert model.get_reconstruction_error() == before[1]
    finally:
        model.alignment_ = alignment


def test_an_aligned_cell_is_the_same_whatever_it_is_embedded_with(
    cells: AnnData, model: R2MAEModel, tmp_path: Path
) -> None:
    expected = model.get_latent_representation()
    np.testing.assert_allclose(model.get_latent_representation(batch_size=7), expected, atol=1e-5)
    some = np.array([250, 3, -1])
    np.testing.assert_allclose(model.get_latent_representation(indices=some), expected[some], atol=1e-5)
    dense = cells.copy()
    dense.X = dense.X.toarray() + 0.0
    np.testing.assert_allclose(model.get_latent_representation(dense), expected, atol=1e-5)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = read_h5ad(tmp_path / "cells.h5ad", backed="r")
    out = np.zeros_like(expected)
    model.get_latent_representation(backed, out=out)
    backed.file.close()
    np.testing.assert_allclose(out, expected, atol=1e-5)
    reduced = model.get_latent_representation(precision="bf16-mixed")
    assert np.abs(reduced - expected).max() < 0.1 * expected.std(axis=0).max()


def test_an_alignment_is_saved_and_loaded(cells: AnnData, model: R2MAEModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(cells), model.get_latent_representation())
    raw = model.get_latent_representation(integrated=False)
    np.testing.assert_array_equal(loaded.get_latent_representation(cells, integrated=False), raw)


def test_an_alignment_of_another_width_is_refused(
    model: R2MAEModel, train_tiny: Callable[..., Any], cells: AnnData, tmp_path: Path
) -> None:
    wide = train_tiny(cells.copy(), setup=BATCH, model={"n_latent": 5}, max_epochs=1)
    alignment, model.alignment_ = model.alignment_, wide.alignment_
    try:
        model.save(tmp_path / "model")
    finally:
        model.alignment_ = alignment
    with pytest.raises(ValueError, match="of 5 latent dimensions, the network has 4"):
        R2MAEModel.load(tmp_path / "model")


def test_a_resumed_run_ends_with_the_same_alignment(
    cells: AnnData, train_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    expected = train_tiny(cells.copy(), setup=BATCH, max_epochs=2, checkpoint_dir=tmp_path).alignment_
    resumed = train_tiny(cells.copy(), setup=BATCH, max_epochs=2, resume=tmp_path).alignment_
    for name, values in expected.to_state().items():
        torch.testing.assert_close(resumed.to_state()[name], values, rtol=0, atol=0)


def test_without_batches_there_is_nothing_to_align(trained: R2MAEModel) -> None:
    assert trained.alignment_ is None
    with pytest.raises(ValueError, match="set up without batch_key"):
        trained.integrate()
    with pytest.raises(ValueError, match="has no alignment of batches"):
        trained.get_latent_representation(integrated=True)


def test_an_untrained_model_says_so(cells: AnnData) -> None:
    adata = cells.copy()
    R2MAEModel.setup_anndata(adata, **BATCH)
    with pytest.raises(RuntimeError, match="not trained yet"):
        R2MAEModel(adata, n_hidden=16, n_latent=4).integrate()


def test_one_batch_stays_to_the_bit(cells: AnnData, train_tiny: Callable[..., Any]) -> None:
    one = train_tiny(cells[cells.obs["batch"] == "b0"].copy(), setup=BATCH)
    raw = one.get_latent_representation(integrated=False)
    np.testing.assert_array_equal(one.get_latent_representation(integrated=True), raw)


def test_labels_that_the_batch_determines_are_not_aligned_away(
    cells: AnnData, train_tiny: Callable[..., Any]
) -> None:
    adata = cells.copy()
    adata.obs["condition"] = adata.obs["batch"].map({"b0": "ctrl", "b1": "stim"})
    with pytest.warns(UserWarning, match=r"one value of obs\['condition'\] \(b0: ctrl, b1: stim\)"):
        model = train_tiny(adata, setup={**BATCH, "labels_key": "condition"})
    assert model.alignment_ is None
    model.integrate(guard=False)
    assert model.alignment_ is not None


def test_a_covariate_that_the_batch_determines_is_warned_of(
    cells: AnnData, train_tiny: Callable[..., Any]
) -> None:
    adata = cells.copy()
    adata.obs["kit"] = adata.obs["batch"].map({"b0": "v2", "b1": "v3"}).astype(str)
    with pytest.warns(UserWarning, match="its effect is removed with that of the batches"):
        model = train_tiny(adata, setup={**BATCH, "categorical_covariate_keys": ["kit"]})
    assert model.alignment_ is not None


def test_batches_of_other_cell_types_stay_with_a_warning(
    cells: AnnData, model: R2MAEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    place = 9 * rng.standard_normal((2, 2, 4))
    batch = (cells.obs["batch"] == "b1").to_numpy().astype(int)
    apart = (place[batch, rng.integers(2, size=300)] + rng.standard_normal((300, 4))).astype(np.float32)
    monkeypatch.setattr(
        R2MAEModel, "_raw_latent", lambda self, cells, indices: torch.from_numpy(apart[indices])
    )
    alignment = model.alignment_
    try:
        with pytest.warns(UserWarning, match="2 of 2 batches have few clusters in common") as found:
            model.integrate()
        assert found[0].filename == __file__
        assert model.alignment_.strengths.tolist() == [0, 0]
    finally:
        model.alignment_ = alignment


def test_held_out_batches_are_aligned_as_new_ones(cells: AnnData, train_tiny: Callable[..., Any]) -> None:
    model = train_tiny(cells.copy(), setup={"batch_key": "donor", "donor_key": "donor"})
    donors = cells.obs["donor"].cat.codes.to_numpy()
    assert set(donors[model.split_.train]) < set(donors)
    assert sorted(model.alignment_.keys[:, 0].tolist()) == sorted(set(donors))
    assert np.isfinite(model.get_latent_representation(integrated=True)).all()


def test_cells_that_lack_one_gene_are_aligned_like_those_with_all(cells: AnnData, model: R2MAEModel) -> None:
    query = cells[:, np.arange(cells.n_vars) != 7].copy()
    full, raw = model.get_latent_representation(), model.get_latent_representation(query, integrated=False)
    aligned = model.get_latent_representation(query)
    np.testing.assert_array_equal(model.get_latent_representation(query, integrated=True), aligned)
    keys = np.column_stack([cells.obs["batch"].cat.codes, np.zeros(300, dtype=int)])
    by_hand = model.alignment_.apply(torch.from_numpy(raw), keys).numpy()
    np.testing.assert_array_equal(aligned, by_hand)
    distances = [np.linalg.norm(z - full, axis=1).mean() for z in (aligned, raw)]
    assert distances[0] < 0.5 * distances[1]


def test_an_alignment_of_the_very_genes_goes_before_that_of_all(cells: AnnData, model: R2MAEModel) -> None:
    query = cells[:, np.arange(cells.n_vars) != 7].copy()
    as_all, expected = model.get_latent_representation(query), model.get_latent_representation()
    alignment = model.alignment_
    try:
        model.integrate(query)
        assert np.abs(model.get_latent_representation(query) - as_all).max() > 1e-4
        np.testing.assert_array_equal(model.get_latent_representation(), expected)
    finally:
        model.alignment_ = alignment


def test_cells_with_too_few_genes_are_warned_of_once(cells: AnnData, model: R2MAEModel) -> None:
    query = cells[:, :50].copy()
    raw = model.get_latent_representation(query, integrated=False)
    with pytest.warns(
        UserWarning, match="No alignment of batches for 300 cells: the model has none on so few"
    ) as found:
        np.testing.assert_array_equal(model.get_latent_representation(query), raw)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.get_latent_representation(query)


class TestQuery:
    @pytest.fixture
    def query(self, cells: AnnData) -> AnnData:
        """Both known batches and new ones, of 120 cells and of 5."""
        query = cells[:200].copy()
        batch = query.obs["batch"].astype(str).to_numpy()
        batch[:120], batch[120:125] = "new", "few"
        query.obs["batch"] = batch
        counts = query.X.toarray()
        counts[:125, 1::3] *= 20
        query.X = sp.csr_matrix(counts)
        return query

    def test_train_aligns_new_batches_and_changes_nothing_else(
        self, cells: AnnData, model: R2MAEModel, query: AnnData
    ) -> None:
        expected = model.get_latent_representation(cells)
        new = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        raw = new.get_latent_representation(integrated=False)
        weights = {name: value.clone() for name, value in new.module.state_dict().items()}
        with pytest.raises(ValueError, match=r"batch 'few' have not been aligned"):
            new.get_latent_representation(integrated=True)
        new.train()
        torch.testing.assert_close(new.module.state_dict(), weights, rtol=0, atol=0)
        np.testing.assert_array_equal(new.get_latent_representation(cells), expected)
        np.testing.assert_array_equal(new.get_latent_representation(integrated=False), raw)
        aligned = new.get_latent_representation(integrated=True)
        assert np.isfinite(aligned).all()
        old = np.repeat(["old"], 300)
        names = np.concatenate([old, np.repeat(["new"], 120)])
        assert gap(np.concatenate([expected, aligned[:120]]), names) < 0.9 * gap(
            np.concatenate([expected, raw[:120]]), names
        )

    def test_cells_of_the_reference_take_the_place_of_its_mixture(
        self, cells: AnnData, model: R2MAEModel, query: AnnData
    ) -> None:
        expected = model.get_latent_representation(cells)
        new = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        new.train()
        raw, with_mixture = (new.get_latent_representation(integrated=on) for on in (False, True))
        reference = cells[:, ::-1].copy()
        new.integrate(reference)
        np.testing.assert_array_equal(new.get_latent_representation(cells), expected)
        with_cells = new.get_latent_representation()
        changes = np.abs(with_cells - with_mixture).max(axis=1)
        assert (changes[:120] > 1e-4).all()  # a new batch
        assert (changes[125:] == 0).all()  # batches of the reference
        names = np.repeat(["old", "new"], [300, 120])
        after, before = (gap(np.concatenate([expected, z[:120]]), names) for z in (with_cells, raw))
        assert after < 0.9 * before
        both = concat([reference, query[:125]], index_unique="-")
        for again in (
            both,
            both[::-1].copy(),
        ):  # new batches are none of the reference, nor does the order matter
            new.integrate(again)
            np.testing.assert_array_equal(new.get_latent_representation(), with_cells)
            np.testing.assert_array_equal(new.get_latent_representation(cells), expected)
        new.integrate(reference[:20].copy())  # too few
        np.testing.assert_array_equal(new.get_latent_representation(), with_mixture)
        with pytest.raises(
            ValueError, match=r"Wanted cells of the reference.*all 125 cells are of new batches"
        ):
            new.integrate(query[:125].copy())
        np.testing.assert_array_equal(new.get_latent_representation(), with_mixture)

    def test_the_reference_stays_if_cells_of_both_come_before_training(
        self, cells: AnnData, model: R2MAEModel, query: AnnData
    ) -> None:
        expected = model.get_latent_representation(cells)
        new = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        new.integrate(concat([cells, query[:125]], index_unique="-"))
        np.testing.assert_array_equal(new.get_latent_representation(cells), expected)
        assert np.isfinite(new.get_latent_representation(integrated=True)).all()

    def test_the_guard_of_a_panel_is_turned_off_by_a_second_call(
        self, cells: AnnData, model: R2MAEModel, query: AnnData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        panel = R2MAEModel.prepare_query_anndata(query[:120, 10:50].copy(), model, inplace=False)
        new = R2MAEModel.load_query_data(panel, model, accelerator="cpu")
        on_panel = cells[:, 10:50].copy()
        monkeypatch.setattr("scr2mae.model.alignment._SHARED", (0.98, 0.99))
        with pytest.warns(UserWarning, match="call model.integrate with guard=False, and the same cells"):
            new.integrate(on_panel)
        of_panel = new.alignment_.keys[:, -1] != 0
        assert (new.alignment_.strengths[of_panel][:2] < 1).all()
        new.integrate(on_panel, guard=False)
        assert (new.alignment_.strengths[new.alignment_.keys[:, -1] != 0] == 1).all()

    def test_a_batch_does_not_depend_on_the_others_of_the_query(
        self, model: R2MAEModel, query: AnnData
    ) -> None:
        both = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        both.train()
        alone = R2MAEModel.load_query_data(query[:120].copy(), model, accelerator="cpu")
        alone.train()
        np.testing.assert_allclose(
            alone.get_latent_representation(), both.get_latent_representation()[:120], atol=1e-5
        )

    def test_weights_are_trained_if_epochs_are_given(self, model: R2MAEModel, query: AnnData) -> None:
        new = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        before = new.get_latent_representation(integrated=False)
        new.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        assert np.abs(new.get_latent_representation(integrated=False) - before).max() > 0
        assert len(new.alignment_.keys) == 4

    def test_a_saved_query_comes_back(self, model: R2MAEModel, query: AnnData, tmp_path: Path) -> None:
        new = R2MAEModel.load_query_data(query, model, accelerator="cpu")
        new.train()
        new.save(tmp_path / "query")
        loaded = R2MAEModel.load(tmp_path / "query", accelerator="cpu")
        np.testing.assert_array_equal(
            loaded.get_latent_representation(query), new.get_latent_representation()
        )

    def test_new_categories_of_covariates_are_aligned_too(
        self, reference: R2MAEModel, simulate: Callable[..., AnnData]
    ) -> None:
        query = simulate(90, seed=8, batches=("b1", "new"))
        chemistry = query.obs["chemistry"].astype(str)
        query.obs["chemistry"] = chemistry.where(np.arange(90) % 3 != 0, "v9")
        new = R2MAEModel.load_query_data(query, reference, accelerator="cpu")
        new.train()
        known = ((query.obs["batch"] == "b1") & (query.obs["chemistry"] != "v9")).to_numpy()
        raw = new.get_latent_representation(integrated=False)
        reference_raw = reference.get_latent_representation(query[known].copy(), integrated=False)
        np.testing.assert_allclose(raw[known], reference_raw, atol=1e-6)
        assert np.isfinite(new.get_latent_representation(integrated=True)).all()

    def test_a_reference_without_alignment_trains_weights_as_before(
        self, cells: AnnData, query: AnnData, train_tiny: Callable[..., Any]
    ) -> None:
        old = train_tiny(cells.copy(), setup=BATCH, integration=False)
        new = R2MAEModel.load_query_data(query, old, accelerator="cpu")
        with pytest.raises(ValueError, match="The reference has no alignment"):
            new.integrate()
        new.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        assert new.alignment_ is None

    def test_the_advice_for_a_panel_works_after_its_genes_were_filled_up(
        self, cells: AnnData, model: R2MAEModel, query: AnnData
    ) -> None:
        panel = query[:120, 10:50].copy()
        panel.obs["batch"] = "b0"  # known, but on other genes
        R2MAEModel.prepare_query_anndata(panel, model)
        with pytest.warns(UserWarning, match="No alignment of batches") as found:
            raw = model.get_latent_representation(panel)
        advice = re.search(r"model\.integrate\((.*?)\), where", str(found[-1].message))
        alignment = model.alignment_
        try:
            model.integrate(eval(advice[1], {"reference": cells, "query": panel}).copy())
            aligned = model.get_latent_representation(panel, integrated=True)
            assert np.abs(aligned - raw).max() > 0.01
        finally:
            model.alignment_ = alignment

    def test_a_panel_is_aligned_with_the_reference_on_its_genes(
        self, cells: AnnData, model: R2MAEModel, query: AnnData
    ) -> None:
        panel = R2MAEModel.prepare_query_anndata(query[:120, 10:50].copy(), model, inplace=False)
        new = R2MAEModel.load_query_data(panel, model, accelerator="cpu")
        expected, on_panel = model.get_latent_representation(cells), cells[:, 10:50].copy()
        new.train()
        on_full = new.get_latent_representation(integrated=True)
        raw = new.get_latent_representation(on_panel, integrated=False)
        with pytest.warns(UserWarning, match="No alignment of batches"):
            np.testing.assert_array_equal(new.get_latent_representation(on_panel), raw)
        with pytest.raises(ValueError, match=r"batch 'b0' have not been aligned on these genes"):
            new.get_latent_representation(on_panel, integrated=True)
        new.integrate(on_panel)
        np.testing.assert_array_equal(new.get_latent_representation(cells), expected)
        host = new.get_latent_representation(on_panel, integrated=True)
        assert gap(host, cells.obs["batch"]) < gap(raw, cells.obs["batch"])
        assert np.abs(new.get_latent_representation(integrated=True) - on_full).max() > 0.01
