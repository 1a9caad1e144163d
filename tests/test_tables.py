"""The commands of the paper's tables run from beginning to end at a small size, and print tables of the paper's shape."""

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scr2mae
from scr2mae import benchmark, datasets
from scr2mae.cli import main

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def shared_code(monkeypatch):
    """Let the scripts import what they share, as from the command line."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def script(name: str, *arguments: object) -> None:
    """Run the ``main`` of a script of the repository."""
    runpy.run_path(str(BENCHMARKS / name))["main"](list(map(str, arguments)))


def last_table(text: str) -> tuple[list[str], list[str]]:
    """Return the columns and the row names of the last Markdown table that was printed."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = max(i for i, line in enumerate(lines) if set(line) <= set("|:- ")) - 1
    columns, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:])
    return columns[1:], [row[0] for row in rows[1:]]


def test_table_2_has_accuracies_and_a_rank(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    line = ["-o", tmp_path, "--dry-run", "--schemes", "mae", "r2mae", "--seeds", 0]
    script("text_table_2.py", *line, "--tasks", "mnli", "sst2")
    columns, rows = last_table(capsys.readouterr().out)
    assert columns == ["tiny mnli", "tiny sst2", "tiny rank"]
    assert rows == ["MLM default", "R²MAE"]
    table = pd.read_csv(tmp_path / "table_2.csv", index_col=0)
    assert ((table >= 0) & (table <= 100)).all(axis=None)
    assert table["tiny rank"].between(1, 2).all()


def test_table_3_has_networks_tracks_and_published_scores(tmp_path, capsys):
    pytest.importorskip("zarr")
    script("dna_table_3.py", "-o", tmp_path, "--dry-run", "--schemes", "mae", "r2mae_cl")
    columns, rows = last_table(capsys.readouterr().out)
    assert columns == [
        *("ClinVar all auroc", "ClinVar all auprc", "OMIM all pauroc", "OMIM all auprc"),
        *("OMIM 5'UTR auprc", "OMIM 3'UTR auprc", "OMIM ncRNA auprc"),
    ]
    assert rows == ["CADD", "NT", "phyloP-100v", "GPN-MSA (MLM)", "+ CL"]
    table = pd.read_csv(tmp_path / "table_3.csv", index_col=0)
    assert table[columns].notna().all(axis=None)
    # Conservation is what made the labels; NT is CADD with its sign turned, and read with low as pathogenic.
    assert table.loc["phyloP-100v", "ClinVar all auroc"] > 0.9
    assert table.loc["CADD", "ClinVar all auroc"] > 0.6
    np.testing.assert_allclose(table.loc["NT", columns], table.loc["CADD", columns])


def test_scores_are_merged_by_place_and_bases(tmp_path):
    functions = runpy.run_path(str(BENCHMARKS / "dna_table_3.py"))
    variants = pd.DataFrame(
        {"chrom": ["chr1", "chr1", "chr2"], "pos": [5, 5, 9], "ref": ["A", "A", "C"], "alt": ["C", "G", "T"]}
    )
    scores = variants.iloc[::-1].assign(
        chrom=lambda frame: frame["chrom"].str.removeprefix("chr"), score=[3.0, 2.0, 1.0]
    )
    scores.iloc[1:].to_csv(tmp_path / "CADD.tsv", sep="\t", index=False)
    np.testing.assert_array_equal(functions["by_table"](variants, tmp_path / "CADD.tsv"), [1.0, 2.0, np.nan])
    assert functions["class_of"]("5_prime_UTR_variant") == "5'UTR"
    assert functions["class_of"]("3' UTR") == "3'UTR"
    assert functions["class_of"]("missense") is None


@pytest.mark.parametrize("atlas", ["hlca", "sea_ad"])
def test_tables_4_and_6_to_8_have_the_papers_columns(tmp_path, monkeypatch, capsys, atlas):
    monkeypatch.chdir(tmp_path)
    made = datasets.simulate_atlas(atlas, n_donors=16, n_cells_per_donor=15, n_genes=60, disease_effect=1.5)
    made.write_h5ad("atlas.h5ad")
    line = f"benchmark atlas.h5ad --atlas {atlas} --paper -o out --n-hidden 8 --n-latent 4 --max-epochs 1"
    line += " --batch-size 64 --scvi-max-epochs 1 --accelerator cpu --max-cells-per-donor 12 -q"
    assert main(shlex.split(f"{line} --methods lognorm scvi mae r2mae_cl")) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    heading = next(row for row in table.splitlines() if row.startswith("| Method"))
    columns = [cell.strip() for cell in heading.strip("|").split("|")]
    middle = (
        "Disease BAcc.|Disease F1"
        if atlas == "hlca"
        else "Alzheimer's AUROC (cell)|Alzheimer's AUROC (donor)"
    )
    assert columns[:9] == [
        *("Method", "Cell state BAcc.", "Cell state F1", *middle.split("|")),
        *("Age Spearman (cell)", "Age Spearman (donor)", "Score", "Rank"),
    ]
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    reconstruction = results[results["part"] == "reconstruction"]
    assert set(reconstruction["ratio"]) == {0.1, 0.2, 0.3, 0.5, 0.7}  # Tables 7 and 8
    assert set(reconstruction["method"]) == {"scvi", "mae", "r2mae_cl"}
    assert results["seed"].dropna().unique().tolist() == [0]
    assert not results["scale"].dropna().astype(bool).any()


def test_the_methods_of_the_preset_are_the_rows_of_table_6():
    names = scr2mae.paper("hlca").benchmark["methods"]
    assert names == ("lognorm", "scvi", *scr2mae.schemes("hlca"))
    assert len(benchmark.tasks("hlca")) == 3


def test_tables_5_and_9_have_their_rows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib.pyplot").switch_backend("agg")
    monkeypatch.syspath_prepend(BENCHMARKS / "theory")
    monkeypatch.setattr(sys, "argv", ["tables_5_9.py", "-o", str(tmp_path), "--dry-run"])
    runpy.run_path(str(BENCHMARKS / "theory" / "tables_5_9.py"), run_name="__main__")
    rows = pd.read_csv(tmp_path / "tables_5_9.csv")
    assert set(rows["table"]) == {"table 5", "table 9"}
    assert set(rows["model"]) == {"beta", "latent"}
    assert set(rows["seed"]) == {2, 12, 22, 32, 42}
    assert {"best_ratio", "best_risk", "center_risk", "r2mae_risk"} <= set(rows)
