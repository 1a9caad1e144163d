"""Real faults: writers killed, disks full, folders closed, two writers at once, Ctrl-C."""

import errno
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import model_folder
from scr2mae.cli import main

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults.py"


ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}


TINY = {"n_hidden": 16, "n_latent": 4}


posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks")


@posix
@pytest.mark.slow
def test_eight_writers_that_are_killed_lose_nothing() -> None:
    """The script's short form: one kill an operation, each with a check of what is left and a run that goes on."""
    done = subprocess.run(
        [sys.executable, str(FAULTS), "--rounds", "8", "--seed", "1"],
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.rsplit(maxsplit=4) for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 9
    for name, rounds, struck, survived, losses in rows:
        assert rounds == survived, name
        assert losses == "0", name
        assert int(struck) <= int(rounds)
    assert [int(number) for number in rows[-1][1:]][1] >= 4  # of eight; others were quicker than their delay


def test_the_script_notices_what_is_lost(tmp_path: Path) -> None:
    """A writer that is killed half-way and leaves half a file must be counted as a loss, or the table means nothing."""
    spec = importlib.util.spec_from_file_location(FAULTS.stem, FAULTS)
    assert spec is not None
    faults = importlib.util.module_from_spec(spec)
    sys.modules[FAULTS.stem] = faults
    spec.loader.exec_module(faults)

    def work(ready: Callable[[], Any], folder: Path) -> None:
        ready()
        with (folder / "out").open("w") as file:
            for _ in range(20):
                file.write("line\n")
                file.flush()
                time.sleep(0.01)

    def check(folder: Path, whole: Any) -> Any:
        path = folder / "out"
        text = path.read_text() if path.exists() else ""
        faults.expect(text in ("", "line\n" * 20), "half a file")
        return text

    import random

    careless = faults.Operation("careless", faults.nothing, work, check)
    count = faults.kill(careless, 3, random.Random(0), tmp_path)
    assert count.rounds == 3
    assert count.struck >= 1
    assert count.lost >= 1
    assert count.survived == 3 - count.lost


def in_a_fork(work: Callable[[], Any], *, before: Callable[[], None]) -> str:
    """What went wrong, in a process of its own that has restricted itself."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            before()
            work()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(process, 0)
    return said


def no_file_above(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(trained: R2MAEModel, tmp_path: Path) -> Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model"


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
class TestFullDisk:
    """A limit on the size of files stands for a disk that is full: the system refuses to write on."""

    def test_a_save_says_what_and_where_and_the_old_model_is_as_it_was(
        self, folder: Path, adata: AnnData
    ) -> None:
        before, other = files(folder), R2MAEModel(adata, **TINY, seed=1)
        said = in_a_fork(lambda: other.save(folder, overwrite=True), before=no_file_above(2048))
        assert re.match(r"OSError: \[Errno 27\] Cannot write .*weights-.*: raise the limit, or choose", said)
        assert files(folder) == before

    def test_a_first_save_leaves_nothing_in_the_way_of_the_next(self, adata: AnnData, tmp_path: Path) -> None:
        model = R2MAEModel(adata, **TINY)
        said = in_a_fork(lambda: model.save(tmp_path / "new"), before=no_file_above(2048))
        assert "Cannot write" in said
        model.save(tmp_path / "new")
        R2MAEModel.load(tmp_path / "new")

    def test_a_checkpoint_says_so_and_the_one_before_is_as_it_was(
        self, adata: AnnData, train_tiny: Callable[..., R2MAEModel], tmp_path: Path
    ) -> None:
        train_tiny(adata, checkpoint_dir=tmp_path, max_epochs=1)
        before = files(tmp_path)
        said = in_a_fork(
            lambda: train_tiny(adata, checkpoint_dir=tmp_path, resume=tmp_path), before=no_file_above(2048)
        )
        assert re.match(r"OSError: \[Errno 27\] Cannot write .*last\.ckpt \(File too large\)", said)
        assert files(tmp_path) == before

    @pytest.mark.parametrize(
        ("command", "output"),
        [
            ("embed counts.h5ad --model model -o out.h5ad", "out.h5ad"),
            ("embed counts.h5ad --model model -o out.zarr", "out.zarr"),
            ("prepare counts.h5ad -o out.h5ad --n-top-genes 20", "out.h5ad"),
            ("prepare counts.h5ad -o out.zarr --n-top-genes 20", "out.zarr"),
        ],
    )
    def test_a_command_says_so_and_leaves_nothing(
        self,
        command: str,
        output: str,
        folder: Path,
        adata: AnnData,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(folder.parent)
        adata.write_h5ad("counts.h5ad")
        before = files(folder.parent)
        in_a_fork(lambda: main([*command.split(), "-q"]), before=no_file_above(512))
        assert re.search(
            rf"error: \[Errno 27\] Cannot write \S*{output} \(File too large\)", capfd.readouterr().err
        )
        assert files(folder.parent) == before


def as_nobody() -> None:
    """Give root's rights up, before which no permission stands."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_folder_that_may_not_be_written_to_is_named(trained: R2MAEModel) -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        closed = Path(top) / "closed"
        trained.save(closed)
        before = files(closed)
        closed.chmod(0o555)
        said = in_a_fork(lambda: trained.save(closed, overwrite=True), before=as_nobody)
        assert re.match(
            r"PermissionError: \[Errno 13\] Cannot write .* \(Permission denied\)\. You may not", said
        )
        said = in_a_fork(lambda: trained.save(closed / "inner"), before=as_nobody)
        assert re.match(
            r"PermissionError: .*Cannot write .*inner.* choose another folder; existing files", said
        )
        assert files(closed) == before
        closed.chmod(0o755)


def test_a_file_where_a_folder_is_wanted_is_named(trained: R2MAEModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(NotADirectoryError, match=r"Cannot write .*file/model \(Not a directory\)"):
        trained.save(tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "notes"


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_of_two_processes_that_save_a_first_model_one_wins_and_the_other_gets_an_error(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [R2MAEModel(adata, **TINY, seed=seed) for seed in (1, 2)]
    check = model_folder._check_free
    calls = []

    def check_after_the_other(folder: Path) -> None:
        calls.append(folder)
        check(folder)
        if len(calls) == 1:  # between the look at the folder and the lock, the other comes
            in_a_fork(lambda: models[1].save(tmp_path / "model"), before=lambda: None)

    monkeypatch.setattr(model_folder, "_check_free", check_after_the_other)
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        models[0].save(tmp_path / "model")
    assert R2MAEModel.load(tmp_path / "model").seed == 2


def test_what_a_first_save_that_was_killed_has_left_does_not_refuse_the_next(
    trained: R2MAEModel, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    place.mkdir()
    orphan = place / f"weights-{'0' * 64}.safetensors"
    parts = [place / ".weights-abc.safetensors.12.part", place / ".model.json.12.part"]
    for path in (orphan, *parts):
        path.write_bytes(b"half")
    trained.save(place)
    assert not any(path.exists() for path in (orphan, *parts))
    (place / "notes.txt").touch()
    with pytest.raises(FileExistsError):
        trained.save(place)


@pytest.mark.parametrize("command", ["train counts.h5ad -o out", "benchmark counts.h5ad -o out"])
def test_parts_that_a_killed_command_has_left_do_not_refuse_the_next(
    command: str, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("counts.h5ad")
    Path("out").mkdir()
    (Path("out") / ".12.part.benchmark.json").touch()
    (Path("out") / ".weights-abc.safetensors.12.part").touch()
    (Path("out") / f"weights-{'0' * 64}.safetensors").touch()
    options = {
        "train": "--max-epochs 1 --n-hidden 8 --n-latent 2",
        "benchmark": "--donor-key donor --target cell_type:classification --methods pca --seeds 0 --n-splits 1",
    }[command.split()[0]]
    assert main([*command.split(), *options.split(), "--accelerator", "cpu", "-q"]) == 0


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_store_is_replaced_with_and_without_a_swap_of_names(
    can_swap: bool, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scr2mae.data.prepare import writer as _store_writer

    if not can_swap:
        monkeypatch.setattr(_store_writer, "exchange", lambda *_: False)
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("counts.h5ad")
    line = ["prepare", "counts.h5ad", "-o", "store.zarr", "--force", "-q", "--n-top-genes"]
    assert main([*line, "20"]) == 0
    assert main([*line, "30"]) == 0
    assert anndata.read_zarr("store.zarr").n_vars == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad", "store.zarr"]


def test_a_disk_without_locks_is_written_to_all_the_same(
    trained: R2MAEModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    trained.save(tmp_path / "model")
    np.testing.assert_array_equal(
        R2MAEModel.load(tmp_path / "model").module.log_theta.detach(), trained.module.log_theta.detach()
    )


@posix
def test_ctrl_c_in_the_command_line_says_that_no_model_was_saved_and_exits_with_130(
    adata: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    set_sigint: Callable[[Any], None],
) -> None:
    from scr2mae.nn.module import R2MAEModule

    draw, steps = R2MAEModule.draw_gene_mask, []

    def press(self: R2MAEModule, *args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self, *args, **kwargs)

    set_sigint(signal.default_int_handler)
    monkeypatch.setattr(R2MAEModule, "draw_gene_mask", press)
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("counts.h5ad")
    line = "train counts.h5ad -o model --accelerator cpu --n-hidden 8 --n-latent 2 --max-epochs 50 -q"
    assert main(line.split()) == 130
    assert capsys.readouterr().err == (
        "scr2mae: No model was saved; with --checkpoint-dir a run can be continued.\nscr2mae: interrupted\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.h5ad"]
    assert len(steps) < 50


def test_ctrl_c_while_a_model_is_written_leaves_the_old_one_and_no_parts(
    trained: R2MAEModel, adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    trained.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            R2MAEModel(adata, n_hidden=16, n_latent=4, seed=1).save(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_store_that_cannot_take_the_place_of_the_old_one_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scr2mae.data.prepare import writer as _store_writer

    part, output = tmp_path / "work" / "part.zarr", tmp_path / "store.zarr"
    for path in (part, output):
        path.mkdir(parents=True)
        (path / path.name).touch()
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self == part:
            raise PermissionError("refused")
        return rename(self, target)

    monkeypatch.setattr(_store_writer, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(PermissionError, match="refused"):
        _store_writer.publish(part, output)
    assert [path.name for path in output.iterdir()] == ["store.zarr"]
    assert [path.name for path in part.iterdir()] == ["part.zarr"]


def test_checkpoints_between_the_ends_of_epochs_are_gone_on_from(adata: AnnData, tmp_path: Path) -> None:
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                raise RuntimeError("broken off")

    options = {
        "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False, "train_size": 1.0,
        "checkpoint_dir": tmp_path / "run", "checkpoint_every_n_steps": 1,
    }  # fmt: skip
    whole, broken, resumed = (R2MAEModel(adata, n_hidden=16, n_latent=4) for _ in range(3))
    whole.train(3, **{**options, "checkpoint_dir": None, "checkpoint_every_n_steps": None})
    with pytest.raises(RuntimeError, match="broken off"):
        broken.train(3, callbacks=[Break()], **options)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 6
    resumed.train(3, resume=tmp_path / "run", **options)
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_on_a_remote_file_system_is_written_by_lightning() -> None:
    import fsspec

    from scr2mae.train.checkpoints import AtomicCheckpointIO

    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3)}, "memory://run/last.ckpt")
    with fsspec.open("memory://run/last.ckpt", "rb") as file:
        assert torch.load(file, weights_only=True)["weights"].tolist() == [0, 1, 2]
