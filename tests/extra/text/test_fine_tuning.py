"""Tables of GLUE's tasks, classifiers, and the paper's rank."""

import gzip
import logging
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch

from scr2mae.extra import text
from scr2mae.extra.text import LabeledText, RobertaClassifier, average_rank, finetune_scores, read_task
from scr2mae.extra.text.sentences import Sentences

RUN = {"accelerator": "cpu", "enable_progress_bar": False, "length": 24}


def labeled(n, *, seed=0, pairs=False):
    """Sentences about a cat (1) or a dog (0); as pairs: whether both are about the same."""
    rng = np.random.default_rng(seed)
    animals = rng.integers(2, size=(2, n))
    adjectives = rng.choice(["small", "large", "gray", "white"], size=(2, n))
    first, second = (
        [f"the {a} {('dog', 'cat')[k]}" for a, k in zip(adjectives[side], animals[side], strict=True)]
        for side in (0, 1)
    )
    if pairs:
        return LabeledText(first, second, (animals[0] == animals[1]).astype(int), ("0", "1"))
    return LabeledText(first, None, animals[0], ("0", "1"))


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], r"from 0 to 1.*got \[2\]"),
        ([-1, 0], r"got \[-1\]"),
        ([0.0, 1.0], "integers"),
        ([0], "as many labels"),
    ],
)
def test_labels_out_of_range_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        LabeledText(["a", "b"], None, labels, ("0", "1"))


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


def test_a_classifier_learns_a_task(build):
    scores = finetune_scores(
        build(), labeled(320), labeled(100, seed=1), seeds=(0, 1), max_epochs=4, lr=1e-2, **RUN
    )
    assert scores["seed"].tolist() == [0, 1]
    assert scores["accuracy"].mean() > 0.97


def test_a_classifier_of_pairs_looks_at_both(build):
    # Which class depends on the second sentence alone; without it one can but guess.
    pairs = {seed: labeled(320, seed=seed, pairs=True) for seed in (0, 1)}
    data = {
        seed: LabeledText(
            each.first, each.second, [int("cat" in second) for second in each.second], ("0", "1")
        )
        for seed, each in pairs.items()
    }
    scores = finetune_scores(build(), data[0], data[1], seeds=(0,), max_epochs=5, lr=1e-2, **RUN)
    assert scores["accuracy"].item() > 0.95


def test_fine_tuning_leaves_the_pretrained_model_as_it_is_and_repeats(build):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = {"seeds": (3,), "max_epochs": 1, "lr": 1e-3, **RUN}
    first = finetune_scores(model, labeled(64), labeled(32, seed=1), **run)
    torch.manual_seed(77)
    pd.testing.assert_frame_equal(finetune_scores(model, labeled(64), labeled(32, seed=1), **run), first)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_classifier_starts_from_the_pretrained_encoder(build, blocks):
    model = build().eval()
    tokens = torch.from_numpy(blocks.tokens[:4].astype("int64"))
    encoder = RobertaClassifier.from_network(model, 3).eval().network.roberta
    torch.testing.assert_close(encoder(tokens).last_hidden_state, model(tokens))


def test_predictions_do_not_depend_on_the_batch(build):
    classifier, data = RobertaClassifier.from_network(build(), 2), labeled(37, pairs=True)
    predicted = text.predict_proba(classifier, data, length=24)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        text.predict_proba(classifier, data, length=24, batch_size=5), predicted, rtol=1e-4
    )


def test_an_embedding_is_the_mean_over_tokens_whatever_the_batch(build, tokenizer):
    model, sentences = build().eval(), ["the small dog", "a large white cat sees the dog"]
    found = text.embed(model, sentences, length=24)
    assert found.dtype == np.float32
    for row, sentence in zip(found, sentences, strict=True):
        tokens = [tokenizer.start_id, *tokenizer.encode([sentence])[0], tokenizer.end_id]
        with torch.no_grad():
            expected = model(torch.tensor([tokens]))[0].mean(dim=0)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    classifier = RobertaClassifier.from_network(model, 2)
    np.testing.assert_allclose(text.embed(classifier, sentences, length=24), found, rtol=1e-4, atol=1e-5)


def test_finetuning_returns_the_classifier_with_its_curves(build):
    classifier = RobertaClassifier.from_network(build(), 2)
    run = {**RUN, "max_epochs": 2, "lr": 1e-3}
    assert text.finetune(classifier, labeled(64), validation=labeled(32, seed=1), **run) is classifier
    assert len(classifier.history_["train_loss"]) == 2
    probability = text.predict_proba(classifier, labeled(32, seed=1), length=24)
    expected = -np.log(probability[np.arange(32), labeled(32, seed=1).labels]).mean()
    assert classifier.history_["validation_loss"].iloc[-1].item() == pytest.approx(expected, rel=1e-4)
    assert not classifier.training


def test_pairs_are_joined_as_roberta_does_and_the_longer_is_cut_first(build, tokenizer):
    start, end = tokenizer.start_id, tokenizer.end_id
    data = labeled(1, pairs=True)
    sentences = Sentences(data, build(), length=64)
    a, b = tokenizer.encode([data.first[0], data.second[0]])
    assert sentences.tokens[0].tolist() == [start, *a, end, end, *b, end]
    cut = sentences.join(list(range(10, 20)), [30, 31, 32], length=12).tolist()
    assert cut == [start, 10, 11, 12, 13, 14, end, end, 30, 31, 32, end]
    both = sentences.join(list(range(10, 20)), list(range(30, 40)), length=12).tolist()
    assert both == [start, 10, 11, 12, 13, end, end, 30, 31, 32, 33, end]
    assert sentences.join(list(range(10, 30)), length=6).tolist() == [start, 10, 11, 12, 13, end]


def test_bad_fine_tuning_is_named(build):
    model, data = build(), labeled(8)
    three = LabeledText(["a"], None, [2], ("x", "y", "z"))
    with pytest.raises(ValueError, match="not one task"):
        finetune_scores(model, data, three)
    with pytest.raises(ValueError, match="seeds is empty"):
        finetune_scores(model, data, data, seeds=())
    with pytest.raises(ValueError, match="length must lie between 5 and 512"):
        finetune_scores(model, data, data, length=600)
    with pytest.raises(ValueError, match="has 3 classes"):
        text.predict_proba(RobertaClassifier.from_network(model, 2), three)
    with pytest.raises(ValueError, match="n_classes must be at least 2"):
        RobertaClassifier.from_network(model, 1)
    with pytest.raises(ValueError, match="ratio must be 0"):
        RobertaClassifier.from_network(model, 2).training_loss({}, ratio=0.15, seed=0, step=0)


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
