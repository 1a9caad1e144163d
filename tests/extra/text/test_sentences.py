"""Labeled sentences and their tokens."""

import pytest

from scr2mae.extra.text import LabeledText
from scr2mae.extra.text.sentences import Sentences

from .conftest import labeled


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
