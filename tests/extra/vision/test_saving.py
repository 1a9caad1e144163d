"""Folders with networks: what was saved comes back, and what is damaged is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from scr2mae._utils import model_folder
from scr2mae.extra import vision

from .conftest import TINY, make_vit

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
    assert len(list(tmp_path.iterdir())) == 2


def test_files_of_others_stay(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        NETWORKS["mlp"]().save_pretrained(tmp_path)
    NETWORKS["mlp"]().save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").is_file()


def save_in_the_former_layout(network, folder, about):
    """Write ``config.json`` and ``model.safetensors`` as the first versions did."""
    document = {
        "scr2mae_network": type(network).__name__,
        "schema_version": 1,
        "init_params": network.init_params,
    }
    if isinstance(network, vision.ViTMAEClassifier):
        document["vit"] = network.config.to_dict()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**document, "about": about}))


@pytest.mark.parametrize("name", ["mlp", "unet", "classifier"])
def test_a_folder_of_the_former_layout_loads_and_is_replaced(name, tmp_path):
    network, about = NETWORKS[name](), {"classes": ["a", "b", "c"]}
    save_in_the_former_layout(network, tmp_path, about)
    back = vision.from_pretrained(tmp_path)
    assert back.about == about
    torch.testing.assert_close(back.state_dict(), network.state_dict(), rtol=0, atol=0)
    back.save_pretrained(tmp_path, overwrite=True)
    assert "model.safetensors" not in {path.name for path in tmp_path.iterdir()}
    torch.testing.assert_close(
        vision.from_pretrained(tmp_path).state_dict(), network.state_dict(), rtol=0, atol=0
    )


def save_and_be_killed(network, folder, at):
    """Save in a child process that ends before the given rename; return whether it came so far."""
    child = os.fork()
    if child == 0:
        steps = iter(range(100))

        def dying(function):
            def step(*args):
                if next(steps) == at:
                    os._exit(9)
                return function(*args)

            return step

        Path.replace = dying(Path.replace)
        Path.rename = dying(Path.rename)
        model_folder.exchange = dying(model_folder.exchange)
        network.save_pretrained(folder, overwrite=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("make", [NETWORKS["mlp"], make_vit], ids=["mlp", "vit"])
def test_a_writer_that_is_killed_between_two_files_leaves_the_old_network_or_the_new_one(make, tmp_path):
    old, new = make(), make()
    with torch.no_grad():
        next(new.parameters()).add_(1)
    n_killed, found = 0, []
    old.save_pretrained(tmp_path / "model")
    while save_and_be_killed(new, tmp_path / "model", n_killed):
        n_killed += 1
        state = vision.from_pretrained(tmp_path / "model").state_dict()
        same = [
            all(torch.equal(state[name], value) for name, value in each.state_dict().items())
            for each in (old, new)
        ]
        assert sum(same) == 1
        found.append(same.index(True))
        old.save_pretrained(tmp_path / "model", overwrite=True)
    assert n_killed >= (2 if make is NETWORKS["mlp"] else 1)
    assert found[0] == 0
    assert torch.equal(next(vision.from_pretrained(tmp_path / "model").parameters()), next(new.parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=99), "schema version 99"),
        (lambda d: d.update(scr2mae_network="Other"), "contains the network 'Other'"),
        (lambda d: d.pop("init_params"), "lacks \\['init_params'\\]"),
        (lambda d: d["init_params"].update(unknown=1), "does not describe a MaskedMLP"),
        (lambda d: d["init_params"].update(n_hidden=13), "weights in .* do not fit the configuration"),
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
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        vision.from_pretrained(tmp_path)
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("weights-*.safetensors")
    weights.write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        vision.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        vision.from_pretrained(tmp_path)


def test_a_network_of_another_class_is_refused(tmp_path):
    NETWORKS["mlp"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not contain a MaskedUNet but 'MaskedMLP'"):
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
