"""Model folders in both layouts: a kill leaves the old or the new model, hashes are verified, other files stay."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from scr2mae._utils import model_folder
from scr2mae._utils.model_folder import FolderFormat, read_folder, read_index, write_folder

HASHED = FolderFormat("test.hashed", "test model", legacy_key="widths", files=("model.safetensors",))
FIXED = FolderFormat(
    "test.fixed",
    "test model",
    index="about.json",
    weights="model.safetensors",
    files=("config.json", "extra.bin"),
)
FORMATS = pytest.mark.parametrize("form", [HASHED, FIXED], ids=["hashed names", "fixed names"])


def write(folder: Path, form: FolderFormat, value: int, *, overwrite: bool = True, **kwargs: Any) -> None:
    """Write a model all of whose parts state the value."""
    files = {} if form is HASHED else {"config.json": json.dumps({"value": value}).encode()}
    write_folder(
        folder,
        form,
        {"w": torch.full((3,), value)},
        {"value": value},
        files=files,
        overwrite=overwrite,
        **kwargs,
    )


def read(folder: Path, form: FolderFormat) -> int:
    """Return the value that all parts of a model state."""
    tensors, document, files = read_folder(folder, form)
    stated = {*tensors["w"].tolist(), document["value"]}
    stated |= {json.loads(content)["value"] for content in files.values()}
    assert len(stated) == 1, "two models are mixed"
    return stated.pop()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@FORMATS
def test_what_was_written_is_read(form: FolderFormat, tmp_path: Path) -> None:
    write(tmp_path / "a" / "model", form, 1, overwrite=False, runs=[{"seed": 0}])
    assert read(tmp_path / "a" / "model", form) == 1
    run = json.loads((tmp_path / "a" / "model" / "run.json").read_text())
    document = read_index(tmp_path / "a" / "model", form)
    assert run["runs"] == [{"seed": 0}]
    assert run["weights"] == document["weights"]["sha256"]
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write(tmp_path / "a" / "model", form, 2, overwrite=False)
    assert names(tmp_path / "a") == {"model"}


@FORMATS
def test_a_save_removes_what_earlier_models_left_and_keeps_the_files_of_others(
    form: FolderFormat, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write(folder, form, 1, runs=[{"seed": 0}])
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / form.files[-1]).touch()
    write(folder, form, 2)
    assert read(folder, form) == 2
    weights = read_index(folder, form)["weights"]["file"]
    expected = {"notes.txt", "checkpoints", form.index, weights}
    assert names(folder) == expected | (set() if form is HASHED else {"config.json"})
    assert (folder / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == {"model"}


@FORMATS
@pytest.mark.parametrize("at", range(20))
@pytest.mark.parametrize("can_swap", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(
    at: int, form: FolderFormat, can_swap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every system call that changes a name may be the last one; nothing is cleaned up after it."""
    folder = tmp_path / "model"
    write(folder, form, 1)
    (folder / "notes.txt").write_text("mine")
    steps = []

    class Killed(BaseException):
        pass

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(steps) >= at:
                raise Killed
            steps.append(function)
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        exchange = model_folder.exchange if can_swap else lambda *_: False
        patch.setattr(model_folder, "exchange", counted(exchange))
        for holder, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "mkdir")):
            patch.setattr(holder, name, counted(getattr(holder, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with suppress(Killed):
            write(folder, form, 2)
    if not can_swap and not folder.exists():  # between two renames the old model has another name
        assert form is FIXED
        assert read(tmp_path / ".model.old.part", form) == 1
    else:
        assert read(folder, form) in (1, 2)
    write(folder, form, 3)
    assert read(folder, form) == 3
    assert (folder / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == {"model"}
    assert len(list(folder.glob("*.safetensors"))) == 1


@FORMATS
def test_a_changed_file_is_refused(form: FolderFormat, tmp_path: Path) -> None:
    write(tmp_path, form, 1) if form is HASHED else write(tmp_path / "model", form, 1)
    folder = tmp_path if form is HASHED else tmp_path / "model"
    document = read_index(folder, form)
    for name in (document["weights"]["file"], *document.get("files", {})):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b"?")
        with pytest.raises(ValueError, match=rf"{name} is damaged: its hash is not the one"):
            read_folder(folder, form)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"lacks .*{name}; restore"):
            read_folder(folder, form)
        (folder / name).write_bytes(content)
    assert read(folder, form) == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "weights.bin"])
def test_files_that_the_format_does_not_have_are_not_opened(name: str, tmp_path: Path) -> None:
    write(tmp_path / "model", FIXED, 1)
    path = tmp_path / "model" / "about.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {name: "0" * 64}}))
    with pytest.raises(ValueError, match="names files that a test model does not have"):
        read_folder(tmp_path / "model", FIXED)


def test_a_folder_of_the_first_versions_is_read_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"widths": [3], "schema_version": 1, "value": 1}))
    (tmp_path / "model.safetensors").write_bytes(safetensors.torch.save({"w": torch.full((3,), 1)}))
    assert read(tmp_path, HASHED) == 1
    write(tmp_path, HASHED, 2)
    assert read(tmp_path, HASHED) == 2
    assert not (tmp_path / "model.safetensors").exists()


def test_a_folder_replaced_while_it_is_read_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", FIXED, 1)
    verified, replaced = model_folder._verified, []

    def replace_between(path: Path, digest: str | None) -> bytes:
        if path.name == "config.json" and not replaced:
            replaced.append(True)
            write(tmp_path / "model", FIXED, 2)
        return verified(path, digest)

    monkeypatch.setattr(model_folder, "_verified", replace_between)
    assert read(tmp_path / "model", FIXED) == 2


@FORMATS
def test_of_processes_that_train_together_only_the_first_writes(
    form: FolderFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        write(tmp_path / "model", form, rank)
        assert (tmp_path / "model").exists() is (rank == 0)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "model", FIXED, 1)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    write(tmp_path / "link", FIXED, 2)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "model", FIXED) == 2
