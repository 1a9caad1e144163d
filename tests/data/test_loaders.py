"""Mini-batches: their cells, order and rank."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.data import BatchSampler, CellDataModule, CellLoader, Cells, split_cells

few = settings(max_examples=60, deadline=None)


def make_cells(n_obs: int = 23, n_vars: int = 4, *, measured: np.ndarray | None = None) -> Cells:
    """Cells whose first count is their position."""
    counts = np.ones((n_obs, n_vars), dtype=np.float32)
    counts[:, 0] = np.arange(n_obs)
    return Cells(
        counts=sp.csr_matrix(counts),
        measured=measured,
        categories=np.zeros((n_obs, 1), dtype=np.int64),
        continuous=np.zeros((n_obs, 0), dtype=np.float32),
        size_factor=None,
    )


def positions(loader: CellLoader) -> list[list[int]]:
    return [batch["X"][:, 0].int().tolist() for batch in loader]


@few
@given(
    n_obs=st.integers(0, 60),
    batch_size=st.integers(2, 9),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_single=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_take_the_same_number_of_equal_steps_and_visit_each_cell_once(
    n_obs: int, batch_size: int, world_size: int, shuffle: bool, drop_single: bool, epoch: int
) -> None:
    samplers = [
        BatchSampler(
            n_obs,
            batch_size,
            shuffle=shuffle,
            seed=7,
            drop_single=drop_single,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    steps = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in steps} == {len(samplers[0])}
    for together in zip(*steps, strict=True):
        assert len({len(batch) for batch in together}) == 1
        assert (2 if drop_single else 1) <= len(together[0]) <= batch_size
    seen = [int(cell) for batches in steps for batch in batches for cell in batch]
    assert len(set(seen)) == len(seen)
    # What does not share out evenly is left to the next epoch's order; one process without dropping sees all.
    assert n_obs - len(seen) < world_size * (2 if drop_single else 1)
    if not shuffle:
        assert sorted(seen) == list(range(len(seen)))


def test_orders_depend_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = BatchSampler(50, 8, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return np.concatenate(list(sampler)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(("batch_size", "drop_single"), [(0, False), (-3, False), (1, True)])
def test_too_small_a_batch_is_refused(batch_size: int, drop_single: bool) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size must be at least .* batch normalization needs two cells"
    ):
        BatchSampler(10, batch_size, drop_single=drop_single)


def test_a_loader_visits_the_given_cells_in_their_order() -> None:
    assert positions(CellLoader(make_cells(), np.array([9, 2, 22, 4, 0]), batch_size=2)) == [
        [9, 2],
        [22, 4],
        [0],
    ]


def test_a_batch_includes_which_genes_were_measured() -> None:
    measured = np.array([True, True, False, True])
    batch = next(iter(CellLoader(make_cells(measured=measured), batch_size=3)))
    assert batch["measured"].tolist() == measured.tolist()
    assert batch["measured"].dtype == torch.bool
    assert "measured" not in next(iter(CellLoader(make_cells(), batch_size=3)))


def test_a_resumed_loader_continues_in_mid_epoch_with_the_next_batch() -> None:
    def loader() -> CellLoader:
        return CellLoader(make_cells(), batch_size=5, shuffle=True, seed=3)

    whole, broken, resumed = loader(), loader(), loader()
    for each in (whole, broken):
        each.sampler.set_epoch(2)
    iterator = iter(broken)
    next(iterator)
    next(iterator)
    resumed.load_state_dict(broken.state_dict())
    expected = positions(whole)
    assert positions(resumed) == expected[2:]
    assert positions(resumed) == expected  # only the first pass is cut short


def test_a_loader_saved_at_the_end_of_an_epoch_starts_with_the_next() -> None:
    loader, resumed = (CellLoader(make_cells(), batch_size=5, shuffle=True) for _ in range(2))
    list(loader)
    resumed.load_state_dict(loader.state_dict())
    assert len(positions(resumed)) == len(resumed) == 5


def test_the_data_module_trains_and_validates_on_the_cells_of_the_split() -> None:
    split = split_cells(23, train_size=0.7, seed=1)
    module = CellDataModule(make_cells(), split, batch_size=4, seed=1)
    train = [cell for batch in positions(module.train_dataloader()) for cell in batch]
    validation = [cell for batch in positions(module.val_dataloader()) for cell in batch]
    dropped = set(split.train) - set(train)
    assert set(train) < set(split.train)
    assert train != sorted(train)
    assert len(dropped) == 1  # 17 cells in batches of 4
    assert validation == split.validation.tolist()


def test_without_validation_cells_there_is_no_validation_loader() -> None:
    module = CellDataModule(make_cells(), split_cells(23, train_size=1.0), batch_size=4)
    assert not module.val_dataloader()
