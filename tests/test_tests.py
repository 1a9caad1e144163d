"""Every test can fail: it asserts, expects an error or a warning, or calls something that does."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("test_*.py"))
CHECKS = ("assert", "check_estimator", "raises", "warns", "fail", "gradcheck")


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions of a file, nested ones included, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def helpers_of(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions that a test of this file may call: its own, and those of conftest.py and other helpers beside and above it."""
    found: dict[str, ast.FunctionDef] = {}
    for folder in (HERE, *reversed([p for p in path.parents if HERE in p.parents])):
        for other in sorted(folder.glob("*.py")):
            if not other.name.startswith("test_"):
                found |= functions(other)
    return found | functions(path)


def checks_something(
    node: ast.AST, known: dict[str, ast.FunctionDef], seen: frozenset[str] = frozenset()
) -> bool:
    """Whether a function asserts, itself or through what it calls."""
    for part in ast.walk(node):
        if isinstance(part, (ast.Assert, ast.Raise)):
            return True
        if not isinstance(part, ast.Call):
            continue
        name = getattr(part.func, "id", getattr(part.func, "attr", ""))
        if any(word in name for word in CHECKS):
            return True
        if name in known and name not in seen and checks_something(known[name], known, seen | {name}):
            return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_no_test_asserts_nothing(path: Path) -> None:
    known = helpers_of(path)
    idle = [
        name
        for name, node in functions(path).items()
        if name.startswith("test_") and not checks_something(node, known)
    ]
    assert not idle, f"These tests cannot fail: {idle}"


def test_an_idle_test_is_found() -> None:
    tree = ast.parse("def look(): return 1\ndef test_it(): look()\ndef test_other():\n    assert look()")
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not checks_something(known["test_it"], known)
    assert checks_something(known["test_other"], known)
