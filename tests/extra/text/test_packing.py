"""Text in blocks of equal length, in memory and on disk."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scr2mae.extra import text


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 300), length=st.integers(4, 40))
def test_blocks_hold_all_text_in_order_but_the_unfinished_last(documents, tokenizer, n, length):
    blocks = text.pack(documents[:n], tokenizer, length=length)
    expected = [t for ids in tokenizer.encode(documents[:n]) for t in (*ids, tokenizer.end_id)]
    inner = blocks.tokens[:, 1:-1].reshape(-1).tolist()
    assert inner == expected[: len(inner)]
    assert len(expected) - len(inner) < length - 2
    assert (blocks.tokens[:, 0] == tokenizer.start_id).all()
    assert (blocks.tokens[:, -1] == tokenizer.end_id).all()
    assert blocks.tokens.dtype == np.uint16
    assert blocks.n_tokens == len(blocks) * length


def test_blocks_on_disk_are_those_in_memory_and_stay_there(documents, tokenizer, blocks, tmp_path):
    written = text.pack(iter(documents), tokenizer, length=16, out=tmp_path / "packed")
    assert isinstance(written.tokens, np.memmap)
    np.testing.assert_array_equal(written.tokens, blocks.tokens)
    assert written.tokenizer.sha256 == tokenizer.sha256


def test_a_stream_is_read_no_further_than_needed(tokenizer):
    def endless():
        while True:
            yield "the cat sees the dog"

    assert len(text.pack(endless(), tokenizer, length=16, max_blocks=70)) == 70


def test_bad_input_is_named(tokenizer, blocks, tmp_path):
    with pytest.raises(ValueError, match="corpus is empty, or shorter than one block"):
        text.pack([], tokenizer)
    with pytest.raises(ValueError, match="corpus is empty, or shorter than one block"):
        text.pack(["the cat"], tokenizer, out=tmp_path / "short")
    with pytest.raises(ValueError, match="length must be at least 4"):
        text.pack(["the cat"], tokenizer, length=3)
    with pytest.raises(ValueError, match="max_blocks must be at least 1"):
        text.pack(["the cat"], tokenizer, max_blocks=0)
    with pytest.raises(FileNotFoundError, match="No text file"):
        text.read_documents(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="unit must be one of"):
        text.read_documents(tmp_path, unit="page")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        list(text.read_documents(tmp_path / "latin.txt"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        text.pack(["the cat"] * 50, tokenizer, out=tmp_path / "taken")


def test_damaged_folders_of_blocks_are_named(documents, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no packed text"):
        text.TokenBlocks.load(tmp_path)
    text.pack(documents, tokenizer, length=16, out=tmp_path / "packed")
    tokens, about = tmp_path / "packed" / "tokens.bin", tmp_path / "packed" / "blocks.json"
    whole, described = tokens.read_bytes(), about.read_text()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match="not those of"):
        text.TokenBlocks.load(tmp_path / "packed")
    tokens.write_bytes(whole)
    about.write_text(json.dumps({**json.loads(described), "tokenizer_sha256": "0"}))
    with pytest.raises(ValueError, match="not the one that packed the text"):
        text.TokenBlocks.load(tmp_path / "packed")
    about.write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        text.TokenBlocks.load(tmp_path / "packed")
