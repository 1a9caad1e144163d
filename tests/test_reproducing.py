"""The pages on reproducing the paper: their settings are those of the code, and their commands are there."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import scr2mae
from scr2mae import benchmark, datasets, masking, probe, theory
from scr2mae.cli.main import app
from scr2mae.probe.logistic import CS
from scr2mae.probe.ridge import ALPHAS

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
PAGE = "".join(
    (GUIDE / f"{name}.md").read_text(encoding="utf-8") for name in ("reproducing", "paper_settings")
)


def tables(headings: str) -> list[list[str]]:
    """Return the cells of all rows of the tables with these headings."""
    rows, inside = [], False
    for line in PAGE.splitlines():
        if line == headings:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|- "):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


SETTINGS = tables("| setting | paper | here | set by |")


def constant(script: str, name: str) -> object:
    """Return a constant at the top of a script in benchmarks/, without running it."""
    for node in ast.parse((ROOT / "benchmarks" / script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def default(function: object, argument: str) -> object:
    return inspect.signature(function).parameters[argument].default


def value(text: str) -> object:
    """Evaluate what sets a value: an expression in which ``f(x=)`` is a default, or ``SCRIPT: CONSTANT``."""
    if found := re.fullmatch(r"([\w/]+\.py): (\w+)", text):
        return constant(*found.groups())
    from scr2mae.extra import dna, vision
    from scr2mae.extra import text as text_module
    from scr2mae.extra.vision.formats import CelebA

    names = {
        "ALPHAS": ALPHAS,
        "CS": CS,
        "benchmark": benchmark,
        "datasets": datasets,
        "default": default,
        "dna": dna,
        "masking": masking,
        "paper": scr2mae.paper,
        "probe": probe,
        "schemes": scr2mae.schemes,
        "text": text_module,
        "theory": theory,
        "vision": vision,
    }
    assert vision.CelebA is CelebA
    return eval(re.sub(r"([\w.]+)\((\w+)=\)", r'default(\1, "\2")', text), names)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row[0][:60])
def test_a_setting_is_what_the_page_says(row):
    setting, paper, here, set_by = row
    assert paper, setting
    expected, found = ast.literal_eval(here.strip("`")), value(set_by.strip("`"))
    if isinstance(expected, (int, float, tuple)) and not isinstance(expected, bool):
        assert found == pytest.approx(expected) if _is_number(expected) else found == expected
    else:
        assert found == expected


def _is_number(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


def test_the_check_of_settings_can_fail():
    assert value("theory.simulate_risk(n_draws=)") == 50
    assert value("text.pretrain(batch_size=) * text.pretrain(accumulate_grad_batches=)") == 2048
    with pytest.raises(KeyError):
        value("theory.simulate_risk(n_rows=)")
    with pytest.raises(KeyError):
        value("theory/tables_5_9.py: WIDTHS")
    with pytest.raises(AssertionError):
        test_a_setting_is_what_the_page_says(["epochs", "50", "`51`", '`paper().train["max_epochs"]`'])


def test_every_part_of_the_appendix_has_its_settings():
    parts = re.findall(r"^## .*\((C\.\d)\)$", PAGE, re.M)
    assert parts == ["C.1", "C.3", "C.4", "C.5", "C.6", "C.7", "C.8"]  # C.2 aligns published curves
    assert len(SETTINGS) > 80


def test_every_inferred_setting_has_its_argument():
    inferred = [row[0] for row in SETTINGS if "inferred" in row[1]]
    reasons = tables("| setting | taken, and why | to set it |")
    assert len(inferred) >= 15
    assert all(len(row) == 3 and row[1] and row[2] for row in reasons)
    text = " ".join(row[0] for row in reasons)
    for word in (
        "hidden units",
        "training donors",
        "counts per cell",
        "scVI",
        "Sinkhorn",
        "CelebA",
        "Beta",
        "tokenizer",
        "split",
    ):
        assert word in text, word


COMMANDS = [row[1].strip("`") for row in tables("| paper | command | state |")]


def test_every_table_and_figure_has_one_command():
    named = " ".join(row[0] for row in tables("| paper | command | state |"))
    for i in range(1, 10):
        assert re.search(rf"Tables? (\d and )?{i}\b", named), i
    for figure in ("1A", "1B to 1D", "1E", "1F", "1G and 4", "2A and 2D", "2B and 5 to 7", "2C", "Figure 3"):
        assert figure in named


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_exists(command):
    words = command.split()
    if words[0] == "scr2mae":
        app.parse_args(words[1:])  # exits unless every option is known
        return
    script = ROOT / words[1]
    source = script.read_text(encoding="utf-8")
    shared = (script.parent / name for name in ("common.py", "common_setup.py"))
    common = "".join(path.read_text(encoding="utf-8") for path in shared if path.is_file())
    options = [word for word in words if word.startswith("--")] + ["-o"]
    assert [option for option in options if f'"{option}"' not in source + common] == []
