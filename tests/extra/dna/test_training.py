"""Training: every scheme, convergence, resume, and invalid runs."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import scr2mae
from scr2mae.extra import dna
from scr2mae.extra.dna import training
from scr2mae.masking import DiscreteRatio
from scr2mae.nn.curriculum import Curriculum, GradientSchedule

SCHEMES = scr2mae.schemes("dna")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_trains_with_its_ratios(tiny, dataset, quick, scheme):
    model = tiny(curriculum=SCHEMES[scheme].curriculum)
    before = {name: p.clone() for name, p in model.named_parameters()}
    history = dna.pretrain(model, dataset, scheme=scheme, **{**quick, "max_steps": 12}).history_
    ratios = history["mask_ratio_step"]["mask_ratio_step"].tolist()
    schedule = SCHEMES[scheme].mask_ratio
    if scheme.startswith("r2mae_cl"):
        schedule = Curriculum().ratio_schedule((0.05, 0.30))
        assert isinstance(schedule, DiscreteRatio)
        np.testing.assert_allclose(schedule.values, np.linspace(0.05, 0.3, 10))
    assert ratios == pytest.approx([schedule(step, 12) for step in range(12)])
    assert np.isfinite(history["train_loss_step"]["train_loss_step"]).all()
    assert not model.training
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # softmax does not feel a shift of all keys, so their biases may stay
    assert moved >= {name for name in before if not name.endswith("key.bias")}


def test_the_curriculum_is_frozen_first(tiny, dataset, quick):
    model = tiny(curriculum=Curriculum(schedule=GradientSchedule(frozen=4, start=4, end=8)))
    before = {name: p.clone() for name, p in model.curriculum.named_parameters()}
    dna.pretrain(model, dataset, scheme="r2mae_cl", **quick)
    assert all(torch.equal(p, before[name]) for name, p in model.curriculum.named_parameters())


def test_sixty_four_windows_are_memorized(tiny, msa, quick):
    windows = dna.make_windows(msa, size=16, step=16, both_strands=False).iloc[:64]
    data = dna.MSAWindowDataset(msa, windows)
    model = tiny(hidden_size=64, num_hidden_layers=1, intermediate_size=128)
    options = {**quick, "max_steps": 600, "batch_size": 64, "lr": 8e-3, "warmup": 20, "weight_decay": 0.0}
    dna.pretrain(model, data, mask_ratio=0.1, **options)
    losses = [
        float(model.training_loss(data.batch(np.arange(64)), ratio=0.1, seed=99, step=step).loss.detach())
        for step in range(5)
    ]
    assert np.mean(losses) < 0.05, losses  # log 4 without learning


def test_a_resumed_run_ends_with_the_same_weights_bit_by_bit(tiny, dataset, quick, tmp_path):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    options = {**quick, "batch_size": 32, "scheme": "r2mae_cl"}
    whole = tiny(curriculum="cl", **dropout)
    kept = dna.pretrain(whole, dataset, **{**options, "max_steps": 12}).history_
    steps_per_epoch = -(-len(dataset) // 32)
    assert steps_per_epoch == 4

    class StopError(Exception):
        pass

    class Breaks(dna.MSAWindowDataset):
        """Data that fail in the third epoch."""

        n_batches = 0

        def batch(self, indices):
            self.n_batches += 1
            if self.n_batches > 9:
                raise StopError
            return super().batch(indices)

    broken = tiny(curriculum="cl", **dropout)
    with pytest.raises(StopError):
        dna.pretrain(
            broken,
            Breaks(dataset.msa, dataset.windows),
            **{**options, "max_steps": 12},
            checkpoint_dir=tmp_path,
        )
    again = tiny(seed=5, curriculum="cl", **dropout)
    resumed = dna.pretrain(again, dataset, **{**options, "max_steps": 12}, resume=tmp_path).history_
    for name, p in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], p), name
    for curve, frame in kept.items():
        assert resumed[curve].equals(frame)


def test_validation_has_a_curve_for_each_ratio(tiny, dataset, quick):
    history = dna.pretrain(tiny(), dataset, dataset, **{**quick, "max_steps": 32}).history_
    for ratio in dna.VALIDATION_RATIOS:
        assert len(history[f"validation_loss_{ratio:g}"]) == 2
    assert history["validation_loss"]["validation_loss"].iloc[-1] < np.log(6)


def test_steps_count_optimizer_steps_when_gradients_are_accumulated(tiny, dataset, quick):
    history = dna.pretrain(tiny(), dataset, **{**quick, "accumulate_grad_batches": 3}).history_
    assert len(history["train_loss_step"]) == 4 * 3


@pytest.mark.usefixtures("at_a_terminal")
def test_the_progress_bar_counts_windows(tiny, dataset, quick, capsys):
    dna.pretrain(tiny(), dataset, **{**quick, "max_steps": 16, "enable_progress_bar": True})
    assert "windows/s" in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_as_many_steps_are_made_on_any_number_of_devices(tiny, dataset, quick, monkeypatch, devices):
    """125 windows by eight are 16, 8 and 6 mini-batches for one, two and three devices."""
    asked = {}
    monkeypatch.setattr(training, "train_network", lambda network, data, **options: asked.update(options))
    dna.pretrain(tiny(), dataset, **{**quick, "max_steps": 40, "devices": devices})
    n_batches = {1: 16, 2: 8, 3: 6}[devices]
    assert asked["limit_train_batches"] <= n_batches
    assert 40 <= asked["max_epochs"] * asked["limit_train_batches"] < 40 + asked["max_epochs"]
    assert asked["n_obs_epoch"] == min(125, asked["limit_train_batches"] * 8 * devices)


def test_fewer_windows_than_devices_are_refused(tiny, dataset, quick):
    few = dna.MSAWindowDataset(dataset.msa, dataset.windows.iloc[:2])
    with pytest.raises(ValueError, match=r"2 windows for 3 devices; train on fewer"):
        dna.pretrain(tiny(), few, **{**quick, "devices": 3})


def test_a_network_knows_its_species_and_refuses_them_in_another_order(tiny, dataset, quick):
    msa, model = dataset.msa, tiny()
    dna.pretrain(model, dataset, **{**quick, "max_steps": 1})
    assert model.species_ == msa.species[1:] == ("species1", "species2", "species3")
    turned = dna.GenomeMSA.from_numpy(
        msa.get("chr1", 0, 4000)[:, [0, 1, 3, 2]], chrom="chr1", species=["reference", "species1", "species3", "species2"],
    )  # fmt: skip
    data = dna.MSAWindowDataset(turned, dataset.windows)
    variants = pd.DataFrame({"chrom": ["chr1"], "pos": [500], "ref": ["A"], "alt": ["C"]})
    for use in (
        lambda: dna.pretrain(model, data, **quick),
        lambda: dna.predict_bases(model, data, accelerator="cpu"),
        lambda: dna.score(model, turned, variants, window_size=16),
    ):
        with pytest.raises(
            ValueError, match=r"Species 2 of the alignment is 'species3', .* trained with 'species2'"
        ):
            use()
    unnamed = dna.GenomeMSA.from_numpy(turned.get("chr1", 0, 4000), chrom="chr1")
    scored = dna.score(model, unnamed, variants, window_size=16, accelerator="cpu", progress=False)
    assert len(scored) == 1


def test_windows_longer_than_the_network_takes_are_refused(tiny, msa, quick):
    data = dna.MSAWindowDataset(msa, dna.make_windows(msa, size=65, step=65))
    message = r"Windows of 65 positions are longer than max_position_embeddings=64"
    with pytest.raises(ValueError, match=message):
        dna.pretrain(tiny(), data, **quick)
    with pytest.raises(ValueError, match=message):
        dna.predict_bases(tiny(), data, accelerator="cpu")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"scheme": "bert"}, r"scheme must be one of \['mae', .*got 'bert'"),
        (
            {},
            {"scheme": "cl"},
            r"Scheme 'cl' has curriculum='cl', the network has None; make it with GPNMSAConfig\(curriculum='cl'\)",
        ),
        ({"curriculum": "cl"}, {"scheme": "mae"}, r"Scheme 'mae' has curriculum=None"),
        ({"n_species": 2}, {}, r"takes 2 species besides the reference, the alignment has 3"),
        ({}, {"max_steps": 0}, r"max_steps and batch_size must be at least 1"),
        ({}, {"mask_ratio": 1.5}, r"mask_ratio must lie in \[0, 1\]"),
        ({}, {"warmup": -1}, r"warmup must be"),
    ],
)
def test_invalid_runs_are_refused(tiny, dataset, quick, config, options, message):
    with pytest.raises(ValueError, match=message):
        dna.pretrain(tiny(**config), dataset, **{**quick, **options})


def test_a_missing_checkpoint_is_named(tiny, dataset, quick, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at"):
        dna.pretrain(tiny(), dataset, **quick, resume=tmp_path)


def test_a_light_import_of_the_package_stays_light():
    code = "import sys, scr2mae, scr2mae.extra; print({'zarr', 'transformers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
