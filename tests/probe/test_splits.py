import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.probe import DonorSplit, check_no_donor_leak, donor_split

DONORS = np.repeat([f"d{i}" for i in range(10)], 7)


def test_a_donor_on_both_sides_is_refused_by_name():
    with pytest.raises(ValueError, match=r"1 donor\(s\) on both sides of the split: b"):
        check_no_donor_leak(["a", "b"], ["b", "c"])
    with pytest.raises(ValueError, match="on both sides of the split: b"):
        DonorSplit(train_donors=("a", "b"), test_donors=("b", "c"))


def test_the_same_donor_as_number_and_as_text_is_a_leak():
    with pytest.raises(ValueError, match="on both sides of the split: 1"):
        check_no_donor_leak([1, 2], ["1", "3"])


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="got 2 for training and 0 for testing"):
        check_no_donor_leak(["a", "b"], [])


@settings(max_examples=60, deadline=None)
@given(
    donors=st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda d: len(set(d)) > 1),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_every_cell_is_on_one_side_and_donors_are_not_divided(donors, seed, data):
    n_train = data.draw(st.integers(1, len(set(donors)) - 1))
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=len(donors), max_size=len(donors)))
    split = donor_split(donors, n_train_donors=n_train, labels=labels, seed=seed)
    train, test = split.rows(donors)
    assert sorted([*train, *test]) == list(range(len(donors)))
    assert len(split.train_donors) == n_train
    assert not {donors[i] for i in train} & {donors[i] for i in test}


def test_depends_on_the_seed_and_not_on_the_order_of_cells():
    shuffled = np.random.default_rng(0).permutation(DONORS)
    assert donor_split(DONORS, seed=3).hash == donor_split(shuffled, seed=3).hash
    assert len({donor_split(DONORS, seed=s).hash for s in range(20)}) > 10


def test_donors_are_drawn_for_training_equally_often():
    n_draws = 2000
    count = dict.fromkeys(np.unique(DONORS), 0)
    for seed in range(n_draws):
        for donor in donor_split(DONORS, n_train_donors=3, seed=seed).train_donors:
            count[donor] += 1
    # Standard deviation of a share is sqrt(.3 * .7 / 2000) = .010.
    np.testing.assert_allclose(np.array(list(count.values())) / n_draws, 0.3, atol=0.05)


def test_a_class_of_two_donors_is_on_both_sides_in_every_draw():
    labels = np.where(np.isin(DONORS, ["d2", "d7"]), "rare", "common")
    for seed in range(50):
        split = donor_split(DONORS, n_train_donors=2, labels=labels, seed=seed)
        assert len({"d2", "d7"} & set(split.train_donors)) == 1
        assert split.absent_train == split.absent_test == ()
    unstratified = [donor_split(DONORS, n_train_donors=2, seed=s).train_donors for s in range(50)]
    assert any(not {"d2", "d7"} & set(train) for train in unstratified)


def test_a_class_of_one_donor_is_reported_absent(caplog):
    labels = np.where(DONORS == "d4", "only", "common")
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        split = donor_split(DONORS, labels=labels, seed=1)
    side = "test" if "d4" in split.train_donors else "training"
    absent = split.absent_test if side == "test" else split.absent_train
    assert absent == ("only",)
    assert f"No {side} donor has the class(es) only." in caplog.text


def test_cells_without_a_label_do_not_count_as_a_class():
    labels = np.where(DONORS == "d4", None, "common").astype(object)
    split = donor_split(DONORS, labels=labels)
    assert split.absent_train == split.absent_test == ()


def test_the_manifest_round_trips_through_json(tmp_path):
    split = donor_split(DONORS, n_train_donors=4, labels=DONORS == "d3", seed=9)
    split.write(tmp_path / "split.json")
    assert DonorSplit.read(tmp_path / "split.json") == split
    manifest = json.loads((tmp_path / "split.json").read_text())
    assert manifest["seed"] == 9
    assert manifest["hash"] == split.hash
    assert sorted(manifest["train_donors"] + manifest["test_donors"]) == sorted(set(DONORS))


def test_an_edited_manifest_is_refused(tmp_path):
    manifest = donor_split(DONORS).to_manifest()
    moved = {**manifest, "test_donors": [*manifest["test_donors"], "d99"]}
    with pytest.raises(ValueError, match="it was edited"):
        DonorSplit.from_manifest(moved)
    with pytest.raises(ValueError, match="schema 1, got 7"):
        DonorSplit.from_manifest({**manifest, "schema_version": 7})


def test_the_hash_depends_on_which_side_is_training():
    one = DonorSplit(train_donors=("a",), test_donors=("b",), seed=1)
    assert one.hash == DonorSplit(train_donors=("a",), test_donors=("b",), seed=2).hash
    assert one.hash != DonorSplit(train_donors=("b",), test_donors=("a",), seed=1).hash


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"at least two donors, got \['d'\]"):
        donor_split(["d", "d"])
    with pytest.raises(ValueError, match=r"between 1 and 9 \(10 donors.*got 10"):
        donor_split(DONORS, n_train_donors=10)
    with pytest.raises(ValueError, match=r"2 cell\(s\) have no donor"):
        donor_split(["a", "b", None, np.nan])
    with pytest.raises(ValueError, match="3 labels for 70 cells"):
        donor_split(DONORS, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="matches 0 training and 7 test cells"):
        DonorSplit(train_donors=("z",), test_donors=("d1",)).rows(DONORS)
