"""The classifier: its encoder, learning rates per layer, stochastic depth."""

import numpy as np
import pytest
import torch

from scr2mae.extra import vision
from scr2mae.extra.vision.classifier import StochasticDepth

from .conftest import make_vit


@pytest.fixture(scope="module")
def vit():
    """A network that no test changes."""
    return make_vit().eval()


@pytest.fixture
def x(images):
    return images.batch(np.arange(6))["image"]


def test_the_classifier_starts_from_the_pretrained_encoder_and_pools_before_it_normalizes(vit, x):
    classifier = vision.ViTMAEClassifier.from_network(vit, 3).eval()
    kept = {name: value for name, value in vit.mae.vit.state_dict().items() if "layernorm." not in name}
    torch.testing.assert_close(dict(classifier.encoder.state_dict()), kept, rtol=0, atol=0)
    norm, vit.mae.vit.layernorm = vit.mae.vit.layernorm, torch.nn.Identity()
    pooled = vit.embed(x)
    vit.mae.vit.layernorm = norm
    torch.testing.assert_close(classifier(x), classifier.head(classifier.norm(pooled)))


def test_learning_rates_decay_from_layer_to_layer(vit):
    classifier = vision.ViTMAEClassifier.from_network(vit, 3, layer_decay=0.5)
    scale = {
        name: group["lr_scale"]
        for group in classifier.parameter_groups(0.05)
        for name, p in classifier.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert scale["head.weight"] == scale["norm.bias"] == 1.0
    assert scale["encoder.layers.1.mlp.fc1.weight"] == 0.5
    assert scale["encoder.layers.0.mlp.fc1.bias"] == 0.25
    assert scale["encoder.embeddings.cls_token"] == 0.125
    assert set(scale) == {name for name, p in classifier.named_parameters() if p.requires_grad}


def test_stochastic_depth_drops_observations_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = StochasticDepth(0.3)
    out = layer(torch.ones(20_000, 2, 2))
    assert set(out.flatten(1).std(dim=1).tolist()) == {0.0}
    assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(out), out)


def test_stochastic_depth_rises_over_the_layers_and_acts_in_both_branches(vit, x):
    classifier = vision.ViTMAEClassifier.from_network(vit, 3, drop_path=0.4)
    assert [layer.dropout.rate for layer in classifier.encoder.layers] == [0.0, 0.4]
    calls = []
    classifier.encoder.layers[1].dropout.register_forward_hook(lambda *_: calls.append(1))
    batch = {"image": x, "label": torch.zeros(6, dtype=torch.long)}
    losses = [
        classifier.train().training_loss(batch, ratio=0.0, seed=0, step=s).loss.item() for s in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert len(calls) == 2 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_classes": 1}, "at least 2, got 1"),
        ({"n_classes": 3, "drop_path": 1.0}, "drop_path must lie in"),
        ({"n_classes": 3, "layer_decay": 0.0}, "layer_decay in"),
    ],
)
def test_bad_settings_of_the_classifier_are_refused(vit, arguments, message):
    with pytest.raises(ValueError, match=message):
        vision.ViTMAEClassifier(vit.config, **arguments)
