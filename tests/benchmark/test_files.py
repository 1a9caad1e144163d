"""Stored fits, resumed runs and the files of a benchmark."""

import json
import time

import numpy as np
import pandas as pd
import psutil
import pytest

import scr2mae
from scr2mae import benchmark
from scr2mae.benchmark import methods as _methods
from scr2mae.benchmark.environment import measure


def test_a_second_run_computes_nothing_and_gives_the_same_rows(finished, cells, quick, monkeypatch):
    result, folder = finished
    monkeypatch.setattr("scr2mae.benchmark.fits._embed", lambda *_: pytest.fail("computed again"))
    again = benchmark.run(
        cells, methods=["lognorm", "pca", "scvi", "r2mae", "X_mine"], seeds=(0, 1), out=folder, **quick
    )
    pd.testing.assert_frame_equal(again.results, result.results)


def test_another_target_probes_again_and_trains_nothing(finished, cells, quick, monkeypatch, tmp_path):
    _, folder = finished
    (tmp_path / "embeddings").symlink_to(folder / "embeddings")
    monkeypatch.setattr(scr2mae.R2MAEModel, "train", lambda *_, **__: pytest.fail("trained again"))
    result = benchmark.run(
        cells,
        methods=["r2mae"],
        seeds=(1,),
        out=tmp_path,
        **(quick | {"scale": False, "targets": {"batch": "classification"}}),
    )
    assert set(result.results.query("part == 'probe'")["target"]) == {"batch"}


@pytest.mark.parametrize("change", ["counts", "settings", "seed", "versions"])
def test_a_change_of_an_input_computes_the_embedding_again(change, cells, one, tmp_path, monkeypatch):
    fitted = []
    real = _methods._fit_pca

    def count(*args, **kwargs):
        fitted.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(_methods, "_fit_pca", count)
    settings = one | {"methods": ["pca"], "out": tmp_path}
    benchmark.run(cells, **settings)
    benchmark.run(cells, **settings)
    assert len(fitted) == 1
    if change == "counts":
        cells.X[0, 0] += 1
    if change == "settings":
        settings["n_pcs"] = 4
    if change == "seed":
        settings["split_seed"] = 1
    if change == "versions":
        monkeypatch.setattr("scr2mae.benchmark.fits.versions", lambda: {"torch": "0"})
    benchmark.run(cells, **settings)
    assert len(fitted) == 2


def test_an_interrupted_run_keeps_finished_fits(cells, one, tmp_path, monkeypatch):
    settings = one | {"methods": ["pca", "r2mae"], "seeds": (0,), "out": tmp_path}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scr2mae.R2MAEModel, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            benchmark.run(cells, **settings)
    assert [path.name.split("-")[0] for path in (tmp_path / "cells").iterdir()] == ["pca"]
    assert (tmp_path / "benchmark.json").is_file()
    assert not list(tmp_path.rglob(".*"))
    with monkeypatch.context() as patch:
        patch.setattr(_methods, "_fit_pca", lambda *_, **__: pytest.fail("computed again"))
        result = benchmark.run(cells, **settings)
    assert result.results["method"].unique().tolist() == ["pca", "r2mae"]


def test_a_damaged_file_is_computed_again(cells, one, tmp_path, caplog):
    settings = one | {"methods": ["pca"], "out": tmp_path}
    first = benchmark.run(cells, **settings)
    for path in [*(tmp_path / "cells").iterdir(), *(tmp_path / "embeddings").iterdir()]:
        path.write_bytes(path.read_bytes()[:50])
    second = benchmark.run(cells, **settings)
    assert caplog.text.count("computing it anew") == 2
    np.testing.assert_array_equal(second.results["value"], first.results["value"])


def test_the_folder_holds_rows_tables_figures_and_settings(finished):
    result, folder = finished
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {"results.csv", "table.md", "benchmark.json", "scores.png", "reconstruction.png"}
    rows = pd.read_csv(folder / "results.csv")
    np.testing.assert_allclose(rows["value"], result.results["value"], rtol=1e-12)
    assert (folder / "table.md").read_text(encoding="utf-8") == result.to_markdown()
    about = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    assert (about["n_obs"], about["n_vars"], about["n_donors"], about["pretrain_on"]) == (120, 40, 8, "all")


def test_the_report_has_a_table_per_scaling_and_says_what_pretraining_saw(finished):
    result, _ = finished
    text = result.to_markdown()
    assert "Pretraining saw the counts of all cells" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Features as they are, as in the paper",
        "## Features divided by their standard deviation",
        "## Reconstruction by fraction of masked genes",
    ]
    cells_of = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "|" in line
    }
    assert cells_of["Log-normalized"] == "all cells"
    assert cells_of["PCA"] == "all cells"
    assert cells_of["X_mine"] == "not known"
    row = next(line for line in text.splitlines() if line.startswith("| PCA"))
    expected = result.table(scale=False).loc["pca"]
    assert f"{expected[('Score', '', '')]:.3f}" in row
    assert f"{expected[('Rank', '', '')]:.2f}" in row


def test_a_table_of_another_scaling_is_an_error(cells, one):
    result = benchmark.run(cells, methods=["pca"], **(one | {"scale": True}))
    assert result.scalings == [True]
    with pytest.raises(ValueError, match=r"No rows with scale=False; there are \[True\]"):
        result.table(scale=False)


def test_the_cost_includes_memory_that_is_freed_before_the_end():
    start = time.perf_counter()
    with measure() as cost:
        block = np.ones(30_000_000)
        time.sleep(0.5)
        del block
    outside = time.perf_counter() - start
    with measure() as idle:
        pass
    assert cost.peak_memory_mb > idle.peak_memory_mb + 150
    assert 0.5 <= cost.seconds <= outside


def test_without_sampling_the_peak_is_the_memory_of_the_process(monkeypatch):
    monkeypatch.setattr("scr2mae.benchmark.environment._INTERVAL", 60.0)
    with measure() as cost:
        pass
    assert cost.peak_memory_mb == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.05)
