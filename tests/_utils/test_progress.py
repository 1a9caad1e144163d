"""Progress bars of long operations, on a terminal only."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import progress as _progress
from scr2mae._utils.progress import no_progress, progress
from scr2mae.cli import main
from scr2mae.probe import linear_probe

OPERATIONS: dict[str, Callable[[R2MAEModel], Any]] = {
    "Embedding": lambda model: model.get_latent_representation(batch_size=8),
    "Decoding": lambda model: model.get_normalized_expression(batch_size=8),
    "Scoring": lambda model: model.get_reconstruction_error(batch_size=8),
    "Masking 30%": lambda model: model.get_masked_reconstruction(ratios=(0.3,), batch_size=8),
    "Probing": lambda model: linear_probe(
        AnnData(obs=model.adata.obs, obsm={"z": model.get_latent_representation()}),
        use_rep="z",
        targets={"cell_type": "classification"},
        donor_key="donor",
        n_splits=2,
    ),
}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress.progress, "__kwdefaults__", {**progress.__kwdefaults__, "after": 0.0})


@pytest.mark.usefixtures("at_once", "at_a_terminal")
@pytest.mark.parametrize("what", OPERATIONS)
def test_every_long_operation_shows_speed_and_time_left_at_a_terminal(
    what: str, reference: R2MAEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    OPERATIONS[what](reference)
    shown = capsys.readouterr().err
    assert f"{what}: " in shown
    assert "100%" in shown
    assert "/s]" in shown
    assert "<" in shown


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("what", OPERATIONS)
def test_nothing_is_shown_without_a_terminal(
    what: str, reference: R2MAEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    OPERATIONS[what](reference)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_a_terminal")
def test_nothing_is_shown_for_operations_below_two_seconds(
    reference: R2MAEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.get_latent_representation(batch_size=8)
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.usefixtures("at_a_terminal")
def test_a_bar_inside_another_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with no_progress():
        with no_progress(False):
            list(progress(range(3), desc="inner", unit="x", after=0.0))
        assert capsys.readouterr().err == ""
    list(progress(range(3), desc="outer", unit="x", after=0.0))
    assert "outer: 100%" in capsys.readouterr().err


@pytest.mark.usefixtures("at_once", "at_a_terminal")
@pytest.mark.parametrize("quiet", [True, False])
def test_the_command_line_is_quiet_on_request(
    quiet: bool, trained: R2MAEModel, adata: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adata.write_h5ad(tmp_path / "counts.h5ad")
    trained.save(tmp_path / "model")
    paths = [
        str(tmp_path / "counts.h5ad"),
        "--model",
        str(tmp_path / "model"),
        "-o",
        str(tmp_path / "o.h5ad"),
    ]
    assert main(["embed", *paths, "--accelerator", "cpu", *(["-q"] if quiet else [])]) == 0
    assert ("Embedding: " in capsys.readouterr().err) is not quiet


def test_importing_the_progress_bars_loads_no_heavy_package() -> None:
    import subprocess

    script = "import sys, scr2mae._utils.progress; assert not {'torch', 'scvi', 'anndata'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
