"""Counts on the training device: the same mini-batches as on the host, and too little memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from torch.utils._python_dispatch import TorchDispatchMode

from scr2mae import R2MAEModel
from scr2mae._utils import memory
from scr2mae.data import CellDataModule, Cells, read_cells, split_cells
from scr2mae.data.device import DeviceCells, to_device

CPU = torch.device("cpu")


@pytest.fixture
def cells(adata: AnnData, covariates: dict[str, object]) -> Cells:
    R2MAEModel.setup_anndata(adata, **covariates)
    cells = read_cells(adata, R2MAEModel(adata, n_hidden=8, n_latent=2).spec)
    return replace(cells, measured=np.arange(60) != 7, size_factor=np.linspace(1, 2, 120, dtype=np.float32))


def fractions(cells: Cells) -> Cells:
    return replace(cells, counts=cells.counts * np.float32(0.5))


def large(cells: Cells) -> Cells:
    return replace(cells, counts=cells.counts * np.float32(40_001))


def with_repeated_entries(cells: Cells) -> Cells:
    counts = cells.counts.copy()
    first = slice(*counts.indptr[:2])
    counts.indices[first] = counts.indices[first.start]
    return replace(cells, counts=type(counts)((counts.data, counts.indices, counts.indptr), counts.shape))


@pytest.mark.parametrize("change", [lambda cells: cells, fractions, large, with_repeated_entries])
@pytest.mark.parametrize("indices", [[0], [5, 4, 5, 119], list(range(120)), []], ids=len)
def test_batches_made_on_the_device_equal_those_made_on_the_host(
    cells: Cells, change: object, indices: list[int]
) -> None:
    cells = change(cells)
    indices = np.array(indices, dtype=np.int64)
    made = DeviceCells(cells, CPU).collate(indices)
    host = cells.collate(indices)
    assert made["measured"].tolist() == cells.measured.tolist()
    assert set(made) == {*host, "measured"}
    for key, array in host.items():
        assert made[key].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(made[key].numpy(), array)


class _Operations(TorchDispatchMode):
    """Operations that run on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sizes: list[int | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        if self.names[-1] == "repeat_interleave":
            self.sizes.append((kwargs or {}).get("output_size"))
        return func(*args, **(kwargs or {}))


def test_a_batch_is_made_on_the_device_without_a_synchronization(cells: Cells) -> None:
    on_device, indices = DeviceCells(cells, CPU), np.array([5, 4, 119])
    with _Operations() as asked:
        on_device.collate(indices)
    assert not {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique2"} & set(asked.names)
    assert asked.sizes == [cells.counts[indices].nnz]  # without it, the host asks how many there are


def test_small_counts_take_two_bytes_and_the_estimate_is_exact(cells: Cells) -> None:
    plain = replace(cells, measured=None, size_factor=None)
    assert DeviceCells.estimate(plain) == 2 * plain.counts.nnz + 8 * 121
    n_covariates = sum(array.nbytes for array in plain.covariates(slice(None)).values())
    assert DeviceCells(plain, CPU).nbytes == DeviceCells.estimate(plain) + n_covariates
    assert DeviceCells.estimate(fractions(plain)) == 5 * plain.counts.nnz + 8 * 121
    assert DeviceCells.estimate(large(plain)) == 5 * plain.counts.nnz + 8 * 121


def test_training_from_the_device_equals_training_from_the_host(adata: AnnData) -> None:
    def train(counts_on: str) -> R2MAEModel:
        model = R2MAEModel(adata, n_hidden=16, n_latent=4)
        model.train(2, batch_size=32, counts_on=counts_on, accelerator="cpu", enable_progress_bar=False)
        return model

    device, host = train("device"), train("memory")
    assert device.history["train_loss_step"].equals(host.history["train_loss_step"])
    for a, b in zip(device.module.state_dict().values(), host.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_counts_that_do_not_fit_stay_on_the_host_and_the_log_says_so(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * DeviceCells.estimate(cells))
    with caplog.at_level("INFO", logger="scr2mae"):
        assert to_device(cells, CPU) is not None
        assert "they move to cpu" in caplog.text
        monkeypatch.setattr(memory, "free_memory", lambda device: 2 * DeviceCells.estimate(cells) - 2)
        assert to_device(cells, CPU) is None
        assert "they stay in the host's memory" in caplog.text
        assert to_device(cells, CPU, required=True) is not None


def test_a_device_out_of_memory_warns_and_training_continues_from_the_host(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(self: DeviceCells, cells: Cells, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = R2MAEModel(adata, n_hidden=8, n_latent=2)
    options = {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False}
    expected.train(**options)
    monkeypatch.setattr(DeviceCells, "__init__", run_out)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.warns(UserWarning, match=r"cpu ran out of memory for the counts .* counts_on='memory'"):
        model.train(counts_on="device", **options)
    assert model.history["train_loss_step"].equals(expected.history["train_loss_step"])


def test_the_memory_of_the_device_is_freed_after_training(cells: Cells) -> None:
    module = CellDataModule(cells, split_cells(120, seed=0), batch_size=16, counts_on="device")
    loader = module.train_dataloader()
    assert loader.on_device is module.val_dataloader().on_device
    module.teardown("fit")
    assert module._on_device is None


@pytest.mark.parametrize("counts_on", ["auto", "memory"])
def test_without_a_gpu_counts_stay_on_the_host(cells: Cells, counts_on: str) -> None:
    module = CellDataModule(cells, split_cells(120, seed=0), batch_size=16, counts_on=counts_on)
    assert module.train_dataloader().on_device is None
