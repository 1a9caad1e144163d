"""Variants: tables, what is scored and what is not, predictions, baselines and metrics."""

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from scr2mae.extra import dna

COLUMNS = ["chrom", "pos", "ref", "alt"]


def table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def small():
    """Twenty positions of chr1 from 100 on, and three species."""
    columns = ["ACGTACGTNNACGTACGTac", "ACGTACGTNNACGTACGTAC", "TCGTACGTNNACGTACGTAC", "-CGTACGTNNACGTACGTAC"]
    return dna.GenomeMSA.from_numpy(
        np.array([list(c) for c in columns], dtype="S1").T, chrom="chr1", start=100
    )


# --- reading

VCF = """##fileformat=VCFv4.2
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
1\t101\trs1\tA\tG,T\t.\t.\t.
chr2\t7\t.\tAC\tA\t.\t.\tX=1
"""


def test_a_vcf_file_gives_a_row_an_alternative(tmp_path):
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
def test_labels_of_published_tables_become_booleans(tmp_path, column, wanted):
    frame = table(["1", 5, "A", "C"], ["X", 6, "C", "T"], ["22", 7, "G", "A"]).assign(
        label=column, consequence="missense"
    )
    frame.to_csv(tmp_path / "v.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "v.csv.gz", index=False)
    for name in ("v.tsv", "v.csv.gz"):
        read = dna.read_variants(tmp_path / name)
        assert read["label"].tolist() == wanted
        assert read["chrom"].tolist() == ["1", "X", "22"]
        assert set(read["consequence"]) == {"missense"}


def test_parquet_is_read_where_its_reader_is(tmp_path, monkeypatch):
    (tmp_path / "v.parquet").touch()
    monkeypatch.setattr(pd, "read_parquet", lambda path: table([1, 5, "A", "C"]).assign(label=["Common"]))
    read = dna.read_variants(tmp_path / "v.parquet")
    assert read.to_numpy().tolist() == [["1", 5, "A", "C", False]]


def test_a_parquet_file_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    frame = table(["1", 5, "A", "C"], ["X", 6, "C", "T"]).assign(
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
        ("v.tsv", "chrom\tpos\tref\talt\n", r"holds no variants"),
        ("v.vcf", "##fileformat=VCFv4.2\n", r"holds no variants"),
        ("v.tsv", "", r"is not a table of variants"),
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
def test_tables_that_are_none_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        dna.read_variants(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"No variants at"):
        dna.read_variants(tmp_path / "none.tsv")


# --- what can be scored


def test_every_variant_has_a_status(small):
    variants = table(
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
    found = dna.check_variants(small, variants, window_size=4)
    assert found["status"].tolist() == wanted
    assert dna.check_variants(small, variants)["status"].tolist()[2:6] == [
        "reference_mismatch", "reference_mismatch", "scored", "scored",
    ]  # fmt: skip
    assert set(wanted) == set(dna.STATUSES)


def test_a_table_for_another_genome_is_refused(small):
    with pytest.raises(
        KeyError,
        match=r"None of the variants' chromosomes \['chr7'\] is in the alignment, which has \['chr1'\]",
    ):
        dna.check_variants(small, table(["chr7", 5, "A", "C"]))
    with pytest.raises(ValueError, match=r"holds no variants"):
        dna.check_variants(small, table())
    with pytest.raises(ValueError, match=r"lacks the columns \['alt'\]"):
        dna.check_variants(small, table(["1", 5, "A", "C"]).drop(columns="alt"))
    with pytest.raises(
        TypeError, match=r"Variants must be a pandas.DataFrame, got str; read a file with read_variants"
    ):
        dna.check_variants(small, "variants.vcf")


# --- scores of a network


def by_hand(model, msa, pos, ref, alt, size):
    """Score of one variant, from the definition."""
    start = pos - 1 - size // 2
    scores = []
    for strand, center in (("+", size // 2), ("-", size - 1 - size // 2)):
        tokens = torch.from_numpy(msa.tokens("chr1", start, start + size, strand).astype(np.int64))[None]
        human = tokens[..., 0].clone()
        human[0, center] = dna.VOCABULARY.index("?")
        complement = dict(zip("ACGT", "TGCA", strict=True)) if strand == "-" else {b: b for b in "ACGT"}
        logits = model(human, tokens[..., 1:]).logits[0, center]
        scores.append(
            float(
                logits[dna.VOCABULARY.index(complement[alt])] - logits[dna.VOCABULARY.index(complement[ref])]
            )
        )
    return np.mean(scores)


@pytest.fixture(scope="module")
def substitutions(msa):
    """All three alternatives at some sites of the simulated alignment."""
    rows = []
    for pos in (40, 41, 900, 2500):
        ref = msa.get("chr1", pos - 1, pos)[0, 0].decode()
        rows += [["chr1", pos, ref, alt] for alt in "ACGT" if alt != ref]
    return table(*rows)


@pytest.mark.parametrize("size", [8, 9])
def test_scores_are_the_logit_differences_of_the_masked_centre_on_both_strands(
    tiny, msa, substitutions, size
):
    model = tiny(initializer_range=0.3).eval()
    scored = dna.score(
        model, msa, substitutions, window_size=size, batch_size=3, accelerator="cpu", progress=False
    )
    with torch.no_grad():
        wanted = [by_hand(model, msa, *row[1:4], size) for row in substitutions.itertuples(index=False)]
    np.testing.assert_allclose(scored["score"], wanted, atol=1e-5)
    assert set(scored["status"]) == {"scored"}
    assert np.std(wanted) > 0.01


def test_scores_depend_neither_on_the_batch_nor_on_the_strand_that_is_called_forward(
    tiny, msa, substitutions
):
    model = tiny(initializer_range=0.3)
    options = {"window_size": 17, "accelerator": "cpu", "progress": False}
    scores = [dna.score(model, msa, substitutions, batch_size=n, **options)["score"] for n in (1, 100)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    turned = dna.GenomeMSA.from_numpy(msa.get("chr1", 0, 4000, "-"), chrom="chr1")
    there = substitutions.assign(
        pos=4001 - substitutions["pos"],
        **{c: substitutions[c].map(dict(zip("ACGT", "TGCA", strict=True))) for c in ("ref", "alt")},
    )
    np.testing.assert_allclose(dna.score(model, turned, there, **options)["score"], scores[0], atol=1e-5)


def test_variants_that_cannot_be_scored_are_reported_and_have_no_score(tiny, msa, substitutions, caplog):
    ref = substitutions["ref"].iloc[0]
    other = next(base for base in "ACGT" if base != ref)
    bad = table(["chr1", 40, other, ref], ["chr1", 2, "A", "C"], ["chrX", 40, "A", "C"])
    variants = pd.concat([substitutions.iloc[:2], bad], ignore_index=True).assign(name=list("abcde"))
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        scored = dna.score(tiny(), msa, variants, window_size=16, accelerator="cpu", progress=False)
    assert scored["status"].tolist() == [
        "scored",
        "scored",
        "reference_mismatch",
        "off_end",
        "contig_missing",
    ]
    assert scored["score"].isna().tolist() == [False, False, True, True, True]
    assert scored["name"].tolist() == list("abcde")
    assert "3 of 5 variants have no score" in caplog.text
    assert "'reference_mismatch': 1" in caplog.text


def test_a_table_without_any_scorable_variant_has_only_missing_scores(tiny, small):
    variants = table(["1", 102, "A", "G"])
    scored = dna.score(tiny(), small, variants, window_size=2, accelerator="cpu", progress=False)
    assert scored["status"].tolist() == ["reference_mismatch"]
    assert scored["score"].isna().all()


def test_scoring_leaves_the_network_as_it_was(tiny, msa, substitutions, capsys):
    model = tiny().train()
    dna.score(model, msa, substitutions, window_size=8, accelerator="cpu")
    assert model.training
    assert capsys.readouterr().err == ""  # no terminal, no progress


def test_scoring_that_cannot_be_is_refused(tiny, msa, substitutions):
    with pytest.raises(ValueError, match=r"takes 2 species besides the reference, the alignment has 3"):
        dna.score(tiny(n_species=2), msa, substitutions)
    with pytest.raises(ValueError, match=r"between 2 and the network's max_position_embeddings=64, got 128"):
        dna.score(tiny(), msa, substitutions)
    with pytest.raises(ValueError, match=r"holds no variants"):
        dna.score(tiny(), msa, substitutions.iloc[:0], window_size=8)


# --- the alignment alone


def test_alignment_scores_are_log_ratios_of_counts(small):
    variants = table(["1", 101, "A", "T"], ["1", 101, "A", "G"], ["1", 102, "C", "G"], ["1", 102, "G", "C"])
    scored = dna.alignment_scores(small, variants)
    np.testing.assert_allclose(scored["score"], [np.log(2 / 2), np.log(1 / 2), np.log(1 / 4), np.nan])
    half = dna.alignment_scores(small, variants, pseudocount=0.5)["score"]
    np.testing.assert_allclose(half[:3], np.log([1.5 / 1.5, 0.5 / 1.5, 0.5 / 3.5]))
    with pytest.raises(ValueError, match=r"pseudocount must be positive"):
        dna.alignment_scores(small, variants, pseudocount=0)


def test_baselines_predict_frequencies():
    tokens = np.array([[1, 1, 1, 0], [1, 2, 1, 1], [2, 0, 0, 0], [0, 4, 4, 4]], dtype=np.uint8)
    prior = dna.unigram_log_probs(tokens)
    np.testing.assert_allclose(np.exp(prior), np.array([3, 2, 1, 1]) / 7)
    found = np.exp(dna.alignment_log_probs(tokens, prior, pseudocount=2.0))
    np.testing.assert_allclose(found[2], np.exp(prior))
    np.testing.assert_allclose(found[1], (np.array([2, 1, 0, 0]) + 2 * np.exp(prior)) / 5)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    with pytest.raises(ValueError, match=r"pseudocount must be positive, got 0"):
        dna.alignment_log_probs(tokens, prior, pseudocount=0)


# --- predictions of all bases


def test_every_known_base_is_predicted_once_while_it_is_hidden(tiny, msa):
    windows = dna.make_windows(msa, size=16, step=16).iloc[[3, 8, 255]]
    data = dna.MSAWindowDataset(msa, windows)
    model = tiny(initializer_range=0.3)
    frame = dna.predict_bases(model, data, ratio=0.25, batch_size=2, accelerator="cpu")
    assert len(frame) == 3 * 16
    for (start, strand), part in zip(
        windows[["start", "strand"]].to_numpy(),
        [frame.iloc[first : first + 16] for first in (0, 16, 32)],
        strict=True,
    ):
        wanted = msa.get("chr1", start, start + 16, strand)[:, 0].astype(str)
        assert (part["base"].to_numpy() == wanted).all()
        pos = np.arange(start, start + 16)
        assert (part["pos"].to_numpy() == (pos if strand == "+" else pos[::-1])).all()
    log_probs = frame[[f"log_prob_{base}" for base in "ACGT"]].to_numpy()
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-5)


def test_a_prediction_does_not_see_the_base_itself(tiny, msa):
    model = tiny(initializer_range=0.5)
    symbols = msa.get("chr1", 0, 16).copy()
    columns = [f"log_prob_{base}" for base in "ACGT"]
    windows = pd.DataFrame({"chrom": ["chr1"], "start": [0], "end": [16], "strand": ["+"]})
    found = {}
    for base in "ACGT":
        symbols[5, 0] = base.encode()
        data = dna.MSAWindowDataset(dna.GenomeMSA.from_numpy(symbols.copy(), chrom="chr1"), windows)
        found[base] = dna.predict_bases(model, data, accelerator="cpu")[columns].to_numpy()
    for base in "CGT":
        np.testing.assert_array_equal(found[base][5], found["A"][5])
        assert not np.allclose(np.delete(found[base], 5, axis=0), np.delete(found["A"], 5, axis=0))
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 0.5\], got 0.9"):
        dna.predict_bases(model, data, ratio=0.9)


# --- metrics


def test_metrics_are_those_of_scikit_learn_over_all_and_by_class():
    rng = np.random.default_rng(0)
    y = rng.random(600) < 0.3
    score = rng.normal(size=600) + y
    groups = rng.choice(np.array(["5'UTR", "ncRNA", None], dtype=object), size=600)
    found = dna.variant_metrics(y, score, groups=groups)
    assert found.index.tolist() == ["all", "5'UTR", "ncRNA"]
    for name, row in found.iterrows():
        inside = np.ones(600, dtype=bool) if name == "all" else groups == name
        assert (row["n"], row["n_positive"]) == (inside.sum(), y[inside].sum())
        assert row["auroc"] == pytest.approx(roc_auc_score(y[inside], score[inside]))
        assert row["auprc"] == pytest.approx(average_precision_score(y[inside], score[inside]))
        assert row["pauroc"] == pytest.approx(roc_auc_score(y[inside], score[inside], max_fpr=0.001))
    shared = dna.variant_metrics(y, score, groups=groups, shared_negatives=True)
    inside = ~y | (groups == "ncRNA")
    assert shared.loc["ncRNA", "auprc"] == pytest.approx(average_precision_score(y[inside], score[inside]))
    assert shared.loc["ncRNA", "n"] == inside.sum()


def test_a_perfect_ranking_scores_one_and_chance_a_half():
    y = np.r_[np.ones(50), np.zeros(5000)]
    perfect = dna.variant_metrics(y, y.copy()).loc["all"]
    assert perfect[["auroc", "auprc", "pauroc"]].tolist() == [1, 1, 1]
    constant = dna.variant_metrics(y, np.zeros_like(y)).loc["all"]
    assert constant["auroc"] == constant["pauroc"] == pytest.approx(0.5)
    assert constant["auprc"] == pytest.approx(50 / 5050)


def test_a_class_of_one_kind_has_no_scores():
    found = dna.variant_metrics([1, 1, 0], [0.2, 0.4, 0.1], groups=["a", "a", "b"])
    assert found.loc[["a", "b"], "auroc"].isna().all()
    assert found.loc["a", "n_positive"] == 2


@pytest.mark.parametrize(
    ("y", "score", "options", "message"),
    [
        ([], [], {}, r"There are no variants"),
        ([1, 0], [1.0], {}, r"same length, got shapes \(2,\) and \(1,\)"),
        ([1, 2], [1.0, 2.0], {}, r"y must hold 0 and 1 or booleans, got \[1, 2\]"),
        ([1, 0], [np.nan, 1.0], {}, r"1 of 2 scores are NaN; pass the variants whose status is 'scored'"),
        ([1, 0], [1.0, 2.0], {"max_fpr": 0}, r"max_fpr must lie in \(0, 1\]"),
        ([1, 0], [1.0, 2.0], {"groups": ["a"]}, r"groups must have the length of y, 2, got 1"),
        ([1, 0], [1.0, 2.0], {"groups": ["a", "all"]}, r"A class is named 'all'"),
        ([True, None], [1.0, 2.0], {}, r"y must hold 0 and 1 or booleans, got \[True, None\]"),
    ],
)
def test_metrics_of_nonsense_are_refused(y, score, options, message):
    with pytest.raises(ValueError, match=message):
        dna.variant_metrics(y, score, **options)
