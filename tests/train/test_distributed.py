"""Runs in several processes, runs that lose one, and runs that are killed and resumed."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.strategies import DDPStrategy

from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.data import CellLoader
from scr2mae.masking import as_ratio_schedule, draw_mask
from scr2mae.train.checkpoints import WholeFileIO
from scr2mae.train.distributed import count_processes, data_parallel_options

SCRIPT = Path(__file__).with_name("several_processes.py")
LONGEST = 600  # seconds until a run that hangs is ended


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs = _script()


def start(*line: str) -> subprocess.CompletedProcess[str]:
    """Run the script; fail if it hangs."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *line],
        env=one_thread,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST,
    )


@pytest.fixture(scope="module")
def counts(simulate: Callable[..., AnnData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "counts.h5ad"
    simulate(800, 60).write_h5ad(path)
    return path


def lines_of(stdout: str) -> list[str]:
    """What was printed, but by gloo, which some versions of PyTorch let write to standard output."""
    return [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]


def folder_with(counts: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp(name)
    (folder / "counts.h5ad").symlink_to(counts)
    return folder


@pytest.fixture(scope="module")
def together(counts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes of torchrun did and said, and how they ended."""
    folder = folder_with(counts, tmp_path_factory, "torchrun")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(runs.N_PROCESSES)]
    done = start(*launch, str(SCRIPT), "torchrun", str(folder))
    ended = time.time()
    assert all((folder / f"rank{rank}.json").exists() for rank in range(2)), done.stderr[-3000:]
    said = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {"folder": folder, "said": said, "done": done, "ended": ended}


@pytest.fixture(scope="module")
def alone(counts: Path) -> R2MAEModel:
    """The same run in one process, with the same mini-batches over all."""
    return runs.fit(counts, batch_size=runs.N_PROCESSES * runs.BATCH_SIZE)


@pytest.fixture(scope="module")
def commanded(counts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``scr2mae train --devices 2`` did, and how a run in such processes ended that lost one."""
    folder = folder_with(counts, tmp_path_factory, "command")
    done = start(str(SCRIPT), "command", str(folder))
    return {"folder": folder, "done": done, "ended": time.time()}


def test_ratios_masks_and_split_are_those_of_one_process_on_every_rank(
    together: dict[str, Any], alone: R2MAEModel
) -> None:
    ratios = alone.history_["mask_ratio_step"]["mask_ratio_step"].tolist()
    schedule = as_ratio_schedule((0.1, 0.5), seed=0)
    assert ratios == [schedule(step, len(ratios)) for step in range(len(ratios))]
    masks = [draw_mask(60, ratio, seed=0, step=step) for step, ratio in enumerate(ratios)]
    for said in together["said"]:
        assert said["history"]["mask_ratio_step"] == ratios
        assert said["masks"] == [mask.nonzero().squeeze(1).tolist() for mask in masks]
        assert said["split"] == alone.split_.sha256


def test_compiled_steps_share_gradients_as_eager_ones_do(together: dict[str, Any]) -> None:
    first, second = together["said"]
    assert first["digest_compiled"] == second["digest_compiled"]
    np.testing.assert_allclose(first["losses_compiled"], first["history"]["train_loss_step"], rtol=1e-4)


def test_ranks_skip_the_same_steps_and_stop_together_with_the_same_names(together: dict[str, Any]) -> None:
    first, second = (said["extreme"] for said in together["said"])
    assert first == second
    assert first["one"]["skipped"] == [1, 1, 1, 1]  # a cell that one rank alone reads, once an epoch
    assert first["one"]["error"] == ""
    assert first["one"]["finite"]
    assert sum(first["all"]["skipped"]) == 20
    assert re.search(r"last 20 steps .* cells \['cell\d+'.*; cells \['cell\d+'", first["all"]["error"])
    assert first["all"]["finite"]


def test_losses_are_within_two_percent_of_one_process(together: dict[str, Any], alone: R2MAEModel) -> None:
    history = together["said"][0]["history"]
    assert set(history) == set(alone.history_)
    for name in ("train_loss_step", "train_loss", "validation_loss"):
        np.testing.assert_allclose(history[name], alone.history_[name][name], rtol=0.02)
    # Curves at one ratio hide other genes in mini-batches of another size, so both are scored in mini-batches of one size.
    model = R2MAEModel.load(together["folder"] / "model")
    batch = next(iter(CellLoader(alone._cells(None), alone.split_.validation, batch_size=1000)))
    for ratio in (0.1, 0.3, 0.5):
        with torch.no_grad():
            one, two = (
                each.module.training_loss(batch, ratio=ratio, seed=0, step=0).loss for each in (alone, model)
            )
        torch.testing.assert_close(two, one, rtol=0.02, atol=0)


@pytest.mark.parametrize("of", ["digest", "digest_resumed", "digest_frozen", "digest_curriculum"])
def test_weights_and_running_statistics_end_equal_on_all_ranks(together: dict[str, Any], of: str) -> None:
    first, second = together["said"]
    assert first[of] == second[of]


@pytest.mark.parametrize("of", ["history", "history_curriculum"])
def test_all_ranks_keep_the_same_history(together: dict[str, Any], of: str) -> None:
    first, second = together["said"]
    assert first[of] == second[of]


def test_running_statistics_are_the_mean_of_those_of_the_ranks(
    together: dict[str, Any], counts: Path
) -> None:
    adata = anndata.read_h5ad(counts)
    R2MAEModel.setup_anndata(adata, donor_key="donor")
    statistics = []
    for rank in range(runs.N_PROCESSES):
        model = R2MAEModel(adata, n_hidden=16, n_latent=4)
        share = CellLoader(
            model._cells(None),
            model._split(None, seed=0).train,
            batch_size=runs.BATCH_SIZE,
            shuffle=True,
            seed=0,
            drop_single=True,
            rank=rank,
            world_size=runs.N_PROCESSES,
        )
        schedule = as_ratio_schedule((0.1, 0.5), seed=0)
        model.module.train()
        for step, batch in enumerate(share):
            model.module.training_loss(batch, ratio=schedule(step, len(share)), seed=0, step=step)
        statistics.append(model.module.state_dict())
    got = torch.load(together["folder"] / "frozen.pt", weights_only=True)
    running = [name for name in got if name.endswith(("running_mean", "running_var"))]
    assert len(running) == 4
    for name in running:
        mean = torch.stack([each[name] for each in statistics]).mean(dim=0)
        torch.testing.assert_close(got[name], mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(statistics[0][name], mean, rtol=1e-3)


def test_early_stopping_stops_all_ranks_at_one_epoch(together: dict[str, Any]) -> None:
    assert [said["epochs_until_stopped"] for said in together["said"]] == [3, 3]


def test_the_first_rank_saves_and_the_others_do_not_mind(together: dict[str, Any]) -> None:
    model = R2MAEModel.load(together["folder"] / "model")
    assert runs.digest(model) == together["said"][0]["digest"]
    assert model.split_.sha256 == together["said"][0]["split"]
    for name, values in together["said"][0]["history"].items():
        np.testing.assert_array_equal(model.history_[name][name], values)


def test_shards_of_an_embedding_add_up_to_that_of_one_process(together: dict[str, Any], counts: Path) -> None:
    shards = [np.load(together["folder"] / f"embedding{rank}.npy") for rank in range(2)]
    whole = R2MAEModel.load(together["folder"] / "model").get_latent_representation(anndata.read_h5ad(counts))
    np.testing.assert_allclose(np.concatenate(shards), whole, rtol=1e-5, atol=1e-6)


def test_a_thawed_curriculum_learns_and_two_processes_agree_with_one(
    together: dict[str, Any], counts: Path
) -> None:
    alone = runs.fit(counts, curriculum=runs.CURRICULUM, batch_size=runs.N_PROCESSES * runs.BATCH_SIZE)
    got = R2MAEModel.load(together["folder"] / "curriculum").module.state_dict()
    fresh = R2MAEModel(alone.adata, n_hidden=16, n_latent=4, curriculum=runs.CURRICULUM).module.state_dict()
    learned = [name for name in got if name.startswith("curriculum")]
    assert learned
    assert not any(torch.equal(got[name], fresh[name]) for name in learned)
    for name in ("train_loss", "validation_loss"):
        curve = together["said"][0]["history_curriculum"][name]
        np.testing.assert_allclose(curve, alone.history_[name][name], rtol=0.02)


def test_two_processes_resume_bit_for_bit(together: dict[str, Any]) -> None:
    for said in together["said"]:
        assert said["digest_resumed"] == said["digest"]


def test_the_command_line_starts_processes_of_its_own_and_one_of_them_speaks(
    commanded: dict[str, Any], together: dict[str, Any]
) -> None:
    done, printed = commanded["done"], lines_of(commanded["done"].stdout)
    first_line = f"model\t{commanded['folder'] / 'model'}"
    assert printed[:1] == [first_line], done.stderr[-3000:]
    assert sum(line.startswith("model\t") for line in printed) == 1
    assert done.stderr.count("Read 800 cells and 60 genes") == 1
    written = [folder / "model" for folder in (commanded["folder"], together["folder"])]
    hashes = [[path.name for path in folder.glob("weights-*")] for folder in written]
    assert len(hashes[0]) == 1
    assert runs.digest(R2MAEModel.load(written[0])) == runs.digest(R2MAEModel.load(written[1]))


@pytest.mark.parametrize("launched", ["together", "commanded"], ids=["torchrun", "lightning"])
def test_a_killed_process_ends_the_others_with_an_error(
    launched: str, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(launched)
    assert run["done"].returncode != 0
    assert not (run["folder"] / "went_on").exists()
    assert run["ended"] - float((run["folder"] / "lost_at").read_text()) < LONGEST / 2


@pytest.fixture(scope="module")
def killed(counts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of runs that were ended by SIGKILL in the middle of an epoch."""
    folder = folder_with(counts, tmp_path_factory, "killed")
    done = start(str(SCRIPT), "killed", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("curriculum", [None, runs.CURRICULUM], ids=["average", "curriculum"])
def test_a_run_killed_in_mid_epoch_ends_as_one_that_never_was(
    curriculum: Any, killed: Path, counts: Path
) -> None:
    folder = killed / ("average" if curriculum is None else "curriculum")
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 12
    assert kept["global_step"] % 10 != 0  # ten steps an epoch: this one is in the middle of the second
    assert {"averaging_state", "current_model_state", "optimizer_states", "scr2mae_random_state"} <= set(kept)
    resumed = runs.fit(counts, curriculum=curriculum, resume=folder)
    whole = runs.fit(counts, curriculum=curriculum)
    assert kept["scr2mae_run"]["split"] == whole.split_.sha256[:16]
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    for name, curve in whole.history_.items():
        np.testing.assert_array_equal(resumed.history_[name], curve)


def test_the_command_line_ends_a_killed_run_as_one_that_never_was(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(killed)
    assert not Path("model").exists()
    options = [*runs.COMMAND, "--batch-size", str(runs.BATCH_SIZE), "-q"]
    assert main(["train", "counts.h5ad", "-o", "whole", *options]) == 0
    assert main(["train", "counts.h5ad", "-o", "resumed", "--resume", "command", *options]) == 0
    whole, resumed = (R2MAEModel.load(name).module.state_dict() for name in ("whole", "resumed"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


@pytest.fixture(scope="module")
def checkpointed(simulate: Callable[..., AnnData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpointed")
    resumable(simulate(), checkpoint_dir=folder, max_epochs=1)
    return folder


def resumable(adata: AnnData, *, model: dict[str, Any] | None = None, **options: Any) -> R2MAEModel:
    built = R2MAEModel(adata, n_hidden=8, n_latent=2, **(model or {}))
    quick = {"max_epochs": 2, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}
    built.train(**{**quick, **options})
    return built


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1; split was "),
        ({"train_size": 0.8}, "is from another run: split was "),
        ({"batch_size": 16}, "is from another run: batch_size was 32, is 16"),
        ({"plan_kwargs": {"lr": 0.01}}, r"optimizer was Adam\(lr=0.001, .*, is Adam\(lr=0.01"),
        ({"plan_kwargs": {"averaging": None}}, "averaging was 0.1, is None"),
        ({"model": {"mask_ratio": 0.25}}, r"mask_ratio was UniformRatio\(.*, is FixedRatio"),
    ],
    ids=["seed", "split", "batch_size", "lr", "averaging", "mask_ratio"],
)
def test_a_checkpoint_of_another_run_is_refused(
    changed: dict[str, Any], message: str, checkpointed: Path, adata: AnnData
) -> None:
    with pytest.raises(ValueError, match=message):
        resumable(adata, resume=checkpointed, **changed)


@pytest.mark.parametrize("changed", ["counts", "cells"])
def test_changed_data_are_noticed(changed: str, checkpointed: Path, adata: AnnData) -> None:
    if changed == "counts":
        adata.X.data += 1
        with pytest.raises(ValueError, match=r"another run: cells was 120 of .*, is 120 of "):
            resumable(adata, resume=checkpointed)
    else:
        with pytest.raises(ValueError, match=r"cells was 120 of .*, is 119 of .*; split was"):
            resumable(adata[:119].copy(), resume=checkpointed)


def test_the_random_generators_go_on_where_they_were(
    simulate: Callable[..., AnnData], tmp_path: Path
) -> None:
    class Draw(pl.Callback):
        def __init__(self) -> None:
            self.drawn: list[tuple[float, float, float]] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.drawn.append((float(torch.rand(())), np.random.rand(), random.random()))  # noqa: NPY002

    whole, resumed = Draw(), Draw()
    resumable(simulate(), callbacks=[whole], checkpoint_dir=tmp_path, max_epochs=1)
    resumable(simulate(), callbacks=[whole], resume=tmp_path)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    resumable(simulate(), callbacks=[resumed], resume=tmp_path)
    assert resumed.drawn == whole.drawn[4:]
    assert len(set(whole.drawn)) == 8


def test_who_is_killed_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    WholeFileIO().save_checkpoint({"epoch": 1}, path)

    def write_half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        WholeFileIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


@pytest.mark.parametrize("options", [{"checkpoint_dir": "run"}, {}], ids=["zero steps", "no folder"])
def test_checkpoints_by_the_step_need_a_number_and_a_folder(options: dict[str, Any], adata: AnnData) -> None:
    with pytest.raises(ValueError, match="checkpoint_every_n_steps must be at least 1 and needs"):
        resumable(adata, checkpoint_every_n_steps=0 if options else 5, **options)


def slurm(*, rank: int, n_tasks: int = 2, n_nodes: int = 2) -> dict[str, str]:
    """Environment of a task of srun; the machines are all this one."""
    on_node = n_tasks // n_nodes
    return {
        "SLURM_JOB_ID": str(os.getpid()),  # its last digits are the port
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(n_tasks),
        "SLURM_NTASKS_PER_NODE": str(on_node),
        "SLURM_STEP_NUM_TASKS": str(n_tasks),
        "SLURM_STEP_NUM_NODES": str(n_nodes),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % on_node),
        "SLURM_NODEID": str(rank // on_node),
    }


LAUNCHERS = {
    "torchrun": {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
    "srun": slurm(rank=0, n_tasks=4, n_nodes=2),
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two processes on each of two machines."""
    for name, value in LAUNCHERS[request.param].items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.mark.usefixtures("launcher")
def test_devices_and_nodes_are_those_that_were_started() -> None:
    options = data_parallel_options(devices="auto", accelerator="cpu", given={})
    assert (options["devices"], options["num_nodes"]) == (2, 2)
    assert isinstance(options["strategy"], DDPStrategy)
    assert "sync_batchnorm" not in options
    assert count_processes({"accelerator": "cpu"}) == 4


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, 3),
        ({"devices": 1}, 1),
        ({"devices": "2"}, 2),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,2"}, 2),
        ({"devices": -1, "accelerator": "gpu", "num_nodes": 2}, 6),
        ({"accelerator": "cpu"}, 1),
    ],
)
def test_there_is_a_process_per_device_and_node(
    asked: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert count_processes(asked) == expected


def test_a_copy_of_the_run_in_each_process_is_refused(launcher: str, adata: AnnData) -> None:
    with pytest.raises(
        ValueError, match=rf"{launcher} has started 4 processes, .* pass devices=2, num_nodes=2"
    ):
        resumable(adata, devices=1)


@pytest.mark.parametrize("missing", ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])
def test_a_batch_script_of_slurm_is_one_process(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHERS["srun"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    assert data_parallel_options(devices="auto", accelerator="cpu", given={}) == {"devices": "auto"}


def test_tasks_of_srun_on_two_machines_train_the_model_that_torchrun_trains(
    counts: Path, together: dict[str, Any], tmp_path: Path
) -> None:
    line = [
        "train",
        str(counts),
        "-o",
        str(tmp_path / "model"),
        "--batch-size",
        str(runs.BATCH_SIZE),
        *runs.COMMAND,
    ]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "scr2mae.cli", *line],
            env={**os.environ, **slurm(rank=rank), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [task.communicate(timeout=LONGEST) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert lines_of(said[0][0])[0].startswith("model\t")
    assert lines_of(said[1][0]) == []
    assert runs.digest(R2MAEModel.load(tmp_path / "model")) == together["said"][0]["digest"]


def test_several_gpus_synchronise_batch_normalisation_unless_told_otherwise() -> None:
    asked = {"devices": 2, "accelerator": "gpu"}
    assert data_parallel_options(**asked, given={})["sync_batchnorm"] is True
    assert data_parallel_options(**asked, given={"sync_batchnorm": False})["sync_batchnorm"] is False


def test_processes_that_would_keep_the_curves_to_themselves_are_refused(adata: AnnData) -> None:
    with pytest.raises(ValueError, match=r"strategy='ddp_spawn' leaves the curves .* use 'ddp'"):
        resumable(adata, devices=2, strategy="ddp_spawn")


def test_a_notebook_trains_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scr2mae.train.distributed._IS_INTERACTIVE", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert data_parallel_options(devices="auto", accelerator="gpu", given={}) == {"devices": 1}
    with pytest.raises(ValueError, match="which a notebook cannot start; run a script, or pass devices=1"):
        data_parallel_options(devices=2, accelerator="gpu", given={})


def test_autotune_tries_two_learning_rates(simulate: Callable[..., AnnData], tmp_path: Path) -> None:
    for name in ("ray.tune", "hyperopt", "scib_metrics"):
        pytest.importorskip(name)
    from ray import shutdown, tune
    from scvi.autotune import run_autotune

    adata = simulate()
    R2MAEModel.setup_anndata(adata, donor_key="donor")
    try:
        experiment = run_autotune(
            R2MAEModel,
            adata,
            metrics="validation_loss",
            mode="min",
            search_space={
                "model_params": {"n_hidden": 8, "n_latent": 2},
                "train_params": {
                    "max_epochs": 2,
                    "batch_size": 32,
                    "plan_kwargs": tune.grid_search([{"lr": 1e-3}, {"lr": 1e-2}]),
                },
            },
            num_samples=1,
            searcher="random",
            resources={"cpu": 1},
            logging_dir=str(tmp_path),
        )
    finally:
        shutdown()
    results = experiment.result_grid
    assert len(results) == 2
    assert not results.errors
    assert len({result.metrics["validation_loss"] for result in results}) == 2
    assert all(np.isfinite(result.metrics["validation_loss"]) for result in results)
