"""Training in several processes: equal ranks, lost ranks, launchers, devices."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.strategies import DDPStrategy

from scr2mae import R2MAEModel
from scr2mae.data import CellLoader
from scr2mae.masking import as_ratio_schedule, draw_mask
from scr2mae.train.distributed import count_processes, data_parallel_options

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "several_devices.md"
LONGEST = 600  # seconds until a run that hangs is ended


def blocks_of_the_page(language: str) -> list[str]:
    """Code blocks of the page on several devices."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def lines_of(stdout: str) -> list[str]:
    """Lines of the output, without those of gloo, which writes to standard output in some versions of PyTorch."""
    return [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]


@pytest.fixture(scope="module")
def together(runs: ModuleType, run_script: Callable[..., Any]) -> dict[str, Any]:
    """Files, output and end of two processes of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(runs.N_PROCESSES)]
    folder, done = run_script("torchrun", *launcher)
    ended = time.time()
    assert all((folder / f"rank{rank}.json").exists() for rank in range(2)), done.stderr[-3000:]
    said = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {"folder": folder, "said": said, "done": done, "ended": ended}


@pytest.fixture(scope="module")
def alone(runs: ModuleType, counts: Path) -> R2MAEModel:
    """The same run in one process, with the same global mini-batches."""
    return runs.fit(counts, batch_size=runs.N_PROCESSES * runs.BATCH_SIZE)


@pytest.fixture(scope="module")
def commanded(run_script: Callable[..., Any]) -> dict[str, Any]:
    """Files and output of ``scr2mae train --devices 2``, and end of a run that lost one of its processes."""
    folder, done = run_script("command")
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


def test_every_rank_fits_the_same_alignment_of_batches(together: dict[str, Any]) -> None:
    first, second = (said["alignment"] for said in together["said"])
    assert first == second


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
        # Each mini-batch of validation has its own masked genes, and two processes have twice as many mini-batches.
        rtol = 0.05 if name == "validation_loss" else 0.03
        np.testing.assert_allclose(history[name], alone.history_[name][name], rtol=rtol)
    # Curves at one ratio hide other genes in mini-batches of another size, so both are scored in mini-batches of one size.
    model = R2MAEModel.load(together["folder"] / "model")
    batch = next(iter(CellLoader(alone._cells(None), alone.split_.validation, batch_size=1000)))
    for ratio in (0.1, 0.3, 0.5):
        with torch.no_grad():
            one, two = (
                each.module.training_loss(batch, ratio=ratio, seed=0, step=0).loss for each in (alone, model)
            )
        torch.testing.assert_close(two, one, rtol=0.02, atol=0)


def test_studies_with_other_genes_have_the_losses_of_one_process(
    runs: ModuleType, together: dict[str, Any], counts: Path
) -> None:
    alone = runs.fit(counts, with_panels=True, batch_size=runs.N_PROCESSES * runs.BATCH_SIZE)
    expected = alone.history_["train_loss_step"]["train_loss_step"]
    np.testing.assert_allclose(together["said"][0]["losses_panels"], expected, rtol=0.03)


@pytest.mark.parametrize(
    "of", ["digest", "digest_resumed", "digest_frozen", "digest_curriculum", "digest_panels"]
)
def test_weights_and_running_statistics_end_equal_on_all_ranks(together: dict[str, Any], of: str) -> None:
    first, second = together["said"]
    assert first[of] == second[of]


@pytest.mark.parametrize("of", ["history", "history_curriculum"])
def test_all_ranks_keep_the_same_history(together: dict[str, Any], of: str) -> None:
    first, second = together["said"]
    assert first[of] == second[of]


def test_running_statistics_are_the_mean_of_those_of_the_ranks(
    runs: ModuleType, together: dict[str, Any], counts: Path
) -> None:
    adata = anndata.read_h5ad(counts)
    R2MAEModel.setup_anndata(adata, donor_key="donor")
    statistics = []
    got = torch.load(together["folder"] / "frozen.pt", weights_only=True)
    running = [name for name in got if name.endswith(("running_mean", "running_var"))]
    fixed = {name: value for name, value in got.items() if name not in running}
    for rank in range(runs.N_PROCESSES):
        model = R2MAEModel(adata, n_hidden=16, n_latent=4)
        model.module.load_state_dict(fixed, strict=False)
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
    assert len(running) == 4
    for name in running:
        mean = torch.stack([each[name] for each in statistics]).mean(dim=0)
        torch.testing.assert_close(got[name], mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(statistics[0][name], mean, rtol=1e-3)


def test_early_stopping_stops_all_ranks_at_one_epoch(together: dict[str, Any]) -> None:
    assert [said["epochs_until_stopped"] for said in together["said"]] == [3, 3]


def test_only_the_first_rank_writes_the_model(runs: ModuleType, together: dict[str, Any]) -> None:
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
    runs: ModuleType, together: dict[str, Any], counts: Path
) -> None:
    alone = runs.fit(counts, curriculum=runs.CURRICULUM, batch_size=runs.N_PROCESSES * runs.BATCH_SIZE)
    got = R2MAEModel.load(together["folder"] / "curriculum").module.state_dict()
    fresh = R2MAEModel(alone.adata, n_hidden=16, n_latent=4, curriculum=runs.CURRICULUM).module.state_dict()
    learned = [name for name in got if name.startswith("curriculum")]
    assert learned
    assert not any(torch.equal(got[name], fresh[name]) for name in learned)
    for name in ("train_loss", "validation_loss"):
        curve = together["said"][0]["history_curriculum"][name]
        # Each mini-batch of validation has its own masked genes, and two processes have twice as many mini-batches.
        rtol = 0.05 if name == "validation_loss" else 0.03
        np.testing.assert_allclose(curve, alone.history_[name][name], rtol=rtol)


def test_two_processes_resume_bit_for_bit(together: dict[str, Any]) -> None:
    for said in together["said"]:
        assert said["digest_resumed"] == said["digest"]


def test_the_command_line_starts_processes_and_one_of_them_prints(
    runs: ModuleType, commanded: dict[str, Any], together: dict[str, Any]
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
    "Ray Train": {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two processes on each of two machines."""
    for name, value in LAUNCHERS[request.param].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: request.param == "Ray Train")
    return request.param


