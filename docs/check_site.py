"""Check a built site in a browser: no page scrolls sideways, and searches find the pages that answer them.

Usage: ``python docs/check_site.py docs/_build/html``; needs Chromium. Exits with 1 and a list of what is wrong, if anything is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WIDTHS = (390, 1280)
# What people type, and the page that answers it.
SEARCHES = {
    "integration": "guide/integration.html",
    "batch correction": "guide/integration.html",
    "conda": "installation.html",
    "cite": "faq.html",
    "FAQ": "faq.html",
    "GPU": "installation.html",
    "out of memory": "faq.html",
    "donor batch": "faq.html",
    "highly variable genes": "faq.html",
    "how long": "faq.html",
    "validation donor": "faq.html",
    "which loss": "faq.html",
    "PCA Harmony": "index.html",
    "label transfer": "faq.html",
    "label transfer panel": "faq.html",
    "why not scVI": "faq.html",
    "adata.raw": "faq.html",
    "leakage": "faq.html",
}
_AMONG = 10  # first hits
HARNESS = """<!doctype html><meta charset="utf-8"><iframe id="frame" style="border:0;height:900px"></iframe><script>
const frame = document.getElementById("frame");
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const load = (url, width) => new Promise((done) => {
  frame.style.width = width + "px";
  frame.onload = done;
  setTimeout(done, 15000);
  frame.src = url;
});
(async () => {
  const {pages, widths, searches} = await (await fetch("/_work")).json();
  const wide = [], hits = {};
  for (const page of pages) {
    await load("/" + page, widths[0]);
    for (const width of widths) {
      frame.style.width = width + "px";
      await sleep(60);
      const root = frame.contentDocument.scrollingElement;
      if (root.scrollWidth > width + 1) {
        const all = [...root.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > width + 1);
        const last = all[all.length - 1];
        wide.push([page, width, root.scrollWidth, last ? last.tagName + "." + last.className : ""]);
      }
      for (const table of root.querySelectorAll("table")) {
        let box = table.parentElement;
        const overflow = (e) => frame.contentWindow.getComputedStyle(e).overflowX;
        while (box && overflow(box) === "visible") box = box.parentElement;
        const right = (e) => e.getBoundingClientRect().right;
        if (box && ["hidden", "clip"].includes(overflow(box)) && right(table) > right(box) + 1)
          wide.push([page, width, Math.round(right(table)), "a table that is cut"]);
      }
    }
  }
  for (const words of searches) {
    await load("/search.html?q=" + encodeURIComponent(words), 1280);
    let found = [];
    for (let i = 0; i < 100; i++) {
      found = [...frame.contentDocument.querySelectorAll("#search-results li a")].map((a) => a.href);
      if (found.length && frame.contentDocument.querySelector("#search-results .search-summary, #search-results p"))
        if (i > 10) break;
      await sleep(100);
    }
    hits[words] = found.map((href) => new URL(href).pathname.slice(1));
  }
  await fetch("/_report", {method: "POST", body: JSON.stringify({wide, hits})});
})().catch((error) => fetch("/_report", {method: "POST", body: JSON.stringify({error: String(error)})}));
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serve a site, the page that measures it, and take its report."""

    work: bytes
    report: dict
    done: threading.Event

    def do_GET(self) -> None:
        """Answer with a file of the site, the page or its list of work."""
        answers = {"/_check.html": ("text/html", HARNESS.encode()), "/_work": ("application/json", self.work)}
        if self.path not in answers:
            super().do_GET()
            return
        kind, body = answers[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Keep the report."""
        type(self).report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        type(self).done.set()

    def log_message(self, *args: object) -> None:
        """Say nothing about single requests."""


def measure(root: Path, pages: list[str], searches: list[str], *, browser: str, timeout: float) -> dict:
    """Return the report of the browser: pages that are too wide, and the hits of each search."""
    work = json.dumps({"pages": pages, "widths": WIDTHS, "searches": searches}).encode()
    state = {
        "work": work,
        "report": {"error": "the browser did not report in time"},
        "done": threading.Event(),
    }
    handler = type("Bound", (Handler,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless=new",
            "--disable-gpu",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        url = f"http://127.0.0.1:{server.server_port}/_check.html"
        process = subprocess.Popen(
            [browser, *options, "--window-size=1400,1000", "--remote-debugging-port=0", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            handler.done.wait(timeout)
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
            server.server_close()
    return handler.report


def complaints(report: dict, searches: dict[str, str]) -> list[str]:
    """Return a line per page that scrolls sideways and per search that misses its page."""
    if "error" in report:
        return [report["error"]]
    lines = [
        f"{page} is {actual} pixels wide at {width}: {element}"
        for page, width, actual, element in report["wide"]
    ]
    for words, page in searches.items():
        hits = list(dict.fromkeys(report["hits"][words]))[:_AMONG]
        if page not in hits:
            lines.append(f"The search for {words!r} does not find {page} among {hits}")
    return lines


def main(arguments: list[str]) -> int:
    """Check the site in a folder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds")
    given = parser.parse_args(arguments)
    if given.browser is None or not (given.site / "index.html").is_file():
        print("This needs Chromium and a built site with an index.html.", file=sys.stderr)
        return 2
    pages = sorted(path.relative_to(given.site).as_posix() for path in given.site.rglob("*.html"))
    pages = [page for page in pages if not page.startswith(("_static/", "_modules/"))]
    report = measure(given.site, pages, list(SEARCHES), browser=given.browser, timeout=given.timeout)
    found = complaints(report, SEARCHES)
    print(
        "\n".join(found)
        or f"{len(pages)} pages fit {WIDTHS} pixels, and {len(SEARCHES)} searches find their page."
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
