"""Counts on disk: read by row, validated on reading, and training as with counts in memory."""

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.data import CellDataModule, CellLoader, read_cells, split_cells
from scr2mae.data.backed import BackedCounts, stays_on_disk

LAYOUTS = ["h5ad", "h5ad dense", "zarr", "zarr dense"]


def on_disk(adata: AnnData, folder: Path, layout: str) -> AnnData:
    """The same AnnData with X in a file."""
    adata = adata.copy()
    if "dense" in layout:
        adata.X = adata.X.toarray()
    if layout.startswith("h5ad"):
        adata.write_h5ad(folder / "cells.h5ad")
        return ad.read_h5ad(folder / "cells.h5ad", backed="r")
    group = zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=3)
    ad.io.write_elem(group, "X", adata.X, dataset_kwargs={"shards": None})
    stored = group["X"]
    return AnnData(
        stored if "dense" in layout else ad.io.sparse_dataset(stored), obs=adata.obs, var=adata.var
    )


@pytest.fixture(params=LAYOUTS)
def backed(request: pytest.FixtureRequest, adata: AnnData, tmp_path: Path) -> Iterator[AnnData]:
    adata = on_disk(adata, tmp_path, request.param)
    yield adata
    if adata.isbacked:
        adata.file.close()


def of(adata: AnnData, **kwargs: object) -> BackedCounts:
    return BackedCounts(adata.X, adata, None, integers=True, **kwargs)


@pytest.mark.parametrize(
    "indices",
    [slice(None), slice(5, 9), slice(90, 10, -7), [3], [4, 5, 6], [50, 2, 2, 49, 51], [], [119, 0]],
    ids=str,
)
def test_rows_on_disk_equal_rows_in_memory_in_the_requested_order(
    backed: AnnData, adata: AnnData, indices: slice | list[int]
) -> None:
    rows = indices if isinstance(indices, slice) else np.array(indices, dtype=np.int64)
    read = of(backed)[rows]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.toarray(), adata.X[rows].toarray())


def test_genes_come_in_the_order_of_the_reference_and_absent_ones_are_empty(
    backed: AnnData, adata: AnnData
) -> None:
    gene_indices = np.array([7, -1, 0, 59])
    rows = of(backed, gene_indices=gene_indices)[np.array([3, 8])].toarray()
    expected = adata.X[[3, 8]].toarray()[:, [7, 0, 0, 59]]
    expected[:, 1] = 0
    np.testing.assert_array_equal(rows, expected)


