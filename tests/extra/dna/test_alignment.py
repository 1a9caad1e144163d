"""Alignments: strands, coordinates, Zarr, MAF, and invalid input."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.extra import dna

MAF = """##maf version=1 scoring=multiz
# a comment
track name=example

a score=10
s hg.chr1  10 6 + 100 AC-gTNA
s mm.chr7  50 7 + 200 ACTGTAA
i mm.chr7  N 0 C 0
s rn.chr2   3 4 - 200 A--GT-A

a score=20
s hg.chr1  20 3 + 100 ACG
s rn.chr2  90 3 + 200 TTT
s rn.chr9  10 3 + 200 CCC
e mm.chr7  70 3 + 200 I

a score=30
s mm.chr7  80 2 + 200 AA
s hg.chr2  94 2 - 100 gC

a score=40
s mm.chr7  90 2 + 200 AA
s rn.chr7  90 2 + 200 AA
"""


@pytest.fixture
def maf(tmp_path):
    path = tmp_path / "example.maf"
    path.write_text(MAF)
    return path


def rows(msa, chrom, start, end, strand="+"):
    """Columns of a window as strings."""
    return [b"".join(column).decode() for column in msa.get(chrom, start, end, strand).T]


# --- symbols and strands


def test_tokens_are_places_in_the_vocabulary_and_unknown_bases_are_gaps():
    symbols = np.array(list("-ACGTacgtNnRYK.*"), dtype="S1")
    assert dna.encode(symbols).tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, *[0] * 7]
    assert np.array_equal(dna.encode(symbols.view(np.uint8)), dna.encode(symbols))
    assert dna.VOCABULARY == "-ACGT?"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.array(list("ACGE?"), dtype="S1"), ValueError, r"not nucleotides: \['\?', 'E'\].*IUPAC"),
        (np.array([[0, 1, 2, 3]], dtype=np.uint8), ValueError, r"not nucleotides: \['\\x00'"),
        (
            np.array([[0, 1, 2, 3]]),
            TypeError,
            r"dtype 'S1'\) or their ASCII codes \(uint8\), got dtype int64",
        ),
        (np.array(["A", "C"]), TypeError, r"got dtype <U1"),
    ],
)
def test_other_alphabets_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        dna.encode(wrong)


@given(st.text(alphabet="ACGTacgtNnRYSWKMBDHVryswkmbdhv-.*", min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_the_reverse_complement_twice_is_the_identity(text):
    symbols = np.array(list(text), dtype="S1")
    assert np.array_equal(dna.reverse_complement(dna.reverse_complement(symbols)), symbols)
    codes = dna.reverse_complement(symbols.view(np.uint8))
    assert codes.dtype == np.uint8
    assert np.array_equal(codes.view("S1"), dna.reverse_complement(symbols))


def test_the_reverse_complement_pairs_bases_and_turns_one_axis_round():
    symbols = np.array([list("AcgT-N"), list("RYKMBv")], dtype="S1")
    assert b"".join(dna.reverse_complement(symbols, axis=1).ravel()) == b"N-AcgTbVKMRY"
    assert b"".join(dna.reverse_complement(symbols).ravel()) == b"YRMKVbTgcA-N"


# --- windows of an alignment


@pytest.fixture
def small():
    reference, other = "ACGTacgtNN", "AC--ACGTTT"
    symbols = np.array([list(reference), list(other)], dtype="S1").T
    return dna.GenomeMSA.from_numpy(symbols, chrom="chr3", start=100, species=["hg", "mm"])


def test_windows_are_addressed_by_the_references_coordinates(small):
    assert rows(small, "chr3", 102, 107) == ["GTacg", "--ACG"]
    assert rows(small, "chr3", 102, 107, "-") == ["cgtAC", "CGT--"]
    assert small.span("3") == (100, 110)
    assert small.tokens("chr3", 100, 103).tolist() == [[1, 1], [2, 2], [3, 0]]
    assert (small.n_species, small.chroms, small.species) == (1, ["chr3"], ("hg", "mm"))
    assert "10 positions on ['chr3'], 1 species" in repr(small)


def test_chromosomes_are_found_with_and_without_chr(small):
    assert rows(small, 3, 100, 101) == rows(small, "chr3", 100, 101) == ["A", "A"]
    bare = dna.GenomeMSA.from_numpy(small.get("chr3", 100, 110), chrom="3")
    assert rows(bare, "chr3", 0, 1) == ["A", "A"]
    with pytest.raises(KeyError, match=r"No chromosome 'chrX' in the alignment; it has \['chr3'\]"):
        small.get("chrX", 0, 1)


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        ((99, 104, "+"), IndexError, r"chr3:99-104 extends beyond the alignment, which covers chr3:100-110"),
        ((105, 111, "+"), IndexError, r"chr3:105-111 extends beyond the alignment"),
        ((105, 105, "+"), ValueError, r"start < end, got 105 and 105"),
        ((100, 104, "."), ValueError, r"strand must be '\+' or '-', got '\.'"),
    ],
)
def test_windows_off_the_alignment_are_refused(small, window, error, message):
    with pytest.raises(error, match=message):
        small.get("chr3", *window)


@pytest.mark.parametrize(
    ("arrays", "species", "error", "message"),
    [
        ({}, None, ValueError, r"at least one chromosome"),
        ({"a": np.full(5, b"A")}, None, ValueError, r"shape \(n_positions, 1 \+ n_species\), got \(5,\)"),
        (
            {"a": np.full((5, 2), b"A"), "b": np.full((5, 3), b"A")},
            None,
            ValueError,
            r"same number of columns, got \[2, 3\]",
        ),
        (
            {"a": np.full((5, 2), b"A")},
            ["hg"],
            ValueError,
            r"name all 2 columns, the reference first; got 1 names",
        ),
        ({"a": np.full((5, 2), b"P")}, None, ValueError, r"not nucleotides: \['P'\]"),
    ],
)
def test_arrays_that_are_not_an_alignment_are_refused(arrays, species, error, message):
    with pytest.raises(error, match=message):
        dna.GenomeMSA(arrays, species=species)


# --- Zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_alignment_comes_back_from_zarr(small, tmp_path, zarr_format):
    pytest.importorskip("zarr")
    small.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, rows_per_chunk=4)
    assert (tmp_path / "a.zarr" / ("zarr.json" if zarr_format == 3 else ".zgroup")).is_file()
    back = dna.GenomeMSA.from_zarr(tmp_path / "a.zarr", chroms=["3"])
    assert (back.species, back.span("chr3")) == (small.species, (100, 110))
    for strand in "+-":
        assert np.array_equal(back.get("chr3", 101, 109, strand), small.get("chr3", 101, 109, strand))
    assert np.array_equal(back.to_memory().get("3", 100, 110), small.get("3", 100, 110))
    with pytest.raises(KeyError, match=r"No chromosome 'chr9' in .*a.zarr; it has \['chr3'\]"):
        dna.GenomeMSA.from_zarr(tmp_path / "a.zarr", chroms=["chr9"])
    with pytest.raises(FileExistsError, match=r"exists; choose another path"):
        small.to_zarr(tmp_path / "a.zarr")


def test_the_published_layout_is_read(small, tmp_path):
    """Format 2, arrays of bytes, no attributes; as a folder and zipped."""
    zarr = pytest.importorskip("zarr")
    symbols = small.get("chr3", 100, 110)
    for store in (tmp_path / "b.zarr", zarr.storage.ZipStore(tmp_path / "b.zarr.zip", mode="w")):
        group = zarr.open_group(store, mode="w", zarr_format=2)
        group.create_array("22", data=symbols, chunks=(4, 2))
        if hasattr(store, "close"):
            store.close()
    for name in ("b.zarr", "b.zarr.zip"):
        msa = dna.GenomeMSA.from_zarr(tmp_path / name)
        assert (msa.species, msa.span("chr22")) == (None, (0, 10))
        assert np.array_equal(msa.get("chr22", 2, 9), symbols[2:9])


def test_paths_that_are_not_zarr_groups_of_arrays_are_refused(tmp_path):
    zarr = pytest.importorskip("zarr")
    with pytest.raises(FileNotFoundError, match=r"No alignment at"):
        dna.GenomeMSA.from_zarr(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"is not a readable Zarr group"):
        dna.GenomeMSA.from_zarr(tmp_path / "folder")
    zarr.open_group(tmp_path / "empty", mode="w")
    with pytest.raises(ValueError, match=r"contains no arrays"):
        dna.GenomeMSA.from_zarr(tmp_path / "empty")


def test_wrong_symbols_on_disk_are_found_when_they_are_read(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "z", mode="w").create_array("1", data=np.zeros((8, 2), dtype=np.uint8))
    msa = dna.GenomeMSA.from_zarr(tmp_path / "z")
    with pytest.raises(ValueError, match=r"not nucleotides"):
        msa.tokens("1", 0, 4)
    with pytest.raises(ValueError, match=r"not nucleotides"):
        msa.to_memory()


def test_importing_dna_does_not_load_zarr():
    code = "import sys, scr2mae.extra.dna; print({'zarr', 'pyBigWig'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- MAF


@pytest.mark.parametrize("compressed", [False, True])
def test_a_maf_file_gives_the_references_positions(maf, compressed):
    if compressed:
        path = maf.with_suffix(".maf.gz")
        path.write_bytes(gzip.compress(MAF.encode()))
    msa = dna.GenomeMSA.from_maf(path if compressed else maf)
    assert msa.species == ("hg", "mm", "rn")
    assert (msa.chroms, msa.span("chr1")) == (["chr1", "chr2"], (10, 23))
    # the insertion against the reference is gone, what lies between the blocks is unknown, the first row of rn counts
    assert rows(msa, "chr1", 10, 23) == ["ACgTNANNNNACG", "ACGTAA-------", "A-GT-A----TTT"]


def test_a_block_on_the_references_other_strand_is_turned(maf):
    msa = dna.GenomeMSA.from_maf(maf)
    # 94 + 2 of 100 from the end is 4 to 6 from the start
    assert msa.span("chr2") == (4, 6)
    assert rows(msa, "chr2", 4, 6) == ["Gc", "TT", "--"]


def test_reference_species_and_chromosomes_can_be_chosen(maf):
    msa = dna.GenomeMSA.from_maf(maf, reference="hg", species=["rn", "mm"], chroms=["chr2"])
    assert (msa.species, msa.chroms) == (("hg", "rn", "mm"), ["chr2"])
    assert dna.GenomeMSA.from_maf(maf, chroms=["1"]).chroms == ["chr1"]
    other = dna.GenomeMSA.from_maf(maf, reference="mm")
    assert (other.species, other.span("chr7")) == (("mm", "hg", "rn"), (50, 92))
    assert rows(other, "chr7", 50, 57) == ["ACTGTAA", "AC-gTNA", "A--GT-A"]
    for wrong, message in (
        ({"reference": "panTro"}, r"No rows of \['panTro'\] in .*; it has \['hg', 'mm', 'rn'\]"),
        ({"species": ["mm", "galGal"]}, r"No rows of \['galGal'\]"),
        ({"chroms": ["chr9"]}, r"No blocks of \['chr9'\] in .*; hg has \[\]"),
    ):
        with pytest.raises(KeyError, match=message):
            dna.GenomeMSA.from_maf(maf, **wrong)


def test_where_blocks_overlap_the_first_counts(tmp_path):
    path = tmp_path / "o.maf"
    block = "a\ns hg.c 5 4 + 50 AAAA\ns mm.c 0 4 + 50 {}\n\na\ns hg.c 7 4 + 50 AAAA\ns mm.c 0 4 + 50 {}\n\n"
    path.write_text("##maf version=1\n" + block.format("CCCC", "GGGG"))
    assert rows(dna.GenomeMSA.from_maf(path), "c", 5, 11) == ["AAAAAA", "CCCCGG"]


def cut(text, after):
    """Text up to some words."""
    return text[: text.index(after) + len(after)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty"),
        ("a score=1\n", r"is not a MAF file: its first line is 'a score=1\\n'"),
        ("##maf version=1\n\n", r"has no blocks"),
        (
            cut(MAF, "AC-gTN"),
            r"line 6: hg.chr1 should have 6 bases and has 5; the file is truncated or damaged",
        ),
        (cut(MAF, "s mm.chr7  50"), r"line 7: an 's' line has 7 fields, this has 3"),
        (cut(MAF, "ACTGTAA"), r"its last line, 7, has no line break. If nothing is missing, add one"),
        (cut(MAF, "a score=20\n"), r"ends with the 'a' line of a block without rows"),
        (MAF.replace("ACTGTAA", "ACTGTAA-"), r"rows of a block differ in length"),
        (MAF.replace("a score=20\n", ""), r"line 11: an 's' line outside a block"),
        (MAF.replace("10 6 + 100", "ten 6 + 100"), r"line 6: not an 's' line of a MAF file"),
        (MAF.replace("10 6 + 100", "98 6 + 100"), r"start 98 and size 6 do not fit a sequence of 100 bases"),
        (MAF.replace("ACTGTAA", "ACTGXAA"), r"not nucleotides: \['X'\]"),
    ],
)
def test_damaged_maf_files_say_where(tmp_path, text, message):
    path = tmp_path / "bad.maf"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        dna.GenomeMSA.from_maf(path)


def test_a_truncated_gzip_and_a_missing_file_say_so(tmp_path):
    path = tmp_path / "bad.maf.gz"
    path.write_bytes(gzip.compress(MAF.encode() * 50)[:-30])
    with pytest.raises(ValueError, match=r"bad.maf.gz is truncated"):
        dna.GenomeMSA.from_maf(path)
    damaged = bytearray(gzip.compress(MAF.encode() * 50))
    damaged[60:70] = b"0123456789"
    for content in (bytes(damaged), MAF.encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.maf.gz is truncated or damaged"):
            dna.GenomeMSA.from_maf(path)
    with pytest.raises(FileNotFoundError, match=r"No MAF file"):
        dna.GenomeMSA.from_maf(tmp_path / "none.maf")
