"""What the package says that it needs, and what is tested."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# First versions without a flaw that lies on a path of this package: files it opens, addresses it follows, what its tests write.
FIRST_SAFE = {
    "lightning": (
        "2.6.6",
        "CVE-2026-58659: code in a checkpoint; GHSA-w37p-236h-pfx3: 2.6.2 and 2.6.3 were tampered with",
    ),
    "pillow": (
        "12.3",
        "CVE-2026-25990 (12.1.1) and PYSEC-2026-2253 to 2257: images that write past the end of memory",
    ),
    "pytest": ("9.0.3", "CVE-2025-71176: temporary folders with names that can be guessed"),
    "requests": ("2.33", "CVE-2024-47081 (2.32.4): passwords of another host; CVE-2026-25645"),
    "torch": (
        "2.10",
        "CVE-2025-32434 (2.6) and CVE-2026-24747: torch.load(weights_only=True) runs or corrupts",
    ),
    "tqdm": ("4.66.3", "CVE-2024-34062: code in an argument of its command line"),
    "transformers": (
        "5.10",
        "CVE-2026-4372 (5.3) and CVE-2026-5241 (5.5): code through a config; CVE-2026-9856: paths",
    ),
}
EXTRAS = ("vision", "text", "hub", "test")


def smallest_versions() -> dict[str, str]:
    """Smallest version of each direct dependency of the package, its extras and its tests."""
    optional = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(each for extra in EXTRAS for each in optional[extra])]
    named = [each for each in wanted if not each.startswith("scr2mae[")]
    found = {match[1]: match[2] for each in named if (match := re.match(r"([\w.-]+)>=([\d.]+)", each))}
    assert len(found) == len({re.split(r"[><=]", each)[0] for each in named}), (
        "a dependency has no smallest version"
    )
    return found


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert pinned == smallest_versions()


def at_least(version: str, smallest: str) -> bool:
    return tuple(map(int, version.split("."))) >= tuple(map(int, smallest.split(".")))


@pytest.mark.parametrize("package", FIRST_SAFE)
def test_no_version_with_a_known_flaw_is_allowed_or_pinned(package: str) -> None:
    first_safe, why = FIRST_SAFE[package]
    assert at_least(smallest_versions()[package], first_safe), why
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    assert at_least(pinned[package], first_safe), why


def test_an_audit_that_finds_nothing_to_look_up_is_no_success() -> None:
    assert re.search(r"pip-audit .*--strict", (ROOT / "Makefile").read_text(encoding="utf-8"))


def test_both_ends_are_tested_in_ci_and_dependencies_are_audited() -> None:
    workflows = "\n".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    for command in ("make test-oldest", "make test-latest", "make audit"):
        assert f"run: {command}" in workflows


def tracked_text() -> dict[str, str]:
    """Text of the files that people publish, by path."""
    patterns = (
        "*.md",
        "*.toml",
        "*.cff",
        "*.yaml",
        ".*.yaml",
        "docs/**/*.md",
        "docs/*.py",
        ".github/**/*",
        "recipe/*",
    )
    files = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}


def test_the_repository_has_one_address_everywhere() -> None:
    owner = re.fullmatch(r"https://github\.com/([\w-]+)/scr2mae", PROJECT["urls"]["Repository"])[1]
    mention = re.compile(r"(?:github\.com|githubusercontent\.com)/([\w-]+)/scr2mae\b")
    found = {name: set(mention.findall(text)) for name, text in tracked_text().items()}
    assert {"README.md", "CITATION.cff", "pyproject.toml", "recipe/meta.yaml"} <= {
        n for n, own in found.items() if own
    }
    assert {name: own for name, own in found.items() if own - {owner}} == {}


def test_the_placeholder_of_the_owner_stands_only_in_that_address() -> None:
    if "/OWNER/" not in PROJECT["urls"]["Repository"]:
        pytest.skip("the repository has an owner")
    allowed = re.compile(r"OWNER/scr2mae|(?<=    - )OWNER$", re.M)
    rest = {name: allowed.sub("", text) for name, text in tracked_text().items()}
    assert [name for name, text in rest.items() if re.search(r"\bOWNER\b", text)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/installation.md"])
def test_a_copy_of_the_repository_is_installed_without_an_address(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```(?:bash|console)\n(.*?)```", text, re.S)[1]
    lines = [line.removeprefix("$ ").partition("#")[0].strip() for line in block.splitlines()]
    assert lines[0].startswith("git clone ")
    assert lines[-2:] == ["pip install .", "scr2mae demo"]
    assert "://" not in "".join(lines[1:])
    assert "stands for the address of the" in text
    assert re.findall(r"\bURL(?:_[A-Z]+)*\b", text) == []


def test_the_version_is_the_same_everywhere_and_its_section_of_the_changelog_is_dated() -> None:
    version = PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    date = re.search(r"^date-released: (\d{4}-\d\d-\d\d)$", citation, re.M)[1]
    assert f"\nversion: {version}\n" in citation
    assert f"## {version} - {date}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'set version = "{version}"' in (ROOT / "recipe" / "meta.yaml").read_text(encoding="utf-8")


def test_the_conda_recipe_needs_what_the_package_needs() -> None:
    recipe = (ROOT / "recipe" / "meta.yaml").read_text(encoding="utf-8")
    run = recipe.partition("  run:\n")[2].partition("\n\n")[0]
    listed = {" ".join(line.split()[1:]) for line in run.splitlines()} - {"python >={{ python_min }}"}
    names = {"torch": "pytorch", "igraph": "python-igraph", "matplotlib": "matplotlib-base"}
    wanted = [re.match(r"([\w.-]+)(.*)", each) for each in PROJECT["dependencies"]]
    assert listed == {f"{names.get(each[1], each[1])} {each[2]}" for each in wanted}


def test_the_hooks_have_the_versions_of_the_constraints() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for repository, package in (
        ("astral-sh/ruff-pre-commit", "ruff"),
        ("codespell-project/codespell", "codespell"),
    ):
        rev = re.search(rf"{repository}\n +rev: v([\d.]+)", hooks)[1]
        assert re.search(rf"^{package}==(.*)$", pins, re.M)[1] == rev
    assert ".venv" not in hooks


def test_every_extra_installs_something() -> None:
    assert all(PROJECT["optional-dependencies"].values())


def test_the_readme_has_no_relative_link() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")] == []


def test_every_page_that_the_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = re.findall(r"readthedocs\.io/en/latest/([\w/]+)\.html", text)
    assert len(pages) > 8
    assert [page for page in pages if not (ROOT / "docs" / f"{page}.md").is_file()] == []
