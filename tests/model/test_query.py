"""New batches: learned without touching the reference."""

import re
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)

QUIET = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "batch_size": 32}


def new_rows(model: R2MAEModel) -> set[str]:
    """Return the names of the parameters that hold the rows of two new categories."""
    decoder = "decoder" if model.init_params_["encoder"] == "linear+mlp" else "decoder.first"
    return {f"{part}.tables.{covariate}.new" for part in ("encoder.first", decoder) for covariate in (0, 1)}


@pytest.fixture
def query(simulate: Callable[..., AnnData]) -> AnnData:
    """Cells of a known and of an unseen batch, of an unseen chemistry too."""
    adata = simulate(90, seed=8, batches=("b1", "new"))
    chemistry = adata.obs["chemistry"].astype(str)
    adata.obs["chemistry"] = chemistry.where(np.arange(90) % 3 != 0, "v9")
    return adata


@pytest.fixture(scope="module")
def grown(reference: R2MAEModel, simulate: Callable[..., AnnData]) -> R2MAEModel:
    """A query with a new batch and a new chemistry, trained."""
    adata = simulate(90, seed=8, batches=("b1", "new"))
    chemistry = adata.obs["chemistry"].astype(str)
    adata.obs["chemistry"] = chemistry.where(np.arange(90) % 3 != 0, "v9")
    model = R2MAEModel.load_query_data(adata, reference, accelerator="cpu")
    model.train(**QUIET)
    return model


def test_reference_cells_embed_bitwise_equally_before_and_after_a_query_is_trained(
    query: AnnData, reference: R2MAEModel, simulate: Callable[..., AnnData]
) -> None:
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    adata, expected = simulate(), reference.get_latent_representation()
    model = R2MAEModel.load_query_data(query, reference, accelerator="cpu")
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    untrained = model.get_latent_representation()
    model.train(**QUIET)
    np.testing.assert_array_equal(model.get_latent_representation(adata), expected)
    torch.testing.assert_close(reference.module.state_dict(), before, rtol=0, atol=0)
    np.testing.assert_array_equal(reference.get_latent_representation(), expected)
    known = ((query.obs["batch"] == "b1") & (query.obs["chemistry"] != "v9")).to_numpy()
    moved = np.abs(model.get_latent_representation() - untrained).max(axis=1) > 0
    np.testing.assert_array_equal(moved, ~known)


def test_reference_cells_decode_bitwise_equally_in_a_trained_query(
    grown: R2MAEModel, reference: R2MAEModel, adata: AnnData
) -> None:
    np.testing.assert_array_equal(
        grown.get_normalized_expression(adata, return_numpy=True),
        reference.get_normalized_expression(return_numpy=True),
    )
    assert grown.get_reconstruction_error(adata) == reference.get_reconstruction_error()


def test_only_the_rows_of_new_categories_change(
    query: AnnData, reference: R2MAEModel, grown: R2MAEModel
) -> None:
    fresh = R2MAEModel.load_query_data(query, reference, accelerator="cpu").module.state_dict()
    changed = {
        name for name, value in grown.module.state_dict().items() if not torch.equal(value, fresh[name])
    }
    assert changed == new_rows(reference)
    assert {name for name, p in grown.module.named_parameters() if p.requires_grad} == new_rows(reference)


def test_a_new_category_comes_last_and_starts_as_the_mean_of_the_reference_s(
    query: AnnData, reference: R2MAEModel
) -> None:
    model = R2MAEModel.load_query_data(query, reference, accelerator="cpu")
    assert [names.tolist() for _, names in model.spec.categorical] == [
        ["b0", "b1", "new"],
        ["v2", "v3", "v9"],
    ]
    for name in new_rows(reference):
        table = model.module.get_submodule(name.removesuffix(".new"))
        old = reference.module.get_submodule(name.removesuffix(".new"))
        torch.testing.assert_close(table.reference, old.reference, rtol=0, atol=0)
        torch.testing.assert_close(table.new[0], old.reference.mean(dim=0))


def test_the_order_of_the_query_s_categories_does_not_matter(
    query: AnnData, reference: R2MAEModel, grown: R2MAEModel
) -> None:
    query.obs["batch"] = query.obs["batch"].cat.reorder_categories(["new", "b1"])
    expected = grown.get_latent_representation()
    np.testing.assert_array_equal(grown.get_latent_representation(query), expected)


