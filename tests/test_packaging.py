"""What the package says that it needs, and what is tested."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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


def test_both_ends_are_tested_in_ci_and_dependencies_are_audited() -> None:
    workflows = "\n".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    for command in ("make test-oldest", "make test-latest", "make audit"):
        assert f"run: {command}" in workflows
