"""Free memory within the limits of a container, and checks before large arrays."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import memory
from scr2mae._utils.memory import check_array, fits, free_memory
from scr2mae.data import open_store, read_cells
from scr2mae.data.backed import stays_on_disk
from scr2mae.data.device import to_device

CPU = torch.device("cpu")


@pytest.fixture
def set_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the limit of a control group of which 4,000 bytes are in use, on a host with 10 MB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    return lambda limit: (tmp_path / "memory.max").write_text(f"{limit}\n")


def test_free_memory_is_that_of_the_container_if_it_is_less(set_limit: Callable[[str], None]) -> None:
    assert free_memory() == free_memory(CPU) == 10_000_000
    for limit, expected in (
        ("max", 10_000_000),
        ("7000", 3000),
        ("90000", 86_000),
        ("90000000", 10_000_000),
        ("1000", 0),
    ):
        set_limit(limit)
        assert free_memory() == free_memory(CPU) == expected


def test_free_memory_of_a_gpu_is_asked_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 + device.index, 8000))
    assert free_memory(torch.device("cuda", 1)) == 1001


def test_where_counts_go_depends_on_the_limit_of_the_container(
    adata: AnnData, tmp_path: Path, set_limit: Callable[[str], None]
) -> None:
    cells = read_cells(adata, R2MAEModel(adata, n_hidden=8, n_latent=2).spec)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    set_limit("max")
    store = open_store(tmp_path / "cells.h5ad")
    assert not stays_on_disk(store, None, "auto")
    assert to_device(cells, CPU) is not None
    set_limit("7000")
    assert stays_on_disk(store, None, "auto")
    assert to_device(cells, CPU) is None
    store.X.group.file.close()


@pytest.mark.parametrize(("n_bytes", "expected"), [(500, True), (501, False)])
def test_data_fit_up_to_half_of_the_free_memory_and_the_log_says_what_follows(
    n_bytes: int, expected: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        assert fits(n_bytes, "Counts", yes="they move", no="they stay") is expected
    assert caplog.messages[0].endswith("they move." if expected else "they stay.")


def test_an_array_larger_than_the_free_memory_is_refused_with_advice(
    trained: R2MAEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
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
    monkeypatch.setattr(memory, "free_memory", lambda: 64 * 10**9)
    with pytest.raises(MemoryError, match=r"takes 200.0 GB of memory, of which 64.0 GB are free; do this\."):
        check_array((10_000_000, 5000), np.float32, "It", advice="do this")


def test_the_size_of_a_large_array_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 64 * 10**9)
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        check_array((1_000_000, 512), np.float32, "It", advice="")
        check_array((1000, 512), np.float32, "Small", advice="")
    assert caplog.messages == [
        "It (1,000,000 x 512, float32) takes 2.0 GB of memory, of which 64.0 GB are free."
    ]
