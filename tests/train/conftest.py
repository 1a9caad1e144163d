"""Runs of ``several_processes.py``, shared by the tests of checkpoints and of distributed training."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from anndata import AnnData

SCRIPT = Path(__file__).with_name("several_processes.py")
LONGEST = 600  # seconds until a run that hangs is ended

RunScript = Callable[..., tuple[Path, subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The script as a module: settings of its runs, ``fit`` and ``digest``."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def counts(simulate: Callable[..., AnnData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with 800 cells x 60 genes."""
    path = tmp_path_factory.mktemp("data") / "counts.h5ad"
    simulate(800, 60).write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def run_script(counts: Path, tmp_path_factory: pytest.TempPathFactory) -> RunScript:
    """Return ``run_script(name, *launcher)``, which runs a function of the script in a new folder with the counts."""

    def run(name: str, *launcher: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp(name)
        (folder / "counts.h5ad").symlink_to(counts)
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), name, str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST,
        )
        return folder, done

    return run
