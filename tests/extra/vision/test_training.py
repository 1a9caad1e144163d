"""Pretraining and finetuning by the one plan: repeatable, resumable, with every scheme."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scr2mae
from scr2mae.extra import vision
from scr2mae.masking import UniformRatio

from .conftest import QUICK, make_images, make_mlp, make_unet, make_vit

FAST = {name: replace(recipe, max_epochs=3, batch_size=16) for name, recipe in vision.RECIPES.items()}


def assert_same(first, second):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


class _StopError(Exception):
    pass


class _StopAt(pytest.importorskip("lightning.pytorch").Callback):
    """Break a run at the start of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise _StopError


class _Empty:
    labels = None

    def __len__(self):
        return 0


@pytest.mark.parametrize("name", scr2mae.schemes("vision"))
def test_the_ratio_of_each_step_is_the_scheme_s(name, images):
    schedule = scr2mae.schemes("vision", seed=3)[name].mask_ratio
    history = vision.pretrain(make_mlp(), images, mask_ratio=schedule, recipe=FAST["mlp"], **QUICK).history_
    ratios = history["mask_ratio_step"]["mask_ratio_step"].tolist()
    if name == "dynamic":
        assert ratios == pytest.approx([0.9] * 3 + [0.75] * 3 + [0.6] * 3)
    else:
        assert ratios == [schedule(step, 9) for step in range(9)]
    assert np.isfinite(history["train_loss_step"]).all(axis=None)


@pytest.mark.parametrize("make", [make_mlp, make_vit])
def test_training_is_bitwise_repeatable_and_a_broken_run_ends_where_a_whole_one_does(make, images, tmp_path):
    recipe = replace(FAST["vit"], warmup_epochs=1)
    options = {"recipe": recipe, "augment": vision.PretrainAugment(), **QUICK}
    whole, again, broken = make(), make(), make()
    assert vision.pretrain(whole, images, checkpoint_dir=tmp_path / "whole", **options) is whole
    torch.manual_seed(99)
    vision.pretrain(again, images, **options)
    assert_same(whole, again)
    with pytest.raises(_StopError):
        vision.pretrain(broken, images, checkpoint_dir=tmp_path / "part", callbacks=[_StopAt(2)], **options)
    resumed = make()
    vision.pretrain(resumed, images, resume=tmp_path / "part", **options)
    assert_same(whole, resumed)
    assert resumed.history_["train_loss_step"].equals(whole.history_["train_loss_step"])
    assert [run["outcome"] for run in whole.runs_] == ["finished"]


@pytest.mark.parametrize("make", [make_mlp, make_unet, make_vit])
def test_pretraining_lowers_the_validation_loss(make, images):
    recipe = replace(vision.RECIPES["mlp"], max_epochs=8, batch_size=12, lr=3e-3)
    validation = vision.ImageArray(*make_images(24, seed=1))
    curves = vision.pretrain(make(), images, recipe=recipe, validation=validation, **QUICK).history_
    assert {"validation_loss_0.5", "validation_loss_0.75", "validation_loss_0.9"} <= set(curves)
    losses = curves["validation_loss"]["validation_loss"]
    assert losses.iloc[-1] < 0.97 * losses.iloc[0]


def test_finetuning_learns_the_classes_and_predicts_probabilities(images):
    classifier = vision.ViTMAEClassifier.from_network(make_vit(), 3, layer_decay=0.9)
    recipe = replace(vision.RECIPES["finetune"], max_epochs=25, batch_size=12, lr=0.06, warmup_epochs=1)
    test = vision.ImageArray(*make_images(90, seed=1))
    curves = vision.finetune(classifier, images, recipe=recipe, validation=test, **QUICK).history_
    p = vision.predict_proba(classifier, test, batch_size=7)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (p.argmax(axis=1) == test.labels.numpy()).mean() > 0.9
    expected = -np.log(p[np.arange(90), test.labels.numpy()]).mean()
    assert curves["validation_loss"]["validation_loss"].iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_finetuning_with_every_augmentation_is_repeatable(images):
    runs = []
    for _ in range(2):
        classifier = vision.ViTMAEClassifier.from_network(make_vit(), 3)
        torch.nn.init.constant_(classifier.head.weight, 0.01)
        vision.finetune(
            classifier, images, recipe=FAST["finetune"], augment=vision.FinetuneAugment(3), **QUICK
        )
        runs.append(classifier)
        torch.manual_seed(5)
    assert_same(*runs)


