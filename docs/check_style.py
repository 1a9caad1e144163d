"""Check the style rules that other linters do not know; run by `make lint`.

Usage: python docs/check_style.py [ROOT]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_ENTRIES = 17  # at the top level of the package
MAX_LINES = 400  # of a source file
MAX_PROSE = 110  # columns of a line of prose in Markdown
MAX_CODE = 84  # columns of code on a page, beside both sidebars of the site
MAX_RECIPE = 9  # lines of code of a recipe in CONTRIBUTING.md

PHRASES = re.compile(
    r"(?<![Tt]here )\bis no (?!longer)[a-z]"
    r"|\b(?:cells|genes|donors|rows?|entry|one) an? (?:mini-batch|batch|gene|cell|epoch|rank|process)\b"
    r"|\ball (?:its|their) li(?:fe|ves)\b"
    r"|\bknows? nothing\b"
    r"|^\s*Of the ",
    re.M,
)
BRITISH = re.compile(
    r"\b\w*(?:colour|favour|behaviour|neighbour|labell(?:ed|ing)|licence|grey|centred?)\w*\b"
    r"|\b(?:optim|normal|standard|random|initial|regular|minim|maxim|vector)is(?:e|ed|es|ing|ation)\b",
    re.I,
)
ALLOWED = ("aria-labelledby",)
CODE = re.compile(r"^```(?:\{code-cell\}[^\n]*|python|text)\n(.*?)^```", re.M | re.S)
RECIPE = re.compile(r"^## (Add a [^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```", re.M | re.S)


def pages(root: Path) -> Iterator[Path]:
    """Yield the Markdown files that people read."""
    docs = (path for path in sorted((root / "docs").rglob("*.md")) if "_build" not in path.parts)
    named = (
        root / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "tutorials/README.md")
    )
    yield from (path for path in (*docs, *named) if path.is_file())


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are prose: no code, tables, HTML or links alone."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "<", "![", ":", "$$", "[")):
            yield number, line


def source_of(path: Path) -> str:
    """Return the text that people write: of a notebook its cells without their outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def find(root: Path) -> Iterator[str]:
    """Yield a line per offence: place, rule, what was found."""
    package = root / "src" / "scr2mae"
    entries = [path for path in package.iterdir() if path.name != "__pycache__"]
    if len(entries) > MAX_ENTRIES:
        yield f"{package.relative_to(root)}: {len(entries)} entries; at most {MAX_ENTRIES}"
    sources = sorted(package.rglob("*.py"))
    for path in sources:
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        if n_lines > MAX_LINES:
            yield f"{path.relative_to(root)}: {n_lines} lines; at most {MAX_LINES}, split it by idea"
    notebooks = sorted((root / "tutorials").glob("*.ipynb"))
    for path in (*sources, *pages(root), *notebooks):
        text = source_of(path)
        for rule, pattern in (("phrase", PHRASES), ("spelling", BRITISH)):
            for found in pattern.finditer(text):
                if found[0] not in ALLOWED and not any(found[0] in word for word in ALLOWED):
                    number = text.count("\n", 0, found.start()) + 1
                    yield f"{path.relative_to(root)}:{number}: {rule}: {found[0].strip()!r}"
    for path in pages(root):
        text = path.read_text(encoding="utf-8")
        for number, line in prose(text):
            if len(line) > MAX_PROSE and " " in line[:MAX_PROSE].strip():
                yield f"{path.relative_to(root)}:{number}: {len(line)} columns of prose; at most {MAX_PROSE}"
        if path.name != "README.md":
            for code in CODE.findall(text):
                for line in code.splitlines():
                    if len(line) > MAX_CODE:
                        yield f"{path.relative_to(root)}: code of {len(line)} columns; at most {MAX_CODE}: {line}"
    for title, code in RECIPE.findall((root / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if len(code.splitlines()) > MAX_RECIPE:
            yield f"CONTRIBUTING.md: {title!r} takes {len(code.splitlines())} lines; at most {MAX_RECIPE}"


def main(arguments: list[str]) -> int:
    """Print what is found; return 1 if there is anything."""
    root = Path(arguments[0]) if arguments else Path(__file__).parents[1]
    found = list(find(root))
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
