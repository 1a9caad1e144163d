"""The configuration, from published models too, and invalid sizes."""

import pytest

from scr2mae.extra import dna


def test_the_configuration_of_the_published_model_is_read():
    described = {
        "model_type": "GPNRoFormer", "vocab_size": 6, "n_aux_features": 445, "aux_features_vocab_size": 5,
        "hidden_size": 768, "num_hidden_layers": 12, "hidden_act": "gelu", "embedding_size": None, "torch_dtype": "float32",
    }  # fmt: skip
    assert dna.GPNMSAConfig.from_songlab_config(described) == dna.GPNMSAConfig()
    for wrong in (
        {"rotary_value": True},
        {"hidden_act": "relu"},
        {"vocab_size": 7},
        {"n_aux_features": 444},
        {"embedding_size": 100},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dna.GPNMSAConfig.from_songlab_config({**described, **wrong})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, r"multiple of 2 \* num_attention_heads = 8"),
        ({"n_species": 6, "hidden_size": 32}, r"6 species need 36 channels .* more than hidden_size=32"),
        ({"n_species": -1}, r"n_species must be >= 0, got -1"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be at least 1"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\)"),
        ({"curriculum": "easy"}, r"curriculum must be 'cl', 'cl_k0'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**sizes)
