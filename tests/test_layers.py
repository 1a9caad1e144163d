"""The import contracts of .importlinter hold, and each is broken by an import that it forbids."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
N_TOP_LEVEL = 17
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package in a folder, with the contracts of the repository."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--config", str(ROOT / ".importlinter"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded(statement: str) -> set[str]:
    """Return the packages that a new interpreter has loaded after a statement."""
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def broken_contracts(package: Path) -> list[str]:
    """Return the names of the contracts that the package breaks."""
    lines = lint_imports(package.parent).stdout.splitlines()
    return [name for name, broken, _ in (line.partition(" BROKEN") for line in lines) if broken]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(
        ROOT / "src" / "scr2mae", tmp_path / "scr2mae", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path / "scr2mae"


def test_the_package_keeps_all_contracts():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        (
            "data/splits.py",
            "if TYPE_CHECKING:\n    from scr2mae.train import plan",
            "A file imports only what stands before it",
        ),
        ("masking.py", "from scr2mae import nn", "A file imports only what stands before it"),
        ("theory/laws.py", "import torch", "The theory stands alone"),
        ("model/base.py", "from scr2mae import theory", "The core does not import the theory"),
        ("metrics.py", "import torch", "Scores and probes are made of arrays"),
    ],
)
def test_a_forbidden_import_is_caught(package, file, statement, contract):
    with (package / file).open("a") as source:
        source.write(f"\nfrom typing import TYPE_CHECKING\n{statement}\n")
    assert any(name.startswith(contract) for name in broken_contracts(package))


@pytest.mark.parametrize("folder", ["theory", "extra/vision"])
@pytest.mark.parametrize("indent", ["", "if TYPE_CHECKING:\n    "])
def test_a_circle_in_a_folder_is_caught(package, folder, indent):
    dotted = f"scr2mae.{folder.replace('/', '.')}"
    for name, other in (("first", "second"), ("second", "first")):
        text = f"from typing import TYPE_CHECKING\n{indent}from {dotted} import {other}\n"
        (package / folder / f"{name}.py").write_text(text)
    assert f"No cycles are allowed in {dotted}." in lint_imports(package.parent).stdout


def test_the_top_level_stays_short():
    entries = {path.name for path in (ROOT / "src" / "scr2mae").iterdir()} - {"__pycache__"}
    assert len(entries) <= N_TOP_LEVEL, sorted(entries)


def test_a_new_top_level_file_must_be_added_to_the_contract(package):
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


TRAINING = """
import sys
import anndata, numpy, scvi
before = set(sys.modules)
import scr2mae
counts = numpy.random.default_rng(0).poisson(1.0, (100, 30)).astype("float32")
adata = anndata.AnnData(counts)
adata.var_names = [f"gene{i}" for i in range(30)]
scr2mae.R2MAEModel.setup_anndata(adata)
scr2mae.R2MAEModel(adata, n_latent=4).train(1, accelerator="cpu", enable_progress_bar=False)
print(*set(sys.modules) - before)
"""


def test_training_loads_no_large_package_that_scvi_does_not_load():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert "scr2mae.train.loop" in new
    parts = ("benchmark", "cli", "extra", "pl", "probe", "theory")
    assert not new & {f"scr2mae.{part}" for part in parts}
    packages = {name.partition(".")[0] for name in new}
    assert not packages & {
        "IPython", "datashader", "igraph", "leidenalg", "matplotlib", "numpyro", "pyarrow", "ray", "requests",
        "scanpy", "scib_metrics", "seaborn", "sklearn", "tensorboard", "transformers", "umap", "zarr",
    }  # fmt: skip
