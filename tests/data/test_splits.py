import warnings
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from scr2mae.data import Split, split_cells

DONORS = pd.Series(np.repeat([f"donor{i}" for i in range(10)], [5, 10, 15, 20, 25, 5, 10, 15, 20, 25]))
SIDES = ("train", "validation", "test")


def sides(split: Split) -> list[np.ndarray]:
    return [getattr(split, side) for side in SIDES]


@pytest.mark.parametrize("groups", [None, DONORS], ids=["cells", "groups"])
@pytest.mark.parametrize("sizes", [(0.9, None), (0.6, 0.2), (0.5, 0.0), (1.0, None)], ids=str)
def test_every_cell_is_on_exactly_one_side_in_order(
    groups: pd.Series | None, sizes: tuple[float, float | None]
) -> None:
    split = split_cells(
        150, groups=groups, key="donor", train_size=sizes[0], validation_size=sizes[1], seed=3
    )
    np.testing.assert_array_equal(np.sort(np.concatenate(sides(split))), np.arange(150))
    for side in sides(split):
        assert side.dtype == np.int64
        np.testing.assert_array_equal(side, np.sort(side))


def test_shares_of_cells_are_exact() -> None:
    split = split_cells(150, train_size=0.6, validation_size=0.3)
    assert [len(side) for side in sides(split)] == [90, 45, 15]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_on_one_side_and_shares_hold_to_within_a_group(seed: int) -> None:
    split = split_cells(150, groups=DONORS, key="donor", train_size=0.6, validation_size=0.2, seed=seed)
    found = {side: set(DONORS[getattr(split, side)]) for side in SIDES}
    assert sum(len(groups) for groups in found.values()) == 10
    assert {side: sorted(groups) for side, groups in found.items()} == split.groups
    assert split.key == "donor"
    for side, share in zip(SIDES, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(getattr(split, side)) - share * 150) <= 25


def test_groups_do_not_depend_on_the_type_of_the_column() -> None:
    splits = [
        split_cells(150, groups=DONORS.astype(kind), key="donor") for kind in (object, "category", "string")
    ]
    assert len({split.sha256 for split in splits}) == 1


def test_one_huge_group_never_leaves_a_side_empty() -> None:
    groups = pd.Series(np.repeat(["huge", "a", "b"], [90, 5, 5]))
    for seed in range(10):
        split = split_cells(100, groups=groups, key="donor", train_size=0.8, validation_size=0.1, seed=seed)
        assert all(len(side) > 0 for side in sides(split))


