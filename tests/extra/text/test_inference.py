"""Embeddings, probabilities and held-out losses."""

import numpy as np
import pytest
import torch

from scr2mae.extra import text
from scr2mae.extra.text import RobertaClassifier

from .conftest import labeled


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


def test_held_out_losses_are_means_over_tokens_and_rank_a_trained_model_above_an_untrained(
    build, blocks, pretrain
):
    model = build().eval()
    frame = text.score(model, blocks, ratios=(0.0, 0.4, 1.0), batch_size=64)
    assert frame["ratio"].tolist() == [0.0, 0.4, 1.0]
    total, n = 0.0, 0
    for step, start in enumerate(range(0, len(blocks), 64)):
        tokens = torch.from_numpy(blocks.tokens[start : start + 64].astype("int64"))
        with torch.no_grad():
            out = model.training_loss(tokens, ratio=0.4, seed=20_250_922, step=step)
        total, n = total + float(out.loss) * out.n_scored, n + out.n_scored
    assert frame["loss"][1] == pytest.approx(total / n)
    assert frame["n_tokens"][1] == n
    trained = text.score(pretrain(model, lr=1e-2), blocks, ratios=(0.4,), batch_size=64)
    assert trained["loss"].item() < frame["loss"][1]
