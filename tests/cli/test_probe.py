"""``scr2mae probe``: thin over ``linear_probe``, with the conventions of the other commands."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scr2mae.probe import linear_probe

PROBE = "probe counts.h5ad --use-rep X_mine --target disease:classification --target age:regression --donor-key donor -q"


@pytest.fixture
def counts(cells):
    """``counts.h5ad`` in the working folder: cells of eight donors."""
    cells.write_h5ad("counts.h5ad")
    return cells


def test_probe_prints_and_writes_what_linear_probe_gives(counts, capsys, run):
    line = (
        f"{PROBE} -o deep/scores.csv --seed 3 --n-splits 2 --n-train-donors 5 --max-cells-per-donor 10 --scale both "
        "--n-bootstrap 5 --cell-level cell_type --max-cells-per-donor-and-class 4"
    )
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert err == ""
    expected = linear_probe(
        counts,
        use_rep="X_mine",
        targets={"disease": "classification", "age": "regression"},
        donor_key="donor",
        seeds=(3,),
        n_splits=2,
        n_train_donors=5,
        max_cells_per_donor=10,
        max_cells_per_donor_and_class=4,
        scale=(False, True),
        n_bootstrap=5,
    )
    rows = pd.read_csv("deep/scores.csv")
    np.testing.assert_allclose(rows["value"], expected["value"], rtol=1e-12)
    np.testing.assert_allclose(rows["ci_low"], expected["ci_low"], rtol=1e-12)
    keys = ["method", "target", "metric", "level", "scale"]
    printed = pd.read_csv(io.StringIO(out), sep="\t")
    assert list(printed) == [*keys, "mean", "std"]
    means = expected.groupby(keys, sort=False)["value"].mean()
    np.testing.assert_allclose(printed["mean"], means, atol=5.1e-5)


@pytest.mark.parametrize("name", ["X", "counts"])
def test_probe_takes_layers_and_x(counts, capsys, name, run):
    line = f"probe counts.h5ad --use-rep {name} --target disease:classification --donor-key donor --n-splits 1 -q"
    assert run(line) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[1]
        .startswith(f"{name}\tdisease\tbalanced_accuracy\tcell\tFalse\t")
    )


def test_probe_says_why_a_score_is_undefined(counts, capsys, run):
    counts.obs["rare"] = np.where(counts.obs["donor"] == "donor0", "yes", "no")
    counts.write_h5ad("counts.h5ad")
    line = "probe counts.h5ad --use-rep X_mine --target rare:classification --donor-key donor --n-splits 1 -q"
    assert run(line) == 0
    out, err = capsys.readouterr()
    assert "Some scores are undefined: the t" in err
    assert "\tnan\t" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "probe counts.h5ad --target a:classification --donor-key donor",
            "parameter --use-rep requires an argument",
        ),
        ("probe counts.h5ad --use-rep X --donor-key donor", "parameter --target requires an argument"),
        (
            "probe counts.h5ad --use-rep X --target age:regression",
            "parameter --donor-key requires an argument",
        ),
        (f"{PROBE} --target age:regression", "--target names 'age' more than once"),
        (f"{PROBE} --target age", "expected COLUMN:classification or COLUMN:regression, got 'age'"),
        (
            f"{PROBE} --target age:number",
            "expected COLUMN:classification or COLUMN:regression, got 'age:number'",
        ),
        (f"{PROBE} --n-splits 0", "expected a whole number of at least 1, got '0'"),
        (f"{PROBE} -o -", "'-' (a stream) is not supported"),
    ],
)
def test_wrong_usage_exits_with_two_and_leaves_nothing(line, message, counts, capsys, files, run):
    before = files()
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert files() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PROBE.replace("counts.h5ad", "none.h5ad"), "No file none.h5ad."),
        (
            PROBE.replace("X_mine", "X_other"),
            "counts.h5ad has no 'X_other' in obsm or layers; scr2mae embed adds one, or choose one of ['X', 'X_mine'",
        ),
        (PROBE.replace("age:", "agee:"), "no column 'agee' in obs; --target takes one of"),
        (f"{PROBE} -o notes.txt", "notes.txt exists; choose another path or pass --force."),
        (f"{PROBE} --n-train-donors 8", "Wanted n_train_donors between 1 and 7"),
    ],
)
def test_an_error_is_one_line_exits_with_one_and_leaves_nothing(line, message, counts, capsys, files, run):
    Path("notes.txt").write_text("mine")
    before = files()
    assert run(line) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scr2mae: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files() == before
