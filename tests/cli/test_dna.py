"""``scr2mae dna``: from an alignment to a model folder, from variants to a table, and what is refused."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import scr2mae
from scr2mae._paper import scheme_names
from scr2mae.cli import main
from scr2mae.extra import dna

NETWORK = [
    "--hidden-size",
    "32",
    "--num-hidden-layers",
    "1",
    "--num-attention-heads",
    "4",
    "--intermediate-size",
    "32",
]
TRAINING = ["--max-steps", "4", "--batch-size", "16", "--warmup", "1", "--lr", "1e-3", "--accelerator", "cpu"]
WINDOWS = ["--window-size", "32", "--step", "32", "--block-size", "500", "--dropout", "0"]


@pytest.fixture
def folder(folder, alignment):
    """A folder with the simulated alignment as .npy, .maf and Zarr, its conservation and some variants."""
    pytest.importorskip("zarr")
    msa, track = alignment
    symbols = msa.get("chr1", 0, 4000)
    np.save("msa.npy", symbols.view(np.uint8))
    np.save("phastcons.npy", track.values("chr1", 0, 4000))
    msa.to_zarr("msa.zarr")
    lines = ["##maf version=1", "", "a score=0"]
    for name, column in zip(msa.species, symbols.T, strict=True):
        text = b"".join(column).decode()
        lines.append(f"s {name}.chr1 0 {len(text.replace('-', ''))} + 4000 {text}")
    (folder / "msa.maf").write_text("\n".join(lines) + "\n")
    variants = [("chr1", pos, symbols[pos - 1, 0].decode(), alt) for pos in (5, 100, 200) for alt in "ACGT"]
    pd.DataFrame(variants, columns=["chrom", "pos", "ref", "alt"]).to_csv(
        "variants.tsv", sep="\t", index=False
    )
    return folder


def test_a_network_is_trained_and_scores_variants(folder, rows):
    command = ["dna", "train", "msa.zarr", "-o", "model", "-q", *NETWORK, *TRAINING, *WINDOWS]
    assert main(command) == 0
    shown = rows()
    assert shown["model"] == "model"
    assert shown["steps"] == "4"
    assert 0 < float(shown["validation_loss"]) < 3
    config = dna.GPNMSAForMaskedLM.from_pretrained("model").config
    assert (config.n_species, config.hidden_size, config.curriculum) == (3, 32, None)
    score = [
        "dna",
        "score",
        "variants.tsv",
        "--model",
        "model",
        "--window-size",
        "32",
        "--accelerator",
        "cpu",
        "-q",
    ]
    for name, options in {
        "zarr": [], "maf": ["--reference", "reference"], "npy": ["--chrom", "chr1"],
    }.items():  # fmt: skip
        assert main([*score, "--alignment", f"msa.{name}", "-o", f"{name}.tsv", *options]) == 0
        assert rows() == {
            "output": f"{name}.tsv",
            "variants": "12",
            "scored": "6",
            "not_a_substitution": "3",
            "off_end": "3",
        }
    tables = [pd.read_csv(f"{name}.tsv", sep="\t") for name in ("zarr", "maf", "npy")]
    assert (tables[0]["score"].notna() == (tables[0]["status"] == "scored")).all()
    for other in tables[1:]:
        pd.testing.assert_frame_equal(other, tables[0])


def test_without_a_model_species_are_counted(folder, capsys, alignment):
    assert main(["dna", "score", "variants.tsv", "--alignment", "msa.zarr", "-o", "counts.tsv"]) == 0
    found = pd.read_csv("counts.tsv", sep="\t")
    wanted = dna.alignment_scores(alignment[0], dna.read_variants("variants.tsv"))
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=1e-5)


def test_tracks_selection_and_a_curriculum_are_taken(folder, rows):
    options = [
        "--chrom",
        "chr1",
        "--phastcons",
        "phastcons.npy",
        "--top",
        "0.5",
        "--random",
        "0.1",
        "--scheme",
        "r2mae_cl",
    ]
    assert (
        main(
            [
                "dna",
                "train",
                "msa.npy",
                "-o",
                "model",
                "-q",
                *options,
                *NETWORK,
                *TRAINING,
                *WINDOWS,
                "--validation-size",
                "0",
            ]
        )
        == 0
    )
    shown = rows()
    assert int(shown["windows_train"]) == 2 * (62 + 6)
    assert "validation_loss" not in shown
    assert dna.GPNMSAForMaskedLM.from_pretrained("model").config.curriculum.n_ratios == 10


def test_paper_keeps_the_most_conserved_windows_and_stops_early(folder, monkeypatch):
    seen = {}

    def stop(network, train, validation, **options):
        seen.update(options, n_windows=len(train) + len(validation))
        raise ValueError("far enough")

    monkeypatch.setattr(dna, "pretrain", stop)
    line = ["dna", "train", "msa.npy", "-o", "m", "--chrom", "chr1", "--phastcons", "phastcons.npy", *WINDOWS]
    assert main([*line, *NETWORK, "--paper", "--random", "0", "--scheme", "dynamic"]) == 1
    assert seen["early_stopping"] is True
    assert seen["n_windows"] <= 2 * round(0.05 * 124)
    assert (seen["max_steps"], seen["batch_size"], seen["scheme"]) == (30_000, 2048, "dynamic")
    assert main([*line, *NETWORK]) == 1
    assert seen["early_stopping"] is False
    assert seen["n_windows"] > 200


def test_windows_chosen_elsewhere_replace_the_selection(folder, rows):
    starts = range(0, 3600, 40)
    table = pd.DataFrame({"chrom": "1", "start": starts, "end": [start + 32 for start in starts]})
    table.to_csv("windows.tsv", sep="\t", index=False)
    line = [
        "dna",
        "train",
        "msa.zarr",
        "-o",
        "model",
        "-q",
        "--windows",
        "windows.tsv",
        "--validation-size",
        "0",
    ]
    assert main([*line, *NETWORK, *TRAINING]) == 0
    assert int(rows()["windows_train"]) == 2 * len(table)


def test_a_run_goes_on_from_its_checkpoint(folder, capsys, rows):
    command = ["dna", "train", "msa.zarr", "-q", *NETWORK, *TRAINING, *WINDOWS, "--checkpoint-dir", "run"]
    assert main([*command, "-o", "short", "--max-steps", "14"]) == 0
    n_steps = -(-int(rows()["windows_train"]) // 16)
    assert n_steps == 14  # one epoch
    assert main([*command, "-o", "again"]) == 1
    assert "continue from it with --resume" in capsys.readouterr().err
    assert main([*command, "-o", "long", "--max-steps", "28", "--resume", "run"]) == 0
    assert int(rows()["steps"]) == 28
    assert main([*command, "-o", "over", "--max-steps", "14", "--resume", "run"]) == 1
    assert "is from epoch 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "none.zarr", "-o", "m"], 1, "No alignment none.zarr"),
        (["train", "msa.npy", "-o", "m"], 2, "needs --chrom"),
        (["train", "msa.npy", "-o", "m", "--chrom", "1", "2"], 2, "needs --chrom"),
        (["train", "msa.zarr", "-o", "m", "--start", "5"], 2, "--start is for .npy files"),
        (["train", "msa.zarr", "-o", "m", "--reference", "hg38"], 2, "are for MAF files"),
        (["train", "msa.zarr", "-o", "m", "--top", "0.05"], 2, "--top ranks windows by --phastcons"),
        (["train", "msa.zarr", "-o", "m", "--phastcons", "p.wig"], 1, "No track p.wig"),
        (["train", "msa.zarr", "-o", "m", "--paper"], 2, "--paper ranks and weights windows by --phastcons"),
        (["train", "msa.zarr", "-o", "m", "--windows", "w.tsv"], 1, "No windows w.tsv"),
        (
            ["train", "msa.zarr", "-o", "m", "--windows", "w", "--forward-only"],
            2,
            "--windows stands in place of",
        ),
        (
            ["train", "msa.zarr", "-o", "m", "--early-stopping", "--validation-size", "0"],
            2,
            "--early-stopping needs validation windows",
        ),
        (
            ["train", "msa.zarr", "-o", "m", "--phastcons", "phastcons.npy"],
            2,
            "--phastcons in .npy needs --chrom",
        ),
        (["train", "msa.zarr", "-o", "m", "--mask-ratio", "0.5", "0.1"], 2, "a low and a high one"),
        (["train", "msa.zarr", "-o", "m", "--scheme", "bert"], 2, 'Invalid value "bert" for --scheme'),
        (["train", "msa.zarr", "-o", "m", "--lr", "0"], 2, "expected a number above 0"),
        (["train", "msa.zarr", "-o", "m", "--resume", "nowhere"], 1, "No checkpoint nowhere"),
        (["train", "variants.tsv", "-o", "m"], 1, "An alignment is a Zarr group"),
        (["train", "msa.maf", "-o", "m", "--reference", "hg38"], 1, "No rows of ['hg38']"),
        (
            ["train", "msa.zarr", "-o", "m", "--window-size", "5000"],
            1,
            "longer than the longest chromosome, 4000",
        ),
        (["train", "msa.zarr", "-o", "."], 1, "exists and is not empty"),
        (["score", "none.tsv", "--alignment", "msa.zarr", "-o", "s.tsv"], 1, "No variants at none.tsv"),
        (
            ["score", "variants.tsv", "--alignment", "msa.zarr", "-o", "variants.tsv"],
            1,
            "exists; choose another path",
        ),
        (
            ["score", "variants.tsv", "--alignment", "msa.zarr", "-o", "s.tsv", "--model", "."],
            1,
            "has no config.json",
        ),
        (
            ["score", "variants.tsv", "--alignment", "bad.npy", "--chrom", "1", "-o", "s.tsv"],
            1,
            "damaged or not a .npy file",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing_behind(folder, capsys, arguments, code, message):
    (folder / "bad.npy").write_bytes(b"nothing")
    before = {path.name for path in folder.iterdir()}
    assert main(["dna", *arguments]) == code
    assert message in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("domain", ["single_cell", "dna", "vision", "text"])
def test_the_schemes_to_choose_from_are_those_of_the_package(domain):
    assert list(scheme_names(domain)) == list(scr2mae.schemes(domain))


def test_the_help_loads_no_torch():
    code = "import sys; from scr2mae.cli import main; main(['dna', 'train', '--help']); print(sorted({'torch', 'lightning', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in scheme_names("dna"))
    assert done.stdout.splitlines()[-1] == "[]"


def test_only_the_score_is_rounded(folder, alignment):
    frame = dna.read_variants("variants.tsv").assign(frequency=0.123456789012, place=12345678.0)
    frame.to_csv("long.tsv", sep="\t", index=False)
    assert main(["dna", "score", "long.tsv", "--alignment", "msa.zarr", "-o", "s.tsv", "-q"]) == 0
    found = pd.read_csv("s.tsv", sep="\t")
    assert set(found["frequency"]) == {0.123456789012}
    assert set(found["place"]) == {12345678.0}
    wanted = dna.alignment_scores(alignment[0], frame)["score"]
    np.testing.assert_allclose(found["score"], wanted, rtol=1e-5)


def test_a_maf_file_with_species_in_another_order_is_read_in_that_of_the_network(folder, capsys, alignment):
    command = ["dna", "train", "msa.maf", "-o", "model", "-q", *NETWORK, *TRAINING, *WINDOWS]
    assert main(command) == 0
    text = (folder / "msa.maf").read_text().splitlines()
    (folder / "turned.maf").write_text("\n".join([*text[:4], *text[:3:-1]]) + "\n")
    score = [
        "dna",
        "score",
        "variants.tsv",
        "--model",
        "model",
        "--window-size",
        "32",
        "--accelerator",
        "cpu",
        "-q",
    ]
    for name in ("msa", "turned"):
        assert main([*score, "--alignment", f"{name}.maf", "-o", f"{name}.tsv"]) == 0
    assert (folder / "msa.tsv").read_text() == (folder / "turned.tsv").read_text()
    msa = dna.GenomeMSA.from_maf("turned.maf")
    assert msa.species == ("reference", "species3", "species2", "species1")
    msa.to_zarr("turned.zarr")
    assert main([*score, "--alignment", "turned.zarr", "-o", "zarr.tsv"]) == 1
    assert "Species 1 of the alignment is 'species3'" in capsys.readouterr().err


def test_chromosomes_are_chosen_and_gradients_accumulated(folder, capsys, rows):
    symbols = np.load("msa.npy")
    dna.GenomeMSA({"chr1": symbols, "chr2": symbols}).to_zarr("two.zarr")
    command = ["dna", "train", "two.zarr", "-q", *NETWORK, *TRAINING, *WINDOWS, "--validation-size", "0"]
    counts = {}
    for name, options in {"both": [], "one": ["--chrom", "2", "--accumulate", "3"]}.items():
        assert main([*command, "-o", name, *options]) == 0
        shown = rows()
        counts[name] = int(shown["windows_train"])
        assert shown["steps"] == "4"
    assert counts["both"] == 2 * counts["one"]
    assert main([*command, "-o", "none", "--chrom", "7"]) == 1
    assert "No chromosome '7' in two.zarr" in capsys.readouterr().err
