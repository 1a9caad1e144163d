"""``scr2mae train``: what it saves, what reaches the model, and what is left of an interrupted run."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
from anndata import AnnData

import scr2mae
from scr2mae import R2MAEModel, datasets
from scr2mae.cli import main
from scr2mae.data import open_store


def test_train_saves_the_model_that_the_api_trains(counts, train_tiny, capsys, tiny):
    assert main(["train", "counts.h5ad", "-o", "deep/model", *tiny]) == 0
    out, err = capsys.readouterr()
    rows = dict(line.split("\t") for line in out.splitlines())
    assert rows["model"] == "deep/model"
    assert (rows["cells_train"], rows["cells_validation"], rows["epochs"]) == ("108", "12", "2")
    assert "Read 120 cells and 60 genes from counts.h5ad." in err

    expected = train_tiny(anndata.read_h5ad("counts.h5ad"))
    got = R2MAEModel.load("deep/model")
    np.testing.assert_array_equal(got.get_latent_representation(counts), expected.get_latent_representation())
    assert float(rows["train_loss"]) == pytest.approx(expected.history["train_loss"].iloc[-1, 0], abs=1e-4)
    assert got.split_.sha256 == expected.split_.sha256


def test_every_option_reaches_the_model(counts, capsys):
    line = (
        "train counts.h5ad -o model --quiet --layer counts --batch-key batch --labels-key cell_type --donor-key donor "
        "--size-factor-key age_in_days --categorical-covariate-key chemistry --continuous-covariate-key age "
        "--no-check-counts --n-hidden 8 --n-latent 3 --n-layers 1 --mask-ratio 0.25 --seed 7 --max-epochs 1 "
        "--batch-size 16 --train-size 0.7 --split-key chemistry2 --accelerator cpu --devices 1 --precision bf16-mixed"
    )
    counts.obs["age_in_days"] = 1.0 + np.arange(120)
    counts.obs["chemistry2"] = [f"c{i % 8}" for i in range(120)]
    counts.layers["counts"].data += 0.5
    counts.write_h5ad("counts.h5ad")
    assert main(shlex.split(line)) == 0
    assert capsys.readouterr().err == ""
    model = R2MAEModel.load("model")
    assert model.registry["setup_args"] == {
        "layer": "counts",
        "batch_key": "batch",
        "labels_key": "cell_type",
        "donor_key": "donor",
        "size_factor_key": "age_in_days",
        "categorical_covariate_keys": ["chemistry"],
        "continuous_covariate_keys": ["age"],
        "check_counts": False,
        "study_key": None,
        "measured_key": None,
        "infer_measured": False,
    }
    sizes = {name: model.init_params_[name] for name in ("n_hidden", "n_latent", "n_layers", "seed")}
    assert sizes == {"n_hidden": 8, "n_latent": 3, "n_layers": 1, "seed": 7}
    assert model.mask_ratio == 0.25
    assert model.split_.key == "chemistry2"
    assert len(model.split_.train) == 90
    assert len(model.history["train_loss_step"]) == 6


@pytest.mark.parametrize(("options", "key"), [([], "donor"), (["--split-cells"], None)])
def test_donors_are_kept_whole_unless_cells_are_asked_for(counts, options, key, tiny):
    assert main(["train", "counts.h5ad", "-o", "model", "-q", "--donor-key", "donor", *options, *tiny]) == 0
    assert R2MAEModel.load("model").split_.key == key


def test_a_store_is_trained_on_and_embedded_like_the_file_it_was_made_from(counts, capsys, tiny):
    assert main(["prepare", "counts.h5ad", "-o", "store.zarr", "--n-top-genes", "60", "-q"]) == 0
    store = open_store("store.zarr")
    in_memory = AnnData(store.X[:], obs=store.obs, var=store.var)
    in_memory.write_h5ad("store.h5ad")
    for source in ("store.zarr", "store.h5ad"):
        assert main(["train", source, "-o", f"model_of_{source}", *tiny, "--counts-on", "auto", "-q"]) == 0
        assert main(["embed", source, "--model", f"model_of_{source}", "-o", f"{source}.embedded.h5ad"]) == 0
    from_store, from_file = (anndata.read_h5ad(f"store.{kind}.embedded.h5ad") for kind in ("zarr", "h5ad"))
    np.testing.assert_array_equal(from_store.obsm["X_r2mae"], from_file.obsm["X_r2mae"])
    assert from_store.obs.equals(from_file.obs)
    assert from_store.n_vars == 0


def test_a_folder_that_is_no_store_is_refused_by_name(folder, capsys):
    (folder / "other").mkdir()
    assert main(["train", "other", "-o", "model"]) == 1
    assert "other is a folder without a zarr store; expected an .h5ad file" in capsys.readouterr().err


def test_options_of_training_reach_the_trainer(counts, monkeypatch):
    seen = {}

    def stop(self, **options):
        seen.update(options)
        raise ValueError("far enough")

    monkeypatch.setattr(R2MAEModel, "train", stop)
    assert main(["train", "counts.h5ad", "-o", "model", "--early-stopping", "--devices", "0,1"]) == 1
    assert seen == {
        "accelerator": "auto",
        "devices": [0, 1],
        "precision": "auto",
        "counts_on": "auto",
        "train_size": 0.9,
        "early_stopping": True,
        "enable_progress_bar": True,
    }


def _stop_at_training(monkeypatch):
    """Keep the model and the arguments of its training, and stop."""
    seen = {}

    def stop(self, **options):
        seen.update(options, model=self)
        raise ValueError("far enough")

    monkeypatch.setattr(R2MAEModel, "train", stop)
    return seen


def test_paper_trains_the_network_of_the_paper_on_its_genes(counts, monkeypatch):
    seen = _stop_at_training(monkeypatch)
    line = "train counts.h5ad -o model --paper --batch-key batch --scheme r2mae_dynamic --seed 3 --n-latent 9"
    assert main(shlex.split(line)) == 1
    model = seen.pop("model")
    assert {name: seen[name] for name in scr2mae.paper().train} == scr2mae.paper().train
    expected = scr2mae.paper().model | {"n_latent": 9, "seed": 3}
    assert model.init_params_ == expected
    assert model.mask_ratio == scr2mae.schemes(seed=3)["r2mae_dynamic"].mask_ratio
    genes = datasets.preprocess(counts, **scr2mae.paper().preprocess).var_names
    assert list(model.spec.var_names) == list(genes)


@pytest.mark.parametrize("name", ["mdlm", "cl_k0"])
def test_a_scheme_sets_ratio_and_curriculum(counts, monkeypatch, name):
    seen = _stop_at_training(monkeypatch)
    assert main(shlex.split(f"train counts.h5ad -o model --scheme {name} --precision bf16-mixed")) == 1
    expected = R2MAEModel(counts, **scr2mae.schemes()[name]._asdict())
    assert (seen["model"].mask_ratio, seen["model"].curriculum) == (expected.mask_ratio, expected.curriculum)
    assert seen["precision"] == "bf16-mixed"


def test_an_atlas_trains_with_its_columns_and_steps(atlas_file, monkeypatch):
    seen = _stop_at_training(monkeypatch)
    assert main(shlex.split(f"train {atlas_file} -o model --paper --atlas hlca --scheme cl")) == 1
    model = seen["model"]
    assert model.curriculum == scr2mae.schemes("hlca")["cl"].curriculum
    assert model.registry["setup_args"]["batch_key"] == "dataset"
    assert model.registry["setup_args"]["donor_key"] == "donor_id"
    assert seen["split_key"] is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--scheme mae --mask-ratio 0.2", "--mask-ratio stands in place of --scheme"),
        ("--atlas hlca", "--atlas needs --paper"),
        ("--scheme mee", "Invalid value"),
    ],
)
def test_options_of_the_paper_that_do_not_fit_are_refused(counts, capsys, line, message):
    assert main(shlex.split(f"train counts.h5ad -o model {line}")) == 2
    assert message in capsys.readouterr().err


def test_batches_are_aligned_unless_turned_off(counts, tiny):
    train = ["train", "counts.h5ad", "-q", "--batch-key", "batch", *tiny]
    assert main([*train, "-o", "aligned"]) == 0
    assert main([*train, "-o", "raw", "--no-integration"]) == 0
    aligned, raw = R2MAEModel.load("aligned"), R2MAEModel.load("raw")
    assert raw.alignment_ is None
    embed = ["embed", "counts.h5ad", "--model", "aligned", "-q", "--accelerator", "cpu"]
    assert main([*embed, "-o", "aligned.h5ad"]) == 0
    assert main([*embed, "-o", "raw.h5ad", "--no-integration"]) == 0
    embedded = [anndata.read_h5ad(f"{name}.h5ad").obsm["X_r2mae"] for name in ("aligned", "raw")]
    np.testing.assert_array_equal(embedded[0], aligned.get_latent_representation(counts))
    np.testing.assert_array_equal(embedded[1], raw.get_latent_representation(counts))
    assert np.abs(embedded[0] - embedded[1]).max() > 0


def test_a_resumed_run_ends_where_a_whole_one_does(counts, tiny):
    once = [*tiny, "--quiet"]
    assert main(["train", "counts.h5ad", "-o", "whole", *once]) == 0
    assert (
        main(["train", "counts.h5ad", "-o", "half", "--checkpoint-dir", "run", *once, "--max-epochs", "1"])
        == 0
    )
    resume = ["--checkpoint-dir", "run", "--resume", "run"]
    assert main(["train", "counts.h5ad", "-o", "resumed", *resume, *once]) == 0
    whole, half, resumed = (
        R2MAEModel.load(name).get_latent_representation(counts) for name in ("whole", "half", "resumed")
    )
    np.testing.assert_array_equal(resumed, whole)
    assert not np.array_equal(half, whole)


def test_checkpoints_may_lie_in_the_model_folder(counts, tiny):
    assert main(["train", "counts.h5ad", "-o", "model", "--checkpoint-dir", "model/run", "-q", *tiny]) == 0
    assert R2MAEModel.load("model").is_trained_
    assert Path("model/run/last.ckpt").is_file()


def test_force_replaces_a_model(counts, model_folder, tiny):
    before = R2MAEModel.load(model_folder).get_latent_representation(counts)
    assert main(["train", "counts.h5ad", "-o", "model", "--force", "-q", "--seed", "5", *tiny]) == 0
    assert not np.array_equal(R2MAEModel.load(model_folder).get_latent_representation(counts), before)
    assert len(list(model_folder.glob("weights-*"))) == 1


def test_an_interrupted_run_exits_with_130_saves_no_model_and_says_how_to_go_on(
    counts, monkeypatch, capsys, files
):
    def interrupted(self, *, checkpoint_dir, **options):
        checkpoint_dir.mkdir()
        (checkpoint_dir / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(R2MAEModel, "train", interrupted)
    assert main(["train", "counts.h5ad", "-o", "model", "--checkpoint-dir", "run", "-q"]) == 130
    assert (
        capsys.readouterr().err
        == "scr2mae: No model was saved; continue with --resume run.\nscr2mae: interrupted\n"
    )
    assert set(files()) == {"counts.h5ad", "run/last.ckpt"}


def test_an_interrupted_run_without_checkpoints_says_what_would_have_kept_it(counts, monkeypatch, capsys):
    def interrupted(self, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(R2MAEModel, "train", interrupted)
    assert main(["train", "counts.h5ad", "-o", "model"]) == 130
    assert "with --checkpoint-dir a run can be continued" in capsys.readouterr().err
    assert not Path("model").exists()


def test_processes_other_than_the_first_write_and_say_nothing(counts, monkeypatch, capsys):
    from lightning.pytorch.utilities import rank_zero_only

    def trained_elsewhere(self, **options):
        self.trainer = SimpleNamespace(is_global_zero=False)

    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    monkeypatch.setattr(R2MAEModel, "train", trained_elsewhere)
    assert main(["train", "counts.h5ad", "-o", "model"]) == 0
    assert capsys.readouterr() == ("", "")
    assert not Path("model").exists()


def test_training_starts_from_a_model_and_adds_genes(counts, capsys, tiny):
    counts[:, :50].copy().write_h5ad("few.h5ad")
    assert main(["train", "few.h5ad", "-o", "first", *tiny]) == 0
    assert (
        main(
            [
                "train",
                "counts.h5ad",
                "-o",
                "second",
                "--from",
                "first",
                "--accelerator",
                "cpu",
                "--max-epochs",
                "1",
            ]
        )
        == 0
    )
    first, second = R2MAEModel.load("first"), R2MAEModel.load("second")
    assert second.spec.var_names[:50].tolist() == first.spec.var_names.tolist()
    assert (len(second.spec.var_names), len(second.runs_)) == (60, 2)
    assert second.init_params_["n_latent"] == first.init_params_["n_latent"]
    assert main(["train", "counts.h5ad", "-o", "third", "--from", "first", "--n-hidden", "8"]) == 2
    assert "--from takes the network of the model; leave out ['n_hidden']" in capsys.readouterr().err


def test_a_store_of_an_outer_join_is_trained_with_its_panels(counts, tiny):
    counts.raw = None
    counts[:60, :50].copy().write_h5ad("one.h5ad")
    counts[60:, 10:].copy().write_h5ad("two.h5ad")
    assert (
        main(
            [
                "prepare",
                "one.h5ad",
                "two.h5ad",
                "-o",
                "both.zarr",
                "--join",
                "outer",
                "--prefix",
                "donor",
                "--quiet",
            ]
        )
        == 0
    )
    assert main(["train", "both.zarr", "-o", "model", *tiny]) == 0
    measured = R2MAEModel.load("model").spec.studies.measured
    assert {name: genes.sum() for name, genes in measured.items()} == {"one": 50, "two": 50}
