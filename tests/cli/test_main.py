"""The command line: what it writes, what it refuses and when, and what it says."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData
from anndata.tests.helpers import assert_equal

import scr2mae
from scr2mae import R2MAEModel
from scr2mae.cli import COMMANDS, main
from scr2mae.cli.command import CommandGroup, loading
from scr2mae.cli.main import build_parser
from scr2mae.data import open_store

TINY = [
    "--n-hidden",
    "16",
    "--n-latent",
    "4",
    "--max-epochs",
    "2",
    "--batch-size",
    "32",
    "--accelerator",
    "cpu",
]
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "cli.md"
HELP_IN_A_FRESH_PROCESS = """
import sys
from scr2mae.cli import COMMANDS, main

codes = [main(["--help"]), *(main([command.name, "--help"]) for command in COMMANDS)]
heavy = {"torch", "scvi", "lightning", "scanpy", "anndata", "pandas", "numpy", "matplotlib"} & set(sys.modules)
sys.exit(f"{codes} {heavy}" if any(codes) or heavy else 0)
"""


def with_words(commands, before=()):
    """Every command that does something, with what is typed before its arguments."""
    for command in commands:
        words = (*before, command.name)
        if isinstance(command, CommandGroup):
            yield from with_words(command.commands, words)
        else:
            yield pytest.param(words, command, id=" ".join(words))


def options_of(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return {string for action in parser._actions for string in action.option_strings} - {"-h", "--help"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def counts(folder, adata):
    """``counts.h5ad`` in the working folder, with some of everything that an AnnData can hold."""
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.arange(240.0).reshape(120, 2)
    adata.uns["nested"] = {"note": "kept", "numbers": np.arange(3)}
    adata.raw = adata.copy()
    adata.write_h5ad("counts.h5ad", compression="gzip")
    return adata


@pytest.fixture
def model_folder(folder, trained):
    trained.save("model")
    return folder / "model"


@pytest.fixture
def no_training(monkeypatch):
    """Fail if training, or reading a whole file, starts."""
    monkeypatch.setattr(R2MAEModel, "train", lambda *args, **kwargs: pytest.fail("training has started"))


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --- help and registry


def test_help_loads_neither_torch_nor_scvi():
    done = subprocess.run(
        [sys.executable, "-c", HELP_IN_A_FRESH_PROCESS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"usage: scr2mae {command.name}" in done.stdout


@pytest.mark.parametrize(("words", "command"), list(with_words(COMMANDS)))
def test_the_examples_in_the_help_are_valid_command_lines(words, command, capsys):
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = command.examples.strip().splitlines()
    assert examples
    for line in examples:
        assert line in shown
        program, *arguments = shlex.split(line)
        assert program == "scr2mae"
        assert build_parser().parse_args(arguments).command is command


@pytest.mark.parametrize(("words", "command"), list(with_words(COMMANDS)))
def test_the_guide_has_every_option(words, command):
    section = GUIDE.read_text(encoding="utf-8").split(f"## scr2mae {' '.join(words)}\n")[1].split("\n## ")[0]
    assert [option for option in options_of(command) if f"`{option}" not in section] == []


def test_names_of_commands_are_unique():
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


def test_exit_codes_are_in_the_help(capsys):
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.split("exit codes:")[1].splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["0", "1", "2", "130"]


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scr2mae {scr2mae.__version__}\n"


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("2", 2), ("0,3", [0, 3]), ("1,", [1])])
def test_devices_are_a_number_or_positions(text, value):
    arguments = ["train", "counts.h5ad", "-o", "model", "--devices", text]
    assert build_parser().parse_args(arguments).devices == value


# --- errors in data and files: 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("line", ["train counts.h5ad -o /proc/model", "demo -o /proc/demo"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before_training(line, counts, capsys, no_training):
    assert main(shlex.split(line)) == 1
    assert "error: Cannot write to /proc: " in capsys.readouterr().err


def test_debug_shows_the_traceback_and_the_same_code(folder, capsys):
    assert main(["train", "none.h5ad", "-o", "model", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("scr2mae: error: No file none.h5ad.\n")


def test_a_defect_is_told_from_an_error_in_the_data(counts, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise TypeError("'NoneType' object\nis not callable")

    monkeypatch.setattr(R2MAEModel, "train", broken)
    assert main(["train", "counts.h5ad", "-o", "model", "-q"]) == 1
    assert capsys.readouterr().err == (
        "scr2mae: error: 'NoneType' object is not callable (TypeError, which may be a defect of scr2mae; "
        "--debug shows where)\n"
    )


def test_a_long_message_is_cut(counts, monkeypatch, capsys):
    def mismatch(*args, **kwargs):
        raise RuntimeError("size mismatch\n" * 500)

    monkeypatch.setattr(R2MAEModel, "train", mismatch)
    assert main(["train", "counts.h5ad", "-o", "model", "-q"]) == 1
    err = capsys.readouterr().err
    assert len(err) < 700
    assert err.endswith(" ... (--debug shows the rest)\n")


def test_a_checkpoint_that_leaves_nothing_to_do_is_no_defect(counts, capsys):
    run = ["train", "counts.h5ad", "-q", *TINY, "--checkpoint-dir", "run"]
    assert main([*run, "-o", "model", "--max-epochs", "4"]) == 0
    assert main([*run, "-o", "other", "--max-epochs", "1", "--resume", "run"]) == 1
    err = capsys.readouterr().err
    assert "is from epoch 4; max_epochs includes those epochs" in err
    assert "defect" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_process_while_libraries_load_and_is_an_exception_again_after(set_sigint):
    script = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from scr2mae.cli.command import loading\nwith loading(): os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
    set_sigint(signal.default_int_handler)
    with loading():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_program_ends_with_the_code_and_without_a_traceback(folder):
    done = subprocess.run(
        [sys.executable, "-m", "scr2mae.cli", "train", "none.h5ad", "-o", "model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "scr2mae: error: No file none.h5ad.\n")


# --- train


def test_train_saves_the_model_that_the_api_trains(counts, train_tiny, capsys):
    assert main(["train", "counts.h5ad", "-o", "deep/model", *TINY]) == 0
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
    counts.obs["chemistry2"] = [f"c{i % 4}" for i in range(120)]
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
    }
    sizes = {name: model.init_params_[name] for name in ("n_hidden", "n_latent", "n_layers", "seed")}
    assert sizes == {"n_hidden": 8, "n_latent": 3, "n_layers": 1, "seed": 7}
    assert model.mask_ratio == 0.25
    assert model.split_.key == "chemistry2"
    assert len(model.split_.train) == 90
    assert len(model.history["train_loss_step"]) == 6


@pytest.mark.parametrize(("options", "key"), [([], "donor"), (["--split-cells"], None)])
def test_donors_are_kept_whole_unless_cells_are_asked_for(counts, options, key):
    assert main(["train", "counts.h5ad", "-o", "model", "-q", "--donor-key", "donor", *options, *TINY]) == 0
    assert R2MAEModel.load("model").split_.key == key


def test_a_store_is_trained_on_and_embedded_like_the_file_it_was_made_from(counts, capsys):
    assert main(["prepare", "counts.h5ad", "-o", "store.zarr", "--n-top-genes", "60", "-q"]) == 0
    store = open_store("store.zarr")
    in_memory = AnnData(store.X[:], obs=store.obs, var=store.var)
    in_memory.write_h5ad("store.h5ad")
    for source in ("store.zarr", "store.h5ad"):
        assert main(["train", source, "-o", f"model_of_{source}", *TINY, "--counts-on", "auto", "-q"]) == 0
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
    assert seen.pop("max_epochs") is None
    assert seen == {
        "accelerator": "auto",
        "devices": [0, 1],
        "precision": "auto",
        "counts_on": "auto",
        "train_size": 0.9,
        "split_key": None,
        "early_stopping": True,
        "resume": None,
        "checkpoint_dir": None,
        "enable_progress_bar": True,
    }


def test_a_resumed_run_ends_where_a_whole_one_does(counts):
    once = [*TINY, "--quiet"]
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


def test_checkpoints_may_lie_in_the_model_folder(counts):
    assert main(["train", "counts.h5ad", "-o", "model", "--checkpoint-dir", "model/run", "-q", *TINY]) == 0
    assert R2MAEModel.load("model").is_trained_
    assert Path("model/run/last.ckpt").is_file()


def test_force_replaces_a_model(counts, model_folder):
    before = R2MAEModel.load(model_folder).get_latent_representation(counts)
    assert main(["train", "counts.h5ad", "-o", "model", "--force", "-q", "--seed", "5", *TINY]) == 0
    assert not np.array_equal(R2MAEModel.load(model_folder).get_latent_representation(counts), before)
    assert len(list(model_folder.glob("weights-*"))) == 1


def test_an_interrupted_run_exits_with_130_saves_no_model_and_says_how_to_go_on(
    counts, folder, monkeypatch, capsys
):
    def interrupted(self, *, checkpoint_dir, **options):
        checkpoint_dir.mkdir()
        (checkpoint_dir / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(R2MAEModel, "train", interrupted)
    assert main(["train", "counts.h5ad", "-o", "model", "--checkpoint-dir", "run", "-q"]) == 130
    assert (
        capsys.readouterr().err
        == "scr2mae: No model was saved; go on with --resume run.\nscr2mae: interrupted\n"
    )
    assert set(files(folder)) == {"counts.h5ad", "run/last.ckpt"}


# --- embed


def test_embed_adds_the_embedding_and_keeps_all_else(counts, model_folder, trained, capsys):
    assert (
        main(["embed", "counts.h5ad", "--model", "model", "-o", "deep/out.h5ad", "--accelerator", "cpu"]) == 0
    )
    out, err = capsys.readouterr()
    assert dict(line.split("\t") for line in out.splitlines()) == {
        "output": "deep/out.h5ad",
        "key": "X_r2mae",
        "cells": "120",
        "dimensions": "4",
    }
    assert "Embedding 120 cells" in err
    got = anndata.read_h5ad("deep/out.h5ad")
    expected = anndata.read_h5ad("counts.h5ad")
    expected.obsm["X_r2mae"] = trained.get_latent_representation(expected)
    assert_equal(got, expected, exact=True)


def test_embed_takes_other_genes_in_another_order(counts, model_folder, trained):
    query = counts[:50, np.random.default_rng(0).permutation(60)[:45]].copy()
    query.write_h5ad("query.h5ad")
    line = "embed query.h5ad --model model -o out.h5ad --key X_other --batch-size 7 --accelerator cpu -q"
    assert main(shlex.split(line)) == 0
    np.testing.assert_allclose(
        anndata.read_h5ad("out.h5ad").obsm["X_other"], trained.get_latent_representation(query), atol=1e-6
    )


def test_a_new_file_has_the_usual_permissions(counts, model_folder):
    umask = os.umask(0o027)
    try:
        assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 0
    finally:
        os.umask(umask)
    assert Path("out.h5ad").stat().st_mode & 0o777 == 0o640


def test_an_embedding_of_that_name_in_the_input_is_replaced_only_with_force(
    counts, model_folder, folder, capsys
):
    counts.obsm["X_r2mae"] = np.ones((120, 4))
    counts.write_h5ad("counts.h5ad")
    before = files(folder)
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    assert (
        "counts.h5ad has 'X_r2mae' in obsm already; choose another --key or pass --force."
        in capsys.readouterr().err
    )
    assert files(folder) == before
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--force"]) == 0
    assert not (anndata.read_h5ad("out.h5ad").obsm["X_r2mae"] == 1).any()


def test_a_file_may_be_embedded_in_place(counts, model_folder, trained, folder):
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "counts.h5ad", "-q", "--force"]) == 0
    np.testing.assert_array_equal(
        anndata.read_h5ad("counts.h5ad").obsm["X_r2mae"], trained.get_latent_representation(counts)
    )
    assert sorted(path.name for path in folder.iterdir()) == ["counts.h5ad", "model"]


def test_a_failure_while_writing_leaves_what_was_there(counts, model_folder, folder, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    Path("out.h5ad").write_text("an older result")
    before = files(folder)
    monkeypatch.setattr("anndata.io.write_elem", full)
    for output in ("out.h5ad", "new.h5ad"):
        assert main(["embed", "counts.h5ad", "--model", "model", "-o", output, "-q", "--force"]) == 1
        assert capsys.readouterr().err == "scr2mae: error: No space left on device\n"
        assert files(folder) == before


def test_a_link_keeps_pointing_at_the_file_that_was_replaced(counts, model_folder):
    Path("store").mkdir()
    Path("store/out.h5ad").touch()
    Path("out.h5ad").symlink_to("store/out.h5ad")
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--force"]) == 0
    assert Path("out.h5ad").is_symlink()
    assert "X_r2mae" in anndata.read_h5ad("store/out.h5ad").obsm


def test_a_file_without_obsm_gets_one(counts, model_folder):
    with h5py.File("counts.h5ad", "r+") as file:
        del file["obsm"]
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 0
    assert list(anndata.read_h5ad("out.h5ad").obsm) == ["X_r2mae"]


def test_too_few_shared_genes_are_one_line_and_leave_nothing(model_folder, folder, capsys):
    AnnData(np.ones((5, 4), np.float32)).write_h5ad("foreign.h5ad")
    before = files(folder)
    assert main(["embed", "foreign.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    err = capsys.readouterr().err
    assert "error: No shared genes: the query has 0 of the reference's 60 genes" in err
    assert err.count("\n") == 1
    assert files(folder) == before


def test_warnings_are_one_line_on_stderr(counts, model_folder, capsys):
    counts[:, :20].copy().write_h5ad("few.h5ad")
    with pytest.warns(UserWarning, match="Few shared genes"):
        assert main(["embed", "few.h5ad", "--model", "model", "-o", "out.h5ad", "-q", "--debug"]) == 0
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["embed", "few.h5ad", "--model", "model", "-o", "out2.h5ad", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("scr2mae: warning: Few shared genes: the query has 20 of the reference's 60 genes")
    assert err.count("\n") == 1
    assert out.startswith("output\tout2.h5ad\n")


def test_embed_writes_a_store_with_the_cells_and_their_embedding_alone(
    counts, model_folder, trained, folder, capsys
):
    line = ["embed", "counts.h5ad", "--model", "model", "-o", "new/out.zarr", "-q"]
    assert main(line) == 0
    store = anndata.read_zarr("new/out.zarr")
    np.testing.assert_array_equal(store.obsm["X_r2mae"], trained.get_latent_representation(counts))
    assert store.obs["donor"].astype(str).tolist() == counts.obs["donor"].astype(str).tolist()
    assert store.X is None
    assert store.n_vars == 0
    before = files(folder)
    assert main(line) == 1
    assert "exists" in capsys.readouterr().err
    assert files(folder) == before
    assert main([*line, "--force", "--key", "X_again"]) == 0
    assert list(anndata.read_zarr("new/out.zarr").obsm) == ["X_again"]


def test_an_input_with_obsm_of_the_oldest_kind_is_refused(counts, model_folder, folder, capsys):
    with h5py.File("counts.h5ad", "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(120, dtype=[("X_pca", "<f4", (2,))])
    before = files(folder)
    assert main(["embed", "counts.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]) == 1
    assert "written by an AnnData before 0.7, which cannot be added to" in capsys.readouterr().err
    assert files(folder) == before


def test_an_interrupted_run_without_checkpoints_says_what_would_have_kept_it(
    counts, folder, monkeypatch, capsys
):
    def interrupted(self, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(R2MAEModel, "train", interrupted)
    assert main(["train", "counts.h5ad", "-o", "model"]) == 130
    assert "with --checkpoint-dir a run can be gone on with" in capsys.readouterr().err
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
