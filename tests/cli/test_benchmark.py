"""``scr2mae benchmark``: thin over ``benchmark.run``, with the conventions of the other commands."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scr2mae
from scr2mae import benchmark, datasets

BENCH = (
    "benchmark counts.h5ad --donor-key donor --target disease:classification -o out --methods pca r2mae --seeds 0 "
    "--n-splits 1 --scale no --n-hidden 8 --n-latent 4 --max-epochs 1 --batch-size 64 --accelerator cpu -q"
)


@pytest.fixture
def counts(cells):
    """``counts.h5ad`` in the working folder: cells of eight donors."""
    cells.write_h5ad("counts.h5ad")
    return cells


def test_benchmark_prints_the_scores_of_the_api_and_writes_its_files(counts, capsys, run):
    assert run(BENCH) == 0
    out, err = capsys.readouterr()
    assert err == ""
    expected = benchmark.run(
        counts,
        targets={"disease": "classification"},
        donor_key="donor",
        methods=["pca", "r2mae"],
        seeds=(0,),
        n_splits=1,
        scale=False,
        model_kwargs={"n_hidden": 8, "n_latent": 4},
        train_kwargs={"max_epochs": 1, "batch_size": 64},
        accelerator="cpu",
        enable_progress_bar=False,
    ).table()
    got = pd.read_csv(io.StringIO(out), sep="\t", index_col="method")
    assert got.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(got["score"], expected["Score"].squeeze(), atol=5e-5)
    np.testing.assert_allclose(got["rank"], expected["Rank"].squeeze(), atol=5e-3)
    assert {path.name for path in Path("out").iterdir()} == {
        *(
            "benchmark.json",
            "results.csv",
            "table.md",
            "scores.png",
            "reconstruction.png",
            "cells",
            "embeddings",
        ),
    }


def test_the_same_command_goes_on_and_another_folder_is_left_alone(counts, capsys, monkeypatch, files, run):
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    before = files()
    assert run(BENCH) == 1
    assert "out exists and is not empty; choose another path or pass --force." in capsys.readouterr().err
    assert files() == before
    assert run(f"{BENCH} --force") == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("scr2mae.benchmark.fits._embed", lambda *_: pytest.fail("computed again"))
    assert run(BENCH) == 0
    assert capsys.readouterr().out == first
    assert Path("out/notes.txt").read_text() == "mine"


def test_an_interrupted_benchmark_says_how_to_go_on(counts, capsys, monkeypatch, run):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scr2mae.R2MAEModel.train", interrupted)
    assert run(BENCH) == 130
    err = capsys.readouterr().err
    assert (
        err == "scr2mae: Finished fits are kept; the same command continues in out.\nscr2mae: interrupted\n"
    )


@pytest.mark.parametrize("atlas", [False, True])
def test_every_option_reaches_the_benchmark(counts, monkeypatch, atlas, run):
    seen = {}

    def stop(adata, **options):
        seen.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr(benchmark, "run", stop)
    counts.obs["s"], counts.obs["a:b"] = counts.obs["donor"], counts.obs["disease"]
    counts.write_h5ad("counts.h5ad")
    what = "--atlas sea_ad" if atlas else "--target a:b:classification --target age:regression"
    line = (
        f"benchmark counts.h5ad -o out --donor-key donor {what} --layer counts --batch-key batch --sample-key s "
        "--cell-level a b --methods pca scvi --seeds 4 5 --integration --pretrain-on train --n-hidden 7 --n-latent 3 --max-epochs 2 "
        "--batch-size 9 --n-layers 3 --n-layers-decoder 0 --encoder mlp --scvi-max-epochs 6 --accelerator cpu --n-splits 3 --n-train-donors 4 --max-cells-per-donor 11 "
        "--max-cells-per-donor-and-class 12 --scale yes --n-bootstrap 13 -q"
    )
    assert run(line) == 1
    targets = benchmark.tasks("sea_ad") if atlas else {"a:b": "classification", "age": "regression"}
    assert seen == {
        "targets": targets,
        "out": Path("out"),
        "donor_key": "donor",
        "sample_key": "s",
        "cell_level": ("a", "b"),
        "layer": "counts",
        "use_raw": False,
        "batch_key": "batch",
        "methods": ("pca", "scvi"),
        "seeds": (4, 5),
        "pretrain_on": "train",
        "integration": True,
        "n_splits": 3,
        "n_train_donors": 4,
        "max_cells_per_donor": 11,
        "max_cells_per_donor_and_class": 12,
        "n_bootstrap": 13,
        "accelerator": "cpu",
        "scale": [True],
        "model_kwargs": {
            "encoder": "mlp",
            "n_hidden": 7,
            "n_latent": 3,
            "n_layers": 3,
            "n_layers_decoder": 0,
        },
        "train_kwargs": {"max_epochs": 2, "batch_size": 9},
        "scvi_train_kwargs": {"max_epochs": 6},
        "enable_progress_bar": False,
    }


def test_an_embedding_of_another_program_is_a_row(counts, capsys, run):
    table = pd.DataFrame(
        np.random.default_rng(0).normal(size=(counts.n_obs, 3)), index=counts.obs_names[::-1]
    )
    table.to_csv("scgpt.csv")
    line = BENCH.replace("--methods pca r2mae", "--methods pca --embedding X_scgpt=scgpt.csv")
    assert run(line) == 0
    shown = pd.read_csv(io.StringIO(capsys.readouterr().out), sep="\t", index_col="method")
    assert set(shown.index) == {"pca", "X_scgpt"}
    table.iloc[1:].to_csv("scgpt.csv")
    assert run(line.replace("-o out", "-o other")) == 1
    assert "1 of 120 cells have no embedding" in capsys.readouterr().err


def test_paper_passes_the_settings_of_the_paper(atlas_file, monkeypatch, run):
    seen = {}

    def stop(adata, **options):
        seen.update(options, n_vars=adata.n_vars)
        raise ValueError("far enough")

    monkeypatch.setattr(benchmark, "run", stop)
    line = f"benchmark {atlas_file} --paper --atlas hlca -o out --n-train-donors 4 --scvi-max-epochs 7 --n-hidden 8"
    assert run(line) == 1
    expected = dict(scr2mae.paper("hlca").benchmark)
    expected["model_kwargs"] = expected["model_kwargs"] | {"n_hidden": 8}
    expected["scvi_train_kwargs"] = {"max_epochs": 7}
    assert {name: seen[name] for name in expected} == expected
    assert seen["targets"] == benchmark.tasks("hlca")
    assert seen["n_train_donors"] == 4
    assert seen["n_vars"] == datasets.hlca(atlas_file).n_vars


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{BENCH} --atlas hlca", "give either --target or --atlas"),
        (f"{BENCH} --embedding X_scgpt", "--embedding: expected NAME=FILE, got 'X_scgpt'"),
        (BENCH.replace("--methods pca r2mae", "--embedding X=counts.h5ad"), "--embedding needs --methods"),
        (BENCH.replace("--seeds 0", "--seeds 1 1"), "--seeds must differ, got 1 1"),
        (
            "benchmark counts.h5ad --donor-key donor -o out",
            "give either --target or --atlas",
        ),
        (
            "benchmark counts.h5ad --atlas hlca -o out",
            "--donor-key is needed, except with --atlas and --paper",
        ),
        ("benchmark counts.h5ad --donor-key donor --atlas hlca", "parameter --output requires an argument"),
    ],
)
def test_wrong_usage_exits_with_two_and_leaves_nothing(line, message, counts, capsys, files, run):
    before = files()
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert files() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (BENCH.replace("counts.h5ad", "none.h5ad"), "No file none.h5ad."),
        (BENCH.replace("-o out", "-o notes.txt"), "notes.txt is a file; expected a folder"),
        (
            BENCH.replace("donor-key donor", "donor-key patient"),
            "no column 'patient' in obs; --donor-key takes",
        ),
        (BENCH.replace("pca r2mae", "r3mae"), "No method ['r3mae']; choose from"),
        (
            BENCH.replace("--target disease:classification", "--atlas hlca"),
            "No 'ann_finest_level' in adata.obs",
        ),
    ],
)
def test_an_error_is_one_line_exits_with_one_and_leaves_nothing(line, message, counts, capsys, files, run):
    Path("notes.txt").write_text("mine")
    before = files()
    assert run(line) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scr2mae: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files() == before


def test_counts_of_raw_give_the_table_of_counts_in_x(counts, capsys, run):
    line = BENCH.replace("pca r2mae", "pca lognorm")
    assert run(line) == 0
    expected = capsys.readouterr().out
    portal = counts.copy()
    portal.raw = counts.copy()
    portal.X = portal.X.log1p()
    portal.write_h5ad("counts.h5ad")
    line = line.replace("-o out", "-o raw")
    assert run(line) == 1
    assert "whole numbers are in" in capsys.readouterr().err
    assert run(f"{line} --use-raw") == 0
    assert capsys.readouterr().out == expected
    assert run(f"{line} --use-raw --layer counts") == 1
    assert "name two matrices" in capsys.readouterr().err


def test_donors_and_samples_of_several_columns_are_taken(counts, capsys, run):
    counts.obs["study"] = ["a", "b"] * 60
    counts.write_h5ad("counts.h5ad")
    line = BENCH.replace("--donor-key donor", "--donor-key study donor --sample-key study donor")
    assert run(line.replace("pca r2mae", "pca")) == 0
    found = pd.read_csv("out/results.csv")
    assert (found["n_train_donors"] + found["n_test_donors"]).dropna().unique().tolist() == [16]
