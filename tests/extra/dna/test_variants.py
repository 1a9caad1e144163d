"""Tables of variants: readers, and the check against an alignment."""

import gzip

import pandas as pd
import pytest

from scr2mae.extra import dna

COLUMNS = ["chrom", "pos", "ref", "alt"]


# --- reading


VCF = """##fileformat=VCFv4.2
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
1\t101\trs1\tA\tG,T\t.\t.\t.
chr2\t7\t.\tAC\tA\t.\t.\tX=1
"""


def test_a_vcf_file_gives_a_row_per_alternative(tmp_path):
    for name, content in (("v.vcf", VCF.encode()), ("v.vcf.gz", gzip.compress(VCF.encode()))):
        (tmp_path / name).write_bytes(content)
        frame = dna.read_variants(tmp_path / name)
        assert frame[COLUMNS].to_numpy().tolist() == [
            ["1", 101, "A", "G"],
            ["1", 101, "A", "T"],
            ["chr2", 7, "AC", "A"],
        ]
        assert frame["id"].tolist() == ["rs1", "rs1", "."]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (["Pathogenic", "Common", "Benign"], [True, False, False]),
        (["Likely pathogenic", "Likely_benign", "Pathogenic"], [True, False, True]),
        (["1", "0", "1"], [True, False, True]),
        (["True", "False", "False"], [True, False, False]),
    ],
)
def test_labels_of_published_tables_become_booleans(variant_table, tmp_path, column, wanted):
    frame = variant_table(["1", 5, "A", "C"], ["X", 6, "C", "T"], ["22", 7, "G", "A"]).assign(
        label=column, consequence="missense"
    )
    frame.to_csv(tmp_path / "v.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "v.csv.gz", index=False)
    for name in ("v.tsv", "v.csv.gz"):
        read = dna.read_variants(tmp_path / name)
        assert read["label"].tolist() == wanted
        assert read["chrom"].tolist() == ["1", "X", "22"]
        assert set(read["consequence"]) == {"missense"}


def test_parquet_is_read_where_its_reader_is(variant_table, tmp_path, monkeypatch):
    (tmp_path / "v.parquet").touch()
    monkeypatch.setattr(
        pd, "read_parquet", lambda path: variant_table([1, 5, "A", "C"]).assign(label=["Common"])
    )
    read = dna.read_variants(tmp_path / "v.parquet")
    assert read.to_numpy().tolist() == [["1", 5, "A", "C", False]]


def test_a_parquet_file_is_read(variant_table, tmp_path):
    pytest.importorskip("pyarrow")
    frame = variant_table(["1", 5, "A", "C"], ["X", 6, "C", "T"]).assign(
        label=["Pathogenic", "Common"], consequence="5'UTR"
    )
    frame = frame.astype({"chrom": "category", "pos": "uint32"})
    frame.to_parquet(tmp_path / "v.parquet")
    read = dna.read_variants(tmp_path / "v.parquet")
    assert read.to_numpy().tolist() == [["1", 5, "A", "C", True, "5'UTR"], ["X", 6, "C", "T", False, "5'UTR"]]
    (tmp_path / "v.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"v.parquet is damaged or not a Parquet file"):
        dna.read_variants(tmp_path / "v.parquet")


def test_parquet_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "v.parquet").touch()

    def absent(path):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", absent)
    with pytest.raises(ImportError, match=r"pip install pyarrow"):
        dna.read_variants(tmp_path / "v.parquet")


@pytest.mark.parametrize("name", ["v.vcf.gz", "v.tsv.gz"])
def test_damaged_gzip_files_are_named(tmp_path, name):
    content = VCF if name == "v.vcf.gz" else "chrom\tpos\tref\talt\n" + "1\t5\tA\tC\n" * 500
    damaged = bytearray(gzip.compress(content.encode()))
    damaged[30:40] = b"0123456789"
    for stored in (gzip.compress(content.encode())[:-12], bytes(damaged), content.encode()):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(ValueError, match=rf"{name} is truncated or damaged"):
            dna.read_variants(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.tsv", "chrom\tpos\tref\talt\n", r"contains no variants"),
        ("v.vcf", "##fileformat=VCFv4.2\n", r"contains no variants"),
        ("v.tsv", "", r"is not a table"),
        ("v.csv", "chrom,pos,ref\n1,2,A\n", r"lacks the columns \['alt'\]; it has \['chrom', 'pos', 'ref'\]"),
        ("v.csv", "chrom,pos,ref,alt\n1,ten,A,C\n", r"not an integer >= 1: 'ten'"),
        (
            "v.csv",
            "chrom,pos,ref,alt\n1,0,A,C\n",
            r"not an integer >= 1: .*0.* \(positions are 1-based\)",
        ),
        (
            "v.csv",
            "chrom,pos,ref,alt,label\n1,2,A,C,maybe\n",
            r"Labels must be 0 and 1.*got \['maybe'\]. Remove these variants",
        ),
        ("v.vcf", "1\t101\trs1\tA\n", r"line 1: expected CHROM, POS, ID, REF and ALT"),
        ("v.bed", "1\t2\n", r"Variants are read from .vcf, .tsv.*got v.bed"),
    ],
)
def test_invalid_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        dna.read_variants(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"No variants at"):
        dna.read_variants(tmp_path / "none.tsv")


# --- check against an alignment


def test_every_variant_has_a_status(variant_table, small_alignment):
    variants = variant_table(
        ["1", 111, "A", "G"],  # the first of the second half
        ["chr1", 119, "a", "g"],  # soft-masked
        ["1", 102, "A", "G"],  # the alignment has C
        ["1", 109, "A", "G"],  # the alignment has N
        ["1", 101, "A", "G"],  # a window of four extends beyond the alignment
        ["1", 120, "C", "T"],
        ["1", 10**9, "C", "T"],
        ["7", 5, "C", "T"],
        ["1", 111, "A", "AT"],
        ["1", 111, "A", "A"],
        ["1", 111, "N", "A"],
    )
    wanted = [
        "scored", "scored", "off_end", "reference_mismatch", "off_end", "off_end", "off_end", "contig_missing",
        "not_a_substitution", "not_a_substitution", "not_a_substitution",
    ]  # fmt: skip
    found = dna.check_variants(small_alignment, variants, window_size=4)
    assert found["status"].tolist() == wanted
    assert dna.check_variants(small_alignment, variants)["status"].tolist()[2:6] == [
        "reference_mismatch", "reference_mismatch", "scored", "scored",
    ]  # fmt: skip
    assert set(wanted) == set(dna.STATUSES)


def test_a_table_for_another_genome_is_refused(variant_table, small_alignment):
    with pytest.raises(
        KeyError,
        match=r"None of the variants' chromosomes \['chr7'\] is in the alignment, which has \['chr1'\]",
    ):
        dna.check_variants(small_alignment, variant_table(["chr7", 5, "A", "C"]))
    with pytest.raises(ValueError, match=r"contains no variants"):
        dna.check_variants(small_alignment, variant_table())
    with pytest.raises(ValueError, match=r"lacks the columns \['alt'\]"):
        dna.check_variants(small_alignment, variant_table(["1", 5, "A", "C"]).drop(columns="alt"))
    with pytest.raises(
        TypeError, match=r"Variants must be a pandas.DataFrame, got str; read a file with read_variants"
    ):
        dna.check_variants(small_alignment, "variants.vcf")