def test_blocks_read_every_row_once_however_many_fit(
    backed: AnnData, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scr2mae.data.backed._VALUES_PER_READ", 700)
    blocks = list(of(backed).blocks())
    assert len(blocks) > 3
    np.testing.assert_array_equal(sp.vstack(blocks).toarray(), adata.X.toarray())
    np.testing.assert_allclose(
        of(backed).mean(axis=0), adata.X.toarray().mean(axis=0, keepdims=True), rtol=1e-6
    )


def test_an_invalid_count_is_named_when_its_row_is_read(adata: AnnData, tmp_path: Path) -> None:
    row, column = 77, int(adata.X[77].indices[2])
    adata.X[row, column] = 1.5
    backed = on_disk(adata, tmp_path, "h5ad")
    rows = of(backed)
    assert rows[np.array([0, 76, 78])].shape == (3, 60)
    with pytest.raises(ValueError, match=rf"1\.5 \(fractional\) at cell 'cell77', gene 'gene{column}'"):
        rows[np.array([3, 77])]
    with pytest.raises(ValueError, match="cell 'cell77'"):
        R2MAEModel.setup_anndata(backed)
    backed.file.close()


def test_a_matrix_is_never_read_as_a_whole(backed: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = R2MAEModel(backed, n_hidden=8, n_latent=2)
    most = 0
    read = BackedCounts._read

    def watch(self: BackedCounts, start: int, stop: int) -> sp.csr_matrix:
        nonlocal most
        most = max(most, stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(BackedCounts, "_read", watch)
    monkeypatch.setattr("scr2mae.data.backed._ROWS_PER_WINDOW", 20)
    monkeypatch.setattr("scr2mae.data.backed._LARGEST_BLOCK", 5)
    monkeypatch.setattr("scr2mae.data.backed._SMALLEST_BLOCK", 5)
    monkeypatch.setattr(BackedCounts, "_rows_per_read", 20)
    model.train(1, batch_size=10, counts_on="disk", accelerator="cpu", enable_progress_bar=False)
    assert model.get_latent_representation(batch_size=10).shape == (120, 2)
    assert 0 < most <= 20


def test_scattered_cells_are_read_a_chunk_at_a_time_not_one_by_one(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    nnz_per_row = adata.X.nnz / adata.n_obs
    ad.io.write_elem(group, "X", adata.X, dataset_kwargs={"chunks": (int(10 * nnz_per_row),), "shards": None})
    stored = AnnData(ad.io.sparse_dataset(group["X"]), obs=adata.obs, var=adata.var)
    spans: list[tuple[int, int]] = []
    read = BackedCounts._read

    def watch(self: BackedCounts, start: int, stop: int) -> sp.csr_matrix:
        spans.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(BackedCounts, "_read", watch)
    # every fourth cell, then a stretch of three chunks with none
    where = np.r_[0:40:4, 75:120:4]
    rows = of(stored)[where]
    assert spans == [(0, 37), (75, 120)]
    np.testing.assert_array_equal(rows.toarray(), adata.X[where].toarray())

    spans.clear()
    monkeypatch.setattr(BackedCounts, "_rows_per_read", 20)
    np.testing.assert_array_equal(of(stored)[where].toarray(), adata.X[where].toarray())
    assert max(stop - start for start, stop in spans) <= 20


def test_a_scattered_cell_with_an_invalid_count_is_named(adata: AnnData, tmp_path: Path) -> None:
    adata.X[77, int(adata.X[77].indices[0])] = 1.5
    rows = of(on_disk(adata, tmp_path, "zarr"))
    assert rows[np.array([70, 76, 80])].shape == (3, 60)
    with pytest.raises(ValueError, match="cell 'cell77'"):
        rows[np.array([70, 77, 80])]


def test_training_from_disk_equals_training_in_memory(backed: AnnData, adata: AnnData) -> None:
    def train(adata: AnnData, counts_on: str) -> R2MAEModel:
        model = R2MAEModel(adata, n_hidden=16, n_latent=4, seed=3)
        model.train(
            2,
            batch_size=32,
            counts_on=counts_on,
            accelerator="cpu",
            enable_progress_bar=False,
            train_size=0.8,
        )
        return model

    disk, memory = train(backed, "disk"), train(adata, "memory")
    assert disk.adata is backed
    for curve in ("train_loss_step", "validation_loss"):
        assert disk.history[curve].equals(memory.history[curve])
    np.testing.assert_array_equal(disk.get_latent_representation(), memory.get_latent_representation(adata))


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_from_disk_equal_batches_in_memory_beyond_one_window(
    backed: AnnData, adata: AnnData, world_size: int
) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    split = split_cells(120, train_size=0.9, seed=0)
    for rank in range(world_size):
        batches = []
        for source, kept in ((backed, True), (adata, False)):
            cells = read_cells(source, model.spec, on_disk=kept)
            assert cells.on_disk == kept
            loader = CellLoader(
                cells, split.train, batch_size=8, shuffle=True, seed=5, block=4, window=3,
                rank=rank, world_size=world_size,
            )  # fmt: skip
            loader.sampler.set_epoch(1)
            batches.append(list(loader))
        disk, memory = batches
        assert len(disk) == len(memory) == 14 // world_size
        for a, b in zip(disk, memory, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key].numpy(), b[key].numpy())


@pytest.mark.parametrize("n_seen", [1, 3, 4, 7])
def test_reading_ahead_resumes_in_mid_epoch(backed: AnnData, adata: AnnData, n_seen: int) -> None:
    spec = R2MAEModel(adata, n_hidden=8, n_latent=2).spec
    cells = read_cells(backed, spec, on_disk=True)

    def loader() -> CellLoader:
        return CellLoader(cells, batch_size=10, shuffle=True, seed=1, block=4, window=3)

    broken, resumed = loader(), loader()
    iterator = iter(broken)
    for _ in range(n_seen):
        next(iterator)
    iterator.close()
    resumed.load_state_dict(broken.state_dict())
    rest = list(loader())[n_seen:]
    for a, b in zip(resumed, rest, strict=True):
        np.testing.assert_array_equal(a["X"].numpy(), b["X"].numpy())


def test_a_failing_read_raises_in_the_loop_and_does_not_hang(backed: AnnData, adata: AnnData) -> None:
    cells = read_cells(backed, R2MAEModel(adata, n_hidden=8, n_latent=2).spec, on_disk=True)
    n_reads = 0
    to_memory = type(cells).to_memory

    def fail(self: object, indices: np.ndarray) -> object:
        nonlocal n_reads
        n_reads += 1
        if n_reads == 2:
            raise OSError("the disk is gone")
        return to_memory(cells, indices)

    object.__setattr__(cells, "to_memory", fail.__get__(cells))
    loader = CellLoader(cells, batch_size=10, window=2)
    with pytest.raises(OSError, match="the disk is gone"):
        list(loader)


def test_the_embedding_is_written_to_the_given_array(
    backed: AnnData, trained: R2MAEModel, tmp_path: Path
) -> None:
    expected = trained.get_latent_representation(backed)
    store = zarr.create_array(tmp_path / "z.zarr", shape=expected.shape, chunks=(32, 4), dtype="float32")
    assert trained.get_latent_representation(backed, out=store, batch_size=32) is store
    np.testing.assert_allclose(store[:], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"out must have shape \(120, 4\).*got \(3, 4\)"):
        trained.get_latent_representation(backed, out=np.empty((3, 4)))


def test_auto_loads_what_fits_and_leaves_on_disk_what_does_not(
    backed: AnnData, adata: AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="scr2mae"):
        assert not stays_on_disk(backed, None, "auto")
        assert "are loaded" in caplog.text
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10_000})())
        assert stays_on_disk(backed, None, "auto")
        assert "stay on disk" in caplog.text
    assert not stays_on_disk(adata, None, "auto")
    assert stays_on_disk(backed, None, "disk")
    assert not stays_on_disk(backed, None, "memory")


def test_unknown_places_and_counts_that_are_not_on_disk_are_refused(adata: AnnData) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.raises(ValueError, match=r"counts_on must be one of .*'disk'.*got 'gpu'"):
        model.train(1, counts_on="gpu", accelerator="cpu")
    with pytest.raises(ValueError, match=r"counts are in memory or stored by columns; open the file"):
        model.train(1, counts_on="disk", accelerator="cpu")
    assert not model.is_trained


def test_a_data_module_of_cells_on_disk_validates_on_the_cells_of_the_split(
    backed: AnnData, adata: AnnData
) -> None:
    spec = R2MAEModel(adata, n_hidden=8, n_latent=2).spec
    split = split_cells(120, train_size=0.8, seed=0)
    module = CellDataModule(read_cells(backed, spec, on_disk=True), split, batch_size=16)
    validation = np.concatenate([batch["X"].numpy() for batch in module.val_dataloader()])
    np.testing.assert_array_equal(validation, adata.X[split.validation].toarray())