def test_only_training_images_are_augmented(images):
    seen = []

    def augment(tensors, *, key):
        seen.append((len(tensors["image"]), key))
        return tensors

    vision.pretrain(
        make_mlp(), images, recipe=FAST["mlp"], validation=images, augment=augment, seed=4, **QUICK
    )
    assert seen == [(16, (4, 0, step)) for step in range(9)]


def test_accumulated_mini_batches_have_a_ratio_each_and_the_rate_grows_with_them(images):
    network, again = make_vit(), make_vit()
    vision.pretrain(
        network,
        images,
        mask_ratio=UniformRatio(0.6, 0.9),
        recipe=FAST["vit"],
        accumulate_grad_batches=3,
        **QUICK,
    )
    assert len(set(network.history_["mask_ratio_step"]["mask_ratio_step"])) == 9
    vision.pretrain(again, images, recipe=FAST["vit"], accumulate_grad_batches=3, **QUICK)
    assert_same(network, again)
    assert vision.RECIPES["vit"].plan_kwargs(16 * 3)["lr"] == pytest.approx(1.5e-4 * 48 / 256)


def test_mixed_precision_trains_to_about_the_same_losses(images):
    curves = []
    for precision in ("32-true", "bf16-mixed"):
        network = vision.pretrain(make_vit(), images, recipe=FAST["vit"], precision=precision, **QUICK)
        curves.append(network.history_)
    full, mixed = (curve["train_loss_step"].to_numpy() for curve in curves)
    np.testing.assert_allclose(mixed, full, rtol=0.02)


@pytest.mark.slow
def test_two_processes_train_to_the_same_weights(tmp_path):
    import subprocess
    import sys

    script = """
import sys, numpy as np, torch, dataclasses
from scr2mae.extra import vision
torch.manual_seed(0)
images = vision.ImageArray(np.random.default_rng(0).uniform(size=(64, 8, 8)))
network = vision.MaskedMLP(n_hidden=16, n_latent=4, image_size=8)
recipe = dataclasses.replace(vision.RECIPES["mlp"], max_epochs=2, batch_size=16)
vision.pretrain(network, images, recipe=recipe, accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False)
import torch.distributed as dist
torch.save(dict(network.named_parameters()), f"{sys.argv[1]}/{dist.get_rank()}.pt")
"""
    (tmp_path / "run.py").write_text(script)
    subprocess.run([sys.executable, str(tmp_path / "run.py"), str(tmp_path)], check=True, capture_output=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: vision.pretrain(make_mlp(), x, mask_ratio=1.5), r"must lie in \[0, 1\]"),
        (lambda x: vision.pretrain(torch.nn.Linear(2, 2), x), "no recipe for Linear"),
        (
            lambda x: vision.pretrain(make_mlp(), vision.ImageArray(np.zeros((1, 16, 16, 3)))),
            "at least two images, got 1",
        ),
        (
            lambda x: vision.finetune(vision.ViTMAEClassifier(make_vit().config, 2), x),
            "must lie in 0 to 1, got 0 to 2",
        ),
        (
            lambda x: vision.finetune(
                vision.ViTMAEClassifier(make_vit().config, 3), vision.ImageArray(np.zeros((4, 16, 16, 3)))
            ),
            "Images without labels",
        ),
        (lambda x: vision.Recipe(max_epochs=0, batch_size=2, lr=1.0), "max_epochs must be at least 1"),
        (lambda x: vision.embed(make_mlp(), _Empty()), "There are no items"),
    ],
)
def test_bad_input_is_named(call, message, images):
    with pytest.raises(ValueError, match=message):
        call(images)
