"""The notebooks carry the outputs of one whole run, and nothing of the machine that made them."""

import json
import re
from pathlib import Path

import pytest

from scr2mae import datasets

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|Users|root|tmp|work|opt|usr|var|mnt)/|[A-Z]:\\\\|site-packages|Warning\b|Traceback|\d(?:it|s/it)/s"
)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cell):
    """Text of the outputs of a cell, pictures left out."""
    for output in cell["outputs"]:
        data = {"text": output.get("text", ""), **output.get("data", {})}
        yield from ("".join(text) for mime, text in data.items() if not mime.startswith("image/"))


def leaves_something_to_see(cell):
    """Whether the last line is an expression whose value a notebook shows, or a print."""
    last = "".join(cell["source"]).rstrip().splitlines()[-1]
    return bool(re.match(r"print\(|plt\.show\(|\w[\w.]*(\[[^\]]*\])?$", last))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell["source"] for cell in cells if leaves_something_to_see(cell) and not cell["outputs"]] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_errors_warnings_or_paths_in_its_outputs(path):
    for cell in code_cells(path):
        assert [o["ename"] for o in cell["outputs"] if o["output_type"] == "error"] == []
        assert [match[0] for text in printed(cell) for match in MACHINE.finditer(text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_no_times_of_day(path):
    assert [cell["metadata"] for cell in code_cells(path) if "execution" in cell["metadata"]] == []


def test_the_table_of_tutorials_has_every_notebook():
    table = (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[\w+\]\((\w+\.ipynb)\)", table, re.M)) == [p.name for p in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tutorial_on_new_donors_takes_a_file_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = datasets.simulate_donors(
        n_donors=14, n_cells_per_donor=25, n_genes=60, n_batches=2, disease_effect=1.5, effect_fraction=0.4
    )
    labels = cells.obs["disease"].map({"control": "well", "disease": "sick"}).astype(object)
    cells.obs["disease"] = labels.where(cells.obs["donor"].cat.codes < 10)
    del cells.var["disease_lfc"]
    cells.write_h5ad(tmp_path / "mine.h5ad")
    code = ["".join(cell["source"]) for cell in code_cells(ROOT / "tutorials" / "10_new_donors.ipynb")]
    assert "PATH = None" in code[0]
    names = {}
    for source in code:
        exec(source.replace("PATH = None", f"PATH = {str(tmp_path / 'mine.h5ad')!r}"), names)
    assert len(names["calls"]) == 4
    assert set(names["calls"]["prediction"]) <= {"well", "sick", "unknown"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tutorial_on_two_studies_takes_files_of_the_user(tmp_path, monkeypatch):
    pytest.importorskip("harmonypy")
    cells = datasets.simulate_donors(
        n_donors=4, n_cells_per_donor=60, n_genes=80, n_cell_types=3, n_batches=2, batch_effect=0.5
    )
    names = {
        "sorted": ["CD19+ B", "CD56+ NK", "CD34+"],
        "kang": ["B cells", "NK cells", "CD4 T cells"],
    }
    for (name, types), batch in zip(names.items(), ("batch0", "batch1"), strict=True):
        study = cells[cells.obs["batch"] == batch].copy()
        study.obs["cell_type"] = study.obs["cell_type"].cat.rename_categories(types)
        study.write_h5ad(tmp_path / f"{name}.h5ad")
    monkeypatch.setenv("BLOOD", str(tmp_path))
    found = {}
    for cell in code_cells(ROOT / "tutorials" / "13_two_studies.ipynb"):
        exec("".join(cell["source"]), found)
    assert set(found["adata"].obs["cells"]) == {"B cells", "NK cells", "CD34+", "T cells"}
    assert found["judge"]("X_r2mae")["mixing"] > found["judge"]("X_pca")["mixing"]
