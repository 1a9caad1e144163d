"""The language model: transformers' own loss, finite at every ratio, dropout, curriculum."""

import sys

import pytest
import torch

from scr2mae.extra import text
from scr2mae.extra.text import RobertaR2MAE, corrupt, roberta_config
from scr2mae.masking import UniformDecayRatio
from scr2mae.nn.curriculum import Curriculum

transformers = pytest.importorskip("transformers")


@pytest.fixture
def tokens(blocks):
    return torch.from_numpy(blocks.tokens[:6].astype("int64"))


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 1.0])
def test_the_loss_is_that_of_transformers_at_masked_tokens(build, tokens, ratio):
    model = build().eval()
    ours = model.training_loss(tokens, ratio=ratio, seed=0, step=3)
    masked = corrupt(tokens, ratio, tokenizer=model.tokenizer, seed=0, step=3)
    labels = torch.full_like(tokens, -100).flatten()
    labels[masked.positions] = masked.targets
    theirs = model.network(masked.tokens, labels=labels.view_as(tokens))
    torch.testing.assert_close(ours.loss, theirs.loss)
    right = theirs.logits.argmax(-1).flatten()[masked.positions] == masked.targets
    assert int(ours.n_correct) == int(right.sum())
    assert (ours.n_scored, ours.n_obs_minibatch) == (len(masked.positions), len(tokens))


def test_padding_does_not_change_what_tokens_become(build, tokens):
    model = build().eval()
    padded = torch.nn.functional.pad(tokens, (0, 5), value=model.tokenizer.pad_id)
    torch.testing.assert_close(model(padded)[:, : tokens.shape[1]], model(tokens))


def test_the_loss_stays_in_float32_under_mixed_precision(build, tokens):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.training_loss(tokens, ratio=0.4, seed=0, step=0).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, model.training_loss(tokens, ratio=0.4, seed=0, step=0).loss, rtol=0.02, atol=0
    )


def test_dropout_is_a_function_of_seed_and_step_and_leaves_the_global_generator_alone(build, tokens):
    model = build(hidden_dropout_prob=0.5).train()
    state = torch.get_rng_state()
    first = model.training_loss(tokens, ratio=0.3, seed=0, step=5).loss
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(model.training_loss(tokens, ratio=0.3, seed=0, step=5).loss, first)
    # The same masked tokens through other dropout: another seed would mask others, too.
    kept = model.network.config.hidden_dropout_prob
    assert kept == 0.5
    assert not torch.equal(model.eval().training_loss(tokens, ratio=0.3, seed=0, step=5).loss, first)


def test_initial_weights_depend_on_the_seed_alone(build):
    torch.manual_seed(5)
    first = build(seed=3).state_dict()
    torch.manual_seed(6)
    again, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "network.roberta.embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], other[name])


def test_biases_and_normalization_do_not_decay_and_nothing_is_left_out(build):
    model = build(curriculum="cl")
    decayed, free = model.parameter_groups(0.01)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert all(
        "LayerNorm" in names[id(p)] or "norm" in names[id(p)] or names[id(p)].endswith("bias")
        for p in free["params"]
    )
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_curriculum_weights_multiply_the_loss_of_each_token_and_spare_the_backbone(build, tokens):
    model = build(curriculum=Curriculum(n_ratios=3)).eval()
    plain = model.training_loss(tokens, ratio=0.4, seed=0, step=0)
    columns = [model.training_loss(tokens, ratio=0.4, seed=0, step=0, ratio_index=c) for c in range(3)]
    # Rows sum to their width, so the columns average to the plain loss, up to Sinkhorn's tolerance.
    torch.testing.assert_close(sum(each.loss for each in columns) / 3, plain.loss, rtol=1e-4, atol=0)

    def gradient(multiplier):
        model.zero_grad()
        out = model.training_loss(tokens, ratio=0.4, seed=0, step=0, ratio_index=1, grad_scale=multiplier)
        out.loss.backward()
        return (
            model.curriculum.to_ratios.weight.grad.clone(),
            model.network.roberta.embeddings.word_embeddings.weight.grad.clone(),
        )

    (up, backbone), (down, same) = gradient(1.0), gradient(-1.0)
    assert bool(up.abs().max() > 0)
    torch.testing.assert_close(down, -up)
    torch.testing.assert_close(same, backbone)


def test_bad_arguments_are_named(build):
    with pytest.raises(ValueError, match="size must be one of"):
        roberta_config("large")
    with pytest.raises(ValueError, match=r"has no \['hidden_width'\]"):
        build(hidden_width=3)
    with pytest.raises(ValueError, match=r"vocabulary has 50265 tokens and the tokenizer's \d+"):
        build(vocab_size=50_265)
    with pytest.raises(ValueError, match="low <= high"):
        build(mask_ratio=(0.4, 0.1))
    with pytest.raises(ValueError, match="A curriculum needs"):
        build(mask_ratio=UniformDecayRatio(0.1, 0.4), curriculum="cl")
    with pytest.raises(ValueError, match="leaves"):
        UniformDecayRatio(0.1, 0.8)


@pytest.mark.parametrize("name", ["transformers", "tokenizers"])
def test_a_missing_library_is_an_error_that_says_what_to_install(tokenizer, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}; pip install 'scr2mae\[text\]'"):
        RobertaR2MAE(tokenizer) if name == "transformers" else text.BytePairTokenizer.train(["a"])
