"""The demonstration on simulated cells: scores are what they say, and files come all or not at all."""

import json
from functools import partialmethod

import anndata
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

import scr2mae
from scr2mae import R2MAEModel
from scr2mae.cli import demo, main

ROWS = ["R²MAE", "PCA", "PCA, 10,000 counts", "PCA of residuals", "PCA of ranks"]


@pytest.fixture(scope="module")
def result(simulate):
    """A demonstration run on simulated cells in place of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scr2mae.datasets.pbmc68k", simulate)
        return demo.run_demo(max_epochs=2, accelerator="cpu", enable_progress_bar=False)


@pytest.fixture
def written(tmp_path):
    return lambda: sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_an_embedding_that_shows_the_labels_scores_one_and_noise_scores_chance():
    codes = np.repeat([0, 1, 2, 3], 50)
    noise = np.random.default_rng(0).normal(size=(200, 3))
    scores = demo.compare({"Shown": 10 * np.eye(4)[codes], "Noise": noise}, pd.Series(codes.astype(str)))
    assert list(scores.index) == ["Shown", "Noise"]
    assert scores.loc["Shown"].to_dict() == {
        "balanced_accuracy": 1,
        "balanced_accuracy_sd": 0,
        "macro_f1": 1,
        "macro_f1_sd": 0,
    }
    assert scores.loc["Noise", "balanced_accuracy"] == pytest.approx(0.25, abs=0.1)


def test_the_demo_embeds_every_cell_and_scores_all_methods(result):
    np.testing.assert_array_equal(result.adata.obsm["X_r2mae"], result.model.get_latent_representation())
    assert list(result.scores.index) == ROWS
    assert result.scores.to_numpy().min() >= 0
    assert result.scores.to_numpy().max() <= 1
    expected = demo.compare({"PCA": result.adata.obsm["X_pca"]}, result.adata.obs["cell_type"])
    pd.testing.assert_frame_equal(result.scores.loc[["PCA"]], expected)


def test_expression_and_scvi_are_compared_with_if_asked(result, simulate, monkeypatch):
    monkeypatch.setattr("scr2mae.datasets.pbmc68k", simulate)
    monkeypatch.setattr(scvi.model.SCVI, "train", partialmethod(scvi.model.SCVI.train, max_epochs=1))
    more = demo.run_demo(all_baselines=True, max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    assert list(more.scores.index) == [*ROWS, "Log-normalized", "scVI, 10 dimensions", "scVI, 30 dimensions"]
    pd.testing.assert_frame_equal(more.scores.loc[ROWS], result.scores)
    assert more.scores.to_numpy().min() >= 0


def test_what_is_written_can_be_read_again(result, tmp_path):
    paths = demo.save_demo(result, tmp_path / "new" / "demo")
    assert [path.name for path in paths] == list(demo.FILES)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["demo"]
    model, cells = R2MAEModel.load(paths[0]), anndata.read_h5ad(paths[1])
    np.testing.assert_array_equal(cells.obsm["X_r2mae"], result.adata.obsm["X_r2mae"])
    np.testing.assert_array_equal(model.get_latent_representation(cells), cells.obsm["X_r2mae"])
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[2:])


def test_a_folder_with_something_in_it_is_refused_and_force_replaces_the_demo_alone(result, tmp_path):
    notes, cells = tmp_path / "notes.txt", tmp_path / "embedded.h5ad"
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; choose another folder or pass force=True"):
        demo.save_demo(result, tmp_path)
    assert list(tmp_path.iterdir()) == [notes]
    cells.write_text("an older demo")
    demo.save_demo(result, tmp_path, force=True)
    assert anndata.read_h5ad(cells).n_obs == result.adata.n_obs
    assert notes.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", *demo.FILES}


def test_a_failure_while_files_are_made_leaves_nothing(result, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(AnnData, "write_h5ad", full)
    with pytest.raises(OSError, match="No space left"):
        demo.save_demo(result, tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_the_files_and_the_three_lines(
    simulate, tmp_path, monkeypatch, capsys, written
):
    monkeypatch.setattr("scr2mae.datasets.pbmc68k", simulate)
    monkeypatch.chdir(tmp_path)
    options = ["--max-epochs", "1", "--accelerator", "cpu", "--quiet"]
    assert main(["demo", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    table = {line[2:20].strip(): line[20:].split() for line in lines if "±" in line}
    assert list(table) == ROWS
    assert all(0 <= float(number) <= 1 for row in table.values() for number in row if number != "±")
    assert [line.strip() for line in lines[-3:]] == demo.SNIPPET.splitlines()
    assert all(f"  demo/{name}" in lines for name in demo.FILES)
    assert {path.split("/")[1] for path in written()} == set(demo.FILES)

    before = written()
    monkeypatch.setattr(R2MAEModel, "train", lambda *args, **kwargs: pytest.fail("checked too late"))
    assert main(["demo", *options]) == 1
    assert "demo exists and is not empty; choose another path or pass --force." in capsys.readouterr().err
    assert written() == before


def test_the_three_lines_run(adata, monkeypatch):
    monkeypatch.setattr("scr2mae.model.training.default_max_epochs", lambda *_: 1)
    names = {"scr2mae": scr2mae, "adata": adata}
    exec(demo.SNIPPET, names)
    np.testing.assert_array_equal(adata.obsm["X_r2mae"], names["model"].get_latent_representation())
    assert len(demo.SNIPPET.splitlines()) == 3


def test_the_saved_model_names_its_labels(result, tmp_path):
    demo.save_demo(result, tmp_path / "demo")
    document = json.loads((tmp_path / "demo" / "model" / "model.json").read_text())
    assert document["registry"]["setup_args"]["labels_key"] == "cell_type"
