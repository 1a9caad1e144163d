"""Readers of idx files, CelebA and npz files, and files that they refuse."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from scr2mae.extra import vision

from .conftest import make_images

ATTRIBUTES = [f"Attribute_{i}" for i in range(40)]


def write_idx(path, array, *, compress=False):
    codes = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    head = bytes([0, 0, codes[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


def write_celeba(folder, *, n=9, size=(30, 40)):
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 1], size=(n, 40))
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]
    for name in names:
        Image.fromarray(rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)).save(
            folder / "img_align_celeba" / name
        )
    rows = [f"{name} " + " ".join(f"{v:2d}" for v in row) for name, row in zip(names, labels, strict=True)]
    (folder / "list_attr_celeba.txt").write_text(
        "\n".join([str(n), " ".join(ATTRIBUTES) + " ", *rows]) + "\n"
    )
    splits = [0] * (n - 4) + [1] * 2 + [2] * 2
    (folder / "list_eval_partition.txt").write_text(
        "\n".join(f"{name} {split}" for name, split in zip(names, splits, strict=True)) + "\n"
    )
    return labels


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_come_back_as_they_were_written(dtype, compress, tmp_path):
    array = np.random.default_rng(0).integers(-100, 100, size=(3, 4, 5)).astype(dtype)
    write_idx(tmp_path / "file", array, compress=compress)
    read = vision.read_idx(tmp_path / "file")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with an idx header"),
        (b"PK\x03\x04abc", "does not begin with an idx header"),
        (b"\0\0\x07\x01" + struct.pack(">I", 1) + b"\0", "does not begin with an idx header"),
        (b"\0\0\x08\x03" + struct.pack(">I", 1), "ends within its header"),
        (
            b"\0\0\x08\x01" + struct.pack(">I", 5) + b"\0\0",
            r"declares the shape \(5,\), but contains 2 bytes",
        ),
    ],
)
def test_files_that_are_not_idx_files_is_refused(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        vision.read_idx(tmp_path / "file")


def test_mnist_is_read_from_its_four_files(tmp_path):
    for prefix, n in (("train", 5), ("t10k", 3)):
        images = np.random.default_rng(n).integers(256, size=(n, 28, 28)).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8), compress=True)
        split = "train" if n == 5 else "test"
        for read in (vision.read_mnist(tmp_path, split), vision.open_images(tmp_path, split=split)):
            batch = read.batch(np.array([n - 1, 0]))
            np.testing.assert_allclose(batch["image"][:, 0], images[[n - 1, 0]] / 255, rtol=1e-6)
            assert batch["label"].tolist() == [n - 1, 0]
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        vision.read_mnist(tmp_path / "elsewhere")


def test_celeba_follows_the_official_split_and_has_forty_binary_attributes(tmp_path):
    labels = write_celeba(tmp_path)
    parts = {split: vision.CelebA(tmp_path, split, size=16) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 5, "validation": 2, "test": 2}
    assert parts["train"].attributes_ == ATTRIBUTES
    test = parts["test"].batch(np.arange(2))
    assert test["image"].shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(test["label"], labels[7:] > 0)
    assert vision.image_splits(tmp_path) == ["train", "validation", "test"]
    assert isinstance(vision.open_images(tmp_path, split="test", size=16), vision.CelebA)


@pytest.mark.parametrize("name", ["img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_missing_part_of_celeba_is_named(name, tmp_path):
    write_celeba(tmp_path, n=5)
    (tmp_path / name).rename(tmp_path / "hidden")
    with pytest.raises(FileNotFoundError, match=f"No {name}"):
        vision.CelebA(tmp_path)


def test_a_damaged_table_of_celeba_is_refused(tmp_path):
    write_celeba(tmp_path, n=5)
    table = tmp_path / "list_attr_celeba.txt"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="announces 5 images of 40 attributes each and has 4 rows"):
        vision.CelebA(tmp_path)
    with pytest.raises(ValueError, match="split must be one of"):
        vision.CelebA(tmp_path, "valid")


def test_arrays_in_a_file_are_opened_by_split(tmp_path):
    images, labels = make_images(6)
    np.savez(tmp_path / "split.npz", x_train=images[:4], y_train=labels[:4], x_test=images[4:])
    np.savez(tmp_path / "whole.npz", x=images, y=labels)
    assert vision.image_splits(tmp_path / "split.npz") == ["train", "test"]
    assert vision.image_splits(tmp_path / "whole.npz") == []
    np.testing.assert_array_equal(
        vision.open_images(tmp_path / "split.npz", split="train").labels, labels[:4]
    )
    assert vision.open_images(tmp_path / "split.npz", split="test").labels is None
    assert len(vision.open_images(tmp_path / "whole.npz")) == 6
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]; choose one"):
        vision.open_images(tmp_path / "split.npz")
    with pytest.raises(ValueError, match="has no 'test' split; it has images that are not split"):
        vision.open_images(tmp_path / "whole.npz", split="test")
    with pytest.raises(FileNotFoundError, match="No file or folder"):
        vision.open_images(tmp_path / "nowhere.npz")


def test_the_folders_of_torchvision_are_train_and_val(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        for label in ("n01440764", "n01443537"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (12, 10), (40 * i, 0, 0)).save(
                    tmp_path / split / label / f"{i}.JPEG", "JPEG"
                )
    assert vision.image_splits(tmp_path) == ["train", "validation"]
    train, validation = (
        vision.open_images(tmp_path, split=split, size=8) for split in ("train", "validation")
    )
    assert (len(train), len(validation)) == (6, 4)
    assert train.classes_ == validation.classes_ == ["n01440764", "n01443537"]
    assert not hasattr(train, "images")  # decoded when they are needed
