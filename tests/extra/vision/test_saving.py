"""Folders with networks: what was saved comes back, and what is damaged is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from scr2mae.extra import vision

from .conftest import TINY

NETWORKS = {
    "linear head": lambda: vision.LinearHead(4, 3, normalize=True),
    "attribute head": lambda: vision.AttributeHead(4, 2, n_hidden=3),
    "mlp": lambda: vision.MaskedMLP(n_hidden=12, n_latent=5, image_size=16, n_channels=3),
    "unet": lambda: vision.MaskedUNet(base_channels=2),
    "classifier": lambda: vision.ViTMAEClassifier(
        vision.vit_config(image_size=16, patch_size=4, **TINY), 3, drop_path=0.2
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_as_it_was_in_evaluation_mode(name, images, tmp_path):
    network = NETWORKS[name]()
    network.about = {"classes": ["a", "b", "c"]}
    network.save_pretrained(tmp_path / "new" / "folder")
    back = vision.from_pretrained(tmp_path / "new" / "folder")
    assert type(back) is type(network)
    assert not back.training
    assert back.about == {"classes": ["a", "b", "c"]}
    assert back.init_params == network.init_params
    torch.testing.assert_close(back.state_dict(), network.state_dict(), rtol=0, atol=0)
    x = torch.rand(2, 4) if "head" in name else images.batch(np.arange(4))["image"]
    torch.testing.assert_close(back(x), network.eval()(x), rtol=0, atol=0)


def test_saving_again_replaces_the_network(tmp_path):
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        NETWORKS["unet"]().save_pretrained(tmp_path)
    NETWORKS["unet"]().save_pretrained(tmp_path, overwrite=True)
    assert isinstance(vision.from_pretrained(tmp_path), vision.MaskedUNet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=99), "schema version 99"),
        (lambda d: d.update(scr2mae_network="Other"), "names 'Other', expected one of"),
        (lambda d: d.pop("init_params"), "does not describe a MaskedMLP"),
        (lambda d: d["init_params"].update(unknown=1), "does not describe a MaskedMLP"),
        (lambda d: d["init_params"].update(n_hidden=13), "weights in .* of another network"),
    ],
)
def test_a_foreign_description_is_refused(change, message, tmp_path):
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    change(document)
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message):
        vision.from_pretrained(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        vision.from_pretrained(tmp_path)
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="missing, damaged"):
        vision.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        vision.from_pretrained(tmp_path)


def test_a_network_of_another_class_is_refused(tmp_path):
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not describe a MaskedUNet but 'MaskedMLP'"):
        vision.MaskedUNet.from_pretrained(tmp_path)


def loaded(statement):
    """Names of the packages that a fresh interpreter holds after a statement."""
    script = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_package_loads_no_dependency():
    assert not loaded("import scr2mae.extra.vision; dir(scr2mae.extra.vision)") & {
        "torch",
        "transformers",
        "PIL",
    }


def test_pixel_networks_need_neither_transformers_nor_pillow():
    absent = "sys.modules.update(transformers=None, PIL=None)"
    names = "ImageArray, MaskedMLP, MaskedUNet, R2ViTMAE, ViTMAEClassifier, from_pretrained"
    assert "torch" in loaded(f"{absent}; from scr2mae.extra.vision import {names}; MaskedMLP(); MaskedUNet()")


def test_every_public_name_can_be_had():
    for name in vision.__all__:
        assert getattr(vision, name) is not None
    assert set(vision.__all__) <= set(dir(vision))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vision.nothing


def test_a_missing_dependency_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'scr2mae\[vision\]'"):
        vision.vit_config()
