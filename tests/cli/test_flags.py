"""Messages speak in flags, and errors in arguments and files come before PyTorch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

from scr2mae.cli import main
from scr2mae.cli.flags import in_flags

SAY = in_flags({"--layer", "--use-raw", "--no-check-counts", "--train-size", "--donor-key", "--split-cells"})
FRESH = """
import sys
from scr2mae.cli import main
code = main(sys.argv[1:])
loaded = {"torch", "scvi", "lightning", "anndata"} & set(sys.modules)
print({"": "light", "anndata": "prepared"}.get(" ".join(loaded), loaded))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("pass layer='counts'.", "pass --layer counts."),
        ("write R2MAEModel.setup_anndata(adata, use_raw=True)", "pass --use-raw"),
        ("pass check_counts=False for estimates", "pass --no-check-counts for estimates"),
        ("train_size=0.75 holds out", "--train-size 0.75 holds out"),
        ('Pass donor_key=["study", "donor"].', "Pass --donor-key study donor."),
        ("choose layer=None.", "choose no --layer."),
        ("split_key=False", "--split-cells"),
        ("max_epochs=3 is not a flag here", "max_epochs=3 is not a flag here"),
        ("integration=False", "integration=False"),
        ("call train() of the model that it returns", "call train() of the model that it returns"),
    ],
)
def test_arguments_become_flags_that_the_command_has(message, said):
    assert SAY(message) == said


@pytest.fixture
def normalized(counts):
    """``log.h5ad``: log-values in X, counts in a layer and in raw."""
    counts.X.data = np.log1p(counts.X.data)
    counts.write_h5ad("log.h5ad")
    return counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "whole numbers are in layers['counts'] and raw: pass --layer counts."),
        (
            "--layer other",
            "no layers['other'], where counts are read; whole numbers are in layers['counts'] and raw: pass --layer counts.",
        ),
        ("--layer counts --donor-key sample", "no column 'sample' in obs; --donor-key takes one of ["),
        ("--layer counts --donor-key donor nobody", "no column 'nobody' in obs; --donor-key takes"),
        ("--layer counts --split-key nobody", "no column 'nobody' in obs; --split-key takes"),
        (
            "--layer counts --continuous-covariate-key nobody",
            "no column 'nobody' in obs; --continuous-covariate-key takes",
        ),
    ],
)
def test_an_error_in_the_input_names_the_flag(normalized, no_training, options, message, capsys):
    assert main(["train", "log.h5ad", "-o", "model", *options.split()]) == 1
    assert message in capsys.readouterr().err


TARGET = "--target cell_type:classification"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train log.h5ad -o out", "pass --layer counts."),
        ("embed log.h5ad --model model -o out.h5ad", "whole numbers are in layers['counts'] and raw: pass --layer counts."),
        ("embed log.h5ad --model model -o out.h5ad --layer counts --key X_pca", "has 'X_pca' in obsm already"),
        (f"probe log.h5ad --use-rep X_no --donor-key donor {TARGET}", "has no 'X_no' in obsm or layers; scr2mae embed"),
        (f"probe log.h5ad --use-rep X_no --donor-key donor {TARGET} --save out --model model", "pass --layer counts."),
        ("predict log.h5ad --probe probe --model model -o out.h5ad --donor-key nobody", "--donor-key takes one of ["),
        ("predict log.h5ad --probe probe -o out.h5ad", "has no 'X_mine' in obsm or layers"),
        ("predict log.h5ad --probe probe -o out.h5ad --key age", "has 'age' in obs already"),
        (f"benchmark log.h5ad -o out --donor-key donor {TARGET}", "pass --layer counts."),
        ("benchmark log.h5ad -o out --donor-key donor --target nothing:regression", "--target takes one of ["),
        (f"benchmark log.h5ad -o out --donor-key donor --layer counts {TARGET} --methods r3mae", "No method ['r3mae']; choose from ["),
        (f"benchmark log.h5ad -o out --donor-key donor --layer counts {TARGET} --methods harmony", "['harmony'] need --integration."),
        ("benchmark log.h5ad -o out --donor-key donor --layer counts --target donor:regression", "or pass --target donor:classification."),
        ("probe log.h5ad --use-rep X --donor-key donor --target donor:regression", "holds text such as"),
        ("train log.h5ad -o out --layer counts --size-factor-key donor", "--size-factor-key needs numbers, but obs['donor'] of log"),
        ("train log.h5ad -o out --layer counts --continuous-covariate-key donor", "--continuous-covariate-key needs numbers"),
        ("prepare log.h5ad -o out.zarr --layer nothing", "No 'nothing' in the layers of log.h5ad"),
    ],
)  # fmt: skip
def test_such_errors_come_before_pytorch_is_imported(normalized, line, message, files):
    os.makedirs("model")
    os.makedirs("probe")
    Path("model/model.json").write_text('{"registry": {"setup_args": {"layer": null, "check_counts": true}}}')
    Path("probe/probe.json").write_text('{"target": "age", "features": {"use_rep": "X_mine"}}')
    before = files()
    found = subprocess.run(
        [sys.executable, "-c", FRESH, *line.split()], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1
    assert message in found.stderr
    assert found.stdout == ("prepared\n" if line.startswith("prepare") else "light\n")
    assert files() == before


def test_counts_are_expected_where_the_model_read_them(normalized, train_tiny, capsys):
    train_tiny(normalized, setup={"layer": "counts", "batch_key": "batch"}).save("model")
    query = normalized.copy()
    query.X, query.obs = query.layers.pop("counts"), query.obs.drop(columns="batch")
    del query.raw
    query.write_h5ad("query.h5ad")
    embed = ["embed", "query.h5ad", "--model", "model", "-o", "out.h5ad", "-q"]
    assert main(embed) == 1
    assert "no column 'batch' in obs; the model reads it as batch_key. It has [" in capsys.readouterr().err
    query.obs["batch"] = normalized.obs["batch"]
    query.write_h5ad("query.h5ad")
    assert main(embed) == 1
    assert (
        "has no layers['counts'], where counts are read; whole numbers are in X: pass --layer X."
        in capsys.readouterr().err
    )
    assert main([*embed, "--layer", "X"]) == 0
    normalized.write_h5ad("same.h5ad")
    assert main(["embed", "same.h5ad", "--model", "model", "-o", "same_out.h5ad", "-q"]) == 0
    embedded = [anndata.read_h5ad(name).obsm["X_r2mae"] for name in ("out.h5ad", "same_out.h5ad")]
    np.testing.assert_array_equal(*embedded)


def test_a_warning_of_the_library_names_the_flag(counts, tiny, capsys):
    counts.obs["few"] = [f"d{i % 6}" for i in range(120)]
    counts.write_h5ad("counts.h5ad")
    assert main(["train", "counts.h5ad", "-o", "model", "--donor-key", "few", *tiny]) == 0
    assert "; --train-size 0.5 holds out about three of 6" in capsys.readouterr().err


def test_only_raw_has_counts(normalized, capsys):
    del normalized.layers["counts"]
    normalized.write_h5ad("raw.h5ad")
    assert main(["train", "raw.h5ad", "-o", "model"]) == 1
    assert "whole numbers are in raw: pass --use-raw." in capsys.readouterr().err
