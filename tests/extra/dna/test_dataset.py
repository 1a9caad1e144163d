"""Mini-batches of windows and their weights."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

from scr2mae.extra import dna
from scr2mae.extra.batches import BatchDataModule


def test_a_batch_holds_tokens_of_both_strands(make_alignment):
    msa = make_alignment("ACGTNacgta", "AC--NACGTT")
    windows = pd.DataFrame({"chrom": "c", "start": [0, 0], "end": [5, 5], "strand": ["+", "-"]})
    batch = dna.MSAWindowDataset(msa, windows).batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0], [0, 1, 2, 3, 4]]
    assert batch["aux_features"][..., 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]
    assert batch["input_ids"].dtype == batch["aux_features"].dtype == torch.uint8
    assert batch["loss_weight"].tolist() == [[1.0] * 5] * 2
    assert "flip_probability" not in batch


def test_weights_are_those_of_the_formula(make_alignment):
    msa = make_alignment("ACgtACGTACGTACGTACGT")
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


def test_conservation_beyond_the_border_of_a_window_counts(make_alignment):
    track = dna.ArrayTrack({"c": np.r_[np.zeros(12), 1.0, np.zeros(7)]})
    windows = pd.DataFrame({"chrom": ["c"], "start": [0], "end": [10], "strand": ["+"]})
    item = dna.MSAWindowDataset(make_alignment("A" * 20), windows, phastcons=track)[0]
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
def test_tables_of_windows_that_do_not_fit_are_refused(make_alignment, change, error, message):
    windows = pd.DataFrame({"chrom": "c", "start": [0, 5], "end": [4, 9], "strand": "+"})
    with pytest.raises(error, match=message):
        dna.MSAWindowDataset(make_alignment(), change(windows))


def test_tracks_of_another_place_are_found_before_training(make_alignment, caplog):
    msa = make_alignment("ACGTACGTAC")
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
    module = BatchDataModule(dataset, dataset, batch_size=16, seed=1, shard_validation=True)
    loader = module.train_dataloader()
    first = torch.cat([batch["input_ids"] for batch in loader])
    assert sorted(map(tuple, first.tolist())) == sorted(
        map(tuple, dataset.batch(np.arange(len(dataset)))["input_ids"].tolist())
    )
    loader.sampler.set_epoch(1)
    assert not torch.equal(torch.cat([batch["input_ids"] for batch in loader]), first)
    held_out = torch.cat([batch["input_ids"] for batch in module.val_dataloader()])
    assert torch.equal(held_out, dataset.batch(np.arange(len(dataset)))["input_ids"])
    assert BatchDataModule(dataset, batch_size=16).val_dataloader() == []
