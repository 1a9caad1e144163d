"""Tables of GLUE's tasks, from files and the Hub, and the paper's rank."""

import gzip
import logging
import sys
import types

import pandas as pd
import pytest

from scr2mae.extra import text
from scr2mae.extra.text import average_rank, read_task

FILES = {
    "sst2": ('sentence\tlabel\nit \'s "good\tas " gold\t1\n', None),
    "sst2 plain": ("a fine film\t1\na dull one\t0\n", (["a fine film", "a dull one"], None, [1, 0])),
    "mnli": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tx\tneutral\n1\tq\ti\tx\t-\n2\tr\tj\tx\tcontradiction\n",
        (["p", "r"], ["h", "j"], [1, 2]),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\ta?\tb?\t1\n",
        (["a?"], ["b?"], [1]),
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\twho?\tHe did.\tentailment\n1\twhy?\tNo.\tnot_entailment\n",
        (["who?", "why?"], ["He did.", "No."], [0, 1]),
    ),
}


@pytest.mark.parametrize("name", ["sst2 plain", "mnli", "qqp", "qnli"])
def test_tables_are_read_as_glue_lays_them_out(tmp_path, name):
    content, (first, second, labels) = FILES[name]
    (tmp_path / "train.tsv").write_text(content)
    with gzip.open(tmp_path / "train.tsv.gz", "wt") as file:
        file.write(content)
    for path in (tmp_path / "train.tsv", tmp_path / "train.tsv.gz"):
        data = read_task(path, task=name.split()[0])
        assert list(data.first) == first
        assert (data.second if second is None else list(data.second)) == second
        assert data.labels.tolist() == labels


def test_quotes_are_characters_in_tsv_and_quotes_in_csv(tmp_path):
    (tmp_path / "a.tsv").write_text('sentence\tlabel\nan "odd" 6" film\t1\n')
    assert read_task(tmp_path / "a.tsv").first == ('an "odd" 6" film',)
    (tmp_path / "a.csv").write_text('label,sentence\n0,"slow, and ""long"""\n')
    data = read_task(tmp_path / "a.csv")
    assert data.first == ('slow, and "long"',)
    assert data.labels.tolist() == [0]


def test_a_few_broken_rows_are_left_out_with_a_word_and_many_are_an_error(tmp_path, caplog):
    path = tmp_path / "train.tsv"
    path.write_text("question1\tquestion2\tis_duplicate\n" + "a\tb\t1\n" * 150 + "a\n")
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        assert len(read_task(path, task="qqp")) == 150
    assert "Left out 1 of 151 rows" in caplog.text
    path.write_text("question1\tquestion2\tis_duplicate\na\tb\t1\na\n")
    with pytest.raises(ValueError, match="1 of 2 rows"):
        read_task(path, task="qqp")


def test_bad_tables_are_named(tmp_path):
    path = tmp_path / "dev.tsv"
    with pytest.raises(FileNotFoundError, match="No table"):
        read_task(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_task(path)
    path.write_text("sentence\tscore\ngood\t1\n")
    with pytest.raises(KeyError, match=r"no column \['label'\]"):
        read_task(path)
    path.write_text("sentence\tlabel\ngood\t2\nbad\t-1\n")
    with pytest.raises(ValueError, match=r"has labels \['-1', '2'\]; expected \['0', '1'\]"):
        read_task(path)
    path.write_text("sentence\tlabel\n")
    with pytest.raises(ValueError, match="There is no labeled text"):
        read_task(path)
    with pytest.raises(ValueError, match="task must be one of"):
        read_task(path, task="cola")


def test_the_hub_s_columns_are_those_of_its_data_set(monkeypatch):
    asked = []

    def load_dataset(name, config, *, split):
        asked.append((name, config, split))
        row = {"premise": "p", "hypothesis": "h", "label": 2, "idx": 0}
        return [row] if config == "mnli" else [{"question": "q", "sentence": "s", "label": 1, "idx": 0}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    mnli, qnli = text.load_task("mnli"), text.load_task("qnli", split="train")
    assert (mnli.first, mnli.second, mnli.labels.tolist()) == (("p",), ("h",), [2])
    assert (qnli.first, qnli.second, qnli.labels.tolist()) == (("q",), ("s",), [1])
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched"), ("nyu-mll/glue", "qnli", "train")]


def test_without_datasets_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs datasets"):
        text.load_task("sst2")
    with pytest.raises(ImportError, match="needs datasets"):
        next(text.stream_documents())


def test_the_average_rank_is_that_of_the_papers_table_2():
    columns = ["MNLI", "QQP", "SST-2", "QNLI"]
    medium = {
        "MLM default": [80.8, 89.8, 89.9, 86.3],
        "Fixed MR 0.4": [80.3, 89.7, 90.1, 86.6],
        "MDLM": [79.4, 89.8, 89.3, 85.4],
        "Dynamic MR": [80.8, 90.1, 90.5, 87.1],
        "R2MAE": [80.9, 90.1, 90.6, 86.7],
    }
    base = {
        "MLM default": [81.5, 90.7, 91.7, 87.8],
        "Fixed MR 0.4": [81.7, 90.7, 91.2, 88.5],
        "MDLM": [80.3, 90.3, 91.4, 87.7],
        "Dynamic MR": [81.8, 90.7, 91.4, 89.1],
        "R2MAE": [81.9, 90.8, 91.9, 88.6],
    }
    ranks = average_rank(pd.DataFrame(medium, index=columns).T)
    assert ranks.tolist() == [3.25, 3.75, 4.50, 1.50, 1.25]
    assert average_rank(pd.DataFrame(base, index=columns).T).tolist() == [3.00, 3.25, 4.50, 2.00, 1.25]


def test_a_missing_score_has_no_rank():
    with pytest.raises(ValueError, match=r"\['b'\] lack some"):
        average_rank(pd.DataFrame({"sst2": [0.9, None]}, index=["a", "b"]))
