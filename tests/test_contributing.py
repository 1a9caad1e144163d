"""The recipes for contributors work as they are written."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from scr2mae import masking, metrics, train

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(title, namespace):
    """Run the code of a section, and return what it defines."""
    code = re.search(rf"^## {title}\n.*?^```python\n(.*?)^```", TEXT, re.M | re.S)[1]
    exec(code, namespace)
    return namespace[re.search(r"^(?:class|def) (\w+)", code, re.M)[1]]


def test_the_masking_scheme_is_a_schedule_that_a_model_saves(monkeypatch):
    scheme = recipe("Add a masking scheme", {**vars(masking), "dataclass": dataclass, "math": math})
    assert [scheme(0.6, 0.2)(step, 11) for step in (0, 5, 10)] == pytest.approx([0.6, 0.4, 0.2])
    monkeypatch.setattr(masking, scheme.__name__, scheme, raising=False)
    monkeypatch.setattr(masking, "__all__", [*masking.__all__, scheme.__name__])
    assert masking.schedule_from_state(masking.schedule_to_state(scheme(0.6, 0.2))) == scheme(0.6, 0.2)


def test_the_metric_agrees_with_scikit_learn():
    metric = recipe("Add a metric", dict(vars(metrics)))
    y_true, y_pred = np.random.default_rng(0).normal(size=(2, 50))
    assert metric(y_true, y_pred) == pytest.approx(sklearn.metrics.explained_variance_score(y_true, y_pred))


def test_the_backbone_trains_and_is_validated():
    names = {"nn": nn, "draw_mask": masking.draw_mask, "SimpleNamespace": SimpleNamespace}
    network = recipe("Add a backbone", names)()
    torch.manual_seed(0)
    network.down, network.up = nn.Linear(20, 4), nn.Linear(4, 20)
    x = torch.randn(64, 4) @ torch.randn(4, 20)

    class Rows(LightningDataModule):
        def train_dataloader(self):
            return DataLoader([{"x": row} for row in x], batch_size=16)

        val_dataloader = train_dataloader

    plan = train.MaskedTrainingPlan(network, ratio_schedule=masking.UniformRatio(0.1, 0.5), lr=1e-2)
    train.fit(plan, Rows(), max_epochs=15, n_obs_epoch=64, accelerator="cpu", enable_progress_bar=False)
    losses = plan.history["validation_loss"]["validation_loss"]
    assert losses.iloc[-1] < 0.7 * losses.iloc[0]
