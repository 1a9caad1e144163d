"""The contracts of .importlinter hold, and break when a file imports what it must not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in a folder against the contracts of the repository."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--config", str(ROOT / ".importlinter"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded(statement: str) -> set[str]:
    """Names of the packages that a fresh interpreter holds after a statement."""
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "src" / "scr2mae", tmp_path / "scr2mae", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path / "scr2mae"


def test_every_file_imports_only_what_stands_before_it():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("masking.py", "from scr2mae import nn", "A file imports only what stands before it"),
        ("theory/laws.py", "import torch", "The theory stands alone"),
        ("model/base.py", "from scr2mae import theory", "The core does not import the theory"),
        ("metrics.py", "import torch", "Scores and probes are made of arrays"),
    ],
)
def test_an_import_against_the_order_is_caught(package, file, statement, contract):
    with (package / file).open("a") as source:
        source.write(f"\n{statement}\n")
    result = lint_imports(package.parent)
    assert result.returncode == 1
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), result.stdout


def test_a_new_file_without_a_place_is_caught(package):
    (package / "stray.py").touch()
    result = lint_imports(package.parent)
    assert result.returncode == 1
    assert "scr2mae.stray" in result.stdout


@pytest.mark.parametrize(
    "statement", ["import scr2mae", "import scr2mae.theory", "dir(__import__('scr2mae'))"]
)
def test_a_light_import_loads_neither_torch_nor_scvi(statement):
    assert not loaded(statement) & {"torch", "scvi", "lightning", "scanpy", "anndata", "pandas"}


@pytest.mark.parametrize("module", ["scr2mae.datasets", "scr2mae.data", "scr2mae.data.prepare.pipeline"])
def test_preparing_data_loads_neither_torch_nor_scvi(module):
    assert not loaded(f"import {module}") & {"torch", "scvi", "lightning", "scanpy"}


def test_a_public_name_loads_what_it_needs_on_first_use():
    assert "torch" in loaded("import scr2mae; scr2mae.masking")
