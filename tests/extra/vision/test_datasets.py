"""Arrays and folders of images: values, shapes, labels, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from scr2mae.extra import vision

from .conftest import make_images


@pytest.mark.parametrize(("shape", "expected"), [((4, 6, 5), (4, 1, 6, 5)), ((4, 6, 5, 3), (4, 3, 6, 5))])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_arrays_become_floats_in_the_unit_interval_channels_first(shape, expected, dtype):
    raw = np.random.default_rng(0).integers(256, size=shape)
    images = vision.ImageArray(raw.astype(np.uint8) if dtype == np.uint8 else raw / 255)
    batch = images.batch(np.arange(4))
    assert set(batch) == {"image"}
    assert batch["image"].dtype == torch.float32
    assert batch["image"].shape == expected
    last = raw[..., None] if raw.ndim == 3 else raw
    np.testing.assert_allclose(batch["image"].permute(0, 2, 3, 1), last / 255, rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3)), None, r"got \(2, 3\)"),
        (np.zeros((2, 3, 8, 8)), None, "1, 3 or 4 channels"),
        (np.zeros((0, 8, 8)), None, "no image"),
        (np.full((2, 8, 8), 1.5), None, r"floats in \[0, 1\]"),
        (np.full((2, 8, 8), np.nan), None, r"floats in \[0, 1\]"),
        (np.zeros((2, 8, 8), int), None, "uint8 or floats"),
        (np.zeros((2, 8, 8)), np.zeros(3), "2 images but 3 labels"),
    ],
)
def test_arrays_that_are_not_images_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        vision.ImageArray(images, labels)


def test_a_folder_has_one_class_per_subfolder_in_alphabetical_order(tmp_path):
    images, _ = make_images(4, size=8)
    for i, name in enumerate(["zebra", "ant", "zebra", "ant"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(images[i]).save(tmp_path / name / f"{i}.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    folder = vision.ImageFolder(tmp_path, size=8)
    assert folder.classes_ == ["ant", "zebra"]
    batch = folder.batch(np.arange(4))
    assert batch["label"].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(batch["image"].permute(0, 2, 3, 1), images[[1, 3, 0, 2]] / 255, rtol=1e-6)
    other = vision.ImageFolder(tmp_path, size=8, classes=["zebra", "bee", "ant"])
    assert other.batch(np.arange(4))["label"].tolist() == [2, 2, 0, 0]
    with pytest.raises(ValueError, match=r"subfolders \['zebra'\], which are not among"):
        vision.ImageFolder(tmp_path, classes=["ant"])


def test_a_folder_without_subfolders_has_no_labels_and_images_are_scaled_and_cropped_at_the_center(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(np.rot90(wide)).save(tmp_path / "b.png")
    batch = vision.ImageFolder(tmp_path, size=5).batch(np.arange(2))
    assert set(batch) == {"image"}
    assert batch["image"].shape == (2, 3, 5, 5)
    np.testing.assert_allclose(batch["image"][:, :, 2, 2], 200 / 255, rtol=1e-5)
    assert batch["image"].mean() > 0.7
    assert vision.ImageFolder(tmp_path, size=5, n_channels=1).batch(np.arange(1))["image"].shape == (
        1,
        1,
        5,
        5,
    )


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No folder"):
        vision.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No images in"):
        vision.ImageFolder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a\.png is damaged or not an image"):
        vision.ImageFolder(tmp_path).batch(np.arange(1))
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "b.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="both inside and outside subfolders"):
        vision.ImageFolder(tmp_path)
