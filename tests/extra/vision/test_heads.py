"""Heads: loss, training, refused labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scr2mae.extra import vision

from .conftest import QUICK


def test_a_linear_head_learns_separable_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    features = rng.normal(size=(300, 5)).astype(np.float32) * 0.1
    features[:, :3] += 3 * np.eye(3)[labels]
    torch.manual_seed(0)
    head = vision.LinearHead(5, 3, normalize=True)
    vision.fit_head(
        head, features, labels, recipe=replace(vision.RECIPES["linear"], max_epochs=20, lr=0.05), **QUICK
    )
    assert (head.predict(torch.from_numpy(features)).numpy() == labels).mean() > 0.99


def test_an_attribute_head_learns_each_attribute_and_its_dropout_is_a_function_of_the_step():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    labels = (features > 0).astype(int)
    torch.manual_seed(0)
    head = vision.AttributeHead(3, 3, n_hidden=64)
    recipe = replace(vision.RECIPES["attributes"], max_epochs=30, batch_size=32)
    vision.fit_head(head, features, labels, recipe=recipe, **QUICK)
    assert (head.predict(torch.from_numpy(features)).numpy() == labels).mean(axis=0).min() > 0.95
    batch = {"features": torch.from_numpy(features[:32]), "label": torch.from_numpy(labels[:32])}
    head.train()
    state = torch.get_rng_state()
    losses = [head.training_loss(batch, ratio=0.0, seed=0, step=step).loss.item() for step in (4, 4, 5)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_of_heads_is_the_cross_entropy():
    features, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    head = vision.LinearHead(4, 3)
    out = head.training_loss({"features": features, "label": labels}, ratio=0.0, seed=0, step=0)
    assert out.loss.item() == pytest.approx(F.cross_entropy(head(features), labels).item())
    attributes = vision.AttributeHead(4, 2).eval()
    y = torch.tensor([[0, 1]] * 6)
    out = attributes.training_loss({"features": features, "label": y}, ratio=0.0, seed=0, step=0)
    p = attributes(features).sigmoid()
    assert out.loss.item() == pytest.approx(-(y * p.log() + (1 - y) * (1 - p).log()).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (lambda: vision.LinearHead(4, 3), np.array([0, 1, 3]), "must lie in 0 to 2, got 0 to 3"),
        (lambda: vision.LinearHead(4, 3), np.array([0, -1, 2]), "must lie in 0 to 2, got -1 to 2"),
        (lambda: vision.LinearHead(4, 3), np.zeros((3, 2)), r"shape \(n_obs,\)"),
        (lambda: vision.LinearHead(5, 3), np.array([0, 1, 2]), "width 5, got 4"),
        (lambda: vision.AttributeHead(4, 2), np.array([[0, 1], [1, 1], [0, -1]]), "must be 0 or 1"),
        (lambda: vision.AttributeHead(4, 2), np.array([0, 1, 1]), r"shape \(n_obs, 2\)"),
    ],
)
def test_labels_that_do_not_fit_a_head_are_refused(head, labels, message):
    with pytest.raises(ValueError, match=message):
        vision.fit_head(head(), np.zeros((3, 4)), labels, **QUICK)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        vision.fit_head(vision.LinearHead(2, 2), np.array([[0, np.nan], [1, 1]]), np.array([0, 1]), **QUICK)
