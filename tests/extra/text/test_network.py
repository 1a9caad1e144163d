"""The network: the paper's sizes, transformers' own loss, finite at every ratio; folders that transformers reads."""

import json
import sys

import pytest
import torch

from scr2mae.extra import text
from scr2mae.extra.text import RobertaR2MAE, corrupt, n_parameters, roberta_config
from scr2mae.masking import UniformDecayRatio, UniformRatio
from scr2mae.nn.curriculum import Curriculum

transformers = pytest.importorskip("transformers")


@pytest.fixture
def tokens(blocks):
    return torch.from_numpy(blocks.tokens[:6].astype("int64"))


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


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 1.0])
def test_the_loss_is_that_of_transformers_at_hidden_tokens(build, tokens, ratio):
    model = build().eval()
    ours = model.training_loss(tokens, ratio=ratio, seed=0, step=3)
    hidden = corrupt(tokens, ratio, tokenizer=model.tokenizer, seed=0, step=3)
    labels = torch.full_like(tokens, -100).flatten()
    labels[hidden.positions] = hidden.targets
    theirs = model.network(hidden.tokens, labels=labels.view_as(tokens))
    torch.testing.assert_close(ours.loss, theirs.loss)
    right = theirs.logits.argmax(-1).flatten()[hidden.positions] == hidden.targets
    assert int(ours.n_correct) == int(right.sum())
    assert (ours.n_scored, ours.n_obs_minibatch) == (len(hidden.positions), len(tokens))


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
    # The same hidden tokens through other dropout: another seed would hide others too.
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


def test_biases_and_normalisation_do_not_decay_and_nothing_is_left_out(build):
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


def test_a_saved_model_is_the_same_and_plain_transformers_reads_it(pretrain, build, tokens, tmp_path):
    model = pretrain(build(mask_ratio=UniformRatio(0.2, 0.3, seed=9), curriculum="cl_k0", seed=2))
    model.save_pretrained(tmp_path / "model")
    again = RobertaR2MAE.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.mask_ratio == model.mask_ratio
    assert again.curriculum_settings == model.curriculum_settings
    assert (again.seed, again.size) == (2, "tiny")
    assert again.history_.keys() == model.history_.keys()
    theirs = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(theirs(tokens).logits, model.network(tokens).logits)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_transformers_reads_the_tokenizer_too(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs.mask_token_id == model.tokenizer.mask_id
    (ours,) = model.tokenizer.encode(["the small dog"])
    assert theirs("the small dog", add_special_tokens=False)["input_ids"] == ours


def test_a_model_is_replaced_only_when_asked_and_files_of_others_stay(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        model.save_pretrained(tmp_path / "model")
    build(seed=1).save_pretrained(tmp_path / "model", overwrite=True)
    assert RobertaR2MAE.from_pretrained(tmp_path / "model").seed == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        model.save_pretrained(tmp_path / "mine")
    model.save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]


def to_the_former_layout(folder):
    """Take out of ``scr2mae.json`` what the first versions did not write."""
    document = json.loads((folder / "scr2mae.json").read_text())
    for name in ("format", "weights", "files", "class"):
        del document[name]
    (folder / "scr2mae.json").write_text(json.dumps(document))


@pytest.mark.parametrize("curriculum", [None, "cl"])
def test_a_folder_of_the_former_layout_loads(pretrain, build, tokens, tmp_path, curriculum):
    model = pretrain(build(mask_ratio=UniformRatio(0.2, 0.3, seed=9), curriculum=curriculum), max_epochs=1)
    model.save_pretrained(tmp_path / "model")
    to_the_former_layout(tmp_path / "model")
    again = RobertaR2MAE.from_pretrained(tmp_path / "model")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert again.mask_ratio == model.mask_ratio
    assert again.history_.keys() == model.history_.keys()


def test_a_classifier_is_saved_for_transformers_too_and_told_from_a_language_model(build, tokens, tmp_path):
    model = build()
    classifier = text.RobertaClassifier.from_network(model, 3, seed=4).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    again = text.RobertaClassifier.from_pretrained(tmp_path / "classifier")
    assert (again.n_classes, again.seed) == (3, 4)
    assert torch.equal(again(tokens), classifier(tokens))
    theirs = transformers.RobertaForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    torch.testing.assert_close(theirs(tokens).logits, classifier(tokens))
    with pytest.raises(ValueError, match="holds a RobertaClassifier, not a RobertaR2MAE"):
        RobertaR2MAE.from_pretrained(tmp_path / "classifier")


def test_damaged_folders_are_named(build, tokenizer, documents, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it has no scr2mae\.json"):
        RobertaR2MAE.from_pretrained(tmp_path)
    build().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        RobertaR2MAE.from_pretrained(tmp_path / "model")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks its weights model\.safetensors"):
        RobertaR2MAE.from_pretrained(tmp_path / "model")
    weights.write_bytes(content)
    text.BytePairTokenizer.train(documents, vocab_size=280).save(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        RobertaR2MAE.from_pretrained(tmp_path / "model")
    to_the_former_layout(tmp_path / "model")
    with pytest.raises(ValueError, match=r"vocabulary of \d+ and the tokenizer one of 280"):
        RobertaR2MAE.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        RobertaR2MAE.from_pretrained(tmp_path / "model")


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
