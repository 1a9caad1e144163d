"""What a run logs: one line at its start and, off a terminal, one per tenth of it."""

import logging
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils.progress import no_progress
from scr2mae.data import loaders
from scr2mae.train.progress import _Lines

RUN = {"batch_size": 16, "accelerator": "cpu", "devices": 1, "enable_progress_bar": True}


@pytest.fixture
def train(adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> Callable[..., R2MAEModel]:
    monkeypatch.setattr("scr2mae.train.progress._WARM_UP", 0.0)  # these runs may take less than a second
    R2MAEModel.setup_anndata(adata, donor_key="donor")

    def run(**kwargs) -> R2MAEModel:
        model = R2MAEModel(adata, n_hidden=16, n_latent=4)
        model.train(**{**RUN, "max_epochs": 20, "train_size": 0.5, **kwargs})
        return model

    return run


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="scr2mae")
    return lambda: [each.getMessage() for each in caplog.records if each.name == "scr2mae.train.progress"]


def test_one_epoch_is_one_epoch(train, lines) -> None:
    train(max_epochs=1)
    assert "cells, 1 epoch in mini-batches of 16; " in lines()[0]


def test_the_first_line_says_what_is_trained_where_and_for_how_long(train, lines) -> None:
    model = train(precision="32-true")
    first = lines()[0]
    n_train, n_validation = len(model.split_.train), len(model.split_.validation)
    assert re.match(r"Training on the CPU, \d+ threads? \(32-true\): ", first)
    assert f"{n_train} cells, 20 epochs in mini-batches of 16; 60 genes; " in first
    assert (
        f"validation on {n_validation} cells of donor {', '.join(model.split_.groups['validation'])}; "
        in first
    )
    assert re.search(r"; about \d+ (s|min|h)\.$", first)


def test_the_expected_time_leaves_out_what_comes_before_the_first_mini_batch(lines, monkeypatch) -> None:
    clock = iter(
        [0.0, 7.0, *(7.5 + 0.5 * i for i in range(32))]
    )  # seven seconds to the end of the first epoch
    monkeypatch.setattr("scr2mae.train.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    log = _Lines("Training", None, 0, 33)
    for epoch in range(1, 34):
        log.advance(epoch, 900, "cells", {})
    assert lines()[0] == "Training; about 15 s."
    assert lines()[1] == "12 %, epoch 4 of 33, 1,800 cells per second, 14 s left."
    assert len(lines()) == 11


def test_a_run_that_ends_with_its_first_position_is_timed_as_a_whole(lines, monkeypatch) -> None:
    clock = iter([0.0, 9.0])
    monkeypatch.setattr("scr2mae.train.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    _Lines("Training", None, 0, 1).advance(1, 900, "cells", {})
    assert lines() == ["Training; about 1 s.", "100 %, epoch 1 of 1, 100 cells per second, done."]


def test_the_last_line_has_the_losses_of_the_last_epoch(train, lines) -> None:
    model = train()
    losses = {name: model.history_[f"{name}_loss"].iloc[-1, 0] for name in ("train", "validation")}
    assert f", loss {losses['train']:.4f}, val {losses['validation']:.4f}, " in lines()[-1]
    assert lines()[-1].endswith("done.")


def test_a_line_follows_for_every_tenth_of_the_run(train, lines) -> None:
    train()
    percent = [int(line.split(" %")[0]) for line in lines()[1:]]
    assert [value // 10 for value in percent][-5:] == [6, 7, 8, 9, 10]
    assert len(percent) == len({value // 10 for value in percent})
    assert re.fullmatch(
        r"100 %, epoch 20 of 20, loss [\d.]+, val [\d.]+, [\d,]+ cells per second, done\.", lines()[-1]
    )


def test_a_run_of_one_long_epoch_has_lines_within_it(train, lines) -> None:
    train(max_epochs=1, batch_size=4, steps_per_execution=1)
    assert [line.split(" %")[0] for line in lines()[-2:]] != ["100"]
    assert lines()[-1].startswith("100 %, epoch 1 of 1, ")


@pytest.mark.usefixtures("at_a_terminal")
def test_a_terminal_gets_the_first_line_and_a_bar(train, lines) -> None:
    train(max_epochs=2)
    assert len(lines()) == 1
    assert lines()[0].startswith("Training on the CPU")


@pytest.mark.parametrize("hidden", ["argument", "context"])
def test_a_quiet_run_logs_nothing(hidden: str, train, lines) -> None:
    with no_progress(hidden == "context"):
        train(max_epochs=1, enable_progress_bar=hidden == "context")
    assert lines() == []


def test_lines_reach_stderr_where_logging_is_not_configured(train, capsys, monkeypatch) -> None:
    package = logging.getLogger("scr2mae")
    before = list(package.handlers)
    monkeypatch.setattr(package, "hasHandlers", lambda: False)  # pytest has some
    train(max_epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Training on the CPU")
    assert "100 %, epoch 2 of 2" in err
    assert package.handlers == before


def test_many_genes_are_advised_against(train, lines, monkeypatch) -> None:
    monkeypatch.setattr(loaders, "_MANY_GENES", 59)
    train(max_epochs=1)
    assert "With 60 genes training is slow" in lines()[1]


def test_few_genes_are_not(train, lines) -> None:
    train(max_epochs=1)
    assert not any("training is slow" in line for line in lines())
