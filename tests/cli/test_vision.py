"""``scr2mae vision``: from images to networks, scores and embeddings, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from scr2mae.cli import main
from scr2mae.extra import vision

SMALL = ["--accelerator", "cpu", "--batch-size", "16", "-q"]


@pytest.fixture
def arrays(tmp_path, make_images):
    """An .npz file of training and test images."""
    x, y = make_images(48)
    x_test, y_test = make_images(30, seed=1)
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return tmp_path / "images.npz"


@pytest.fixture
def photos(tmp_path, make_images):
    """A folder of image files, a subfolder a class, larger than the network takes."""
    for split, seed in (("train", 0), ("test", 1)):
        for i, (pixels, label) in enumerate(zip(*make_images(24, size=20, seed=seed), strict=True)):
            place = tmp_path / "photos" / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "photos"


def run(*arguments):
    return main(["vision", *map(str, arguments)])


def test_an_mlp_is_pretrained_probed_and_embeds(arrays, tmp_path, capsys, rows):
    model = tmp_path / "mlp"
    network = ["--network", "mlp", "--width", 64, 32, "--mask-ratio", 0.5]
    assert run("pretrain", arrays, "-o", model, *network, "--max-epochs", 20, *SMALL) == 0
    said = rows()
    assert (said["model"], said["images"], said["epochs"]) == (str(model), "48", "20")
    assert float(said["train_loss"]) > 0
    assert run("probe", arrays, "--model", model, "--max-epochs", 60, "--accelerator", "cpu", "-q") == 0
    said = rows()
    assert (said["images_train"], said["images_test"]) == ("48", "30")
    assert float(said["accuracy"]) > 0.6
    out = tmp_path / "embedded.npy"
    assert run("embed", arrays, "--model", model, "--split", "test", "-o", out, "--accelerator", "cpu") == 0
    assert rows() == {"output": str(out), "images": "30", "width": "32"}
    test = vision.open_images(arrays, split="test")
    np.testing.assert_array_equal(np.load(out), vision.embed(vision.from_pretrained(model), test))
    assert run("embed", arrays, "--model", model, "-o", out) == 1
    assert "pass --force" in capsys.readouterr().err


def test_a_vit_is_pretrained_on_files_resumed_finetuned_and_predicts(photos, tmp_path, capsys, rows):
    vit, run1, tuned = tmp_path / "vit", tmp_path / "run1", tmp_path / "tuned"
    sizes = ["--preset", "tiny", "--image-size", 16, "--patch-size", 8, "--workers", 2]
    common = [photos, *sizes, "--scheme", "dynamic", "--checkpoint-dir", run1, *SMALL]
    assert run("pretrain", *common, "-o", vit, "--max-epochs", 1, "--validation", photos) == 0
    assert "validation_loss" in rows()
    assert run("pretrain", *common, "-o", vit, "--max-epochs", 2, "--resume", run1) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert run("pretrain", *common, "-o", vit, "--max-epochs", 2, "--resume", run1, "--force") == 0
    assert rows()["epochs"] == "2"
    options = ["--model", vit, "--max-epochs", 1, "--validation", photos, *SMALL]
    assert run("finetune", photos, *options, "-o", tuned) == 0
    said = rows()
    assert 0 <= float(said["validation_accuracy"]) <= 1
    classifier = vision.from_pretrained(tuned)
    assert classifier.about == {"classes": ["class0", "class1", "class2"]}
    test = vision.ImageFolder(photos / "test", size=16)
    accuracy = (vision.predict_proba(classifier, test).argmax(axis=1) == test.labels.numpy()).mean()
    assert float(said["validation_accuracy"]) == pytest.approx(accuracy, abs=1e-4)


def test_a_unet_takes_its_channels_from_the_images(tmp_path, make_images):
    np.savez(tmp_path / "gray.npz", x=make_images(20, n_channels=1)[0][..., 0])
    options = ["--network", "unet", "--width", 2, "--max-epochs", 1, *SMALL]
    assert run("pretrain", tmp_path / "gray.npz", "-o", tmp_path / "unet", *options) == 0
    assert vision.from_pretrained(tmp_path / "unet").init_params == {"base_channels": 2, "n_channels": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pretrain", "{data}", "-o", "{out}", "--mask-ratio", "0.9", "0.6"], 2, "a low and a high one"),
        (["pretrain", "{data}", "-o", "{out}", "--mask-ratio", "1.2"], 2, "a number from 0 to 1"),
        (["pretrain", "{data}", "-o", "{out}", "--scheme", "cl"], 2, 'Invalid value "cl" for --scheme'),
        (
            ["pretrain", "{data}", "-o", "{out}", "--network", "mlp", "--width", "3"],
            2,
            "two numbers for an MLP",
        ),
        (["pretrain", "{data}", "-o", "{out}", "--batch-size", "1"], 2, "at least 2"),
        (["pretrain", "{data}", "-o", "{out}", "--lr", "0"], 2, "a number above 0"),
        (["pretrain", "{data}", "-o", "{out}"], 1, "single patch"),
        (
            ["pretrain", "{data}", "-o", "{out}", "--patch-size", "5"],
            1,
            "must be divisible by patch_size, got 16 and 5",
        ),
        (["pretrain", "{out}/none", "-o", "{out}"], 1, "No file or folder"),
        (["pretrain", "{data}", "-o", "{out}", "--resume", "{out}"], 1, "No checkpoint"),
        (["finetune", "{data}", "--model", "{out}", "-o", "{out}"], 1, "No model folder at"),
        (["probe", "{whole}", "--model", "{mlp}"], 1, "has no test split; give test images"),
        (["finetune", "{data}", "--model", "{mlp}", "-o", "{out}"], 1, "holds a MaskedMLP; only a ViT"),
        (
            ["pretrain", "{wide}", "-o", "{out}", "--network", "mlp"],
            1,
            "must be square for this network, got 16 x 8",
        ),
        (
            ["pretrain", "{tested}", "-o", "{out}", "--network", "mlp"],
            1,
            "has the splits ['test']; expected train",
        ),
        (
            ["probe", "{bare}", "--model", "{mlp}"],
            1,
            "has no classes; put the images of each class in a subfolder",
        ),
        (["probe", "{data}", "--model", "{mlp}", "--accelerator", "gpu"], 1, "there is no CUDA device"),
    ],
)
def test_bad_input_ends_with_one_line_that_says_what(
    arguments, code, message, arrays, tmp_path, capsys, monkeypatch, make_images
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    x, y = make_images(8)
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    np.savez(tmp_path / "wide.npz", x=x[:, :, :8], y=y)
    np.savez(tmp_path / "tested.npz", x_test=x, y_test=y)
    np.savez(tmp_path / "bare.npz", x_train=x, x_test=x)
    vision.MaskedMLP(n_hidden=4, n_latent=4, image_size=16, n_channels=3).save_pretrained(tmp_path / "mlp")
    places = {
        "data": arrays,
        "out": tmp_path / "out",
        **{name: tmp_path / f"{name}.npz" for name in ("whole", "wide", "tested", "bare")},
        "mlp": tmp_path / "mlp",
    }
    assert run(*(each.format(**places) for each in arguments)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_every_subcommand(capsys):
    assert main(["vision", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("pretrain", "finetune", "probe", "embed"))
