"""The pages run, the API page is complete, and docstrings, inventories and versions agree with the code."""

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import textwrap
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import scr2mae

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```", re.M | re.S)
MODULE = re.compile(
    r"^\.\. module:: (?P<name>[\w.]+)\n```.*?:nosignatures:\n\n(?P<objects>(?: {4}\w+\n)+)", re.M | re.S
)
SOURCES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
PAGES = [path for path in SOURCES if CELL.search(path.read_text(encoding="utf-8"))]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
API = {
    match["name"]: match["objects"].split()
    for page in (DOCS / "api.md", *(DOCS / "api").glob("*.md"))
    for match in MODULE.finditer(page.read_text(encoding="utf-8"))
}


def public_names(module: ModuleType) -> set[str]:
    """Names of the public objects of a module, other than modules."""
    return {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}


def own_methods(item: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties of a class that are defined in this package."""
    ours = [vars(base) for base in reversed(item.__mro__) if base.__module__.startswith("scr2mae")]
    for attribute, value in sorted({name: value for names in ours for name, value in names.items()}.items()):
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if (
            not attribute.startswith("_")
            and inspect.isfunction(function)
            and function.__module__.startswith("scr2mae")
        ):
            yield attribute, value if isinstance(value, property) else function


def public_callables(modules: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Every function, class, method and property that the ``__all__`` of some modules leads to."""
    for module_name in modules:
        module = importlib.import_module(module_name)
        for name in sorted(public_names(module)):
            item = getattr(module, name)
            if inspect.isfunction(item) or inspect.isclass(item):
                yield f"{module_name}.{name}", item
            if inspect.isclass(item):
                for attribute, value in own_methods(item):
                    yield f"{module_name}.{name}.{attribute}", value


MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(scr2mae.__path__, "scr2mae.")
    if not info.name.endswith("__main__")
)


def section(item: object, title: str) -> str | None:
    """Body of a section of a docstring, or None."""
    found = re.search(
        rf"^{title}\n-+\n(.*?)(?=^\w[^\n]*\n-{{3,}}$|\Z)", inspect.getdoc(item) or "", re.M | re.S
    )
    return None if found is None else found[1]


def described_parameters(item: object, title: str = "Parameters") -> list[str] | None:
    """Names in a section of a docstring, in order; None where there is no such section."""
    body = section(item, title)
    if body is None:
        return None
    heads = re.findall(r"^[*\w][^\n]*$", body, re.M)
    return [name.strip().lstrip("*") for head in heads for name in head.partition(":")[0].split(",")]


def taken_parameters(item: object) -> list[str]:
    names = list(inspect.signature(item).parameters)  # type: ignore[arg-type]
    is_method = inspect.isfunction(item) and "." in item.__qualname__.rpartition("<locals>.")[2]
    return names[1:] if is_method and names[:1] in (["self"], ["cls"]) else names


@cache
def statements(function: object) -> list[ast.AST]:
    """What a function's body is made of, without the functions and classes inside it."""
    found = []
    waiting = list(ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body)  # type: ignore[arg-type, attr-defined]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def raised_errors(function: object) -> set[str]:
    """Classes that a ``raise`` in the body names; what a helper makes is not looked into."""
    raised = (node.exc for node in statements(function) if isinstance(node, ast.Raise))
    names = {ast.unparse(error.func) for error in raised if isinstance(error, ast.Call)}
    names = {name.rpartition(".")[2] for name in names}
    return {name for name in names if name[0].isupper()}


def gives_a_value(function: object) -> bool:
    nodes = statements(function)
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
        return True
    values = [node.value for node in nodes if isinstance(node, ast.Return)]
    return any(value is not None and ast.unparse(value) != "None" for value in values)


def is_hook(function: object) -> bool:
    """Whether a method takes what a third party's method of that name takes, and is described there."""
    owner = getattr(importlib.import_module(function.__module__), function.__qualname__.partition(".")[0])
    bases = owner.__mro__[1:] if inspect.isclass(owner) else ()
    theirs = [
        vars(base).get(function.__name__) for base in bases if not base.__module__.startswith("scr2mae")
    ]
    return any(inspect.isfunction(f) and taken_parameters(f) == taken_parameters(function) for f in theirs)


