"""Studies with different genes, trained together: the same bits where nothing is missing, and no zero for a gap."""

import json
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scr2mae import R2MAEModel
from scr2mae.data import find_copies, join_studies
from scr2mae.datasets import simulate_donors
from scr2mae.model.card import model_card
from scr2mae.model.saving import to_state

ENCODERS = ("linear+mlp", "mlp")
SIZES = {"n_hidden": 16, "n_latent": 32}
ONE_EPOCH = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}


def blood(n_cells: int = 30) -> anndata.AnnData:
    return simulate_donors(n_donors=4, n_cells_per_donor=n_cells, n_genes=60)


def joined() -> anndata.AnnData:
    """Three studies: all genes, the first 45, the last 40."""
    adata = blood()
    parts = {"all": adata[:50].copy(), "first": adata[50:85, :45].copy(), "last": adata[85:, 20:].copy()}
    return join_studies(parts)


def trained(
    adata: anndata.AnnData, *, setup: dict | None = None, train: dict | None = None, **kwargs
) -> R2MAEModel:
    R2MAEModel.setup_anndata(adata, **(setup or {}))
    model = R2MAEModel(adata, **{**SIZES, **kwargs})
    model.train(**{**ONE_EPOCH, **(train or {})})
    return model


def bits(model: R2MAEModel) -> dict[str, torch.Tensor]:
    return model.module.state_dict()


