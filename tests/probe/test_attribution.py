"""Attributions sum to what they explain, are exact for a linear encoder, and find the genes of a planted effect."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scr2mae import datasets
from scr2mae.probe import fit_probe, gene_attribution, rank_stability, score_without_genes
from scr2mae.probe.attribution import _class_table
from scr2mae.probe.features import surprises_by_donor

pytestmark = pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)

DISEASE = {"target": "disease", "kind": "classification", "donor_key": "donor"}


# Of the session, since tests that are run with each encoder are moved to the end of the module.
@pytest.fixture(scope="session")
def cells():
    return datasets.simulate_donors(
        n_donors=12,
        n_cells_per_donor=40,
        n_genes=80,
        n_cell_types=2,
        cell_type_effect=0.5,
        disease_effect=1.2,
        effect_fraction=0.1,
        library_size=3000,
    )


@pytest.fixture(scope="session")
def model(cells, train_tiny):
    return train_tiny(cells, model={"n_hidden": 64, "n_latent": 8}, max_epochs=30)


@pytest.fixture(scope="session")
def probe(cells, model):
    return fit_probe(cells, model=model, n_bootstrap=0, **DISEASE)


def embed_mean_profile(model, adata):
    """Embed the mean profile at the depth of each cell and with its covariates."""
    counts = adata.X.toarray()
    library = counts.sum(axis=1, keepdims=True)
    origin = adata.copy()
    origin.X = ((counts / library).mean(axis=0) * library).astype(np.float32)
    fractional = replace(model.spec, integers=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "spec", property(lambda self: fractional))
        return model.get_latent_representation(origin)


def test_attributions_sum_to_the_change_of_the_embedding(cells, model):
    few = cells[::16].copy()
    found = model.get_gene_attributions(np.eye(8)[:, :2], np.arange(30), few, n_steps=200)
    change = model.get_latent_representation(few) - embed_mean_profile(model, few)
    np.testing.assert_allclose(
        found.attributions.sum(axis=2), change[:, :2], atol=0.02 * np.abs(change).max()
    )
    np.testing.assert_allclose(found.expression, np.log1p(few.X.toarray()), rtol=1e-6)


def test_attributions_follow_covariates_and_the_alignment_of_batches(reference, adata):
    found = reference.get_gene_attributions(np.eye(4)[:, :1], np.arange(adata.n_obs), adata, n_steps=300)
    change = reference.get_latent_representation(adata) - embed_mean_profile(reference, adata)
    sums = found.attributions[:, 0].sum(axis=1)
    np.testing.assert_allclose(sums, change[:, 0], atol=0.02 * np.abs(change).max())
    raw = reference.embedding_fingerprint(integrated=False)
    assert (raw != reference.fingerprint) == (reference.alignment_ is not None)


class LinearEncoder(torch.nn.Module):
    """Stands for the hidden layers: a linear map."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x, categories=None, continuous=None):
        return x @ self.weight


def test_one_step_is_exact_for_a_linear_encoder(cells, train_tiny):
    model = train_tiny(cells.copy(), model={"encoder": "mlp"}, max_epochs=1)
    weight = torch.randn(80, 16, generator=torch.Generator().manual_seed(0)) / 9
    model.module.encoder = LinearEncoder(weight)
    groups = np.arange(cells.n_obs) % 3
    found = model.get_gene_attributions(np.eye(4)[:, :1], groups, cells, n_steps=1)
    slope = (model.module.to_latent.weight @ weight.T)[0].detach().numpy()
    counts = cells.X.toarray()
    library = counts.sum(axis=1, keepdims=True)
    change = np.log1p(counts) - np.log1p((counts / library).mean(axis=0) * library)
    expected = np.stack([change[groups == g].mean(axis=0) * slope for g in range(3)])
    np.testing.assert_allclose(found.attributions[:, 0], expected, atol=1e-5)


def test_a_gene_that_a_panel_lacks_has_no_attribution(cells, model):
    panel = cells[:, 20:].copy()
    found = model.get_gene_attributions(np.eye(8)[:, :1], np.zeros(cells.n_obs, dtype=int), panel, n_steps=2)
    assert (found.attributions[..., :20] == 0).all()
    assert (found.attributions[..., 20:] != 0).any()


def test_wrong_shapes_are_refused(cells, model):
    with pytest.raises(ValueError, match=r"Wanted directions of shape \(8, n_directions\), 480 groups"):
        model.get_gene_attributions(np.eye(7), np.zeros(480), cells)


def test_planted_genes_come_first_with_their_direction(cells, model, probe):
    table = gene_attribution(probe, cells, n_steps=8, n_top=8)
    planted = cells.var["disease_lfc"]
    top = table.head(6)
    assert (planted[top["gene"]] != 0).mean() >= 0.8
    found = top[planted[top["gene"]].to_numpy() != 0]
    assert (np.sign(found["expression"]) == np.sign(planted[found["gene"]].to_numpy())).all()
    assert (found["t"] > 2).all()
    assert found["stability"].mean() > 0.7
    assert table["rank"].tolist() == list(range(1, 81))
    pd.testing.assert_frame_equal(cells.uns["probe_genes"], table)


