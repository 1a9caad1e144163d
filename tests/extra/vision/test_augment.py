"""Augmentation: pure functions of a key, and each does what its name says."""

import numpy as np
import pytest
import torch

from scr2mae.extra import vision
from scr2mae.extra.vision.augment import horizontal_flip, mix, random_erasing, random_resized_crop


class _Fixed:
    """A generator whose uniform draws are all the same share of their range."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low=0.0, high=1.0, size=None):
        value = low + (high - low) * self.share
        return value if size is None else np.full(size, value)


def ramp(n=3, size=8):
    """Images whose red is the row, green the column, both from 0 to 1."""
    line = torch.linspace(0, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 0.3)]).expand(n, 3, size, size).clone()


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_crop_of_the_whole_image_is_the_image():
    x = torch.rand(4, 3, 9, 9)
    whole = random_resized_crop(x, rng(), scale=(1.0, 1.0), aspect=(1.0, 1.0))
    torch.testing.assert_close(whole, x, atol=1e-5, rtol=0)


def test_a_crop_shows_its_rectangle_and_nothing_else():
    x = ramp(size=16)
    # A quarter of the area, from the middle of the free play: rows and columns 4 to 12.
    cut = random_resized_crop(x, _Fixed(0.5), size=8, scale=(0.25, 0.25), aspect=(1.0, 1.0))
    torch.testing.assert_close(cut, x[:, :, 4:12, 4:12], atol=1e-4, rtol=0)


def test_crops_differ_between_images_and_stay_within_scale_and_aspect():
    x = ramp(n=200, size=32)
    cut = random_resized_crop(x, rng(), scale=(0.2, 0.6), aspect=(0.75, 4 / 3))
    inner = cut[:, :, 8:24, 8:24]
    height, width = (inner[:, c].amax(dim=(1, 2)) - inner[:, c].amin(dim=(1, 2)) for c in (0, 1))
    # Sixteen of 32 pixels span half of a crop, less one pixel of it.
    area = height * width * (31 / 32) ** 2 * (32 / 15) ** 2
    assert area.min() > 0.2 * 0.93
    assert area.max() < 0.6 * 1.07
    assert ((width / height) > 0.75 * 0.95).all()
    assert ((width / height) < 4 / 3 * 1.05).all()
    assert len({round(float(a), 4) for a in area}) > 150


def test_flips_mirror_about_half_of_the_images():
    x = torch.rand(400, 1, 3, 5)
    out = horizontal_flip(x, rng())
    same = (out == x).flatten(1).all(dim=1)
    mirrored = (out == x.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_erasing_fills_one_rectangle_with_noise_in_some_images():
    x = torch.zeros(600, 2, 20, 20)
    out = random_erasing(x, rng(), p=0.25)
    changed = (out != x).any(dim=1)
    touched = changed.flatten(1).any(dim=1)
    assert 110 < int(touched.sum()) < 190
    for each in changed[touched]:
        rows, columns = each.any(dim=1).nonzero(), each.any(dim=0).nonzero()
        assert each[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    share = changed[touched].float().mean(dim=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.4
    noise = out[out != 0]
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.std().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixing_keeps_pixels_and_labels_in_step(mixup, cutmix):
    labels = torch.arange(5)
    x = torch.eye(5)[:, :, None, None].expand(5, 5, 12, 12).clone()  # channel c is 1 in images of class c
    for seed in range(20):
        mixed, targets = mix(x, labels, rng(seed), n_classes=5, mixup=mixup, cutmix=cutmix, smoothing=0.0)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), targets, atol=1e-5, rtol=0)
        if cutmix:
            assert set(mixed.unique().tolist()) <= {0.0, 1.0}


def test_smoothing_spreads_its_share_over_all_classes():
    _, targets = mix(
        torch.rand(2, 1, 4, 4), torch.tensor([0, 2]), rng(), n_classes=4, mixup=0, cutmix=0, smoothing=0.2
    )
    expected = torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]])
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("augment", [vision.PretrainAugment(), vision.FinetuneAugment(3)])
def test_an_augmented_mini_batch_is_a_function_of_the_key(augment, images):
    batch = images.batch(np.arange(8))
    first, again, other = (augment(batch, key=key) for key in ((0, 0, 5), (0, 0, 5), (0, 1, 5)))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == batch["image"].shape
    assert batch["label"].shape == (8,)


def test_finetuning_gives_soft_labels_that_sum_to_one(images):
    out = vision.FinetuneAugment(3)(images.batch(np.arange(8)), key=(0, 0, 0))
    assert out["label"].shape == (8, 3)
    torch.testing.assert_close(out["label"].sum(dim=1), torch.ones(8))
