"""Files that come from strangers: refused by name, before any of their code runs or their size is believed."""

import gzip
import json
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from anndata import AnnData
from anndata.io import write_elem

from scr2mae import R2MAEModel, io
from scr2mae._untrusted import load_tensors
from scr2mae.cli import main
from scr2mae.data import open_store

ENORMOUS = 10**15


class Bomb:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """A file that code in one of the others would make; it must not be there after the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def bomb(canary: Path) -> bytes:
    """The pickle that makes it; the fixture shows once that it would."""
    content = pickle.dumps(Bomb(canary))
    pickle.loads(content).close()
    canary.unlink()
    return content


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
    tensors, _ = io.read_model(folder)
    replace_weights(folder, safetensors.torch.save({**tensors, name: change(tensors[name]).contiguous()}))


# --- pickles


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
    kind: str, canary: Path, bomb: bytes, adata: AnnData, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "last.ckpt"
    if kind == "plain":
        checkpoint.write_bytes(bomb)
    else:
        torch.save({"state_dict": {}, "loops": Bomb(canary)}, checkpoint)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint of this package, or is damaged"):
        model.train(1, resume=checkpoint, accelerator="cpu", enable_progress_bar=False)
    assert not model.is_trained_


def test_a_zarr_array_whose_codec_unpickles_is_refused(
    bomb: bytes, tmp_path: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    import numcodecs.pickles

    # Newer versions refuse by themselves unless this is set; older ones do not know it.
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = tmp_path / "cells.zarr"
    write_elem(zarr.open_group(str(path), mode="w", zarr_format=2), "/", adata)
    array = path / "obs" / "_index"
    about = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**about, "compressor": {"id": "pickle", "protocol": 5}}))
    (path / ".zmetadata").unlink(missing_ok=True)
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(bomb)
    with pytest.raises(ValueError, match=r"obs/_index of .* is encoded by \['pickle'\], which may run code"):
        open_store(path)


def test_an_alignment_whose_codec_unpickles_is_refused(bomb: bytes, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from scr2mae.extra.dna import GenomeMSA

    path = tmp_path / "msa.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("chr1", shape=(4, 2), chunks=(4, 2), dtype="uint8")
    about = json.loads((path / "chr1" / ".zarray").read_text())
    # The first codec that handles objects is the one that zarr looks at.
    about |= {"filters": [{"id": "vlen-bytes"}], "compressor": {"id": "pickle", "protocol": 5}}
    (path / "chr1" / ".zarray").write_text(json.dumps({**about, "dtype": "|O", "fill_value": None}))
    (path / "chr1" / "0.0").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"is encoded by \['pickle'\]"):
        GenomeMSA.from_zarr(path)


def test_pickled_arrays_of_images_and_tracks_are_refused(canary: Path, bomb: bytes, tmp_path: Path) -> None:
    from scr2mae.extra.dna import open_track

    vision = pytest.importorskip("scr2mae.extra.vision")
    objects = np.array([Bomb(canary)], dtype=object)
    np.savez(tmp_path / "images.npz", x=objects)
    np.save(tmp_path / "track.npy", objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        vision.open_images(tmp_path / "images.npz")
    with pytest.raises(ValueError, match=r"track\.npy is no \.npy file"):
        open_track(tmp_path / "track.npy", chrom="1")


def test_a_network_for_images_is_not_loaded_from_a_pickle(canary: Path, bomb: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from scr2mae.extra import vision

    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "decoder_hidden_size"), 8)
    config = transformers.ViTMAEConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
    config.save_pretrained(tmp_path / "vit")
    torch.save({"anything": Bomb(canary)}, tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        vision.load(tmp_path / "vit")


def _load_dna(folder: Path) -> Any:
    from scr2mae.extra.dna import GPNMSAForMaskedLM

    return GPNMSAForMaskedLM.from_pretrained(folder)


def _load_images(folder: Path) -> Any:
    return pytest.importorskip("scr2mae.extra.vision").load(folder)


def _load_text(folder: Path) -> Any:
    return pytest.importorskip("scr2mae.extra.text").RobertaR2MAE.load(folder)


@pytest.mark.parametrize("load", [_load_dna, _load_images, _load_text])
def test_pickles_as_networks_of_other_modalities_are_refused(
    load: Callable[[Path], Any], bomb: bytes, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "config.json", "scr2mae.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        load_tensors(tmp_path / "model.safetensors")


# --- paths


def test_metadata_that_are_a_link_out_of_the_folder_are_refused(folder: Path) -> None:
    (folder / "model.json").rename(folder.parent / "elsewhere.json")
    (folder / "model.json").symlink_to(folder.parent / "elsewhere.json")
    for read in (R2MAEModel.load, R2MAEModel.load_registry):
        with pytest.raises(ValueError, match=r"model\.json is a link out of its folder"):
            read(folder)


def test_a_list_of_images_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    vision = pytest.importorskip("scr2mae.extra.vision")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "list_attr_celeba.txt").write_text("1\nSmiling\n../../secret.jpg 1\n")
    (tmp_path / "list_eval_partition.txt").write_text("../../secret.jpg 0\n")
    with pytest.raises(ValueError, match=r"names '\.\./\.\./secret\.jpg', which is no file of"):
        vision.CelebA(tmp_path)


def _external_link(file: h5py.File) -> None:
    del file["obsm"]
    file["obsm"] = h5py.ExternalLink("/etc/passwd", "/")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("uns/secret", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("uns/secret", layout)


@pytest.mark.parametrize(
    ("point_elsewhere", "message"),
    [
        (_external_link, "holds no obsm but a link to another file, '/etc/passwd'"),
        (_external_storage, "uns/secret of .* is stored in other files"),
        (_virtual, "uns/secret of .* is stored in other files"),
    ],
)
def test_an_h5ad_that_points_to_other_files_is_refused(
    point_elsewhere: Callable[[h5py.File], None],
    message: str,
    adata: AnnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cells.h5ad"
    adata.uns["note"] = "mine"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        point_elsewhere(file)
    with pytest.raises(ValueError, match=message):
        open_store(path)
    assert main(["train", str(path), "-o", str(tmp_path / "model"), "-q"]) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_groups_that_hold_themselves_end(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        loop = file.create_group("obsp/loop")
        loop["again"] = loop
        loop["soft"] = h5py.SoftLink("/obsp")
    assert open_store(tmp_path / "cells.h5ad").shape == adata.shape


# --- sizes


def test_json_that_is_enormous_deep_or_no_json_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    text = path.read_text()
    for content, message in (
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested deeper than any model needs"),
        (text[:-2] + ', "more": ' + "[" * 80 + "]" * 80 + "}", "nested deeper than any model needs"),
        (text[:-2] + f', "more": {"9" * 5000}}}', "is damaged: .*digits"),
        (text.replace('"n_obs": 120', '"n_obs": NaN'), "holds the number nan, where only finite ones belong"),
        (text.replace('"n_hidden": 16', '"n_hidden": Infinity'), "holds the number inf"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            R2MAEModel.load(folder)
    with path.open("r+b") as file:
        file.truncate(300 << 20)  # a hole: it takes no room on the disk
    with pytest.raises(
        ValueError, match="has 314572800 bytes, more than any model needs; refusing to read it"
    ):
        R2MAEModel.load(folder)


def test_curves_may_have_gaps(folder: Path) -> None:
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
    with pytest.raises(ValueError, match=r"is damaged, or no safetensors file|do not fit its metadata"):
        R2MAEModel.load(folder)


def test_weights_larger_than_memory_are_refused_unread(folder: Path) -> None:
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
        "an array of type 'S1000000000000' is none",
    ),
    "array of a record": (
        ("registry", "field_registries", "X", "state_registry", "column_names"),
        {"__array__": [[1, 2]], "dtype": [["x", "O"]]},
        "an array of type .* is none that a model has",
    ),
    "array too large for its type": (("more",), {"__array__": [300], "dtype": "uint8"}, "is none"),
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
        ("split.train", lambda t: t.float(), "split in .* is damaged: positions of cells are whole numbers"),
        ("split.train", lambda t: t + 1000, r"split in .* is damaged: .*must lie in \[0, 120\)"),
        ("split.train", lambda t: -t - 1, r"split in .* is damaged: .*must lie in \[0, 120\)"),
        ("split.train", lambda t: t * 0, "split in .* is damaged: .*names a cell twice"),
    ],
    ids=["float64", "shorter", "complex", "split floats", "split outside", "split negative", "split twice"],
)
def test_tensors_of_another_shape_type_or_range_are_refused(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, folder: Path
) -> None:
    replace_tensor(folder, name, change)
    with pytest.raises(ValueError, match=message):
        R2MAEModel.load(folder)


def _bomb_in_uns(file: h5py.File) -> None:
    file.create_dataset("uns/bomb", (ENORMOUS,), "f8", chunks=(1 << 20,), compression="gzip")


def _bomb_in_obs(file: h5py.File) -> None:
    del file["obs/age"]
    file.create_dataset("obs/age", (ENORMOUS,), "f4", chunks=(1 << 20,), compression="gzip")


def _bomb_of_text(file: h5py.File) -> None:
    text = h5py.string_dtype()
    file.create_dataset("uns/bomb", (10**9,), text, chunks=(1 << 16,), fillvalue="x" * 100_000)


def _bomb_of_one_item(file: h5py.File) -> None:
    file.create_dataset("uns/bomb", (10**6,), "S1000000000", chunks=(1,))


def _bomb_of_pointers(file: h5py.File) -> None:
    del file["X/indptr"]
    file.create_dataset("X/indptr", (ENORMOUS,), "i8", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize(
    "plant", [_bomb_in_uns, _bomb_in_obs, _bomb_of_text, _bomb_of_one_item, _bomb_of_pointers]
)
def test_an_h5ad_that_unpacks_to_more_than_memory_is_refused(
    plant: Callable[[h5py.File], None],
    adata: AnnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cells.h5ad"
    adata.uns["note"] = "mine"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        plant(file)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        MemoryError, match=r"All but the counts of .* takes .* GB of memory, of which .* are free"
    ):
        open_store(path)
    assert main(["train", str(path), "-o", str(tmp_path / "model"), "-q"]) == 1
    assert re.search(r"takes [0-9,.]+ GB of memory, of which", capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_an_enormous_attribute_is_refused(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+", libver="latest") as file:
        # Only a group of the newest format takes more than 64 kB.
        file.create_group("uns/planted").attrs.create("note", np.zeros(1 << 22))
    with pytest.raises(
        ValueError, match=r"'note' of uns/planted in .* has 33554432 bytes, more than any needs"
    ):
        open_store(tmp_path / "cells.h5ad")


def test_a_zarr_store_that_says_it_is_enormous_is_refused(adata: AnnData, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "cells.zarr"
    for shape, chunk, message in (
        (ENORMOUS, 1000, "All but the counts of"),
        (10, ENORMOUS, "A chunk of obs/bomb in"),
    ):
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        write_elem(group, "/", adata)
        group["obs"].create_array("bomb", shape=(shape,), chunks=(chunk,), dtype="f8")
        with pytest.raises(MemoryError, match=message):
            open_store(path)


def test_images_that_unpack_to_more_than_they_say_are_refused(tmp_path: Path) -> None:
    vision = pytest.importorskip("scr2mae.extra.vision")
    header = struct.pack(">HBB2I", 0, 8, 2, 3, 3)
    (tmp_path / "more.gz").write_bytes(gzip.compress(header + b"\0" * (1 << 24)))
    with pytest.raises(ValueError, match=r"states the shape \(3, 3\), but holds more of data"):
        vision.read_idx(tmp_path / "more.gz")
    (tmp_path / "huge").write_bytes(struct.pack(">HBB3I", 0, 14, 3, 2**31, 2**31, 4))
    with pytest.raises(MemoryError, match=r"takes .* GB of memory"):
        vision.read_idx(tmp_path / "huge")


def test_an_archive_of_images_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    vision = pytest.importorskip("scr2mae.extra.vision")
    np.savez_compressed(tmp_path / "images.npz", x=np.zeros((100, 1, 40, 40), np.float32))
    assert (tmp_path / "images.npz").stat().st_size < 10_000
    free = psutil.virtual_memory()._replace(available=500_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match=r"images\.npz takes 0\.0 GB of memory"):
        vision.open_images(tmp_path / "images.npz")


# --- damaged counts


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("indices", 5, 60, "its indices run from 0 to 60, outside its columns"),
        ("indices", 5, -1, "its indices run from -1 to 59, outside its columns"),
        ("indptr", 3, 10**6, "indptr does not rise"),
        ("indptr", 3, -1, "indptr does not rise"),
    ],
)
def test_sparse_counts_that_point_outside_themselves_are_refused(
    part: str, place: int, value: int, message: str, adata: AnnData, trained: R2MAEModel, tmp_path: Path
) -> None:
    from scr2mae.datasets import prepare

    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X"][part][place] = value
    getattr(adata.X, part)[place] = value
    store = open_store(tmp_path / "cells.h5ad")
    for cells in (adata, store):
        for use in (R2MAEModel.setup_anndata, trained.get_latent_representation):
            with pytest.raises(ValueError, match=message):
                use(cells)
    with pytest.raises(ValueError, match=r"indptr does not rise|outside its columns|index"):
        prepare(tmp_path / "cells.h5ad", tmp_path / "out.h5ad", progressbar=False)
    assert not (tmp_path / "out.h5ad").exists()


# --- the network


ALONE = """
import importlib, sys, warnings

warnings.simplefilter("ignore")
ASKS = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind", "urllib.Request", "http.client.connect"}

def refuse(event, arguments):
    # urllib3 asks the system whether it has IPv6, on the loopback.
    if event in ASKS and not (event == "socket.bind" and arguments[1][0] in ("::1", "127.0.0.1")):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
import scr2mae
for name in sorted(scr2mae.__all__):
    getattr(scr2mae, name)
for name in ("hub", "demo", "cli", "extra.dna", "extra.vision", "extra.text"):
    importlib.import_module(f"scr2mae.{name}")
adata = scr2mae.datasets.simulate_donors(n_donors=4, n_cells_per_donor=10, n_genes=20)
model = scr2mae.R2MAEModel(adata, n_hidden=4, n_latent=2)
model.train(1, batch_size=8, accelerator="cpu", enable_progress_bar=False)
model.get_latent_representation()
print("done")
"""


def test_neither_import_nor_training_asks_for_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]
