"""Check that the links of a built site which stay inside it lead somewhere: files are there, anchors too.

Usage: ``python docs/check_links.py docs/_build/html``; exits with 1 and a list of the broken links if there are any.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """Anchors that a page has, and links that it makes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect one tag's names and links."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        link = values.get(_LINKS.get(tag, ""))
        if link is not None:
            self.links.append(link)


def is_local(link: str) -> bool:
    """Whether a link has neither scheme nor host, and is no placeholder."""
    parts = urlsplit(link)
    return bool(link) and not parts.scheme and not parts.netloc and link != "#"


def broken_links(root: Path) -> list[str]:
    """Return ``page -> link`` of every link inside the site that leads nowhere, in pages and in ``llms.txt``."""
    root = root.resolve()
    # What a theme keeps in _static are no pages.
    found = [path for path in sorted(root.rglob("*.html")) if path.relative_to(root).parts[0] != "_static"]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in found}
    links = [(path, link) for path, page in pages.items() for link in page.links]
    llms = root / "llms.txt"
    if llms.is_file():
        links += [(llms, link) for link in re.findall(r"\]\(([^)]+)\)", llms.read_text(encoding="utf-8"))]
    broken = []
    for path, link in links:
        if not is_local(link):
            continue
        parts = urlsplit(link)
        place, anchor = unquote(parts.path), unquote(parts.fragment)
        start = root if place.startswith("/") else path.parent
        target = (start / place.lstrip("/")).resolve() if place else path.resolve()
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
            broken.append(f"{path.relative_to(root)} -> {link}")
    return broken


def main(arguments: list[str]) -> int:
    """Check the site in the folder that is named; return the exit status."""
    root = Path(arguments[0])
    if not (root / "index.html").is_file():
        print(f"No site in {root}: it has no index.html. Build it first.", file=sys.stderr)
        return 2
    broken = broken_links(root)
    print("\n".join(broken) or f"Every link inside {root} leads somewhere.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