@pytest.mark.filterwarnings("error:Few shared genes:UserWarning")  # they were left out on purpose
def test_the_score_falls_without_the_top_genes(cells, model, probe):
    table = gene_attribution(probe, cells, n_steps=4, key_added=None)
    scores = score_without_genes(probe, cells, table["gene"].tolist(), n_genes=(0, 8), n_random=3)
    assert scores.loc[0, "top"] == scores.loc[0, "random"]
    assert scores.loc[0, "top"] - scores.loc[8, "top"] > 0.1
    assert scores.loc[8, "top"] < scores.loc[8, "random"] - 0.1


def test_several_classes_and_numbers_have_their_genes(cells, model):
    cells = cells.copy()
    kinds = fit_probe(
        cells, model=model, target="cell_type", kind="classification", donor_key="donor", n_bootstrap=0
    )
    table = gene_attribution(kinds, cells, n_steps=2, max_cells_per_donor=10)
    assert table["class"].unique().tolist() == ["type1"]
    age = fit_probe(cells, model=model, target="age", kind="regression", donor_key="donor", n_bootstrap=0)
    ranked = gene_attribution(age, cells, n_steps=2, max_cells_per_donor=10, key_added=None)
    assert ranked["class"].unique().tolist() == [""]
    assert np.isfinite(ranked[["attribution", "t", "expression"]]).all().all()
    assert (
        score_without_genes(age, cells, ranked["gene"].tolist(), n_genes=(0, 5), n_random=1)
        .notna()
        .all()
        .all()
    )


