"""Model folders of every schema version there has been are read, and embed as they did when they were written."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils.model_folder import read_index
from scr2mae.model.state import FORMAT
from scr2mae.probe import Probe, fit_probe

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("schema_*/*/model.json"))


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """The script that wrote the folders; the counts are its."""
    spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counts_of(make: ModuleType, folder: Path) -> AnnData:
    return make.counts(("b0", "new")) if folder.name == "query" else make.counts()


def test_every_version_up_to_this_one_has_folders_of_every_kind() -> None:
    kinds = {"plain", "covariates", "curriculum", "query"}
    for version in range(1, FORMAT.version + 1):
        assert {each.name for each in FOLDERS if each.parent.name == f"schema_{version}"} == kinds
        for folder in (FIXTURES / f"schema_{version}").glob("*/"):
            assert read_index(folder, FORMAT)["schema_version"] == version


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_folder_embeds_as_it_did(folder: Path, make: ModuleType) -> None:
    with np.load(folder.parent / "expected.npz") as arrays:
        expected = arrays[folder.name]
    model = R2MAEModel.load(folder, accelerator="cpu")
    z = model.get_latent_representation(counts_of(make, folder))
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    assert len(model.history["train_loss"]) == 2
    assert model.split_ is not None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_old_folder_takes_data_trains_on_and_is_saved_as_this_version(
    folder: Path, make: ModuleType, tmp_path: Path
) -> None:
    model = R2MAEModel.load(folder, counts_of(make, folder), accelerator="cpu")
    model.train(1, batch_size=8, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model")
    assert read_index(tmp_path / "model", FORMAT)["schema_version"] == FORMAT.version
    np.testing.assert_array_equal(
        R2MAEModel.load(tmp_path / "model", accelerator="cpu").get_latent_representation(model.adata),
        model.get_latent_representation(),
    )


def test_the_folders_are_small() -> None:
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*.*") if path.is_file())
    assert size < 250_000


@pytest.mark.parametrize("kind", ["model", "probe"])
def test_a_folder_of_a_newer_version_is_refused_with_what_reads_it(kind, adata, train_tiny, tmp_path):
    if kind == "model":
        train_tiny(adata).save(tmp_path / "folder")
        load = R2MAEModel.load
    else:
        adata.obs["disease"] = np.where(adata.obs["donor"].isin(["donor0", "donor2", "donor4"]), "x", "y")
        target = {"target": "disease", "kind": "classification", "donor_key": "donor"}
        fit_probe(adata, use_rep="X", n_bootstrap=0, cv=2, **target).save(tmp_path / "folder")
        load = Probe.load
    index = tmp_path / "folder" / f"{kind}.json"
    document = json.loads(index.read_text())
    version = document["schema_version"]
    index.write_text(json.dumps({**document, "schema_version": version + 1, "of the future": [1]}))
    with pytest.raises(
        ValueError, match=rf"has schema version {version + 1}, this version .* up to {version}; upgrade"
    ):
        load(tmp_path / "folder")