@pytest.mark.parametrize(("n_donors", "n_held_out"), [(10, 1), (20, 2), (30, 3), (40, 4), (100, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_equal_donors_is_held_out(n_donors: int, n_held_out: int, seed: int) -> None:
    donors = pd.Series(np.repeat([f"donor{i}" for i in range(n_donors)], 7))
    split = split_cells(len(donors), groups=donors, key="donor", seed=seed)
    assert len(split.groups["validation"]) == n_held_out


def unequal_donors(seed: int) -> pd.Series:
    sizes = np.random.default_rng(seed).integers(20, 400, size=11)
    return pd.Series(np.repeat([f"donor{i}" for i in range(11)], sizes))


@pytest.mark.parametrize("seed", range(6))
def test_the_held_out_share_is_that_of_the_nearest_three_donors_to_within_a_twentieth(seed: int) -> None:
    donors = unequal_donors(seed)
    split = split_cells(len(donors), groups=donors, key="donor", train_size=0.8, seed=seed)
    sizes, wanted = donors.value_counts().to_numpy(), 0.2 * len(donors)
    every_set = (list(each) for n in range(3, 9) for each in combinations(range(11), n))
    nearest = min(abs(sizes[each].sum() - wanted) for each in every_set)
    assert abs(len(split.validation) - wanted) <= nearest + 0.05 * wanted
    assert len(split.groups["validation"]) >= 3


def test_one_donor_is_not_held_out_where_three_have_as_many_cells() -> None:
    donors = pd.Series(np.repeat([*"abcdefgh", "large"], [33, 33, 33, 200, 200, 200, 100, 100, 101]))
    for seed in range(5):
        split = split_cells(len(donors), groups=donors, key="donor", train_size=0.9, seed=seed)
        assert split.groups["validation"] == ["a", "b", "c"]


def test_seeds_hold_out_different_donors() -> None:
    donors = unequal_donors(0)
    held_out = {
        tuple(
            split_cells(len(donors), groups=donors, key="donor", train_size=0.8, seed=seed).groups[
                "validation"
            ]
        )
        for seed in range(8)
    }
    assert len(held_out) >= 4


@pytest.mark.parametrize(
    ("n_donors", "advice"),
    [(12, "train_size=0.75 holds out about three of 12"), (5, "more donors would be needed")],
)
def test_a_single_validation_donor_is_named_with_what_to_do(n_donors: int, advice: str, caplog) -> None:
    donors = pd.Series(np.repeat([f"donor{i}" for i in range(n_donors)], 7))
    split = split_cells(len(donors), groups=donors, key="donor")
    assert f"donor '{split.groups['validation'][0]}' alone" in caplog.text
    assert advice in caplog.text
    if n_donors == 12:
        caplog.clear()
        again = split_cells(len(donors), groups=donors, key="donor", train_size=0.75)
        assert len(again.groups["validation"]) == 3
        assert caplog.text == ""


@pytest.mark.parametrize("n_groups", [1, 2])
def test_fewer_than_three_groups_warn_and_split_by_cell(n_groups: int) -> None:
    groups = pd.Series(np.arange(100) % n_groups).astype(str)
    with pytest.warns(UserWarning, match=f"adata.obs\\['donor'\\] has {n_groups} groups; at least 3"):
        split = split_cells(100, groups=groups, key="donor", seed=1)
    assert split.key is None
    assert split.groups == {}
    assert split.sha256 == split_cells(100, seed=1).sha256


def test_cells_without_a_group_are_kept_together_with_a_warning() -> None:
    groups = DONORS.where(np.arange(150) % 7 != 0)
    with pytest.warns(UserWarning, match="22 missing values; those cells are kept together"):
        split = split_cells(150, groups=groups, key="donor", train_size=0.5, seed=2)
    nameless = np.flatnonzero(groups.isna())
    assert sum(bool(np.isin(nameless, side).any()) for side in sides(split)) == 1


def test_a_split_is_a_function_of_its_seed() -> None:
    first, again, other = (split_cells(150, groups=DONORS, key="donor", seed=seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_the_hash_tells_the_sides_apart() -> None:
    first = split_cells(6, external_indexing=[np.array([0, 1, 2]), np.array([3]), np.array([4, 5])])
    second = split_cells(6, external_indexing=[np.array([0, 1, 2]), np.array([3, 4]), np.array([5])])
    assert first.sha256 != second.sha256


def test_without_shuffling_the_first_cells_train() -> None:
    split = split_cells(10, train_size=0.7, shuffle=False)
    np.testing.assert_array_equal(split.train, np.arange(7))
    np.testing.assert_array_equal(split.validation, np.arange(7, 10))


def test_given_positions_are_kept_and_need_not_cover_every_cell() -> None:
    split = split_cells(100, external_indexing=[np.array([7, 3, 5]), [20, 11]])
    np.testing.assert_array_equal(split.train, [3, 5, 7])
    np.testing.assert_array_equal(split.validation, [11, 20])
    assert len(split.test) == 0
    assert split.seed is None


def test_splitting_does_not_change_the_global_generator() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split_cells(50, seed=4)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_valid_split_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_cells(150, groups=DONORS, key="donor")
    assert len(split.train) + len(split.validation) == 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0.0}, r"train_size must lie in \(0, 1\]"),
        ({"train_size": 1.2}, r"train_size must lie in \(0, 1\]"),
        ({"train_size": 0.8, "validation_size": 0.3}, "must not exceed 1"),
        ({"validation_size": -0.1}, "validation_size must lie in"),
        ({"train_size": 0.001}, "Training needs at least two cells, got 1 of 100"),
        ({"external_indexing": [[0, 1], [1, 2]]}, "contains a cell twice"),
        ({"external_indexing": [[0, 0, 1], []]}, "contains a cell twice"),
        ({"external_indexing": [[0, 1, 100]]}, r"must lie in \[0, 100\), got 0 to 100"),
        ({"external_indexing": [[-1, 1]]}, r"must lie in \[0, 100\), got -1 to 1"),
        ({"external_indexing": [[0], [1], [2], [3]]}, "got 4 lists"),
        ({"external_indexing": [[], [1]]}, "Training needs at least two cells, got 0"),
    ],
    ids=str,
)
def test_an_impossible_split_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_cells(100, **arguments)
