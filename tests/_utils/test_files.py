"""Atomic writes, locks, leftovers of killed writers, and errors of the disk."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from scr2mae._utils import files as _durable
from scr2mae._utils.files import atomic_write, cannot_write, exchange, is_leftover


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".weights-1.safetensors.12.part", True),
        (".12.part.results.csv", True),
        (".store.zarr.abc.part", True),
        (".last.ckpt.7.part", True),
        ("model.json", False),
        ("a.part", False),
        (".partial", False),
        (".gitignore", False),
    ],
)
def test_leftovers_are_recognized_by_their_names(name: str, expected: bool) -> None:
    assert is_leftover(Path("somewhere") / name) is expected


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "The disk is full: free some room"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EIO, r"\(Input/output error\)\. Choose another folder"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(number: int, advice: str) -> None:
    said = cannot_write(Path("a/b"), OSError(number, os.strerror(number)))
    assert said.errno == number
    assert re.search(rf"Cannot write a/b .*{advice}.*; existing files were not changed\.$", str(said))


def test_an_error_while_reading_is_not_reported_as_one_of_writing(tmp_path: Path) -> None:
    def fill(part: Path) -> None:
        part.write_text("half")
        (tmp_path / "nowhere").read_text()

    with pytest.raises(FileNotFoundError, match="nowhere") as caught, atomic_write(tmp_path / "out") as part:
        fill(part)
    assert "Cannot write" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_recognized_in_an_error_of_hdf5(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"Cannot write .*out \(No space left on device\)"),
        atomic_write(tmp_path / "out"),
    ):
        raise OSError("Can't write data (file write failed: errno = 28, error message = 'No space left')")


def test_two_folders_swap_in_one_step_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
        (path / path.name).touch()
    if exchange(first, second):
        assert (first / "second").exists()
        assert (second / "first").exists()
    assert not exchange(first, tmp_path / "absent")
    assert first.exists()
    monkeypatch.setattr(_durable.sys, "platform", "elsewhere")
    assert not exchange(first, second)


@pytest.mark.parametrize("can_lock", [True, False])
def test_an_error_other_than_a_missing_lock_is_raised(
    can_lock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO if can_lock else errno.ENOSYS, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if can_lock:
        with pytest.raises(OSError, match="no"), _durable.folder_lock(tmp_path):
            pytest.fail("entered without the lock")
        return
    with _durable.folder_lock(tmp_path):
        (tmp_path / "written").touch()
    assert (tmp_path / "written").exists()
