"""``run.json`` of a model: written by every save, valid, and the same for the same run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils.files import RUN_SCHEMA_VERSION
from scr2mae.cli import main
from scr2mae.data import CellDataModule, split_cells
from scr2mae.extra import dna, vision
from scr2mae.train import provenance

Train = Callable[..., R2MAEModel]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def test_a_saved_model_has_the_record_of_its_run_beside_it(
    reference: R2MAEModel, tmp_path: Path, covariates: dict[str, Any]
) -> None:
    reference.save(tmp_path / "model")
    document = read(tmp_path / "model")
    assert (document["format"], document["schema_version"]) == ("scr2mae.run", RUN_SCHEMA_VERSION)
    weights = next((tmp_path / "model").glob("weights-*")).name
    assert weights == f"weights-{document['weights']}.safetensors"
    (run,) = document["runs"]
    split = reference.split_
    assert run["split"] == {
        "sha256": split.sha256,
        "key": "donor",
        "seed": 0,
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "n_test": 0,
    }
    assert run["seed"] == 0
    assert (run["data"]["n_obs"], run["data"]["n_vars"], run["data"]["n_obs_hashed"]) == (120, 60, 120)
    assert {name: run["arguments"]["setup"][name] for name in covariates} == covariates
    assert run["arguments"]["model"]["mask_ratio"] == [0.1, 0.5]
    assert run["arguments"]["train"]["max_epochs"] == 2
    assert (run["outcome"], run["epochs"], run["skipped_steps"], run["resumed"]) == ("finished", 2, 0, False)
    assert run["steps"] == len(reference.history_["train_loss_step"])
    assert (run["device"], run["n_processes"]) == ("cpu", 1)
    assert run["precision"] in ("32-true", "bf16-mixed")
    assert run["seconds"] > 0
    assert {"python", "scr2mae", "torch", "lightning", "scvi-tools", "anndata"} <= set(run["versions"])


def test_no_name_of_a_donor_or_cell_is_in_it(reference: R2MAEModel, tmp_path: Path) -> None:
    reference.save(tmp_path / "model")
    text = (tmp_path / "model" / "run.json").read_text()
    names = [*reference.adata.obs_names, *reference.adata.obs["donor"].cat.categories]
    assert not [name for name in names if f'"{name}"' in text]


def test_the_same_run_has_the_same_hash_and_any_other_has_another(
    simulate: Callable[..., AnnData], train_tiny: Train
) -> None:
    def sha256(adata: AnnData, **options: Any) -> str:
        return train_tiny(adata, max_epochs=1, **options).runs_[-1]["sha256"]

    first = sha256(simulate())
    assert sha256(simulate()) == first
    changed = simulate()
    changed.X.data[7] += 1
    others = [
        sha256(changed),
        sha256(simulate(), seed=1),
        sha256(simulate(), train_size=0.8),
        sha256(simulate(), plan_kwargs={"lr": 0.01}),
        sha256(simulate(), model={"mask_ratio": 0.3}),
    ]
    assert len({first, *others}) == 6


def test_records_accumulate_and_survive_saving_and_loading(
    adata: AnnData, train_tiny: Train, tmp_path: Path
) -> None:
    assert R2MAEModel(adata).runs_ == []
    model = train_tiny(adata)
    model.train(1, accelerator="cpu", enable_progress_bar=False, batch_size=16)
    assert [run["arguments"]["train"]["batch_size"] for run in model.runs_] == [32, 16]
    model.save(tmp_path / "first")
    again = R2MAEModel.load(tmp_path / "first")
    assert again.runs_ == model.runs_
    again.save(tmp_path / "second")
    assert read(tmp_path / "second") == read(tmp_path / "first")


def test_the_command_line_writes_the_record(
    adata: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("counts.h5ad")
    line = "train counts.h5ad -o model -q --accelerator cpu --max-epochs 1 --n-hidden 8 --n-latent 2"
    assert main(line.split()) == 0
    (run,) = read(Path("model"))["runs"]
    assert run["data"]["n_obs"] == 120
    assert run["arguments"]["model"]["n_hidden"] == 8


class _Stop(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("broken"), "failed")]
)
def test_an_interrupted_run_has_its_outcome(
    error: BaseException, outcome: str, adata: AnnData, tmp_path: Path, set_sigint: Callable[[Any], None]
) -> None:
    set_sigint(signal.default_int_handler)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    with pytest.raises(type(error)):
        model.train(3, batch_size=32, accelerator="cpu", enable_progress_bar=False, callbacks=[_Stop(error)])
    model.save(tmp_path / "model")
    (run,) = read(tmp_path / "model")["runs"]
    assert (run["outcome"], run["steps"], run["epochs"]) == (outcome, 2, 0)
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_custom_data_module_is_named_by_its_class(adata: AnnData) -> None:
    class Own(pl.LightningDataModule):
        def __init__(self, inner: CellDataModule) -> None:
            super().__init__()
            self.inner = inner

        def train_dataloader(self) -> Any:
            return self.inner.train_dataloader()

        def val_dataloader(self) -> Any:
            return self.inner.val_dataloader()

    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    own = Own(CellDataModule(model._cells(None), split_cells(120), batch_size=32))
    model.train(1, datamodule=own, accelerator="cpu", enable_progress_bar=False)
    (run,) = model.runs_
    assert model.module.runs_ == [run]
    assert run["data"]["datamodule"].endswith("Own")
    assert run["split"] is None


def test_other_modalities_have_records_and_saving_an_untrained_network_removes_them(
    tmp_path: Path,
) -> None:
    alignment = dna.simulate_alignment(1000, 2, seed=1)[0]
    windows = dna.MSAWindowDataset(
        alignment, dna.make_windows(alignment, size=16, step=16, both_strands=False)
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = dna.GPNMSAConfig(n_species=2, max_position_embeddings=32, **sizes)
    network = dna.GPNMSAForMaskedLM(config)
    dna.pretrain(
        network,
        windows,
        max_steps=2,
        batch_size=8,
        warmup=1,
        lr=1e-3,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    network.save_pretrained(tmp_path)
    (run,) = read(tmp_path)["runs"]
    assert (run["steps"], run["outcome"], run["arguments"]["batch_size"]) == (2, "finished", "8")
    dna.GPNMSAForMaskedLM(config).save_pretrained(tmp_path, overwrite=True)
    assert not (tmp_path / "run.json").exists()
    pixels = vision.MaskedMLP(n_hidden=4, n_latent=2, image_size=8, n_channels=1)
    pixels.runs_ = [run]
    pixels.save_pretrained(tmp_path / "vision")
    assert read(tmp_path / "vision")["runs"] == [run]
    vision.MaskedUNet(base_channels=2).save_pretrained(tmp_path / "vision", overwrite=True)
    assert not (tmp_path / "vision" / "run.json").exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (float("nan"), "nan"),
        (Path("a") / "b", "a/b"),
        ((1, None, True), [1, None, True]),
        (lambda: None, "function"),
        ({1: {"x"}}, {"1": ["x"]}),
    ],
    ids=["scalar", "nan", "path", "tuple", "function", "nested"],
)
def test_arguments_become_json(value: Any, expected: Any) -> None:
    assert provenance.plain(value) == expected


def test_numbers_of_numpy_are_numbers_in_the_record() -> None:
    ours, theirs = ({"seed": kind(3), "data": {"n": kind(2)}} for kind in (int, np.int64))
    assert provenance.fingerprint(theirs) == provenance.fingerprint(ours)
    assert type(provenance.fingerprint(theirs)["seed"]) is int


def test_arrays_among_the_arguments_are_named_by_their_content() -> None:
    first, second = provenance.plain(np.arange(3)), provenance.plain(np.arange(1, 4))
    assert first.startswith("array int64 [3] ")
    assert first != second
