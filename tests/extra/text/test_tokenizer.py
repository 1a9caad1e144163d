"""Byte-level BPE: lossless, repeatable, and deaf to special tokens in the text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scr2mae.extra.text import SPECIAL_TOKENS, BytePairTokenizer


@settings(max_examples=60, deadline=None)
@given(words=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(words="naïve café 😀\t漢字\n  two  spaces")
def test_any_text_comes_back_unchanged(tokenizer, words):
    (tokens,) = tokenizer.encode([words])
    assert tokenizer.decode(tokens) == words
    assert all(token < len(tokenizer) for token in tokens)


def test_special_tokens_written_in_a_corpus_are_ordinary_characters(tokenizer):
    (tokens,) = tokenizer.encode(["the <mask> </s> cat"])
    assert not set(tokens) & set(tokenizer.special_ids)
    assert tokenizer.decode(tokens) == "the <mask> </s> cat"


def test_frequent_words_become_single_tokens(tokenizer):
    assert [len(tokens) for tokens in tokenizer.encode([" small", " zebra"])] == [1, 6]


def test_the_same_text_gives_the_same_tokenizer(documents, tokenizer):
    again = BytePairTokenizer.train(iter(documents), vocab_size=300)
    assert again.sha256 == tokenizer.sha256
    assert BytePairTokenizer.train(documents, vocab_size=290).sha256 != tokenizer.sha256


def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert BytePairTokenizer.load(place).sha256 == tokenizer.sha256


def test_special_tokens_are_numbered_as_the_tokenizer_has_them():
    library = pytest.importorskip("tokenizers")
    other = library.Tokenizer(library.models.BPE(vocab={"x": 0}, merges=[]))
    other.add_special_tokens(["<mask>", "</s>", "<pad>", "<s>", "<unk>"])
    wrapped = BytePairTokenizer(other)
    assert dict(zip(SPECIAL_TOKENS, wrapped.special_ids, strict=True)) == {
        **{"<s>": 4, "<pad>": 3, "</s>": 2, "<unk>": 5, "<mask>": 1}
    }


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="corpus is empty"):
        BytePairTokenizer.train([])
    with pytest.raises(ValueError, match="at least 261"):
        BytePairTokenizer.train(["text"], vocab_size=260)
    with pytest.raises(FileNotFoundError, match="No tokenizer at"):
        BytePairTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json, or is damaged"):
        BytePairTokenizer.load(tmp_path)
    library = pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"has no \['<s>'"):
        BytePairTokenizer(library.Tokenizer(library.models.BPE()))