def test_a_query_with_known_batches_only_embeds_and_has_nothing_to_train(
    simulate: Callable[..., AnnData], reference: R2MAEModel
) -> None:
    known = simulate(40, seed=9)
    model = R2MAEModel.load_query_data(known, reference, accelerator="cpu")
    expected = reference.get_latent_representation(known.copy())
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    with pytest.raises(ValueError, match="no new category, so there is nothing to train"):
        model.train(**QUIET)
    np.testing.assert_array_equal(model.get_latent_representation(), expected)


def test_known_batches_and_missing_genes_embed_without_load_query_data(
    simulate: Callable[..., AnnData], reference: R2MAEModel
) -> None:
    query = simulate(40, seed=9)[:, 3:57].copy()
    assert np.isfinite(reference.get_latent_representation(query)).all()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_reference_serves_as_well(
    kind: type, query: AnnData, reference: R2MAEModel, grown: R2MAEModel, tmp_path: Path
) -> None:
    reference.save(tmp_path / "model")
    model = R2MAEModel.load_query_data(query, kind(tmp_path / "model"), accelerator="cpu")
    model.train(**QUIET)
    torch.testing.assert_close(model.module.state_dict(), grown.module.state_dict(), rtol=0, atol=0)


def test_a_query_model_comes_back_as_it_was(
    grown: R2MAEModel, reference: R2MAEModel, adata: AnnData, query: AnnData, tmp_path: Path
) -> None:
    grown.save(tmp_path / "query")
    loaded = R2MAEModel.load(tmp_path / "query", query, accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), grown.get_latent_representation())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(adata), reference.get_latent_representation()
    )
    assert {name for name, p in loaded.module.named_parameters() if p.requires_grad} == new_rows(reference)
    loaded.train(**QUIET)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(adata), reference.get_latent_representation()
    )


def test_a_query_of_a_query_leaves_both_before_it_as_they_were(
    grown: R2MAEModel, reference: R2MAEModel, adata: AnnData, simulate: Callable[..., AnnData]
) -> None:
    third = simulate(50, seed=10, batches=("newer", "b0"))
    model = R2MAEModel.load_query_data(third, grown, accelerator="cpu")
    model.train(**QUIET)
    np.testing.assert_array_equal(
        model.get_latent_representation(adata), reference.get_latent_representation()
    )
    np.testing.assert_array_equal(
        model.get_latent_representation(grown.adata.copy()), grown.get_latent_representation()
    )
    assert model.spec.categorical[0][1].tolist() == ["b0", "b1", "new", "newer"]


def test_a_reference_of_one_batch_grows_to_two(
    simulate: Callable[..., AnnData], train_tiny: Callable[..., R2MAEModel]
) -> None:
    reference = train_tiny(simulate(batches=("only",)), setup={"batch_key": "batch"})
    model = R2MAEModel.load_query_data(simulate(60, seed=8, batches=("new",)), reference, accelerator="cpu")
    before = model.get_latent_representation()
    model.train(**QUIET)
    np.testing.assert_array_equal(
        model.get_latent_representation(simulate(batches=("only",))), reference.get_latent_representation()
    )
    assert np.abs(model.get_latent_representation() - before).max() > 0


def test_a_query_with_missing_genes_and_a_new_batch_trains(
    query: AnnData, reference: R2MAEModel, adata: AnnData
) -> None:
    panel = query[:, :45].copy()
    R2MAEModel.prepare_query_anndata(panel, reference)
    model = R2MAEModel.load_query_data(panel, reference, accelerator="cpu")
    model.train(**QUIET)
    np.testing.assert_array_equal(
        model.get_latent_representation(adata), reference.get_latent_representation()
    )


def test_donors_and_labels_of_a_query_may_be_absent(query: AnnData, reference: R2MAEModel) -> None:
    query.obs = query.obs.drop(columns=["donor", "cell_type"])
    model = R2MAEModel.load_query_data(query, reference, accelerator="cpu")
    model.train(**QUIET, split_key=False)
    assert model.get_latent_representation().shape == (90, 4)


def test_donors_of_a_query_split_it(grown: R2MAEModel) -> None:
    assert grown.split_.key == "donor"


def test_genes_in_another_order_are_refused_with_the_way_out(query: AnnData, reference: R2MAEModel) -> None:
    with pytest.raises(
        ValueError, match=r"not those of the reference, in its order; .*prepare_query_anndata"
    ):
        R2MAEModel.load_query_data(query[:, ::-1].copy(), reference)