def assert_same_bits(one: R2MAEModel, other: R2MAEModel) -> None:
    ours, theirs = bits(one), bits(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_full_panels_give_the_bits_of_no_table(encoder):
    adata = blood()
    plain = trained(adata.copy(), encoder=encoder)
    adata.obs["study"] = np.repeat(["a", "b"], 60)
    adata.varm["scr2mae_measured"] = pd.DataFrame(True, index=adata.var_names, columns=["a", "b"])
    model = trained(adata, encoder=encoder)
    assert model.spec.studies is not None
    assert_same_bits(plain, model)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_removed_gene_and_an_unmeasured_gene_give_the_same_bits(encoder):
    adata = blood()
    removed = join_studies({"a": adata[:60].copy(), "b": adata[60:, 10:].copy()})
    marked = join_studies({"a": adata[:60].copy(), "b": adata[60:].copy()})
    counts = marked.X.toarray()
    counts[60:, :10] = 0
    marked.X = sparse.csr_matrix(counts)
    marked.varm["scr2mae_measured"].iloc[:10, 1] = False
    assert_same_bits(trained(removed, encoder=encoder), trained(marked, encoder=encoder))


def test_names_and_order_of_studies_change_no_bit():
    adata = joined()
    renamed = adata.copy()
    renamed.obs["study"] = renamed.obs["study"].cat.rename_categories({"all": "z", "first": "a", "last": "m"})
    renamed.varm["scr2mae_measured"] = renamed.varm["scr2mae_measured"].set_axis(["z", "a", "m"], axis=1)[
        ["m", "z", "a"]
    ]
    assert_same_bits(trained(adata), trained(renamed))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_order_of_genes_changes_no_embedding(encoder):
    adata = joined()
    model = trained(adata, encoder=encoder)
    permuted = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    assert np.array_equal(model.get_latent_representation(permuted), model.get_latent_representation())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_cell_is_embedded_as_if_its_study_were_alone(encoder):
    adata = joined()
    model = trained(adata, encoder=encoder)
    z = model.get_latent_representation()
    alone = adata[50:85, :45].copy()
    del alone.obs["study"], alone.varm["scr2mae_measured"]
    with pytest.warns(UserWarning, match="Few shared genes"):
        np.testing.assert_allclose(z[50:85], model.get_latent_representation(alone), rtol=1e-4, atol=1e-4)


def test_an_unknown_study_of_a_query_is_taken_by_its_genes():
    adata = joined()
    model = trained(adata)
    query = adata[50:85, :45].copy()
    query.obs["study"] = "never seen"
    del query.varm["scr2mae_measured"]
    with pytest.warns(UserWarning, match="Few shared genes"):
        z = model.get_latent_representation(query)
    np.testing.assert_allclose(z, model.get_latent_representation()[50:85], rtol=1e-4, atol=1e-4)


def test_a_known_study_of_a_query_has_its_genes_without_a_table():
    adata = joined()
    model = trained(adata)
    query = adata.copy()
    del query.varm["scr2mae_measured"]
    assert np.array_equal(model.get_latent_representation(query), model.get_latent_representation())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("with_genes", [True, False])
def test_the_loss_of_a_cell_is_that_of_its_panel_alone(encoder, with_genes):
    model = trained(joined(), encoder=encoder)
    cells, module = model._cells(None), model.module.eval()
    everything = {**cells.collate(np.arange(120)), **cells.measured_genes(np.arange(120))}
    tensors = {key: torch.from_numpy(array) for key, array in everything.items()}
    mask = module.draw_gene_mask(tensors, 0.4, seed=0, step=0)
    genes = mask.nonzero().squeeze(1) if with_genes else None
    total = 0.0
    for panel in range(3):
        rows = torch.from_numpy(np.flatnonzero(cells.panels.of_cell == panel))
        measured = torch.from_numpy(cells.panels.measured[panel])
        own = {"X": tensors["X"][rows], "batch": tensors["batch"][rows], "measured": measured}
        scored = mask & measured
        alone = module.masked_nll(own, scored, scored.nonzero().squeeze(1) if with_genes else None)
        total += alone.item() * len(rows) / 120
    assert module.masked_nll(tensors, mask, genes).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_counts_of_unmeasured_genes_change_nothing_in_the_loss(encoder):
    """The panel's zeros are not read: neither by the encoder nor in softmax and score."""
    model = trained(joined(), encoder=encoder)
    cells = model._cells(None)
    tensors = {key: torch.from_numpy(array) for key, array in cells.collate(np.arange(40, 100)).items()}
    tensors |= {
        key: torch.from_numpy(array) for key, array in cells.measured_genes(np.arange(40, 100)).items()
    }
    first = model.module.training_loss(tensors, ratio=0.3, seed=0, step=0).loss
    with torch.no_grad():
        model.module.to_logits.bias[-15:] += 3.0  # genes that "first" lacks
    rows = torch.arange(10, 45)
    own = {
        key: value[rows] if len(value) == 60 and key != "gene_class" else value
        for key, value in tensors.items()
    }
    changed = model.module.training_loss(own, ratio=0.3, seed=0, step=0).loss
    with torch.no_grad():
        model.module.to_logits.bias[-15:] -= 3.0
    torch.testing.assert_close(changed, model.module.training_loss(own, ratio=0.3, seed=0, step=0).loss)
    assert first.isfinite()


@pytest.mark.parametrize(
    "options",
    [{"encoder": "mlp", "curriculum": "cl"}, {"curriculum": "cl_k0"}, {"train": {"precision": "bf16-mixed"}}],
    ids=["curriculum-mlp", "curriculum", "bfloat16"],
)
def test_trains_with_curriculum_and_in_bfloat16(options):
    model = trained(joined(), **options)
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_counts_on_the_device_and_on_disk_give_the_bits_of_memory(tmp_path):
    adata = joined()
    memory = trained(adata, train={"counts_on": "memory"})
    assert_same_bits(memory, trained(adata.copy(), train={"counts_on": "device"}))
    adata.write_h5ad(tmp_path / "joined.h5ad")
    stored = anndata.read_h5ad(tmp_path / "joined.h5ad", backed="r")
    assert_same_bits(memory, trained(stored, train={"counts_on": "disk"}))


def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path):
    whole = trained(joined(), train={"max_epochs": 3})
    trained(joined(), train={"max_epochs": 1, "checkpoint_dir": tmp_path / "run"})
    model = trained(joined(), train={"max_epochs": 3, "resume": tmp_path / "run"})
    # The running average depends on the length of the run; the weights before it do not.
    assert model.history["train_loss"].iloc[0].item() == whole.history["train_loss"].iloc[0].item()
    assert len(model.history["train_loss"]) == 3


