"""Make the gallery of tutorials from the notebooks' stored outputs and from the table in tutorials/README.md."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

OTHER_MODALITIES = ("6_dna", "7_vision", "8_text")
ROW = re.compile(r"^\| \[(?P<name>\w+)\]\([^)]+\) \| (?P<question>[^|]+?) \| (?P<data>[^|]+?) \|$", re.M)


def pictures(notebook: Path) -> Iterator[bytes]:
    """Yield the PNG pictures among the stored outputs of a notebook."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            found = output.get("data", {}).get("image/png")
            if found is not None:
                yield base64.b64decode("".join(found))


def title(notebook: Path) -> str:
    """Return the heading of a notebook."""
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.splitlines()[0].lstrip("# ").strip()


def number(notebook: Path) -> int:
    """Return the number that the name of a notebook starts with."""
    return int(notebook.stem.partition("_")[0])


def card(notebook: Path, row: re.Match[str], picture: str | None) -> str:
    """Return a card of sphinx-design that leads to a notebook."""
    lines = [f":::{{grid-item-card}} {title(notebook)}", f":link: {notebook.stem}", ":link-type: doc"]
    if picture is not None:
        lines += [f":img-top: {picture}", f":img-alt: A figure of the tutorial {title(notebook)}"]
    return "\n".join([*lines, "", row["question"], "", f"*Data: {row['data']}*", ":::"])


def write(source: Path, target: Path, front: Path | None = None) -> None:
    """Copy the notebooks into the folder of the site, with one picture of each, and write the gallery.

    ``front`` is a copy of the first one's picture, for the front page and the README.
    """
    rows = {row["name"]: row for row in ROW.finditer((source / "README.md").read_text(encoding="utf-8"))}
    cards: dict[bool, list[str]] = {False: [], True: []}
    (target / "pictures").mkdir(exist_ok=True)
    for notebook in sorted(source.glob("*.ipynb"), key=number):
        shutil.copy2(notebook, target / notebook.name)
        found = list(pictures(notebook))
        picture = f"pictures/{notebook.stem}.png" if found else None
        if picture is not None:
            (target / picture).write_bytes(found[min(1, len(found) - 1)])
            if front is not None and number(notebook) == 1:
                front.write_bytes((target / picture).read_bytes())
        cards[notebook.stem in OTHER_MODALITIES].append(card(notebook, rows[notebook.stem], picture))
    text = "".join(
        f"## {heading}\n\n::::{{grid}} 1 2 2 3\n:gutter: 3\n\n" + "\n\n".join(cards[other]) + "\n\n::::\n\n"
        for heading, other in (("Cells", False), ("DNA, images and text", True))
    )
    (target / "gallery.inc").write_text(text, encoding="utf-8")