def test_a_reference_without_categories_cannot_grow(query: AnnData, trained: R2MAEModel) -> None:
    with pytest.raises(
        ValueError, match=r"without batch_key or categorical covariates.*get_latent_representation"
    ):
        R2MAEModel.load_query_data(query, trained)


@pytest.mark.parametrize("source", ["adata.X", "adata.layers['whole']", "adata.raw"])
@pytest.mark.parametrize("target", ["adata.X", "adata.layers['counts']", "adata.raw.X"])
def test_the_line_that_an_error_gives_puts_counts_where_the_model_reads_them(
    source: str, target: str, adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    if source.removesuffix(".X") == target.removesuffix(".X"):
        pytest.skip("the model reads what the query has")
    counts = adata.X.copy()
    normalized = adata.copy()
    normalized.X.data = np.log1p(normalized.X.data)
    setup = {"adata.X": {}, "adata.layers['counts']": {"layer": "counts"}, "adata.raw.X": {"use_raw": True}}
    adata.layers["counts"], adata.raw = counts, adata.copy()
    model = train_tiny(adata, setup={"batch_key": "batch", **setup[target]})
    expected = model.get_latent_representation()
    query = normalized.copy()
    if source == "adata.raw":
        query.raw = adata
    elif source == "adata.X":
        query.X = counts
    else:
        query.layers["whole"] = counts
    for read in (model.get_latent_representation, lambda query: R2MAEModel.load_query_data(query, model)):
        with pytest.raises((KeyError, ValueError)) as caught:
            read(query.copy())
        assert "setup_anndata" not in str(caught.value)
        line = re.search(r"whole numbers are in .*?: write (.*?)\.(?: It looks|$)", caught.value.args[0])
        assert line is not None
        names = {"adata": query.copy(), "anndata": anndata}
        exec(line[1], names)
        np.testing.assert_array_equal(model.get_latent_representation(names["adata"]), expected)


def test_a_new_batch_with_fewer_genes_is_told_both_calls_in_order(
    query: AnnData, reference: R2MAEModel
) -> None:
    fewer = query[:, :50].copy()
    prepare, load = (
        "R2MAEModel.prepare_query_anndata(adata, model)",
        "R2MAEModel.load_query_data(adata, model)",
    )
    with pytest.raises(ValueError, match=re.escape(f"call {prepare}, since genes differ, then {load}.")):
        reference.get_latent_representation(fewer)
    with pytest.raises(ValueError, match=re.escape(f"call {prepare}, then {load}.")):
        R2MAEModel.load_query_data(fewer, reference)
    names = {"R2MAEModel": R2MAEModel, "adata": fewer, "model": reference}
    exec(f"{prepare}; grown = {load}", names)
    assert names["grown"].get_latent_representation(fewer).shape[0] == 90


@pytest.mark.parametrize("column", ["batch", "chemistry", "age"])
def test_a_query_must_have_the_covariates_of_its_reference(
    column: str, query: AnnData, reference: R2MAEModel
) -> None:
    del query.obs[column]
    with pytest.raises(KeyError, match=f"No '{column}' in adata.obs, but the model was set up with"):
        R2MAEModel.load_query_data(query, reference)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ("tpu", "accelerator must be 'auto', 'cpu', 'gpu' or 'mps', got 'tpu'"),
        ("gpu", "there is no CUDA device"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    accelerator: str, message: str, query: AnnData, reference: R2MAEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.load_query_data(query, reference, accelerator=accelerator)


@pytest.mark.parametrize("change", ["renamed", "shuffled", "fewer"])
def test_data_with_other_genes_are_refused_at_load(
    change: str, trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model")
    if change == "renamed":
        adata.var_names = [f"other{i}" for i in range(60)]
    adata = {"renamed": adata, "shuffled": adata[:, ::-1].copy(), "fewer": adata[:, :50].copy()}[change]
    with pytest.raises(ValueError, match=r"genes of adata are not the model's.*prepare_query_anndata"):
        R2MAEModel.load(tmp_path / "model", adata)


def test_data_with_an_unseen_batch_are_refused_at_load(
    reference: R2MAEModel, simulate: Callable[..., AnnData], tmp_path: Path
) -> None:
    reference.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"\['new'\], which the model has not seen"):
        R2MAEModel.load(tmp_path / "model", simulate(seed=3, batches=("b0", "new")))


def test_data_without_donors_and_labels_attach_to_a_saved_model(
    reference: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    reference.save(tmp_path / "model")
    adata.obs = adata.obs.drop(columns=["donor", "cell_type"])
    loaded = R2MAEModel.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), reference.get_latent_representation())
