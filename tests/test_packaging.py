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