def test_compiled_steps_have_the_loss_of_eager_ones():
    model = trained(joined())
    cells = model._cells(None)
    at = np.arange(30, 100)
    tensors = {k: torch.from_numpy(v) for k, v in {**cells.collate(at), **cells.measured_genes(at)}.items()}
    mask = model.module.draw_gene_mask(tensors, 0.3, seed=0, step=0)
    genes = mask.nonzero().squeeze(1)
    dense = model.module.masked_nll(tensors, mask, None)
    torch.testing.assert_close(model.module.masked_nll(tensors, mask, genes), dense)


def test_errors_likelihood_and_expression_know_what_was_measured():
    adata = joined()
    model = trained(adata)
    found = model.get_reconstruction_error(return_mean=False)
    assert found["n_missing"].tolist() == [0] * 50 + [15] * 35 + [20] * 35
    alone = adata[50:85, :45].copy()
    del alone.obs["study"], alone.varm["scr2mae_measured"]
    with pytest.warns(UserWarning, match="Few shared genes"):
        own = model.get_reconstruction_error(alone, return_mean=False)
    np.testing.assert_allclose(found["reconstruction_loss"][50:85], own["reconstruction_loss"], rtol=1e-4)
    mean = model.get_likelihood_parameters()["mean"]
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(mean[50:85, :45].sum(axis=1), library[50:85], rtol=1e-4)
    np.testing.assert_allclose(mean[:50].sum(axis=1), library[:50], rtol=1e-4)
    observed = model.get_normalized_expression(library_size="observed", return_numpy=True)
    np.testing.assert_allclose(observed, mean, rtol=1e-4)
    scores = model.get_masked_reconstruction(ratios=(0.3,))
    assert np.isfinite(scores.to_numpy()).all()
    assert model.posterior_predictive_sample(n_folds=2).shape == adata.shape


def test_a_saved_model_knows_its_studies(tmp_path):
    adata = joined()
    model = trained(adata)
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model")
    assert loaded.spec.studies.measured.keys() == {"all", "first", "last"}
    assert loaded.spec.studies.measured["first"].sum() == 45
    query = adata.copy()
    del query.varm["scr2mae_measured"]
    assert np.array_equal(loaded.get_latent_representation(query), model.get_latent_representation())
    attached = R2MAEModel.load(tmp_path / "model", query)
    assert np.array_equal(attached.get_latent_representation(), model.get_latent_representation())


def test_damaged_studies_of_a_saved_model_are_an_error(tmp_path):
    trained(joined()).save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    text = json.loads(path.read_text())
    text["registry"]["field_registries"]["study"]["state_registry"]["measured"]["first"] = "ff"
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="genes of study 'first' are damaged"):
        R2MAEModel.load(tmp_path / "model")


def test_genes_that_a_study_lacks_are_checked_in_studies_that_have_them():
    adata = joined()
    model = trained(adata, train={"max_epochs": 20})
    scores = model.get_imputation_scores("first")
    assert scores["measured"].tolist() == [True] * 45 + [False] * 15
    assert (scores["n_obs"][:45] == 35).all()  # its own cells, each gene hidden once
    assert (scores["n_obs"][45:] == 50 + 35).all()  # the cells of both other studies
    expected = model.get_imputation_scores("first", indices=np.arange(50))["pearson"][45:]
    alone = adata[:50, :45].copy()
    del alone.obs["study"], alone.varm["scr2mae_measured"]
    with pytest.warns(UserWarning, match="Few shared genes"):
        predicted = model.get_normalized_expression(alone, return_numpy=True)
    rho = predicted[:, 45:] / predicted[:, :45].sum(axis=1, keepdims=True)
    counts = adata.X[:50].toarray()
    observed = np.log1p(1e4 * counts[:, 45:] / counts[:, :45].sum(axis=1, keepdims=True))
    for i, value in enumerate(expected):
        assert value == pytest.approx(np.corrcoef(np.log1p(1e4 * rho[:, i]), observed[:, i])[0, 1], abs=1e-4)
    with pytest.raises(KeyError, match="No study 'other'"):
        model.get_imputation_scores("other")
    with pytest.raises(ValueError, match="have one panel"):
        model.get_imputation_scores("all", adata[50:85].copy())
    with pytest.raises(ValueError, match="without study_key"):
        trained(blood()).get_imputation_scores("all")


