"""Documents from files and from the Hub."""

import gzip
import sys
import types

import pytest

from scr2mae.extra import text


def test_documents_are_lines_paragraphs_or_files(tmp_path):
    content = "\n one\ntwo\n\n\nthree é\n"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write(content)
    expected = {
        "line": ["one", "two", "three é"],
        "paragraph": ["one\ntwo", "three é"],
        "file": ["one\ntwo\n\n\nthree é"],
    }
    for unit, documents in expected.items():
        for name in ("a.txt", "b.txt.gz"):
            assert list(text.read_documents(tmp_path / name, unit=unit)) == documents
    both = list(text.read_documents([tmp_path / "a.txt", tmp_path / "b.txt.gz"]))
    assert both == expected["paragraph"] * 2


def test_the_hub_is_streamed_column_by_name(monkeypatch):
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(name=name, config=config, **options)
        return iter([{"text": "one", "id": 1}, {"text": "", "id": 2}, {"text": "two", "id": 3}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(text.stream_documents()) == ["one", "two"]
    assert asked == {
        "name": "HuggingFaceFW/fineweb",
        "config": "sample-10BT",
        "split": "train",
        "streaming": True,
    }
    with pytest.raises(KeyError, match=r"no column 'content'; choose one of \['id', 'text'\]"):
        next(text.stream_documents(column="content"))