def test_t_of_two_classes_is_welch_s():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    values, inside = rng.normal(size=(9, 1, 5)), np.arange(9) < 4
    weights = np.where(inside, 1 / 4, -1 / 5)
    table = _class_table(values, values[:, 0], (weights, inside), "x", 2).sort_values("gene")
    expected = ttest_ind(values[inside, 0], values[~inside, 0], equal_var=False)
    np.testing.assert_allclose(table["t"], expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(table["attribution"], table["expression"])


def test_the_attribution_of_a_number_is_its_slope_for_one_standard_deviation():
    rng = np.random.default_rng(0)
    y = rng.uniform(20, 80, 12)
    values = np.stack([2 * y + rng.normal(size=12), rng.normal(size=12)], axis=1)[:, None]
    centered = y - y.mean()
    weights = centered / (np.square(centered).sum() / centered.std()), None
    table = _class_table(values, values[:, 0], weights, "", 1)
    assert table.loc[0, "gene"] == 0
    assert table.loc[0, "attribution"] == pytest.approx(np.polyfit(y, values[:, 0, 0], 1)[0] * y.std())
    assert table.loc[0, "t"] > 20


def test_ranks_of_probes_are_compared_in_pairs():
    genes = [f"g{i}" for i in range(6)]
    tables = []
    for order in ([0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        rank = np.argsort(order) + 1
        tables.append(pd.DataFrame({"class": "x", "gene": genes, "rank": rank, "attribution": -1.0 * rank}))
    same = rank_stability(tables[:2], n_top=2)
    assert same["overlap"] == 1
    assert same["spearman"] == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert rank_stability(tables, n_top=2)["overlap"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="Wanted two tables or more, got 1"):
        rank_stability(tables[:1])
    with pytest.raises(ValueError, match="different genes"):
        rank_stability([tables[0], tables[1].iloc[1:]])


# --- the model of a probe


def test_a_probe_knows_its_model_and_embeds_counts_with_it(cells, model, probe, tmp_path):
    stored = cells.copy()
    stored.obsm["X_r2mae"] = model.get_latent_representation(cells)
    new = AnnData(stored.X, obs=stored.obs.drop(columns="donor"), var=stored.var)
    from_obsm = fit_probe(stored, n_bootstrap=0, **DISEASE)
    np.testing.assert_allclose(probe.linear.coef, from_obsm.linear.coef, rtol=1e-6, atol=1e-9)
    pd.testing.assert_frame_equal(probe.predict(new), probe.predict(new[:, ::-1].copy()), rtol=1e-4)
    probe.save(tmp_path / "probe")
    again = type(probe).load(tmp_path / "probe", model=model)
    pd.testing.assert_frame_equal(again.predict(new), probe.predict(new))
    pd.testing.assert_frame_equal(probe.predict(new, model=model), probe.predict(new))


def test_a_panel_of_genes_gets_the_labels_of_its_cells(cells, model, probe):
    reference = cells[:, np.random.default_rng(0).permutation(80)[:72]].copy()
    reference.obs["donor"] = "other"
    whole = cells.copy()
    whole.obs["donor"] = "other"
    same = probe.predict(reference)["prediction"].astype(str) == probe.predict(whole)["prediction"].astype(
        str
    )
    assert same.mean() > 0.7


def test_another_model_is_refused(cells, model, probe, train_tiny, tmp_path):
    other = train_tiny(cells.copy(), model={"n_hidden": 64, "n_latent": 8, "seed": 1}, max_epochs=1)
    assert other.fingerprint != model.fingerprint
    with pytest.raises(ValueError, match="The probe belongs to another model: its fingerprint is"):
        probe.predict(cells, model=other)
    with pytest.raises(ValueError, match="belongs to another model"):
        gene_attribution(probe, cells, model=other)
    probe.save(tmp_path / "probe")
    with pytest.raises(ValueError, match="belongs to another model"):
        type(probe).load(tmp_path / "probe", model=other)
    wrong = cells.copy()
    wrong.obsm["X_r2mae"] = other.get_latent_representation(wrong)
    with pytest.raises(ValueError, match="'X_r2mae' is not the embedding of these cells by this model"):
        fit_probe(wrong, model=model, **DISEASE)
    with pytest.raises(ValueError, match="is not the embedding of these cells"):
        probe.predict(wrong)
    probe.model = None
    try:
        wrong.uns["scr2mae"] = {"X_r2mae_model": other.fingerprint}
        with pytest.raises(ValueError, match="was made by another model"):
            probe.predict(wrong)
    finally:
        probe.model = model


def test_a_probe_without_a_model_cannot_embed_or_attribute(cells, model):
    stored = AnnData(
        cells.X, obs=cells.obs, var=cells.var, obsm={"X_r2mae": model.get_latent_representation(cells)}
    )
    probe = fit_probe(stored, n_bootstrap=0, **DISEASE)
    with pytest.raises(ValueError, match="pass model=, the model of the probe"):
        gene_attribution(probe, cells)
    with pytest.raises(ValueError, match="pass model=, the model of the probe"):
        score_without_genes(probe, cells, [])
    with pytest.raises(ValueError, match="was fitted to 'X_r2mae' without a model"):
        probe.predict(cells, model=model)


def test_a_query_model_has_the_fingerprint_of_its_reference(reference, adata):
    adata.obs["batch"] = "new"
    query = type(reference).load_query_data(adata, reference)
    assert query.fingerprint == reference.fingerprint
    assert len(reference.fingerprint) == 64


def test_reconstruction_errors_of_cells_average_to_the_one_of_all(trained, adata):
    whole = trained.get_reconstruction_error(adata)["reconstruction_loss"]
    cells = trained.get_reconstruction_error(adata, return_mean=False)
    assert cells["reconstruction_loss"].mean() == pytest.approx(whole)
    np.testing.assert_allclose(cells["library_size"], np.asarray(adata.X.sum(axis=1)).ravel(), rtol=1e-5)
    assert cells["n_missing"] == 0
    assert trained.get_reconstruction_error(adata[:, :50].copy(), return_mean=False)["n_missing"] == 10


def test_a_model_adds_the_surprise_to_the_rejection(cells, model):
    probe = fit_probe(cells, model=model, reject=0.1, n_bootstrap=0, **DISEASE)
    rate = probe.scores.set_index("metric")["value"]["unknown_rate"]
    assert rate == pytest.approx(0.1, abs=0.06)
    new = cells.copy()
    new.obs["donor"] = "other"
    assert probe.predict(new)["unknown"].mean() == pytest.approx(0.1, abs=0.06)
    shuffled = new.copy()
    shuffled.X = new.X[:, np.random.default_rng(0).permutation(80)]
    with pytest.warns(UserWarning, match="All 480 cells differ too much from those of the fit"):
        probe.predict(shuffled)


def test_a_type_that_model_and_probe_lack_is_unknown(train_tiny):
    cells = datasets.simulate_donors(
        n_donors=8, n_cells_per_donor=80, n_genes=120, cell_type_effect=1.0, seed=3
    )
    withheld = cells.obs["cell_type"].cat.categories[0]
    is_new = cells.obs["donor"].isin(cells.obs["donor"].cat.categories[:4]).to_numpy()
    is_absent = (cells.obs["cell_type"] == withheld).to_numpy()
    reference = cells[~is_new & ~is_absent].copy()
    model = train_tiny(reference, model={"n_hidden": 64, "n_latent": 16}, max_epochs=30)
    settings = {"target": "cell_type", "kind": "classification", "donor_key": "donor", "n_bootstrap": 0}
    probe = fit_probe(reference, model=model, reject=0.05, **settings)
    unknown = probe.predict(cells[is_new])["unknown"].to_numpy()
    assert unknown[is_absent[is_new]].mean() > 0.9
    assert unknown[~is_absent[is_new]].mean() < 0.1


def test_a_probe_fitted_to_a_panel_keeps_its_rate_on_cells_of_that_panel(cells, model):
    panel = cells[:, ::2].copy()
    probe = fit_probe(panel, model=model, reject=0.1, n_bootstrap=0, **DISEASE)
    assert probe.rejection.n_genes == 40
    panel.obs["donor"] = "other"
    assert probe.predict(panel)["unknown"].mean() == pytest.approx(0.1, abs=0.06)


def test_surprise_does_not_depend_on_the_order_of_the_cells(cells, model):
    Z, donors = model.get_latent_representation(cells), cells.obs["donor"].to_numpy()
    found = surprises_by_donor(model, cells, Z, donors)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    again = surprises_by_donor(model, cells[order], Z[order], donors[order])
    np.testing.assert_allclose(again.medians, found.medians[order], rtol=1e-4)
