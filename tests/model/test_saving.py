"""Model folders: what goes in comes out, nothing is unpickled, and no reader finds half a model."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils import model_folder
from scr2mae._utils.model_folder import read_folder, write_folder
from scr2mae.masking import (
    DecayRatio,
    DiscreteRatio,
    FixedRatio,
    MDLMRatio,
    UniformDecayRatio,
    UniformRatio,
)
from scr2mae.model.saving import to_state
from scr2mae.model.state import FORMAT

TINY = {"n_hidden": 16, "n_latent": 4}
SCHEDULES = [
    0.3,
    (0.2, 0.6),
    FixedRatio(0.4),
    UniformRatio(0.2, 0.4, seed=3),
    MDLMRatio(seed=9),
    DecayRatio(0.6, 0.2),
    UniformDecayRatio(0.1, 0.5, seed=2),
    DiscreteRatio((0.1, 0.25, 0.5), seed=4),
]


def assert_same_model(first: R2MAEModel, second: R2MAEModel) -> None:
    torch.testing.assert_close(first.module.state_dict(), second.module.state_dict(), rtol=0, atol=0)
    assert first.init_params_ == second.init_params_
    assert first.mask_ratio == second.mask_ratio
    assert type(first.mask_ratio) is type(second.mask_ratio)
    assert first.is_trained_ == second.is_trained_
    assert first.split_.sha256 == second.split_.sha256
    for attribute in ("key", "groups", "seed"):
        assert getattr(first.split_, attribute) == getattr(second.split_, attribute)
    assert set(first.history_) == set(second.history_)
    for name, curve in first.history_.items():
        pd.testing.assert_frame_equal(curve, second.history_[name], check_exact=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def weights_file(folder: Path) -> Path:
    return folder / metadata(folder)["weights"]["file"]


@pytest.fixture
def folder(trained: R2MAEModel, tmp_path: Path) -> Path:
    """A saved model."""
    trained.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("with_data", [False, True])
def test_a_model_comes_back_as_it_was(
    with_data: bool, reference: R2MAEModel, simulate: Callable[..., AnnData], tmp_path: Path, unchanged: Any
) -> None:
    reference.save(tmp_path / "model")
    adata = simulate()
    with unchanged(adata):
        loaded = R2MAEModel.load(tmp_path / "model", adata if with_data else None, accelerator="cpu")
    assert_same_model(loaded, reference)
    embedded = loaded.get_latent_representation(None if with_data else adata)
    np.testing.assert_array_equal(embedded, reference.get_latent_representation())
    assert loaded.registry["setup_args"] == reference.registry["setup_args"]
    if with_data:
        np.testing.assert_array_equal(loaded.train_indices, reference.train_indices)


def test_a_loaded_model_trains_on_like_the_one_that_was_saved(
    simulate: Callable[..., AnnData], train_tiny: Callable[..., R2MAEModel], tmp_path: Path
) -> None:
    model = train_tiny(simulate())
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", simulate())
    for each in (model, loaded):
        each.train(1, accelerator="cpu", enable_progress_bar=False, batch_size=32)
    assert_same_model(loaded, model)


@pytest.mark.parametrize("mask_ratio", SCHEDULES, ids=str)
def test_every_kind_of_masking_ratio_comes_back(mask_ratio: Any, adata: AnnData, tmp_path: Path) -> None:
    R2MAEModel(adata, **TINY, mask_ratio=mask_ratio).save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model")
    assert loaded.mask_ratio == mask_ratio
    assert type(loaded.mask_ratio) is type(mask_ratio)


def test_a_user_defined_schedule_is_not_saved_and_a_warning_says_so(adata: AnnData, tmp_path: Path) -> None:
    model = R2MAEModel(adata, **TINY, mask_ratio=lambda step, total_steps: 0.5)
    with pytest.warns(UserWarning, match="is not a schedule of scr2mae.masking and is not saved"):
        model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", adata)
    with pytest.raises(TypeError, match="mask_ratio must be a float"):
        loaded.train(1, accelerator="cpu", enable_progress_bar=False)
    loaded.mask_ratio = 0.5
    loaded.train(1, accelerator="cpu", enable_progress_bar=False)


def test_an_untrained_model_comes_back_untrained(adata: AnnData, tmp_path: Path) -> None:
    R2MAEModel(adata, **TINY).save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model")
    assert not loaded.is_trained_
    assert loaded.split_ is None


def test_categories_keep_their_type(
    adata: AnnData, train_tiny: Callable[..., R2MAEModel], tmp_path: Path
) -> None:
    adata.obs["lane"] = np.arange(120) % 3
    model = train_tiny(adata, setup={"batch_key": "lane"})
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(adata), model.get_latent_representation())


def test_nothing_is_unpickled(folder: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle was read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    R2MAEModel.load(folder, adata).get_latent_representation()
    R2MAEModel.prepare_query_anndata(adata, folder)


def test_a_folder_holds_the_model_its_runs_and_the_weights_named_by_their_hash(folder: Path) -> None:
    import hashlib

    assert files(folder) == ["model.json", "run.json", weights_file(folder).name]
    digest = hashlib.sha256(weights_file(folder).read_bytes()).hexdigest()
    assert weights_file(folder).name == f"weights-{digest}.safetensors"
    assert metadata(folder)["weights"]["sha256"] == digest
    assert metadata(folder)["schema_version"] == FORMAT.version


def test_a_folder_in_use_is_overwritten_on_request_only(folder: Path, adata: AnnData) -> None:
    before = metadata(folder)
    other = R2MAEModel(adata, **TINY, seed=1)
    with pytest.raises(FileExistsError, match="choose another folder or pass overwrite=True"):
        other.save(folder)
    assert metadata(folder) == before
    other.save(folder, overwrite=True)
    assert R2MAEModel.load(folder).seed == 1
    assert files(folder) == ["model.json", "run.json", weights_file(folder).name]


def test_saving_the_same_model_again_keeps_its_weights(folder: Path, trained: R2MAEModel) -> None:
    trained.save(folder, overwrite=True)
    assert_same_model(R2MAEModel.load(folder), trained)


def test_an_empty_folder_may_be_filled_and_a_file_is_no_folder(trained: R2MAEModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    trained.save(tmp_path / "empty")
    (tmp_path / "file").write_text("notes")
    with pytest.raises(NotADirectoryError, match="is a file; a model is saved as a folder"):
        trained.save(tmp_path / "file")


def test_other_files_in_the_folder_are_left_alone_and_orphan_weights_ignored(
    folder: Path, trained: R2MAEModel, adata: AnnData
) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / f"weights-{'0' * 64}.safetensors").write_bytes(b"left by a crash")
    assert_same_model(R2MAEModel.load(folder), trained)
    R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
    assert R2MAEModel.load(folder).seed == 1
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "killed_at", ["fsync of the weights", "rename of the weights", "rename of model.json"]
)
def test_a_save_killed_before_the_swap_leaves_the_old_model(
    killed_at: str, folder: Path, trained: R2MAEModel, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(*args: Any) -> None:
        raise OSError("killed")

    def killed_at_target(source: Any, target: Any) -> None:
        if Path(target).name.startswith("weights" if "weights" in killed_at else "model.json"):
            raise OSError("killed")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "fsync" if "fsync" in killed_at else "replace",
            killed if "fsync" in killed_at else killed_at_target,
        )
        with pytest.raises(OSError, match="killed"):
            R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
    assert_same_model(R2MAEModel.load(folder), trained)
    assert not [name for name in files(folder) if name.endswith(".part")]
    R2MAEModel(adata, **TINY, seed=2).save(folder, overwrite=True)
    assert R2MAEModel.load(folder).seed == 2


def test_a_save_killed_after_the_swap_leaves_the_new_model(
    folder: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(OSError, match="killed"):
            R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
    assert R2MAEModel.load(folder).seed == 1
    assert len(files(folder)) == 4  # the old weights are an orphan now


def test_a_model_overwritten_while_it_is_read_is_read_anew(
    folder: Path, trained: R2MAEModel, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_file, saved_between = model_folder.weights_file, []

    def save_between(document: dict[str, Any], *, place: Any) -> str:
        if not saved_between:
            saved_between.append(True)
            R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
        return weights_file(document, place=place)

    monkeypatch.setattr(model_folder, "weights_file", save_between)
    assert R2MAEModel.load(folder).seed == 1
    assert trained.seed != 1


def test_metadata_longer_than_are_read_back_are_not_written(
    folder: Path, trained: R2MAEModel, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(folder)
    monkeypatch.setattr(model_folder, "LARGEST_JSON", 100)
    with pytest.raises(ValueError, match="no more than 100 are read back"):
        R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
    assert files(folder) == before
    assert_same_model(R2MAEModel.load(folder), trained)


def test_everything_is_on_disk_before_the_swap(
    folder: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace, unlink = os.fsync, os.replace, Path.unlink
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(Path(b).suffix), replace(a, b))[1])
    monkeypatch.setattr(Path, "unlink", lambda self, **kw: (events.append("unlink"), unlink(self, **kw))[1])
    R2MAEModel(adata, **TINY, seed=1).save(folder, overwrite=True)
    assert events[:6] == ["fsync", "fsync", "fsync", ".safetensors", ".json", ".json"]
    assert events[6:] == ["fsync", "unlink"]


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "model.json").write_text(json.dumps({**metadata(folder), **changes}))

    return edit


def _drop(*keys: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        document = {key: value for key, value in metadata(folder).items() if key not in keys}
        (folder / "model.json").write_text(json.dumps(document))

    return drop


def _cut(name: str | None, n_bytes: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = weights_file(folder) if name is None else folder / name
        path.write_bytes(path.read_bytes()[:n_bytes])

    return cut


def _flip_a_bit(folder: Path) -> None:
    content = bytearray(weights_file(folder).read_bytes())
    content[-5] ^= 1
    weights_file(folder).write_bytes(content)


def _link_weights_elsewhere(folder: Path) -> None:
    path = weights_file(folder)
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def _other_network(folder: Path) -> None:
    document = metadata(folder)
    _edit(init_params={**document["init_params"], "n_latent": 5})(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "weights truncated": (_cut(None, 500), ValueError, "is damaged: its hash is not the one in its name"),
    "weights empty": (_cut(None, 0), ValueError, "is damaged: its hash"),
    "weights changed by a bit": (_flip_a_bit, ValueError, "is damaged: its hash"),
    "weights absent": (lambda f: weights_file(f).unlink(), FileNotFoundError, "lacks its weights"),
    "weights a link": (_link_weights_elsewhere, FileNotFoundError, "lacks its weights"),
    "weights outside the folder": (
        _edit(weights={"file": f"../weights-{'a' * 64}.safetensors", "sha256": "a" * 64}),
        ValueError,
        r"lists '\.\./weights-a+\.safetensors' as weights",
    ),
    "weights at an absolute path": (
        _edit(weights={"file": "/etc/passwd", "sha256": "a" * 64}),
        ValueError,
        "lists '/etc/passwd' as weights",
    ),
    "weights not described": (_edit(weights="all of them"), ValueError, "does not say where the weights are"),
    "weights without a hash": (
        lambda f: _edit(weights={"file": weights_file(f).name})(f),
        ValueError,
        "does not say where the weights are",
    ),
    "hash in model.json another": (
        lambda f: _edit(weights={"file": weights_file(f).name, "sha256": "b" * 64})(f),
        ValueError,
        "its hash does not match the weights file name",
    ),
    "model.json truncated": (_cut("model.json", 300), ValueError, "model.json is damaged"),
    "model.json empty": (_cut("model.json", 0), ValueError, "model.json is damaged"),
    "model.json no text": (
        lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"),
        ValueError,
        "model.json is damaged",
    ),
    "model.json a list": (
        lambda f: (f / "model.json").write_text("[]"),
        ValueError,
        "does not describe a scr2mae",
    ),
    "model.json absent": (
        lambda f: (f / "model.json").unlink(),
        FileNotFoundError,
        "has no model.json, only",
    ),
    "model.json of another package": (_edit(format="keras"), ValueError, "does not describe a scr2mae model"),
    "without a registry": (_drop("registry"), ValueError, r"lacks \['registry'\]"),
    "without a split": (_drop("split"), ValueError, r"lacks \['split'\]"),
    "without widths": (_drop("init_params"), ValueError, r"lacks \['init_params'\]"),
    "newer schema": (
        _edit(schema_version=99),
        ValueError,
        "schema version 99, .* reads up to 1; upgrade scr2mae",
    ),
    "schema no number": (_edit(schema_version="1"), ValueError, "schema version '1'"),
    "another class": (_edit(model="SCVI"), ValueError, "contains a SCVI, not a R2MAEModel"),
    "unknown schedule": (
        _edit(mask_ratio={"schedule": "Cosine"}),
        ValueError,
        "Unknown masking schedule 'Cosine'",
    ),
    "schedule that is none": (
        _edit(mask_ratio={"schedule": "draw_mask"}),
        ValueError,
        "Unknown masking schedule",
    ),
    "widths of another network": (_other_network, ValueError, "do not fit its metadata"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_or_foreign_folder_is_refused_by_name(kind: str, folder: Path) -> None:
    breaking, error, message = BROKEN[kind]
    breaking(folder)
    with pytest.raises(error, match=message):
        R2MAEModel.load(folder)


def test_a_path_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No model folder at"):
        R2MAEModel.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("notes")
    with pytest.raises(FileNotFoundError, match="No model folder at"):
        R2MAEModel.load(tmp_path / "file")


@pytest.mark.parametrize(
    "value", [np.float32(1.5), np.int64(3), np.bool_(True), np.array([1, 2]), np.array(["a", "b"])], ids=repr
)
def test_arrays_and_scalars_of_a_registry_survive_json(
    value: Any, trained: R2MAEModel, tmp_path: Path
) -> None:
    described = {**to_state(trained).document, "registry": {"value": value, "nested": [(value, None)]}}
    write_folder(tmp_path / "m", FORMAT, {"w": torch.arange(3)}, described)
    tensors, document, _ = read_folder(tmp_path / "m", FORMAT)
    assert tensors["w"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(document["registry"]["value"], value)
    np.testing.assert_array_equal(document["registry"]["nested"][0][0], value)
