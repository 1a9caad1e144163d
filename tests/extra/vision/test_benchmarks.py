"""The benchmark scripts run on generated images, go on where they were stopped, and write what they announce."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import scr2mae
from scr2mae.extra import vision

from .conftest import make_images
from .test_formats import ATTRIBUTES, write_celeba

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    """Run a script with arguments, as from the command line."""

    def script(name, *arguments):
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        pytest.importorskip("matplotlib.pyplot").switch_backend("agg")
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")

    return script


def test_celeba_writes_figures_2b_and_5_to_7_and_goes_on(run, tmp_path, capsys):
    write_celeba(tmp_path / "celeba", n=14)
    out = tmp_path / "out"
    common = ["--data", tmp_path / "celeba", "-o", out, "--epochs", 1, "--head-epochs", 1, "--size", 16]
    common += ["--base-channels", 16, "--batch-size", 5]
    run("celeba.py", *common, "--ratios", 0.5)
    before = pd.read_csv(out / "celeba.csv")
    run("celeba.py", *common, "--ratios", 0.9, 0.5)
    frame, table = pd.read_csv(out / "celeba.csv"), pd.read_csv(out / "celeba_attributes.csv")
    pd.testing.assert_frame_equal(frame.iloc[:1], before)
    assert frame["ratio"].tolist() == [0.5, 0.9]
    assert frame["mse_uncorrupted"].between(0, 1).all()
    assert len(table) == 2 * 40
    assert set(table["attribute"]) == set(ATTRIBUTES)
    assert set(table["accuracy"]) <= {0.0, 50.0, 100.0}  # of two test images
    np.testing.assert_allclose(table.groupby("ratio")["accuracy"].mean(), frame["accuracy"])
    assert {path.name for path in out.glob("*.png")} == {"figure_2b.png", "figure_6.png"}


@pytest.fixture
def arrays(tmp_path):
    """An .npz file of RGB images of 16 x 16 pixels."""
    x, y = make_images(24)
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    return tmp_path / "images.npz"


def test_figure_2c_finetunes_at_each_ratio_and_goes_on(run, arrays, tmp_path, capsys):
    common = ["--data", arrays, "-o", tmp_path, "--presets", "tiny", "--patch-size", 8, "--batch-size", 12]
    common += ["--epochs", 1, "--finetune-epochs", 1, "--images-per-step", 24, 12]
    run("imagenet.py", "figure_2c", *common, "--rows", 0.5)
    run("imagenet.py", "figure_2c", *common, "--rows", 0.5, 0.75)
    frame = pd.read_csv(tmp_path / "figure_2c.csv")
    assert frame["row"].tolist() == [0.5, 0.75]
    assert (frame["top5"] == 100).all()  # of three classes
    assert (tmp_path / "figure_2c.png").stat().st_size > 5000


def test_the_dry_run_of_table_1_has_its_shape(run, tmp_path, capsys):
    run("imagenet.py", "table_1", "-o", tmp_path, "--dry-run", "--shard", "0/2")
    assert len(pd.read_csv(tmp_path / "table_1.csv")) == 3
    run("imagenet.py", "table_1", "-o", tmp_path, "--dry-run")
    frame = pd.read_csv(tmp_path / "table_1.csv")
    assert set(frame["row"]) == set(scr2mae.schemes("vision"))
    assert (frame["top5"] >= frame["top1"]).all()
    *_, heading, _, top1, top5 = capsys.readouterr().out.strip().splitlines()
    assert [text.strip() for text in heading.strip("|").split("|")] == [
        *("metric", "mae", "mae_high", "mae_low", "mdlm", "dynamic", "r2mae"),
    ]
    assert top1.startswith("| top1")
    assert top5.startswith("| top5")


def test_a_step_of_table_1_has_the_images_of_mae(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = runpy.run_path(str(BENCHMARKS / "imagenet.py"))
    options = SimpleNamespace(images_per_step=script["IMAGES_PER_STEP"], batch_size=256)
    for name, n_images, n_epochs, lr in (("vit", 4096, 150, 1.5e-4), ("finetune", 1024, 100, 5e-4)):
        recipe, n_accumulated = script["recipe_and_accumulation"](name, options, n_epochs)
        assert recipe.batch_size * n_accumulated == n_images
        assert recipe.plan_kwargs(n_images)["lr"] == pytest.approx(lr * n_images / 256)
        assert recipe.warmup_epochs == vision.RECIPES[name].warmup_epochs


def test_the_comparison_of_schemes_goes_on_where_it_was_stopped(run, arrays, tmp_path, capsys):
    common = ["--data", arrays, "-o", tmp_path, "--epochs", 1, "--head-epochs", 2]
    common += ["--seeds", 1, "--batch-size", 12]
    run("vit.py", *common, "--schemes", "pixels", "r2mae")
    run("vit.py", *common, "--schemes", "pixels", "untrained", "r2mae", "mdlm")
    frame = pd.read_csv(tmp_path / "vit.csv")
    assert frame["scheme"].tolist() == ["pixels", "r2mae", "untrained", "mdlm"]
    assert frame["accuracy"].between(0, 100).all()
    assert frame.set_index("scheme")["loss_0.75"].notna().to_dict() == {
        "pixels": False,
        "r2mae": True,
        "untrained": False,
        "mdlm": True,
    }


def test_the_mnist_grid_is_cut_by_time_and_goes_on(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(60, 28, 28)).astype(np.uint8), rng.integers(10, size=60)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    common = ["--data", tmp_path / "mnist.npz", "-o", tmp_path, "--quick", "--n-hidden", 16, "--n-latent", 16]
    run("mnist.py", *common, "--ratios", 0.5)
    run("mnist.py", *common, "--ratios", 0.1, 0.5)
    frame = pd.read_csv(tmp_path / "mnist.csv")
    assert frame["ratio"].tolist() == [0.5, 0.1]
    assert frame["effective_rank_entropy"].between(0, np.log(16)).all()
    assert (tmp_path / "mnist.png").stat().st_size > 5000
