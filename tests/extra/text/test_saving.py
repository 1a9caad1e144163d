"""Folders that transformers reads: saved, loaded, replaced, damaged."""

import json

import pytest
import torch

from scr2mae.extra import text
from scr2mae.extra.text import RobertaR2MAE
from scr2mae.masking import UniformRatio

transformers = pytest.importorskip("transformers")


@pytest.fixture
def tokens(blocks):
    return torch.from_numpy(blocks.tokens[:6].astype("int64"))


def to_the_former_layout(folder):
    """Take out of ``scr2mae.json`` what the first versions did not write."""
    document = json.loads((folder / "scr2mae.json").read_text())
    for name in ("format", "weights", "files", "class"):
        del document[name]
    (folder / "scr2mae.json").write_text(json.dumps(document))


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
    with pytest.raises(ValueError, match="contains a RobertaClassifier, not a RobertaR2MAE"):
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
