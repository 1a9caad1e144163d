"""Examples in docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import scr2mae

NAMES = [
    info.name
    for info in pkgutil.walk_packages(scr2mae.__path__, "scr2mae.")
    if not info.name.endswith("__main__")
]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(module_name: str) -> list[doctest.DocTest]:
    return [
        test
        for test in doctest.DocTestFinder().find(importlib.import_module(module_name), module_name)
        if test.examples
    ]


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not have many workers")
@pytest.mark.parametrize("module", NAMES)
def test_the_examples_of_a_module_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for test in examples(module):
        test.globs = {"__name__": "__main__"}  # what a reader has who has imported nothing
        report: list[str] = []
        outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
        assert outcome.failed == 0, f"{test.name}\n{''.join(report)}"


def test_no_example_is_skipped():
    found = [example for module in NAMES for test in examples(module) for example in test.examples]
    assert len(found) > 30
    assert not any(doctest.SKIP in example.options for example in found)
