"""Sizes of the paper's networks."""

import pytest

from scr2mae.extra.text import n_parameters, roberta_config

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("size", "millions"), [("medium", 51.5), ("base", 124.7)])
def test_sizes_are_the_papers(size, millions):
    config = roberta_config(size)
    assert n_parameters(config) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (config.vocab_size, config.max_position_embeddings) == (50_265, 514)


def test_medium_is_as_wide_and_deep_as_the_paper_says():
    config = roberta_config("medium")
    widths = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    )
    assert widths == (512, 8, 8, 2048)