@pytest.mark.usefixtures("launcher")
def test_devices_and_nodes_are_those_of_the_launcher() -> None:
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


def test_a_copy_of_the_run_in_each_process_is_refused(
    launcher: str, adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    with pytest.raises(
        ValueError, match=rf"{launcher} has started 4 processes, .* pass devices=2, num_nodes=2"
    ):
        train_tiny(adata, devices=1)


@pytest.mark.parametrize("missing", ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])
def test_a_batch_script_of_slurm_is_one_process(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHERS["srun"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    assert data_parallel_options(devices="auto", accelerator="cpu", given={}) == {"devices": "auto"}


SRUN = """#!{python}
import os, subprocess, sys
command = [sys.executable, "-m", "scr2mae.cli", *sys.argv[2:], *{options}]
tasks = [subprocess.Popen(command, env={{**os.environ, **task}}) for task in {tasks}]
sys.exit(max(task.wait() for task in tasks))
"""


def test_the_script_for_slurm_trains_on_two_machines_what_torchrun_trains_and_resumes(
    runs: ModuleType, counts: Path, together: dict[str, Any], tmp_path: Path
) -> None:
    script = next(block for block in blocks_of_the_page("bash") if "#SBATCH" in block)
    (tmp_path / "counts.h5ad").symlink_to(counts)
    options = ["--batch-size", str(runs.BATCH_SIZE), *runs.COMMAND]
    tasks = [slurm(rank=rank) for rank in range(2)]
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(python=sys.executable, options=options, tasks=tasks))
    srun.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for submission in ("first", "second"):
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        assert done.returncode == 0, (submission, done.stderr[-3000:])
        assert sum(line.startswith("model\t") for line in lines_of(done.stdout)) == 1
        assert runs.digest(R2MAEModel.load(tmp_path / "model")) == together["said"][0]["digest"]
        shutil.rmtree(tmp_path / "model")  # as if the job had ended after its last checkpoint


@pytest.mark.slow
def test_the_example_for_ray_trains_one_model_with_two_workers(counts: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train")
    example = next(block for block in blocks_of_the_page("python") if "ray.train" in block)
    (tmp_path / "counts.h5ad").symlink_to(counts)
    for name, value in {
        "/shared": str(tmp_path),
        "num_workers=4": "num_workers=2",
        "use_gpu=True": "use_gpu=False",
        "model.train(": "model.train(max_epochs=2, accelerator='cpu', ",
    }.items():
        assert name in example
        example = example.replace(name, value)
    script = tmp_path / "train.py"
    script.write_text(f"import ray\nray.init(num_cpus=2, include_dashboard=False)\n{example}")
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        timeout=LONGEST,
        check=True,
    )
    (run,) = R2MAEModel.load(tmp_path / "model").runs_
    assert (run["n_processes"], run["epochs"]) == (2, 2)


def test_several_gpus_synchronize_batch_normalization_by_default() -> None:
    asked = {"devices": 2, "accelerator": "gpu"}
    assert data_parallel_options(**asked, given={})["sync_batchnorm"] is True
    assert data_parallel_options(**asked, given={"sync_batchnorm": False})["sync_batchnorm"] is False


def test_strategies_that_would_lose_the_curves_are_refused(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel]
) -> None:
    with pytest.raises(ValueError, match=r"strategy='ddp_spawn' leaves the curves .* use 'ddp'"):
        train_tiny(adata, devices=2, strategy="ddp_spawn")


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
