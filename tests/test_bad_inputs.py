"""Bad input, one line a case: refused by name, before any work, and nothing written or changed."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from bad_input_cases import CASES, LINES, Case, Place

from scr2mae import R2MAEModel
from scr2mae.cli import main


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder; of files the size and the time of the last change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            stat = os.lstat(os.path.join(place, name))
            path = os.path.relpath(os.path.join(place, name), folder)
            # A folder's own time tells of the file that is made and removed to see whether one can be.
            found[path] = (0, 0) if name in folders else (stat.st_size, stat.st_mtime_ns)
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value.copy() if hasattr(value, "copy") else value


@dataclass
class Snapshot:
    """All that an AnnData holds, copied."""

    X: Any
    frames: dict[str, pd.DataFrame]
    arrays: dict[tuple[str, str], Any]
    uns: dict[str, Any]
    raw: Any

    @classmethod
    def of(cls, adata: AnnData) -> "Snapshot":
        mappings = {"layers": adata.layers, "obsm": adata.obsm, "varm": adata.varm, "obsp": adata.obsp}
        return cls(
            X=_copied(adata.X),
            frames={"obs": adata.obs.copy(), "var": adata.var.copy()},
            arrays={
                (name, key): _copied(mapping[key])
                for name, mapping in mappings.items()
                for key in mapping
                if key is not None
            },
            uns=_copied(dict(adata.uns)),
            raw=None if adata.raw is None else adata.raw.X.copy(),
        )

    def assert_equals(self, other: "Snapshot") -> None:
        _assert_same(self.X, other.X)
        for name, frame in self.frames.items():
            pd.testing.assert_frame_equal(frame, other.frames[name], check_exact=True)
        assert self.arrays.keys() == other.arrays.keys()
        for key, array in self.arrays.items():
            _assert_same(array, other.arrays[key])
        assert self.uns.keys() == other.uns.keys()
        assert repr(self.uns) == repr(other.uns)
        _assert_same(self.raw, other.raw)


def _assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if sp.issparse(first):
        assert first.shape == second.shape
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
    else:
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def place(tmp_path: Path, adata: AnnData, trained: R2MAEModel, reference: R2MAEModel) -> Place:
    """What a case may use: counts of its own, two trained models, a folder with one of them and a text file."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("mine")
    (tmp_path / "scvi").mkdir()
    (tmp_path / "scvi" / "model.pt").write_text("mine")
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    adata.obs["disease"] = np.where(adata.obs["donor"].isin(["donor0", "donor2", "donor4"]), "yes", "no")
    adata.uns["note"] = {"of": "mine"}
    return Place(adata=adata, trained=trained, reference=reference, folder=tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_by_name_and_leaves_everything_as_it_was(case: Case, place: Place) -> None:
    place.prepare(case)
    anndatas = [place.adata, *([] if place.model is None else [place.model.adata]), place.reference.adata]
    before = [Snapshot.of(each) for each in anndatas], listing(place.folder)
    with pytest.raises(case.error) as caught:
        case.call(place)
    message = str(caught.value.args[0]) if isinstance(caught.value, KeyError) else str(caught.value)
    assert case.message in message
    assert listing(place.folder) == before[1]
    for each, snapshot in zip(anndatas, before[0], strict=True):
        snapshot.assert_equals(Snapshot.of(each))


@pytest.mark.parametrize(("line", "code", "message"), LINES, ids=[line for line, _, _ in LINES])
def test_a_bad_command_line_is_refused_by_name_and_writes_nothing(
    line: str,
    code: int,
    message: str,
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(R2MAEModel, "train", lambda *args, **kwargs: pytest.fail("training has started"))
    place.write_inputs()
    before = listing(place.folder)
    assert main(shlex.split(line)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    if code == 1:
        assert err.startswith("scr2mae: error: ")
        assert err.count("\n") == 1
        assert "may be a defect" not in err
    assert listing(place.folder) == before


def test_the_tables_are_as_long_as_it_should_be_and_names_no_case_twice() -> None:
    assert len(CASES) + len(LINES) >= 80
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({line for line, _, _ in LINES}) == len(LINES)