def test_the_card_names_studies_and_their_genes():
    state = to_state(trained(joined()))
    card = model_card(state, repo="ann/blood", revision="main", versions={})
    assert "| Studies | `study`: all (60 genes), first (45 genes), last (40 genes) |" in card


def test_batches_are_aligned_panel_by_panel():
    adata = joined()
    adata.obs["lane"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "x", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = trained(adata, setup={"batch_key": "lane"})
    assert len(model.alignment_.keys) == 6  # two lanes, three panels
    assert model.alignment_.keys[:, -1].unique().numel() == 3
    assert np.isfinite(model.get_latent_representation()).all()
    assert not np.array_equal(
        model.get_latent_representation(), model.get_latent_representation(integrated=False)
    )


def test_new_batches_of_a_new_study_are_mapped():
    adata = joined()
    adata.obs["lane"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "x", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = trained(adata, setup={"batch_key": "lane"})
        query = adata[85:].copy()
        query.obs["lane"], query.obs["study"] = "new", "fourth"
        query.varm["scr2mae_measured"] = query.varm["scr2mae_measured"][["last"]].set_axis(["fourth"], axis=1)
        R2MAEModel.prepare_query_anndata(query, model)
        mapped = R2MAEModel.load_query_data(query, model)
        mapped.train()
    assert "fourth" in mapped.spec.studies.measured
    assert mapped.spec.studies.measured["fourth"].sum() == 40
    assert np.isfinite(mapped.get_latent_representation()).all()


def test_a_study_of_one_cell_and_a_study_of_one_gene_train():
    adata = blood()
    parts = {
        "most": adata[:118].copy(),
        "one cell": adata[118:119, :30].copy(),
        "one gene": adata[119:, 7:8].copy(),
    }
    counts = parts["one gene"].X.toarray() + 1
    parts["one gene"].X = sparse.csr_matrix(counts)
    model = trained(join_studies(parts))
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    scores = model.get_masked_reconstruction(ratios=(0.3,))
    assert np.isfinite(scores.to_numpy()).all()


def test_a_gene_that_no_study_measures_is_said_and_studies_without_a_common_gene_are_allowed():
    adata = blood()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        both = join_studies({"a": adata[:60, :30].copy(), "b": adata[60:, 30:].copy()})
    with pytest.warns(UserWarning, match="no gene in common: 'a' and 'b'"):
        R2MAEModel.setup_anndata(both)
    both.varm["scr2mae_measured"].iloc[0] = False
    counts = both.X.toarray()
    counts[:, 0] = 0
    both.X = sparse.csr_matrix(counts)
    apart = pytest.warns(UserWarning, match="no gene in common")
    with apart, pytest.warns(UserWarning, match=r"No study has measured 1 genes, such as \['gene00'\]"):
        R2MAEModel.setup_anndata(both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = trained(both)
    assert np.isfinite(model.get_latent_representation()).all()


def test_copies_are_found_and_the_rest_kept():
    adata = blood(80)
    adata.X = sparse.csr_matrix(adata.X.toarray() * 2 + 1)
    both = join_studies({"mine": adata[:200, :50].copy(), "public": adata[190:, 5:].copy()})
    assert np.flatnonzero(find_copies(both)).tolist() == list(range(200, 210))
