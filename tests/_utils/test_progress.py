"""Long work says how far it is, where somebody is looking, and how much memory it will take."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import memory as _memory
from scr2mae._utils import progress as _progress
from scr2mae._utils.memory import check_memory, free_memory
from scr2mae._utils.progress import no_progress, progress
from scr2mae.cli import main
from scr2mae.probe import linear_probe

OPERATIONS: dict[str, Callable[[R2MAEModel], Any]] = {
    "Embedding": lambda model: model.get_latent_representation(batch_size=8),
    "Decoding": lambda model: model.get_normalized_expression(batch_size=8),
    "Scoring": lambda model: model.get_reconstruction_error(batch_size=8),
    "Hiding 30%": lambda model: model.get_masked_reconstruction(ratios=(0.3,), batch_size=8),
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
def test_nothing_is_shown_where_nobody_looks(
    what: str, reference: R2MAEModel, capsys: pytest.CaptureFixture[str]
) -> None:
    OPERATIONS[what](reference)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("at_a_terminal")
def test_nothing_is_shown_of_what_takes_less_than_two_seconds(
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


def test_training_is_quiet_where_nobody_looks(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel], capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny(adata, enable_progress_bar=True, max_epochs=1)
    assert capsys.readouterr() == ("", "")


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


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "free_memory", lambda: 1000)


@pytest.mark.usefixtures("little_memory")
def test_an_array_for_which_there_is_no_room_is_refused_with_what_to_do(trained: R2MAEModel) -> None:
    with pytest.raises(MemoryError, match=r"The embedding \(120 x 4, float32\) takes .* pass out=, an array"):
        trained.get_latent_representation()
    with pytest.raises(MemoryError, match=r"The decoded expression \(120 x 60, float32\) .* by gene_list="):
        trained.get_normalized_expression()
    out = np.zeros((120, 4), dtype=np.float32)
    assert trained.get_latent_representation(out=out) is out
    assert trained.get_normalized_expression(gene_list=["gene3"], indices=range(10)).shape == (10, 1)


def test_ten_million_cells_by_five_thousand_genes_take_two_hundred_gigabytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_memory, "free_memory", lambda: 64 * 10**9)
    with pytest.raises(MemoryError, match=r"takes 200.0 GB of memory, of which 64.0 GB are free; do this\."):
        check_memory((10_000_000, 5000), np.float32, what="It", instead="do this")


def test_a_large_array_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_memory, "free_memory", lambda: 64 * 10**9)
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        check_memory((1_000_000, 512), np.float32, what="It", instead="")
        check_memory((1000, 512), np.float32, what="Small", instead="")
    assert caplog.messages == ["It (1,000,000 x 512) takes 2.0 GB of memory, of which 64.0 GB are free."]


def test_what_a_container_allows_counts_if_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    monkeypatch.setattr(_memory, "_GROUP", tmp_path)
    assert free_memory() == 10_000
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    for limit, expected in (("max", 10_000), ("7000", 3000), ("90000", 10_000), ("1000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_memory() == expected


def test_importing_the_bars_loads_nothing_heavy() -> None:
    import subprocess

    script = "import sys, scr2mae._utils.progress; assert not {'torch', 'scvi', 'anndata'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
