"""``~`` in a path is the home folder, in Python and on the command line, for every path."""

import ast
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

import scr2mae
from scr2mae import R2MAEModel, datasets
from scr2mae._utils.files import as_path
from scr2mae.cli import main
from scr2mae.data import open_store
from scr2mae.probe import DonorSplit

TINY = {"n_hidden": 8, "n_latent": 2}
QUICK = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
SOURCE = Path(scr2mae.__file__).parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, beside the working folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_models_splits_stores_and_checkpoints_are_written_to_and_read_from_home(
    home: Path, adata: AnnData, trained: R2MAEModel
) -> None:
    trained.save("~/m")
    assert R2MAEModel.load("~/m").is_trained
    assert R2MAEModel.load(Path("~/m")).is_trained
    assert R2MAEModel.load_registry("~/m")["setup_args"] == trained.registry["setup_args"]
    assert len(R2MAEModel.prepare_query_anndata(adata, "~/m", return_reference_var_names=True)) == 60
    trained.export_scvi("~/e")
    DonorSplit(train_donors=("a",), test_donors=("b",)).write("~/split.json")
    assert DonorSplit.read("~/split.json").test_donors == ("b",)
    adata.write_h5ad(home / "a.h5ad")
    assert datasets.prepare("~/a.h5ad", "~/s.zarr", progressbar=False) == home / "s.zarr"
    assert open_store("~/s.zarr").n_obs == 120
    model = R2MAEModel(adata, **TINY)
    model.train(**QUICK, checkpoint_dir="~/run")
    model = R2MAEModel(adata, **TINY)
    model.train(**QUICK, resume="~/run")
    assert {path.name for path in home.iterdir()} == {"m", "e", "split.json", "a.h5ad", "s.zarr", "run"}
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("given", ["-o ~/m", "--output ~/m", "--output=~/m"])
def test_the_command_line_writes_to_home(given: str, home: Path, adata: AnnData) -> None:
    adata.write_h5ad(home / "a.h5ad")
    assert main(shlex.split(f"train ~/a.h5ad {given} --max-epochs 1 -q")) == 0
    assert main(shlex.split("embed ~/a.h5ad --model=~/m --output=~/e.h5ad -q")) == 0
    assert {path.name for path in home.iterdir()} == {"a.h5ad", "m", "e.h5ad"}
    assert not list(Path.cwd().iterdir())


def _paths_made(tree: ast.AST) -> list[str]:
    """Arguments of ``Path(...)`` that are names, as those of a function are."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Path"
        and any(not isinstance(argument, ast.Constant) for argument in node.args)
    ]


# Temporary folders, names in tables, the cache of the hub, and the one place itself.
NOT_GIVEN = {
    "_utils/files.py": {"Path(place)"},
    "data/prepare/writer.py": {"Path(folder)"},
    "extra/vision/formats.py": {"Path(row[0])"},
    "extra/vision/vit.py": {"Path(place)"},
    "model/hub.py": {
        "Path(folder)",
        "Path(hub.hf_hub_download(repo, form.index, revision=branch, **options))",
        "Path(subfolder)",
    },
}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_path_of_a_user_passes_the_one_place_that_expands_it(path: Path) -> None:
    made = set(_paths_made(ast.parse(path.read_text(encoding="utf-8"))))
    assert made == NOT_GIVEN.get(path.relative_to(SOURCE).as_posix(), set())


def test_the_check_of_the_source_finds_a_path() -> None:
    found: Callable[[str], Any] = lambda text: _paths_made(ast.parse(text))  # noqa: E731
    assert found("x = Path(dir_path) / 'm'") == ["Path(dir_path)"]
    assert found("x = Path('/proc')") == []


def test_a_name_of_another_home_and_plain_paths(home: Path) -> None:
    assert as_path("~/x") == home / "x"
    assert as_path("a~/x") == Path("a~/x")
    assert as_path(Path("x")) == Path("x")


def test_a_user_without_a_home_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="No home folder for '~nosuchuser/m'; give the whole path"):
        as_path("~nosuchuser/m")