def gaps(function: object) -> list[str]:
    """Say what the docstring of a function lacks."""
    found = []
    doc = inspect.getdoc(function) or ""
    if taken_parameters(function):
        if section(function, "Parameters") is None:
            found.append("Parameters")
        if gives_a_value(function) and not (
            doc.startswith("Return ") or section(function, "Returns") or section(function, "Yields")
        ):
            found.append("Returns")
    errors = set(re.findall(r"^(\w+)$", section(function, "Raises") or "", re.M))
    return found + sorted(raised_errors(function) - errors - {"NotImplementedError"})


def execute(page: Path) -> None:
    """Run the cells of a page in one namespace; a cell tagged so must raise."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for cell in CELL.finditer(page.read_text(encoding="utf-8")):
        code = compile(ast.parse(cell["code"]), f"{page.name}: {cell['code'].splitlines()[-1]}", "exec")
        if "raises-exception" in cell["options"]:
            with pytest.raises(Exception, match=r"\S"):
                exec(code, namespace)
        else:
            exec(code, namespace)


@pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)  # pages on gene panels
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    try:
        execute(page)
    finally:
        plt.close("all")


@pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)
def test_the_readme_runs_on_a_file_of_ones_own(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    for name in ("pp.neighbors", "tl.leiden"):  # take longer than ours
        monkeypatch.setattr(f"scanpy.{name}", lambda *args, **kwargs: None)
    monkeypatch.setattr("scr2mae.pl.embedding", lambda *args, **kwargs: plt.figure().gca())
    cells = scr2mae.datasets.simulate_donors(n_donors=8, n_cells_per_donor=12, n_genes=60, disease_effect=2.0)
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    cells.write_h5ad("cells.h5ad")
    cells[:, ::2].write_h5ad("new.h5ad")
    namespace: dict[str, object] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    for block in blocks:
        exec(block, namespace)
    plt.close("all")
    assert (tmp_path / "umap.png").is_file()
    assert (tmp_path / "model" / "model.json").is_file()
    assert namespace["scores"]["value"].max() > 0.8
    assert namespace["imputed"].shape == (96, 30)


def test_the_figure_of_the_landing_page_shrinks_on_a_phone():
    assert ":class: fits\n" in (DOCS / "index.md").read_text(encoding="utf-8")
    css = (DOCS / "_static" / "custom.css").read_text(encoding="utf-8")
    assert re.findall(r"img\.wide(\S{0,11})", css) == [":not(.fits)"] * 2


@pytest.mark.parametrize("module", sorted(API))
def test_the_api_page_lists_every_public_object(module):
    listed = API[module]
    assert len(listed) == len(set(listed))
    assert set(listed) == public_names(importlib.import_module(module))


def test_the_api_page_has_every_public_module():
    packages = [scr2mae, scr2mae.extra]
    modules = [getattr(package, name) for package in packages for name in package.__all__]
    with_objects = {
        m.__name__ for m in modules if inspect.ismodule(m) and hasattr(m, "__all__") and public_names(m)
    }
    assert with_objects <= set(API)


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    named = public_callables([module]) if hasattr(importlib.import_module(module), "__all__") else ()
    assert [name for name, item in named if not item.__doc__] == []


@pytest.mark.parametrize("module", sorted(API))
def test_a_docstring_describes_just_the_parameters_there_are(module):
    for name, item in public_callables([module]):
        described = described_parameters(item)
        if described is not None:
            assert sorted(described) == sorted(taken_parameters(item)), name


@pytest.mark.parametrize("module", sorted(API))
def test_a_class_describes_what_it_takes_or_holds(module):
    for name, item in public_callables([module]):
        if (
            inspect.isclass(item)
            and not getattr(item, "_is_protocol", False)
            and not inspect.isabstract(item)
        ):
            assert described_parameters(item) or described_parameters(item, "Attributes"), name


@pytest.mark.parametrize("module", sorted(API))
def test_a_docstring_has_its_sections(module):
    functions = {name: item for name, item in public_callables([module]) if inspect.isfunction(item)}
    assert {name: gaps(item) for name, item in functions.items() if not is_hook(item) and gaps(item)} == {}


def test_the_check_of_docstrings_sees_a_missing_parameter():
    def function(first, second, *, third):
        """Do something.

        Parameters
        ----------
        first, second
            Two of them.

        Returns
        -------
        third
            Not a parameter.
        """

    assert described_parameters(function) == ["first", "second"]
    assert taken_parameters(function) == ["first", "second", "third"]


def test_the_check_of_docstrings_sees_missing_sections():
    def function(first):
        """Do something."""

        def inner():
            raise KeyError(first)

        if first:
            raise ValueError(inner)
        return first

    assert gaps(function) == ["Parameters", "Returns", "ValueError"]
    function.__doc__ = (
        "Return it.\n\nParameters\n----------\nfirst\n    It.\n\nRaises\n------\nValueError\n    If it is."
    )
    assert gaps(function) == []


def test_the_inventories_are_what_their_script_writes():
    script = runpy.run_path(str(DOCS / "_inventories" / "make.py"))
    assert {path.stem for path in (DOCS / "_inventories").glob("*.inv")} == set(script["SITES"])
    for name, site in script["SITES"].items():
        stored, made = (DOCS / "_inventories" / f"{name}.inv").read_bytes(), script["inventory"](name, site)
        header_lines = 4
        for part in (stored, made):
            assert part.startswith(b"# Sphinx inventory version 2\n")
        (head, body), (made_head, made_body) = (
            (
                b"\n".join(part.split(b"\n", header_lines)[:header_lines]),
                part.split(b"\n", header_lines)[header_lines],
            )
            for part in (stored, made)
        )
        assert head == made_head
        # compressed bytes differ between builds of zlib
        assert zlib.decompress(body) == zlib.decompress(made_body)


def test_llms_txt_links_to_pages_that_exist():
    links = re.findall(r"\]\(([\w/]+)\.html\)", (DOCS / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 5
    sources = [DOCS / f"{link}.md" for link in links]
    notebooks = [ROOT / f"{link}.ipynb" for link in links]  # Sphinx sees a copy of the folder
    assert [p for p, n in zip(sources, notebooks, strict=True) if not p.is_file() and not n.is_file()] == []


def test_llms_txt_lists_every_tutorial():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert all(f"tutorials/{path.stem}.html" in text for path in (ROOT / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("folder", ["guide", "benchmarks"])
def test_the_index_of_a_folder_says_what_is_on_each_page(folder):
    index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
    rows = {
        name for row in re.findall(r"^\|.*\|$", index, re.M) for name in re.findall(r"\{doc\}`(\w+)`", row)
    }
    assert rows == {path.stem for path in (DOCS / folder).glob("*.md")} - {"index"}


def test_no_two_pages_have_the_same_title():
    titles = [re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.M) for path in SOURCES]
    titles = [found[1] for found in titles if found]
    titles += [
        runpy.run_path(str(DOCS / "gallery.py"))["title"](path)
        for path in (ROOT / "tutorials").glob("*.ipynb")
    ]
    assert sorted(title for title in set(titles) if titles.count(title) > 1) == []


def test_no_page_is_longer_than_2500_words():
    words = {path.stem: len(path.read_text(encoding="utf-8").split()) for path in SOURCES}
    assert {name: n for name, n in words.items() if n > 2500} == {}


def test_the_page_of_the_model_has_every_method_but_the_internal_ones():
    tree = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
    context = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "autosummary_context"
    )
    shown = {
        name
        for names in eval(compile(ast.Expression(context), "conf", "eval"))["model_methods"].values()
        for name in names
    }
    internal = {"build_module", "module_for", "keep_split", "spec", "convert_legacy_save"}
    assert shown == {name for name, _ in own_methods(scr2mae.R2MAEModel)} - internal


def test_the_gallery_has_a_card_and_a_picture_for_each_tutorial(tmp_path):
    runpy.run_path(str(DOCS / "gallery.py"))["write"](ROOT / "tutorials", tmp_path)
    cells, others = (tmp_path / "gallery.inc").read_text(encoding="utf-8").split("## DNA, images and text")
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        part = others if path.stem in ("6_dna", "7_vision", "8_text") else cells
        assert part.count(f":link: {path.stem}\n") == 1
        picture = tmp_path / "pictures" / f"{path.stem}.png"
        assert f":img-top: pictures/{path.stem}.png" not in part or picture.read_bytes().startswith(
            b"\x89PNG"
        )


def test_every_benchmark_script_is_on_the_page_of_scripts():
    page = (DOCS / "benchmarks" / "scripts.md").read_text(encoding="utf-8")
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.py")}
    assert set(re.findall(r"`(benchmarks/[\w/]+\.py)`", page)) == {
        name for name in scripts if "common" not in name
    }


def test_the_check_of_links_finds_missing_pages_anchors_and_images(tmp_path, capsys):
    script = runpy.run_path(str(DOCS / "check_links.py"))
    assert script["main"]([str(tmp_path)]) == 2
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text('<h1 id="top">x</h1><a href="../index.html#here">up</a>')
    good = '<p id="here"><a href="sub/page.html#top"></a><a href="#here"></a><a href="#"></a><a href="https://a.b/c"></a>'
    (tmp_path / "index.html").write_text(good)
    (tmp_path / "llms.txt").write_text("[page](sub/page.html)")
    assert script["main"]([str(tmp_path)]) == 0
    bad = '<a href="sub/page.html#no"></a><a href="gone.html"></a><img src="gone.png"><a href="#no"></a>'
    (tmp_path / "index.html").write_text(good + bad)
    (tmp_path / "llms.txt").write_text("[page](gone.html)")
    assert script["broken_links"](tmp_path) == [
        "index.html -> sub/page.html#no",
        "index.html -> gone.html",
        "index.html -> gone.png",
        "index.html -> #no",
        "llms.txt -> gone.html",
    ]
    capsys.readouterr()
    assert script["main"]([str(tmp_path)]) == 1
    assert "gone.png" in capsys.readouterr().out


def test_every_script_that_a_page_names_is_there():
    pages = [
        *SOURCES,
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "tutorials").glob("*.md"),
    ]
    named = {
        name
        for page in pages
        for name in re.findall(r"benchmarks/[\w/]+\.py", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_the_page_on_reproducing_has_a_row_for_every_table_and_figure():
    page = (DOCS / "guide" / "reproducing.md").read_text(encoding="utf-8")
    tables = " ".join(re.findall(r"^\| Tables? ([\d and]+)", page, re.M))
    figures = " ".join(re.findall(r"^\| Figures? ([\dA-G andto]+)", page, re.M))
    assert set(re.findall(r"\d", tables)) == set("123456789")
    named = ["1A", "1B to 1D", "1E", "1F", "1G and 4", "2A and 2D", "2B and 5 to 7", "2C", "3"]
    assert [name for name in named if not re.search(rf"\b{name}\b", figures)] == []


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())
    extras = CONFIG["project"]["optional-dependencies"]
    wanted = [*CONFIG["project"]["dependencies"], *(item for extra in extras.values() for item in extra)]
    assert {canonical(item) for item in wanted} - {canonical(name) for name in pins} == {"scr2mae"}


def test_the_citation_names_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == CONFIG["project"]["version"]


def test_a_script_draws_every_figure_of_the_pages():
    figures = list((DOCS / "_static").rglob("*.png"))
    assert len(figures) > 10
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), DOCS / "conf.py"]
    drawn = {
        name for path in scripts for name in re.findall(r'"(\w+\.png)"', path.read_text(encoding="utf-8"))
    }
    assert sorted(path.name for path in figures if path.name not in drawn) == []


def test_the_page_of_data_has_every_file_that_a_benchmark_reads():
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    scripts = [ROOT / "benchmarks" / f"{name}.py" for name in ("embeddings", "schemes", "dna", "text")]
    named = {
        name
        for path in scripts
        for name in re.findall(r'"([\w-]+\.(?:h5ad|npz|txt\.gz|tsv\.gz))"', path.read_text(encoding="utf-8"))
    }
    assert len(named) >= 10
    assert sorted(name for name in named if f"`{name}`" not in page) == []
