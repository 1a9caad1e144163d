"""The paper's settings, and schedules that change once per epoch."""

import pytest

from scr2mae.extra import vision
from scr2mae.extra.vision.recipes import PerEpoch
from scr2mae.masking import DecayRatio


def test_a_schedule_per_epoch_changes_between_epochs_only_and_ends_at_its_end():
    schedule = PerEpoch(DecayRatio(0.9, 0.6), 4)
    assert [schedule(step, 8) for step in range(9)] == pytest.approx(
        [0.9] * 2 + [0.8] * 2 + [0.7] * 2 + [0.6] * 3
    )


def test_the_recipes_are_the_paper_s():
    vit, tuned = vision.RECIPES["vit"], vision.RECIPES["finetune"]
    assert (vit.max_epochs, vit.betas, vit.weight_decay, vit.warmup_epochs, vit.decay) == (
        150,
        (0.9, 0.95),
        0.05,
        10,
        "cosine",
    )
    assert vit.plan_kwargs(4096)["lr"] == pytest.approx(2.4e-3)
    assert vit.plan_kwargs(256)["learning_rate"](0, 1500) == pytest.approx(1 / 100)
    assert (tuned.max_epochs, tuned.lr) == (100, 5e-4)
    mlp, unet = vision.RECIPES["mlp"], vision.RECIPES["unet"]
    assert (mlp.max_epochs, mlp.batch_size, mlp.plan_kwargs(128)["lr"]) == (15, 128, 3e-3)
    assert (unet.max_epochs, unet.batch_size, unet.lr) == (10, 256, 1e-3)
