"""The benchmark of speed on a GPU: all of it that runs on a CPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from torch.autograd import DeviceType

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "speed", module)
    spec.loader.exec_module(module)
    return module


def test_the_time_of_a_gpu_is_divided_into_kernels_copies_and_the_host(script: ModuleType) -> None:
    def event(
        name: str, microseconds: float, device: DeviceType = DeviceType.CUDA, *, annotation: bool = False
    ):
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=annotation, time_range=span)

    events = [
        event("ampere_sgemm_128x64", 4e5),
        event("vectorized_elementwise_kernel", 1e5),
        event("Memcpy HtoD (Pinned -> Device)", 2e5),
        event("Memset (Device)", 1e5),
        event("aten::mm", 9e5, DeviceType.CPU),
        event("Optimizer.step", 5e5, annotation=True),
    ]
    shares = script.device_shares(events, 2.0)
    assert shares == pytest.approx({"kernels": 0.25, "copies": 0.15, "host": 0.6})


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs_on_a_cpu_with_few_cells(tmp_path: Path) -> None:
    options = ["--gpu", "--dry-run", "--rounds", "1", "--steps", "2", "--sizes", "small, batch 400"]
    subprocess.run(
        [sys.executable, str(SCRIPT), "-o", str(tmp_path), *options],
        capture_output=True,
        check=True,
        timeout=900,
    )
    rows = pd.read_csv(tmp_path / "speed.csv").set_index(["side", "quantity"])["value"]
    quantities = ["train_cells_s", "embed_cells_s", "parameters", "first_step_s", "memory_mb"]
    for side in ("scr2mae", "scr2mae compiled", "scvi"):
        assert (rows[side][quantities] > 0).all()
        assert rows[side, "share_host"] == 1  # nothing runs on a GPU
    assert rows["scr2mae", "parameters"] == rows["scr2mae compiled", "parameters"]
    assert "scr2mae compiled / scvi" in (tmp_path / "speed.md").read_text()
