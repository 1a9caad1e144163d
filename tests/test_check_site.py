"""The check of the built site finds pages that scroll sideways and searches that miss."""

import runpy
import shutil
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "check_site.py"))
BROWSER = shutil.which("chromium")
SEARCH = """<div id="search-results"></div><script>
const words = new URLSearchParams(location.search).get("q");
document.getElementById("search-results").innerHTML =
  "<p class='search-summary'>Found</p><ul><li><a href='" + words + ".html'>hit</a></li></ul>";
</script>"""


def test_a_wide_page_and_a_search_that_misses_are_named():
    report = {
        "wide": [["a.html", 390, 800, "TABLE."]],
        "hits": {"cite": ["b.html"], "conda": ["installation.html"]},
    }
    assert SCRIPT["complaints"](report, {"cite": "faq.html", "conda": "installation.html"}) == [
        "a.html is 800 pixels wide at 390: TABLE.",
        "The search for 'cite' does not find faq.html among ['b.html']",
    ]
    assert SCRIPT["complaints"]({"error": "no report"}, {}) == ["no report"]


def test_every_page_that_a_search_should_find_has_a_source():
    docs = Path(__file__).parents[1] / "docs"
    assert [
        page for page in SCRIPT["SEARCHES"].values() if not (docs / page).with_suffix(".md").is_file()
    ] == []


def test_without_a_site_it_says_so(tmp_path, capsys):
    assert SCRIPT["main"]([str(tmp_path), "--browser", "none"]) == 2
    assert "built site" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_browser_measures_widths_and_hits(tmp_path):
    (tmp_path / "narrow.html").write_text("<!doctype html><p>text</p>")
    (tmp_path / "wide.html").write_text("<!doctype html><pre style='width: 700px'>text</pre>")
    cut = "<div style='width: 300px; overflow-x: {}'><table style='width: 500px'><tr><td>1</td></tr></table></div>"
    (tmp_path / "cut.html").write_text("<!doctype html>" + cut.format("hidden"))
    (tmp_path / "scrolls.html").write_text("<!doctype html>" + cut.format("auto"))
    (tmp_path / "search.html").write_text("<!doctype html>" + SEARCH)
    pages = ["narrow.html", "wide.html", "cut.html", "scrolls.html"]
    report = SCRIPT["measure"](tmp_path, pages, ["narrow"], browser=BROWSER, timeout=120)
    assert [row[:2] for row in report["wide"]] == [["wide.html", 390], ["cut.html", 390], ["cut.html", 1280]]
    assert report["hits"] == {"narrow": ["narrow.html"]}
