"""Tables of windows: cutting, selection and splits."""

import numpy as np
import pandas as pd
import pytest

from scr2mae.extra import dna


def places(windows):
    return set(map(tuple, windows.to_numpy()))


# --- cutting


def test_windows_step_through_the_alignment_on_both_strands(make_alignment):
    windows = dna.make_windows(make_alignment(start=50), size=4, step=3)
    assert list(windows.columns) == ["chrom", "start", "end", "strand"]
    assert places(windows) == {("c", s, s + 4, strand) for s in (50, 53, 56) for strand in "+-"}
    forward = dna.make_windows(make_alignment(start=50), size=4, step=3, both_strands=False)
    assert places(forward) == {("c", s, s + 4, "+") for s in (50, 53, 56)}


def test_windows_with_unknown_reference_bases_are_left_out(make_alignment):
    msa = make_alignment("ACGNACGTACNN", "------------")
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
def test_invalid_windows_are_refused(make_alignment, options, error, message):
    with pytest.raises(error, match=message):
        dna.make_windows(make_alignment(), **options)
    with pytest.raises(ValueError, match=r"Every window has more than 0% unknown"):
        dna.make_windows(make_alignment("NNNNNN"), size=4)


# --- selection


def test_the_most_conserved_windows_are_kept_with_both_strands(make_alignment):
    msa = make_alignment("A" * 400)
    track = dna.ArrayTrack({"c": np.repeat(np.linspace(0, 1, 20), 20)})
    windows = dna.make_windows(msa, size=20, step=20)
    top = dna.select_windows(windows, track, top=0.1, random=0.0)
    assert places(top) == {("c", s, s + 20, strand) for s in (360, 380) for strand in "+-"}
    more = dna.select_windows(windows, track, top=0.1, random=0.5, seed=0)
    assert places(top) < places(more)
    assert len(more) == 4 + 2 * 9
    again, other = (dna.select_windows(windows, track, top=0.1, random=0.5, seed=seed) for seed in (0, 1))
    assert places(again) == places(more) != places(other)


def test_windows_are_ranked_by_a_quantile_and_missing_values_are_unconserved(make_alignment):
    values = np.zeros(40)
    values[:10], values[20:24], values[30:] = 0.4, 1.0, np.nan
    windows = dna.make_windows(make_alignment("A" * 40), size=10, step=10, both_strands=False)
    track = dna.ArrayTrack({"c": values})
    assert dna.select_windows(windows, track, top=0.25, random=0)["start"].tolist() == [20]
    assert dna.select_windows(windows, track, top=0.25, random=0, quantile=0.25)["start"].tolist() == [0]
    with pytest.raises(ValueError, match=r"top must lie in \[0, 1\]"):
        dna.select_windows(windows, track, top=5)
    with pytest.raises(ValueError, match=r"leave none of 4 windows"):
        dna.select_windows(windows, track, top=0, random=0)


# --- splits


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
def test_invalid_splits_are_refused(msa, options, message):
    with pytest.raises(ValueError, match=message):
        dna.split_windows(dna.make_windows(msa, size=32, step=32), **options)


def test_windows_are_read_with_the_names_and_strands_of_the_alignment(tmp_path):
    msa, _ = dna.simulate_alignment(1000, 2, seed=0)
    wanted = dna.make_windows(msa, size=50, step=50)
    for name, strands in (("w.tsv", True), ("w.csv", True), ("w.bed", False), ("w.tsv.gz", False)):
        table = wanted.assign(chrom="1", score=0.5)
        if not strands:
            table = table[table["strand"] == "+"].drop(columns="strand")
        sep, is_bed = ("," if ".csv" in name else "\t"), name.endswith(".bed")
        table.to_csv(tmp_path / name, sep=sep, index=False, header=not is_bed)
        pd.testing.assert_frame_equal(dna.read_windows(tmp_path / name, msa), wanted, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"end": 990}, ValueError, "windows of one length"),
        ({"start": 980, "end": 1030}, ValueError, "are they of this assembly"),
        ({"strand": "?"}, ValueError, "A strand must be"),
        ({"chrom": "7"}, KeyError, "7"),
    ],
)
def test_windows_that_do_not_fit_are_refused(tmp_path, change, error, message):
    msa, _ = dna.simulate_alignment(1000, 2, seed=0)
    table = dna.make_windows(msa, size=50, step=50)
    table.iloc[:1].assign(**change).pipe(lambda row: pd.concat([row, table.iloc[1:]])).to_csv(
        tmp_path / "w.tsv", sep="\t", index=False
    )
    with pytest.raises(error, match=message):
        dna.read_windows(tmp_path / "w.tsv", msa)


def test_a_table_without_ends_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No table at"):
        dna.read_windows(tmp_path / "w.parquet", dna.simulate_alignment(1000, 2, seed=0)[0])
    (tmp_path / "w.tsv").write_text("chrom\tstart\n1\t5\n")
    with pytest.raises(KeyError, match="lacks the columns"):
        dna.read_windows(tmp_path / "w.tsv", dna.simulate_alignment(1000, 2, seed=0)[0])
