"""The learning-rate schedule, and what the plan does with it and with a network's own parameter groups."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from scr2mae._utils.batches import BatchLoader
from scr2mae.masking import FixedRatio
from scr2mae.train import LearningRateSchedule, MaskedTrainingPlan, fit


def test_warm_up_rises_in_equal_steps_to_one():
    schedule = LearningRateSchedule(warmup=4)
    assert [schedule(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_warm_up_share_counts_from_the_length_of_the_run():
    share, steps = LearningRateSchedule("linear", warmup=0.1), LearningRateSchedule("linear", warmup=20)
    assert [share(step, 200) for step in range(200)] == [steps(step, 200) for step in range(200)]


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_decay_matches_its_formula(final):
    schedule = LearningRateSchedule("cosine", warmup=10, final=final)
    for step in range(10, 111):
        expected = final + (1 - final) * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert schedule(step, 110) == pytest.approx(expected, abs=1e-12)


def test_linear_decay_ends_at_its_final_value():
    assert LearningRateSchedule("linear", final=0.2)(100, 100) == pytest.approx(0.2)
    assert LearningRateSchedule("linear")(50, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": "step"}, "decay must be one of"),
        ({"warmup": -1}, "warmup must be"),
        ({"warmup": 1.5}, "fraction of the run"),
        ({"final": -0.1}, "final must be"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearningRateSchedule(**arguments)


class _Mean(torch.nn.Module):
    """The least that the plan trains: three numbers, each in a group of its own."""

    def __init__(self):
        super().__init__()
        self.decayed, self.kept, self.slow = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))

    def parameter_groups(self, weight_decay):
        return [
            {"params": [self.decayed]},
            {"params": [self.kept], "weight_decay": 0.0, "lr": 0.5},
            {"params": [self.slow], "lr_scale": 0.25},
        ]

    def training_loss(self, tensors, *, ratio, seed, step):
        loss = (0.0 * tensors).sum() * (self.decayed + self.kept + self.slow).sum()
        return type("Out", (), {"loss": loss, "n_obs_minibatch": len(tensors)})()


class _Data(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(8, 1), batch_size=2)

    val_dataloader = train_dataloader


class _Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, *args):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_the_plan_follows_the_schedule_in_every_group_and_decays_only_where_asked():
    schedule, seen = LearningRateSchedule("cosine", warmup=2), _Rates()
    plan = MaskedTrainingPlan(
        _Mean(),
        ratio_schedule=FixedRatio(0.5),
        lr=0.1,
        weight_decay=0.1,
        optimizer="AdamW",
        learning_rate=schedule,
    )
    fit(
        plan,
        _Data(),
        max_epochs=2,
        n_obs_epoch=8,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[seen],
    )
    torch.testing.assert_close(
        torch.tensor(seen.rates),
        torch.tensor([[r * schedule(i, 8) for r in (0.1, 0.5, 0.025)] for i in range(8)]),
    )
    assert plan.module.kept.item() == 1.0
    assert plan.module.decayed.item() == pytest.approx(
        math.prod(1 - 0.1 * 0.1 * schedule(i, 8) for i in range(8)), rel=1e-5
    )


class _Stop(pl.Callback):
    """Save a checkpoint in mid-epoch and break off."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


class _Line(torch.nn.Module):
    """A loss that depends on which batch comes when."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def training_loss(self, tensors, *, ratio, seed, step):
        loss = ((self.slope - tensors.float()) ** 2).mean()
        return type("Out", (), {"loss": loss, "n_obs_minibatch": len(tensors)})()


class _Shuffled(pl.LightningDataModule):
    def train_dataloader(self):
        return BatchLoader(torch.arange(16).__getitem__, np.arange(16), batch_size=2, shuffle=True)

    val_dataloader = train_dataloader


def _run(**options):
    plan = MaskedTrainingPlan(
        _Line(),
        ratio_schedule=FixedRatio(0.5),
        lr=0.1,
        learning_rate=LearningRateSchedule("linear", warmup=0.2),
    )
    run = {"max_epochs": 2, "n_obs_epoch": 16, "accelerator": "cpu", "enable_progress_bar": False, **options}
    fit(plan, _Shuffled(), **run)
    return plan


def test_with_a_schedule_a_run_interrupted_within_an_epoch_resumes_at_the_next_batch(tmp_path):
    whole = _run()
    with pytest.raises(RuntimeError, match="killed"):
        _run(callbacks=[_Stop(tmp_path / "killed.ckpt")])
    resumed = _run(resume=tmp_path / "killed.ckpt")
    losses = [plan.history["train_loss_step"]["train_loss_step"].tolist() for plan in (whole, resumed)]
    assert losses[0] == losses[1]
    assert torch.equal(whole.module.slope, resumed.module.slope)


def test_gradients_can_be_clipped_under_mixed_precision():
    free, clipped = (
        _run(precision="bf16-mixed", gradient_clip_val=value, max_epochs=1).module.slope
        for value in (None, 1e-3)
    )
    # Adam forgets the size of all gradients alike, but clipping makes early, larger ones weigh no more.
    assert torch.isfinite(clipped).all()
    assert not torch.equal(free, clipped)
