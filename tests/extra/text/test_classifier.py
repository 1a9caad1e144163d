"""The classifier and its encoder."""

import torch

from scr2mae.extra.text import RobertaClassifier


def test_a_classifier_starts_from_the_pretrained_encoder(build, blocks):
    model = build().eval()
    tokens = torch.from_numpy(blocks.tokens[:4].astype("int64"))
    encoder = RobertaClassifier.from_network(model, 3).eval().network.roberta
    torch.testing.assert_close(encoder(tokens).last_hidden_state, model(tokens))
