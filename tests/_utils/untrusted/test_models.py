"""Untrusted networks and checkpoints: refused before their code runs or their memory is allocated."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils.model_folder import read_folder
from scr2mae._utils.untrusted import load_tensors
from scr2mae.model.state import FORMAT

ENORMOUS = 10**15


@pytest.fixture
def folder(trained: R2MAEModel, tmp_path: Path) -> Path:
    """A saved model."""
    trained.save(tmp_path / "model")
    return tmp_path / "model"


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def edit(folder: Path, *keys: str, to: Any) -> None:
    """Change an entry of ``model.json``, found by its keys."""
    document = inner = metadata(folder)
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / "model.json").write_text(json.dumps(document))


def replace_weights(folder: Path, content: bytes) -> None:
    """Put other bytes in place of the weights, with the hash that belongs to them."""
    import hashlib

    next(folder.glob("*.safetensors")).unlink()
    digest = hashlib.sha256(content).hexdigest()
    (folder / f"weights-{digest}.safetensors").write_bytes(content)
    edit(folder, "weights", to={"file": f"weights-{digest}.safetensors", "sha256": digest})


def replace_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = read_folder(folder, FORMAT).tensors
    replace_weights(folder, safetensors.torch.save({**tensors, name: change(tensors[name]).contiguous()}))


def test_a_pickle_beside_the_model_is_not_opened(folder: Path, bomb: bytes, adata: AnnData) -> None:
    for name in ("model.pt", "attr.pkl", "weights.pkl", "pytorch_model.bin", "run.json", "conftest.py"):
        (folder / name).write_bytes(bomb)
    R2MAEModel.load(folder, adata).get_latent_representation()
    assert R2MAEModel.load_registry(folder)["setup_args"]["layer"] is None


@pytest.mark.parametrize("file", ["model.json", "weights"])
def test_a_pickle_in_place_of_a_file_of_the_model_is_refused(file: str, folder: Path, bomb: bytes) -> None:
    if file == "weights":
        replace_weights(folder, bomb)
    else:
        (folder / file).write_bytes(bomb)
    with pytest.raises(ValueError, match=r"is damaged"):
        R2MAEModel.load(folder)


@pytest.mark.parametrize(
    "read",
    [R2MAEModel.load, R2MAEModel.load_registry, R2MAEModel.view_setup_args],
    ids=lambda function: function.__name__,
)
def test_the_layout_of_scvi_tools_is_refused_and_not_opened(
    read: Callable[[Path], Any], tmp_path: Path, bomb: bytes
) -> None:
    (tmp_path / "scvi").mkdir()
    (tmp_path / "scvi" / "model.pt").write_bytes(bomb)
    with pytest.raises(FileNotFoundError, match=r"has no model\.json, only \['model\.pt'\]"):
        read(tmp_path / "scvi")


def test_the_old_layout_of_scvi_tools_is_not_converted(tmp_path: Path, bomb: bytes) -> None:
    for name in ("model_params.pt", "attr.pkl", "var_names.csv"):
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(NotImplementedError, match="reading that would unpickle it"):
        R2MAEModel.convert_legacy_save(str(tmp_path), str(tmp_path / "converted"))
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("kind", ["plain", "zip"])
def test_a_checkpoint_to_resume_from_is_not_unpickled(
    kind: str, trap: Any, bomb: bytes, adata: AnnData, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "last.ckpt"
    if kind == "plain":
        checkpoint.write_bytes(bomb)
    else:
        torch.save({"state_dict": {}, "loops": trap}, checkpoint)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint of this package, or is damaged"):
        model.train(1, resume=checkpoint, accelerator="cpu", enable_progress_bar=False)
    assert not model.is_trained_


def test_a_network_for_images_is_not_loaded_from_a_pickle(trap: Any, bomb: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from scr2mae.extra import vision

    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "decoder_hidden_size"), 8)
    config = transformers.ViTMAEConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
    config.save_pretrained(tmp_path / "vit")
    torch.save({"anything": trap}, tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        vision.from_pretrained(tmp_path / "vit")


def _load_dna(folder: Path) -> Any:
    from scr2mae.extra.dna import GPNMSAForMaskedLM

    return GPNMSAForMaskedLM.from_pretrained(folder)


def _load_images(folder: Path) -> Any:
    return pytest.importorskip("scr2mae.extra.vision").from_pretrained(folder)


def _load_text(folder: Path) -> Any:
    return pytest.importorskip("scr2mae.extra.text").RobertaR2MAE.from_pretrained(folder)


@pytest.mark.parametrize("load", [_load_dna, _load_images, _load_text])
def test_pickles_as_networks_of_other_modalities_are_refused(
    load: Callable[[Path], Any], bomb: bytes, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "config.json", "scr2mae.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is damaged, or not a safetensors file"):
        load_tensors(tmp_path / "model.safetensors")


def test_metadata_that_link_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "model.json").rename(folder.parent / "elsewhere.json")
    (folder / "model.json").symlink_to(folder.parent / "elsewhere.json")
    for read in (R2MAEModel.load, R2MAEModel.load_registry):
        with pytest.raises(ValueError, match=r"model\.json is a link out of its folder"):
            read(folder)


def test_json_that_is_enormous_deep_or_invalid_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    text = path.read_text()
    for content, message in (
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested deeper than any model needs"),
        (text[:-2] + ', "more": ' + "[" * 80 + "]" * 80 + "}", "nested deeper than any model needs"),
        (text[:-2] + f', "more": {"9" * 5000}}}', "is damaged: .*digits"),
        (text.replace('"n_obs": 120', '"n_obs": NaN'), "contains the number nan, but numbers must be finite"),
        (text.replace('"n_hidden": 16', '"n_hidden": Infinity'), "contains the number inf"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            R2MAEModel.load(folder)
    with path.open("r+b") as file:
        file.truncate(300 << 20)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match="has 314572800 bytes, more than any model needs; it was not read"):
        R2MAEModel.load(folder)


def test_training_curves_may_contain_nan(folder: Path) -> None:
    (curve, *_) = metadata(folder)["history"].values()
    name = next(iter(metadata(folder)["history"]))
    edit(folder, "history", name, to={**curve, "values": [float("nan"), *curve["values"][1:]]})
    assert np.isnan(R2MAEModel.load(folder).history[name].iloc[0, 0])


def _header(n: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", n) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        _header(2**63),
        _header(200 << 20, b"{" * 100),
        _header(2),
        _header(10, b'{"a": [[[['),
        _header(80, b'{"w":{"dtype":"F32","shape":[1000000000000000],"data_offsets":[0,4]}}'.ljust(80)),
        _header(80, b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4000,4004]}}'.ljust(80)) + b"1234",
        _header(80, b'{"w":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}'.ljust(80)) + b"1234",
    ],
    ids=["empty", "2^63", "200 MB", "nothing", "no json", "1e15 floats", "beyond the end", "unknown type"],
)
def test_weights_with_an_impossible_header_are_refused(content: bytes, folder: Path) -> None:
    replace_weights(folder, content)
    with pytest.raises(ValueError, match=r"is damaged, or not a safetensors file|do not fit its metadata"):
        R2MAEModel.load(folder)


def test_weights_larger_than_memory_are_refused_before_reading(folder: Path) -> None:
    with next(folder.glob("*.safetensors")).open("r+b") as file:
        file.truncate(8 << 40)  # a hole
    with pytest.raises(MemoryError, match=r"takes 17,592\.2 GB of memory, of which"):
        R2MAEModel.load(folder)


WRONG = {
    "width enormous": (("init_params", "n_hidden"), ENORMOUS, "do not fit its metadata"),
    "depth enormous": (("init_params", "n_layers"), ENORMOUS, "do not fit its metadata"),
    "width negative": (("init_params", "n_latent"), -4, "do not fit its metadata"),
    "width a fraction": (("init_params", "n_latent"), 4.0, "widths of the network in .* are damaged"),
    "width a text": (("init_params", "n_latent"), "4", "widths of the network in .* are damaged"),
    "another argument": (("init_params", "registry"), {}, "widths of the network in .* are damaged"),
    "widths a list": (("init_params",), [16, 4], "widths of the network in .* are damaged"),
    "array a module": (
        ("registry", "field_registries", "X", "state_registry", "column_names"),
        {"__array__": ["a"], "dtype": "S1000000000000"},
        "an array of type 'S1000000000000' is not",
    ),
    "array of a record": (
        ("registry", "field_registries", "X", "state_registry", "column_names"),
        {"__array__": [[1, 2]], "dtype": [["x", "O"]]},
        "an array of type .* is not one that a model has",
    ),
    "array too large for its type": (("more",), {"__array__": [300], "dtype": "uint8"}, "is not"),
    "registry a list": (("registry",), [1], "metadata in .* are damaged"),
    "registry without fields": (("registry", "field_registries"), {}, "metadata in .* are damaged"),
    "setup unknown": (("registry", "setup_args", "source_registry"), {}, "was set up with"),
    "genes a number": (
        ("registry", "field_registries", "X", "state_registry", "column_names"),
        5,
        "do not fit its metadata|are damaged",
    ),
    "trained maybe": (("is_trained",), "yes", "does not say whether the model was trained"),
    "new categories invented": (("n_new_categories",), [7], "7.* categories are new; that cannot be"),
    "new categories a word": (("n_new_categories",), "two", "are damaged"),
    "ratio beyond one": (("mask_ratio",), 7.0, r"must lie in \[0, 1\]"),
    "ratio a word": (("mask_ratio",), "half", "are damaged"),
    "schedule with other arguments": (("mask_ratio",), {"schedule": "FixedRatio", "x": 1}, "are damaged"),
    "curriculum a word": (("curriculum",), "cl", "are damaged"),
    "curriculum enormous": (
        ("curriculum",),
        {"n_ratios": ENORMOUS, "schedule": {}, "n_iter": 5, "rank": 2, "per_cell": False},
        "do not fit its metadata",
    ),
    "history a number": (("history",), 3, "are damaged"),
    "history uneven": (
        ("history",),
        {"loss": {"index": "epoch", "at": [0, 1, 2], "values": [1.0]}},
        "damaged|[Ll]ength",
    ),
    "split a number": (("split",), 3, "are damaged"),
    "version nought": (("schema_version",), 0, "has schema version 0"),
    "version true": (("schema_version",), True, "has schema version True"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_metadata_that_are_not_those_of_the_weights_are_refused_before_a_network_is_made(
    kind: str, folder: Path, adata: AnnData
) -> None:
    keys, value, message = WRONG[kind]
    edit(folder, *keys, to=value)
    for given in (None, adata):
        with pytest.raises(ValueError, match=message):
            R2MAEModel.load(folder, given)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("module.log_theta", lambda t: t.double(), r"log_theta is float64 \(60,\), expected float32 \(60,\)"),
        ("module.log_theta", lambda t: t[:30], r"log_theta is float32 \(30,\), expected float32 \(60,\)"),
        ("module.log_theta", lambda t: t.to(torch.complex64), "log_theta is complex64"),
        (
            "split.train",
            lambda t: t.float(),
            "split in .* is damaged: indices of cells are lists of integers",
        ),
        ("split.train", lambda t: t + 1000, r"split in .* is damaged: .*must lie in \[0, 120\)"),
        ("split.train", lambda t: -t - 1, r"split in .* is damaged: .*must lie in \[0, 120\)"),
        ("split.train", lambda t: t * 0, "split in .* is damaged: .*contains a cell twice"),
    ],
    ids=["float64", "shorter", "complex", "split floats", "split outside", "split negative", "split twice"],
)
def test_tensors_of_another_shape_type_or_range_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, folder: Path
) -> None:
    replace_tensor(folder, name, change)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.load(folder)
