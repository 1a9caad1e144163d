"""Optional dependencies: loaded late, and named when they are missing."""

import subprocess
import sys

import pytest

from scr2mae._utils.optional import require


def test_a_missing_dependency_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"needs zarr; pip install 'scr2mae\[vision\]'"):
        require("zarr", extra="vision")


def test_a_dependency_that_is_broken_inside_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        require("broken_package", extra="vision")


def test_a_present_dependency_is_returned():
    assert require("json", extra="vision") is sys.modules["json"]


def test_importing_extra_loads_no_optional_dependency_and_no_torch():
    code = "import sys, scr2mae, scr2mae.extra; print({'zarr', 'transformers', 'tokenizers', 'PIL', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
