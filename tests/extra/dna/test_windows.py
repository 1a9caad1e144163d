"""Windows, their choice and split, and mini-batches of them."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from scr2mae.extra import dna
from scr2mae.extra.dna.dataset import WindowDataModule


def places(windows):
    return set(map(tuple, windows.to_numpy()))


def alignment(text="ACGTACGTAC", other=None, *, chrom="c", start=0):
    symbols = np.array([list(text), list(other or text)], dtype="S1").T
    return dna.GenomeMSA.from_numpy(symbols, chrom=chrom, start=start)


# --- where windows lie


def test_windows_step_through_the_alignment_on_both_strands():
    windows = dna.make_windows(alignment(start=50), size=4, step=3)
    assert list(windows.columns) == ["chrom", "start", "end", "strand"]
    assert places(windows) == {("c", s, s + 4, strand) for s in (50, 53, 56) for strand in "+-"}
    forward = dna.make_windows(alignment(start=50), size=4, step=3, both_strands=False)
    assert places(forward) == {("c", s, s + 4, "+") for s in (50, 53, 56)}


def test_windows_with_unknown_reference_bases_are_left_out():
    msa = alignment("ACGNACGTACNN", "------------")
    starts = dna.make_windows(msa, size=4, step=1, both_strands=False)["start"].tolist()
    assert starts == [4, 5, 6]
    some = dna.make_windows(msa, size=4, step=1, both_strands=False, max_unknown=0.25)["start"].tolist()
    assert some == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"size": 11},
            ValueError,
            r"Windows of 11 positions are longer than the longest chromosome, 10",
        ),
        ({"size": 1}, ValueError, r"size >= 2 and step >= 1"),
        ({"size": 4, "step": 0}, ValueError, r"size >= 2 and step >= 1"),
        ({"size": 4, "max_unknown": 2}, ValueError, r"max_unknown must lie in \[0, 1\], got 2"),
        ({"size": 4, "chroms": ["d"]}, KeyError, r"No chromosome 'd'"),
    ],
)
def test_windows_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        dna.make_windows(alignment(), **options)
    with pytest.raises(ValueError, match=r"Every window has more than 0% unknown"):
        dna.make_windows(alignment("NNNNNN"), size=4)


# --- which are kept


def test_the_most_conserved_windows_are_kept_with_both_strands():
    msa = alignment("A" * 400)
    track = dna.ArrayTrack({"c": np.repeat(np.linspace(0, 1, 20), 20)})
    windows = dna.make_windows(msa, size=20, step=20)
    top = dna.select_windows(windows, track, top=0.1, random=0.0)
    assert places(top) == {("c", s, s + 20, strand) for s in (360, 380) for strand in "+-"}
    more = dna.select_windows(windows, track, top=0.1, random=0.5, seed=0)
    assert places(top) < places(more)
    assert len(more) == 4 + 2 * 9
    again, other = (dna.select_windows(windows, track, top=0.1, random=0.5, seed=seed) for seed in (0, 1))
    assert places(again) == places(more) != places(other)


def test_windows_are_ranked_by_a_quantile_and_missing_values_are_unconserved():
    values = np.zeros(40)
    values[:10], values[20:24], values[30:] = 0.4, 1.0, np.nan
    windows = dna.make_windows(alignment("A" * 40), size=10, step=10, both_strands=False)
    track = dna.ArrayTrack({"c": values})
    assert dna.select_windows(windows, track, top=0.25, random=0)["start"].tolist() == [20]
    assert dna.select_windows(windows, track, top=0.25, random=0, quantile=0.25)["start"].tolist() == [0]
    with pytest.raises(ValueError, match=r"top must lie in \[0, 1\]"):
        dna.select_windows(windows, track, top=5)
    with pytest.raises(ValueError, match=r"leave none of 4 windows"):
        dna.select_windows(windows, track, top=0, random=0)


# --- how they are split


def covered(windows):
    return {(c, i) for c, s, e in windows[["chrom", "start", "end"]].to_numpy() for i in range(s, e)}


def test_no_position_is_on_two_sides_of_a_split(msa):
    windows = dna.make_windows(msa, size=32, step=16)
    split = dna.split_windows(windows, validation_size=0.2, test_size=0.2, block_size=200, seed=3)
    sides = [covered(part) for part in (split.train, split.validation, split.test)]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    for part in (split.validation, split.test):
        assert part["start"].floordiv(200).nunique() == 4  # a fifth of 20 blocks
    kept = sum(map(len, (split.train, split.validation, split.test)))
    across = windows[windows["start"] // 200 != (windows["end"] - 1) // 200]
    assert len(windows) - len(across) <= kept < len(windows)


def test_splits_repeat_with_the_seed_and_blocks_of_other_chromosomes_are_others():
    symbols = np.full((1000, 2), b"A")
    windows = dna.make_windows(dna.GenomeMSA({"a": symbols, "b": symbols}), size=10, step=10)
    first, again, other = (
        dna.split_windows(windows, validation_size=0.5, block_size=100, seed=seed) for seed in (0, 0, 1)
    )
    assert places(first.validation) == places(again.validation) != places(other.validation)
    assert len(first.test) == 0
    by_chrom = {c: set(part["start"]) for c, part in first.validation.groupby("chrom")}
    assert by_chrom["a"] != by_chrom["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": 0.6, "test_size": 0.4}, r"leave windows for training, got 0.6 and 0.4"),
        ({"validation_size": -0.1}, r"must be >= 0"),
        ({"block_size": 20}, r"Windows of 32 positions are longer than block_size=20"),
        ({"block_size": 10**6}, r"No windows are left for train: 1 blocks"),
    ],
)
def test_splits_that_cannot_be_are_refused(msa, options, message):
    with pytest.raises(ValueError, match=message):
        dna.split_windows(dna.make_windows(msa, size=32, step=32), **options)


# --- mini-batches


def test_a_batch_holds_tokens_of_both_strands():
    msa = alignment("ACGTNacgta", "AC--NACGTT")
    windows = pd.DataFrame({"chrom": "c", "start": [0, 0], "end": [5, 5], "strand": ["+", "-"]})
    batch = dna.MSAWindowDataset(msa, windows).batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0], [0, 1, 2, 3, 4]]
    assert batch["aux_features"][..., 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert batch["input_ids"].dtype == batch["aux_features"].dtype == torch.uint8
    assert batch["loss_weight"].tolist() == [[1.0] * 5] * 2
    assert "flip_probability" not in batch


def test_weights_are_those_of_the_formula():
    msa = alignment("ACgtACGTACGTACGTACGT")
    phylop = np.linspace(-2, 7, 20)
    phylop[5] = np.nan
    phastcons = np.zeros(20)
    phastcons[12], phastcons[13], phastcons[2] = 0.6, 0.05, np.nan
    tracks = {"phylop": dna.ArrayTrack({"c": phylop}), "phastcons": dna.ArrayTrack({"c": phastcons})}
    windows = pd.DataFrame({"chrom": "c", "start": [0, 0], "end": [20, 20], "strand": ["+", "-"]})
    data = dna.MSAWindowDataset(msa, windows, repeat_weight=0.25, **tracks)
    repeats = np.where(np.isin(np.arange(20), (2, 3)), 0.25, 1.0)
    level = np.zeros(20)
    level[9:16], level[16] = 0.6, 0.05  # the largest within three positions
    wanted = repeats * np.fmax(phylop, 1.0) * (0.1 + level)
    wanted[5] = repeats[5] * 0.1
    np.testing.assert_allclose(data[0]["loss_weight"], wanted, rtol=1e-6)
    np.testing.assert_allclose(data[1]["loss_weight"], wanted[::-1], rtol=1e-6)
    flip = np.where(level < 0.1, 0.5, 0.0)
    np.testing.assert_array_equal(data[0]["flip_probability"], flip)
    np.testing.assert_array_equal(data[1]["flip_probability"], flip[::-1])
    still = dna.MSAWindowDataset(msa, windows, flip_probability=0.0, **tracks)
    assert "flip_probability" not in still[0]


def test_conservation_beyond_the_border_of_a_window_counts():
    track = dna.ArrayTrack({"c": np.r_[np.zeros(12), 1.0, np.zeros(7)]})
    windows = pd.DataFrame({"chrom": ["c"], "start": [0], "end": [10], "strand": ["+"]})
    item = dna.MSAWindowDataset(alignment("A" * 20), windows, phastcons=track)[0]
    np.testing.assert_allclose(item["loss_weight"], [0.1] * 9 + [1.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w: w.iloc[:0], ValueError, r"table of windows is empty"),
        (lambda w: w.drop(columns="strand"), ValueError, r"lacks \['strand'\]"),
        (lambda w: w.assign(end=w["start"] + [4, 5]), ValueError, r"same length, got \[4, 5\]"),
        (
            lambda w: w.assign(start=w["start"] + 7, end=w["end"] + 7),
            IndexError,
            r"extend beyond the alignment, which covers c:0-10",
        ),
        (lambda w: w.assign(chrom="d"), KeyError, r"No chromosome 'd'"),
        (lambda w: w.assign(strand=["+", "."]), ValueError, r"strand must be '\+' or '-', got \['.'\]"),
        (lambda w: w.assign(end=w["start"]), ValueError, r"start < end, got a length of 0"),
    ],
)
def test_tables_of_windows_that_do_not_fit_are_refused(change, error, message):
    windows = pd.DataFrame({"chrom": "c", "start": [0, 5], "end": [4, 9], "strand": "+"})
    with pytest.raises(error, match=message):
        dna.MSAWindowDataset(alignment(), change(windows))


def test_tracks_of_another_place_are_found_before_training(caplog):
    msa = alignment("ACGTACGTAC")
    windows = dna.make_windows(msa, size=4, step=2)
    with pytest.raises(KeyError, match=r"No chromosome 'c' in the track; it has \['d'\]"):
        dna.MSAWindowDataset(msa, windows, phylop=dna.ArrayTrack({"d": np.zeros(10)}))
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        dna.MSAWindowDataset(msa, windows, phastcons=dna.ArrayTrack({"c": np.zeros(10)}, starts={"c": 9}))
        assert not caplog.records
        dna.MSAWindowDataset(msa, windows, phastcons=dna.ArrayTrack({"c": np.zeros(10)}, starts={"c": 10}))
    assert "phastCons has no value in any of 8 windows" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat_weight": 0}, r"repeat_weight must be positive"),
        ({"flip_probability": 2}, r"flip_probability must lie in"),
    ],
)
def test_weights_out_of_range_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        dna.MSAWindowDataset(dataset.msa, dataset.windows, **options)


def test_the_data_module_visits_every_window_once_an_epoch(dataset):
    module = WindowDataModule(dataset, dataset, batch_size=16, seed=1)
    loader = module.train_dataloader()
    first = torch.cat([batch["input_ids"] for batch in loader])
    assert sorted(map(tuple, first.tolist())) == sorted(
        map(tuple, dataset.batch(np.arange(len(dataset)))["input_ids"].tolist())
    )
    loader.sampler.set_epoch(1)
    assert not torch.equal(torch.cat([batch["input_ids"] for batch in loader]), first)
    held_out = torch.cat([batch["input_ids"] for batch in module.val_dataloader()])
    assert torch.equal(held_out, dataset.batch(np.arange(len(dataset)))["input_ids"])
    assert WindowDataModule(dataset, batch_size=16).val_dataloader() == []


# --- simulation


def test_simulated_elements_change_a_fifth_as_often():
    msa, track = dna.simulate_alignment(40_000, 4, divergence=(0.05, 0.6), gap=0.0, seed=2)
    symbols = msa.get("chr1", 0, 40_000)
    inside = track.values("chr1", 0, 40_000) > 0.5
    differs = symbols[:, 1:] != symbols[:, :1]
    rates = np.linspace(0.05, 0.6, 4)
    np.testing.assert_allclose(differs[~inside].mean(axis=0), rates, atol=0.01)
    np.testing.assert_allclose(differs[inside].mean(axis=0), rates / 5, atol=0.01)
    assert abs(inside.mean() - 0.2) < 0.03
    again = dna.simulate_alignment(40_000, 4, divergence=(0.05, 0.6), gap=0.0, seed=2)[0]
    assert np.array_equal(again.get("chr1", 0, 40_000), symbols)
    gappy = dna.simulate_alignment(40_000, 4, gap=0.3, seed=2)[0].get("chr1", 0, 40_000)
    np.testing.assert_allclose((gappy[:, 1:] == b"-").mean(axis=0), 0.3, atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_positions": 1}, r"n_positions >= 2"),
        ({"conserved": 2}, r"conserved must lie"),
        ({"divergence": (0.5, 2)}, r"divergence must be two shares"),
        ({"gap": 1}, r"gap in \[0, 1\)"),
    ],
)
def test_simulations_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dna.simulate_alignment(**options)
