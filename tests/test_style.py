"""The style rules of the repository hold, and the script that checks them finds what breaks them."""

import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STYLE = runpy.run_path(str(ROOT / "docs" / "check_style.py"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository without offences."""
    for folder in ("src/scr2mae", "docs", "tutorials"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src" / "scr2mae" / "masking.py").write_text('"""Draw masks."""\n')
    (tmp_path / "CONTRIBUTING.md").write_text("## Add a metric\n\n```python\ndef f(): ...\n```\n")
    (tmp_path / "docs" / "page.md").write_text("# Title\n\nOne sentence.\n")
    return tmp_path


def test_a_clean_repository_passes(root: Path) -> None:
    assert list(STYLE["find"](root)) == []
    assert STYLE["main"]([str(root)]) == 0


@pytest.mark.parametrize(
    ("file", "text", "offence"),
    [
        ("src/scr2mae/long.py", "x = 1\n" * 401, "401 lines"),
        ("src/scr2mae/words.py", '"""Of the cells, their depth."""\n# one a gene\n', "'one a gene'"),
        ("docs/british.md", "The colour of a cell.\n", "'colour'"),
        ("docs/wide.md", "word " * 30 + "\n", "columns of prose"),
        ("docs/code.md", f"```python\nx = {'1' * 90}\n```\n", "code of 94 columns"),
        ("CONTRIBUTING.md", "## Add a metric\n\n```python\n" + "x = 1\n" * 10 + "```\n", "takes 10 lines"),
    ],
)
def test_an_offence_is_found(root: Path, file: str, text: str, offence: str, capsys) -> None:
    (root / file).write_text(text)
    assert STYLE["main"]([str(root)]) == 1
    assert offence in capsys.readouterr().out


def test_too_many_entries_are_found(root: Path) -> None:
    for i in range(17):
        shutil.copy(root / "src" / "scr2mae" / "masking.py", root / "src" / "scr2mae" / f"room{i}.py")
    assert any("18 entries" in line for line in STYLE["find"](root))


def test_tables_code_and_allowed_words_may_be_wide(root: Path) -> None:
    wide = "| " + "cell " * 40 + "|\n"
    (root / "docs" / "table.md").write_text(wide + '<svg aria-labelledby="x">\n' + "```text\nshort\n```\n")
    assert list(STYLE["find"](root)) == []
