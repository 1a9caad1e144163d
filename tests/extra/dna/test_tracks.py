"""Conservation tracks: coordinates, wig, npy, bigWig, and invalid files."""

import gzip
import pickle
import sys
import types

import numpy as np
import pytest

from scr2mae.extra import dna

WIG = """track type=wiggle_0
fixedStep chrom=chr1 start=11 step=1
0.5
0.25

fixedStep chrom=chr1 start=15 step=2 span=2
1
2
variableStep chrom=chrX
7 0.125
9 -3
"""


def test_a_wig_file_gives_its_values_and_nan_between(tmp_path):
    for name, content in (("t.wig", WIG.encode()), ("t.wig.gz", gzip.compress(WIG.encode()))):
        (tmp_path / name).write_bytes(content)
        track = dna.open_track(tmp_path / name)
        np.testing.assert_array_equal(
            track.values("1", 9, 19),
            np.array([np.nan, 0.5, 0.25, np.nan, np.nan, 1, 1, 2, 2, np.nan], dtype=np.float32),
        )
        np.testing.assert_array_equal(
            track.values("chrX", 6, 9), np.array([0.125, np.nan, -3], dtype=np.float32)
        )
    with pytest.raises(KeyError, match=r"No chromosome 'chr2' in the track; it has \['chr1', 'chrX'\]"):
        track.values("chr2", 0, 1)


def test_an_npy_track_needs_its_chromosome(tmp_path):
    np.save(tmp_path / "t.npy", np.arange(5.0))
    track = dna.open_track(tmp_path / "t.npy", chrom="chr1", start=100)
    np.testing.assert_array_equal(track.values("chr1", 99, 102), np.array([np.nan, 0, 1], dtype=np.float32))
    np.testing.assert_array_equal(track.values("1", 0, 3), np.full(3, np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match=r"needs chrom="):
        dna.open_track(tmp_path / "t.npy")
    with pytest.raises(ValueError, match=r"one value per position; a has shape \(2, 2\)"):
        dna.ArrayTrack({"a": np.zeros((2, 2))})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n", r"line 1: '1 2 3' is not a line of a wig section"),
        ("fixedStep chrom=chr1 step=1\n0.5\n", r"line 1: fixedStep lacks chrom= or start="),
        ("fixedStep chrom=chr1 start=1\n0.5\nhigh\n", r"line 3: expected a number, got 'high'"),
        ("variableStep chrom=chr1\n0.5\n", r"line 2: '0.5' is not a line of a variableStep section"),
        ("track\n", r"contains no values"),
        (
            "fixedStep chrom=chr1 start=0\n1\n",
            r"line 1: positions, steps and spans must be integers >= 1, got '0'",
        ),
        ("fixedStep chrom=chr1 start=1 span=0\n1\n", r"line 1: .* got '0'"),
        ("fixedStep chrom=chr1 start=nan\n1\n", r"line 1: .* got 'nan'"),
        ("variableStep chrom=chr1\n0 1\n", r"line 2: .* got '0'"),
    ],
)
def test_damaged_wig_files_say_where(tmp_path, text, message):
    (tmp_path / "t.wig").write_text(text)
    with pytest.raises(ValueError, match=message):
        dna.open_track(tmp_path / "t.wig")


def test_a_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "t.wig.gz"
    path.write_bytes(gzip.compress(WIG.encode() * 20)[:-12])
    with pytest.raises(ValueError, match=r"t.wig.gz is truncated or damaged"):
        dna.open_track(path)


@pytest.mark.parametrize("content", [b"nothing", np.array(["a"]), np.zeros((2, 2))])
def test_a_bad_npy_track_is_named(tmp_path, content):
    path = tmp_path / "t.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ValueError, match=r"t.npy is not a .npy file with one value per position"):
        dna.open_track(path, chrom="chr1")


def test_other_tracks_and_missing_files_are_refused(tmp_path):
    (tmp_path / "t.bed").touch()
    with pytest.raises(
        ValueError, match=r"A track must be a .bw, .bigWig, .wig, .wig.gz or .npy file, got t.bed"
    ):
        dna.open_track(tmp_path / "t.bed")
    with pytest.raises(FileNotFoundError, match=r"No track"):
        dna.open_track(tmp_path / "none.wig")


def test_bigwig_without_its_reader_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "t.bw").touch()
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(ImportError, match=r"pip install pyBigWig"):
        dna.open_track(tmp_path / "t.bw")


def check_bigwig(track):
    """Compare with a file that has 0.5 to 2 at 10 to 13 of chr1, -2 at 40 and 41, 7 at 0 to 4 of chr2."""
    wanted = np.array([np.nan, np.nan, 0.5, 1, 1.5, 2, np.nan], dtype=np.float32)
    np.testing.assert_array_equal(track.values("1", 8, 15), wanted)
    np.testing.assert_array_equal(
        track.values("chr1", 39, 43), np.array([np.nan, -2, -2, np.nan], dtype=np.float32)
    )
    np.testing.assert_array_equal(
        track.values(2, -2, 7), np.array([np.nan] * 2 + [7.0] * 5 + [np.nan] * 2, dtype=np.float32)
    )
    assert np.isnan(track.values("chr1", 95, 105)).all()
    with pytest.raises(KeyError, match=r"No chromosome 'chr3' in the track; it has \['chr1', 'chr2'\]"):
        track.values("chr3", 0, 1)


class _StandIn:
    """pyBigWig's interface over arrays, since that is no dependency."""

    def __init__(self, path):
        self.stored = {"chr1": np.full(100, np.nan), "chr2": np.full(50, np.nan)}
        self.stored["chr1"][10:14], self.stored["chr1"][40:42] = (0.5, 1, 1.5, 2), -2
        self.stored["chr2"][:5] = 7

    def chroms(self):
        return {name: len(values) for name, values in self.stored.items()}

    def isBigWig(self):  # noqa: N802
        return True

    def values(self, chrom, start, end):
        return self.stored[chrom][start:end].tolist()


def test_bigwig_is_read_through_its_reader(monkeypatch, tmp_path):
    (tmp_path / "t.bw").touch()
    monkeypatch.setitem(sys.modules, "pyBigWig", types.SimpleNamespace(open=_StandIn))
    check_bigwig(dna.open_track(tmp_path / "t.bw"))
    with pytest.raises(FileNotFoundError, match=r"No track"):
        dna.open_track(tmp_path / "none.bw")


def test_a_bigwig_file_is_read(tmp_path):
    reader = pytest.importorskip("pyBigWig")
    path = tmp_path / "t.bigWig"
    file = reader.open(str(path), "w")
    file.addHeader([("chr1", 100), ("chr2", 50)])
    file.addEntries("chr1", 10, values=[0.5, 1.0, 1.5, 2.0], span=1, step=1)
    file.addEntries(["chr1", "chr2"], [40, 0], ends=[42, 5], values=[-2.0, 7.0])
    file.close()
    track = dna.open_track(path)
    check_bigwig(track)
    check_bigwig(pickle.loads(pickle.dumps(track)))
    stored = path.read_bytes()
    for content in (stored[:40], b"no track" * 100, b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t.bigWig is damaged or not a bigWig file"):
            dna.open_track(path)
