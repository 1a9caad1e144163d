"""Messages speak in flags, and errors in arguments and files come before PyTorch is imported."""

import subprocess
import sys

import numpy as np
import pytest

from scr2mae.cli import main
from scr2mae.cli.flags import in_flags

SAY = in_flags({"--layer", "--use-raw", "--no-check-counts", "--train-size", "--donor-key", "--split-cells"})
FRESH = """
import sys
from scr2mae.cli import main
code = main(sys.argv[1:])
print({"torch", "scvi", "lightning", "anndata"} & set(sys.modules) or "light")
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
        ("--layer other", "no layer 'other'; --layer takes one of ['counts'], and no --layer means X."),
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


def test_such_errors_come_before_pytorch_is_imported(normalized):
    found = subprocess.run(
        [sys.executable, "-c", FRESH, "train", "log.h5ad", "-o", "model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "--layer counts" in found.stderr
    assert found.stdout == "light\n"


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
