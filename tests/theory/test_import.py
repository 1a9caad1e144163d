import subprocess
import sys

import pytest

from scr2mae import theory


@pytest.mark.parametrize("module", ["torch", "scvi", "matplotlib", "anndata", "pandas", "sklearn"])
def test_importing_the_theory_loads_numpy_and_scipy_alone(module):
    script = f"import sys, scr2mae.theory; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_public_name_exists_and_is_documented():
    for name in theory.__all__:
        assert getattr(theory, name).__doc__
