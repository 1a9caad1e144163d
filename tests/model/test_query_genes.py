"""Gene panels: aligned with a reference by name, absent genes treated as masked."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.nn.linear_mlp import LinearMLPModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)


def only(adata: AnnData, kept: np.ndarray) -> AnnData:
    """The same cells with the counts of all other genes set to zero."""
    zeroed = adata.copy()
    zeroed.X = adata.X.multiply(kept).tocsr()
    return zeroed


def test_alignment_restores_the_order_of_the_genes(
    trained: R2MAEModel, adata: AnnData, unchanged: Any
) -> None:
    shuffled = adata[:, np.random.default_rng(0).permutation(60)].copy()
    shuffled.layers["counts"] = shuffled.X.toarray()
    with unchanged(shuffled):
        aligned = R2MAEModel.prepare_query_anndata(shuffled, trained, inplace=False)
    assert aligned.var_names.equals(adata.var_names)
    np.testing.assert_array_equal(aligned.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(aligned.layers["counts"].toarray(), adata.X.toarray())
    assert aligned.var["scr2mae_measured"].all()


def test_ensembl_versions_do_not_matter_for_an_embedding(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    adata.var_names = [f"ENSG{i:011d}.{i % 9}" for i in range(60)]
    model = train_tiny(adata)
    newer = adata[:, ::-1].copy()
    newer.var_names = [f"{name.partition('.')[0]}.12" for name in newer.var_names]
    expected = model.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(newer), expected)
    R2MAEModel.prepare_query_anndata(newer, model)
    assert newer.var_names.equals(adata.var_names)
    np.testing.assert_array_equal(model.get_latent_representation(newer), expected)


def test_absent_genes_become_empty_sparse_columns_never_a_dense_block(
    trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, 10:50].copy()
    panel.layers["counts"] = panel.X.tocsc()
    aligned = R2MAEModel.prepare_query_anndata(panel, trained, inplace=False)
    assert aligned.shape == (120, 60)
    for counts in (aligned.X, aligned.layers["counts"]):
        assert sp.issparse(counts)
        assert counts.nnz == panel.X.nnz
        assert counts[:, 10:50].nnz == counts.nnz
    measured = (np.arange(60) >= 10) & (np.arange(60) < 50)
    np.testing.assert_array_equal(aligned.var["scr2mae_measured"], measured)
    assert aligned.uns["scr2mae"]["gene_overlap"] == {
        "n_reference_genes": 60,
        "n_shared_genes": 40,
        "n_query_genes": 40,
    }


def test_a_panel_is_never_densified_on_the_way_to_the_network(
    trained: R2MAEModel, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = adata[:, 10:50].copy()
    sizes, toarray = [], sp.csr_matrix.toarray

    def watched(self: sp.csr_matrix, *args: Any, **kwargs: Any) -> np.ndarray:
        sizes.append(self.shape[0])
        return toarray(self, *args, **kwargs)

    monkeypatch.setattr(sp.csr_matrix, "toarray", watched)
    R2MAEModel.prepare_query_anndata(panel, trained)
    assert not sizes
    trained.get_latent_representation(panel, batch_size=16)
    assert max(sizes) == 16


def test_alignment_in_place_changes_the_query_and_returns_nothing(
    trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, 40:9:-1].copy()
    expected = R2MAEModel.prepare_query_anndata(panel.copy(), trained, inplace=False)
    assert R2MAEModel.prepare_query_anndata(panel, trained) is None
    np.testing.assert_array_equal(panel.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(panel.obs, adata.obs)
    pd.testing.assert_frame_equal(panel.var, expected.var)


def test_alignment_keeps_what_belongs_to_the_cells(
    trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    panel = adata[:, ::-2].copy()
    panel.obsm["X_pca"] = np.arange(240.0).reshape(120, 2)
    panel.obsp["connectivities"] = sp.identity(120, format="csr")
    panel.uns["scr2mae"] = {"note": "kept"}
    panel.uns["colors"] = ["red"]
    panel.raw = adata.copy()
    panel.var["highly_variable"] = np.arange(30) % 2 == 0
    panel.var["symbol"] = panel.var_names.str.upper()
    R2MAEModel.prepare_query_anndata(panel, trained)
    assert panel.obsm["X_pca"].shape == (120, 2)
    assert panel.obsp["connectivities"].nnz == 120
    assert panel.uns["colors"] == ["red"]
    assert panel.uns["scr2mae"]["note"] == "kept"
    assert panel.raw.shape == (120, 60)
    assert panel.var.loc["gene59", "symbol"] == "GENE59"


def test_an_aligned_query_can_be_written_and_read(
    trained: R2MAEModel, adata: AnnData, tmp_path: Path
) -> None:
    panel = adata[:, ::2].copy()
    panel.var["highly_variable"] = np.arange(30) % 2 == 0
    panel.var["symbol"] = panel.var_names.str.upper()
    R2MAEModel.prepare_query_anndata(panel, trained)
    panel.write_h5ad(tmp_path / "panel.h5ad")
    back = anndata.read_h5ad(tmp_path / "panel.h5ad")
    np.testing.assert_array_equal(
        trained.get_latent_representation(back), trained.get_latent_representation(panel)
    )


def test_aligning_twice_changes_nothing_more(trained: R2MAEModel, adata: AnnData) -> None:
    once = R2MAEModel.prepare_query_anndata(adata[:, 5:45].copy(), trained, inplace=False)
    twice = R2MAEModel.prepare_query_anndata(once, trained, inplace=False)
    np.testing.assert_array_equal(twice.var["scr2mae_measured"], once.var["scr2mae_measured"])
    np.testing.assert_array_equal(twice.X.toarray(), once.X.toarray())


@pytest.mark.parametrize("kind", ["model", "str", "Path"])
def test_the_reference_s_genes_are_returned_without_touching_the_query(
    kind: str, trained: R2MAEModel, adata: AnnData, tmp_path: Path, unchanged: Any
) -> None:
    trained.save(tmp_path / "model")
    reference = {"model": trained, "str": str(tmp_path / "model"), "Path": tmp_path / "model"}[kind]
    panel = adata[:, :30].copy()
    with unchanged(panel):
        names = R2MAEModel.prepare_query_anndata(panel, reference, return_reference_var_names=True)
    assert names.tolist() == adata.var_names.tolist()
    R2MAEModel.prepare_query_anndata(panel, reference)
    assert panel.n_vars == 60


def test_too_few_shared_genes_are_refused_unless_fewer_are_allowed(
    trained: R2MAEModel, adata: AnnData
) -> None:
    panel = adata[:, :5].copy()
    with pytest.raises(
        ValueError, match=r"5 of the reference's 60 genes \(8%\), but min_shared=0.1 requires more"
    ):
        R2MAEModel.prepare_query_anndata(panel, trained)
    assert panel.n_vars == 5
    with pytest.warns(UserWarning, match="Few shared genes"):
        R2MAEModel.prepare_query_anndata(panel, trained, min_shared=0.05)
    assert panel.n_vars == 60


def test_less_than_95_percent_of_the_genes_warns_and_more_is_logged(
    trained: R2MAEModel, adata: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(
        UserWarning, match=r"Few shared genes: the query has 20 of the reference's 60 genes \(33%\)"
    ):
        R2MAEModel.prepare_query_anndata(adata[:, :20].copy(), trained)
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        R2MAEModel.prepare_query_anndata(adata[:, :58].copy(), trained)
    assert "58 of the reference's 60 genes (97%)" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"other{i}" for i in range(60)], "No shared genes"),
        (["gene0", "gene0", *[f"gene{i}" for i in range(2, 60)]], r"\['gene0'\] occur more than once"),
    ],
    ids=["none shared", "duplicates"],
)
def test_genes_that_cannot_be_aligned_are_refused(
    names: list[str], message: str, trained: R2MAEModel, adata: AnnData
) -> None:
    adata.var_names = names
    with pytest.raises(ValueError, match=message):
        R2MAEModel.prepare_query_anndata(adata, trained)


def test_missing_genes_are_masked_genes(reference: R2MAEModel, adata: AnnData) -> None:
    kept = np.random.default_rng(2).permutation(60) < 40
    panel = adata[:, kept].copy()
    embedded = reference.get_latent_representation(panel, integrated=False)
    cells = reference._cells(adata)
    tensors = {key: torch.from_numpy(value) for key, value in cells.collate(np.arange(120)).items()}
    module, inputs = reference.module, reference.module._get_inference_input(tensors)
    if isinstance(module, LinearMLPModule):  # the library that the genes of the panel lead one to expect
        log_library = tensors["X"][:, kept].sum(dim=1, keepdim=True).log()
        inputs["log_library"] = log_library - module.linear.frequencies[kept].sum().log()
    with torch.inference_mode():
        masked = module.embedding(module.inference(**inputs, mask=torch.from_numpy(~kept))["z"])
    np.testing.assert_allclose(embedded, masked.numpy(), rtol=1e-5, atol=1e-5)
    if not isinstance(module, LinearMLPModule):
        zeroed = reference.get_latent_representation(only(adata, kept), integrated=False)
        np.testing.assert_array_equal(embedded, zeroed)
    R2MAEModel.prepare_query_anndata(panel, reference)
    np.testing.assert_array_equal(embedded, reference.get_latent_representation(panel, integrated=False))


def test_counts_of_a_gene_flagged_as_not_measured_are_not_read(trained: R2MAEModel, adata: AnnData) -> None:
    kept = np.arange(60) < 40
    expected = trained.get_latent_representation(adata[:, kept].copy())
    adata.var["scr2mae_measured"] = kept
    np.testing.assert_array_equal(trained.get_latent_representation(adata), expected)
    shuffled = adata[:, ::-1].copy()
    np.testing.assert_array_equal(trained.get_latent_representation(shuffled), expected)


def test_a_model_trains_on_a_panel_without_learning_from_absent_genes(
    trained: R2MAEModel, adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    panel = R2MAEModel.prepare_query_anndata(adata[:, :40].copy(), trained, inplace=False)
    kind = {"encoder": trained.init_params_["encoder"]}
    model = train_tiny(panel, model=kind, plan_kwargs={"weight_decay": 0.0})
    start = R2MAEModel(panel.copy(), n_hidden=16, n_latent=4, **kind).module
    if isinstance(start, LinearMLPModule):
        assert not model.module.linear.logged_axes[40:].any()
        assert model.module.linear.logged_axes[:40].any()
        weight = "to_logits.weight"
        before, after = start.get_parameter(weight), model.module.get_parameter(weight)
        torch.testing.assert_close(after[40:], before[40:], rtol=0, atol=0)
        return
    for layer in ("log_theta", "to_logits.weight", "encoder.first.linear.weight"):
        before, after = start.get_parameter(layer), model.module.get_parameter(layer)
        if layer.startswith("encoder"):
            before, after = before.T, after.T
        torch.testing.assert_close(after[40:], before[40:], rtol=0, atol=0)
        assert not torch.equal(after[:40], before[:40])


def _renamed(adata: AnnData, rename: Callable[[str], str], n: int = 60) -> AnnData:
    adata.var_names = [rename(name) if i < n else name for i, name in enumerate(adata.var_names)]
    return adata


CAUSES: dict[str, tuple[str, Callable[[str], str], str]] = {
    "case": ("gene{}", str.upper, "But for case, 60 of 60 match, such as 'GENE0' and 'gene0'"),
    "separators": ("HLA-{}", lambda name: name.replace("-", "."), "But for '.', '-' and '_', 60 of 60 match"),
    "suffix": ("G{}", lambda name: f"{name}.1", "But for a version or suffix at the end, 60 of 60 match"),
    "genome": ("G{}", lambda name: f"GRCh38_{name}", "But for a genome at the start, 60 of 60 match"),
}


@pytest.mark.parametrize("n", [20, 60], ids=["some", "all"])
@pytest.mark.parametrize("cause", CAUSES)
def test_names_spelled_otherwise_are_recognized(
    cause: str, n: int, adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    pattern, rename, message = CAUSES[cause]
    adata.var_names = [pattern.format(i) for i in range(60)]
    model = train_tiny(adata.copy())
    query = _renamed(adata, rename, n)
    if n == 60:
        with pytest.raises(ValueError, match="No shared genes") as caught:
            model.get_latent_representation(query)
        text = str(caught.value)
    else:
        with pytest.warns(
            UserWarning, match=r"Few shared genes.*40 of the reference's 60.*such as \["
        ) as said:
            model.get_latent_representation(query)
        text = str(said[0].message)
    assert message in text
    assert "rename adata.var_names" in text


@pytest.mark.parametrize("column", ["feature_name", "gene_ids"])
def test_a_column_of_var_that_matches_is_named(column: str, adata: AnnData, trained: R2MAEModel) -> None:
    adata.var[column] = pd.Categorical(adata.var_names)
    adata.var_names = [f"other{i}" for i in range(60)]
    message = (
        rf"No shared genes.*var\['{column}'\] matches 60 of 60: adata\.var_names = adata\.var\['{column}'\]"
    )
    with pytest.raises(ValueError, match=message):
        trained.get_latent_representation(adata)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.prepare_query_anndata(adata, trained)


def test_names_that_are_row_numbers_are_warned_about(adata: AnnData) -> None:
    adata.var_names = [str(i) for i in range(60)]
    with pytest.warns(UserWarning, match=r"Gene names are row numbers, '0' to '59', which match"):
        R2MAEModel.setup_anndata(adata)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
@pytest.mark.parametrize("backed", [False, True], ids=["memory", "backed"])
def test_counts_of_0_and_1_are_warned_about(dtype: Any, backed: bool, adata: AnnData, tmp_path: Path) -> None:
    adata.X = (adata.X > 0).astype(dtype)
    if backed:
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.warns(UserWarning, match=r"All counts in adata\.X are 0 or 1"):
        R2MAEModel.setup_anndata(adata)
