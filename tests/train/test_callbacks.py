"""The running average of the weights: in training, in validation and after an interruption."""

import lightning.pytorch as pl
import pytest
import torch

from scr2mae.masking import FixedRatio
from scr2mae.train import MaskedTrainingPlan, RunningWeightAverage, fit


class _Line(torch.nn.Module):
    """A weight, a running statistic and a count, all of which move at each step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.norm = torch.nn.BatchNorm1d(3, affine=False)

    def training_loss(self, tensors, *, ratio, seed, step):
        loss = (self.norm(tensors) * self.weight).square().mean() - self.weight.mean()
        return type("Out", (), {"loss": loss, "n_obs_minibatch": len(tensors)})()


class _Data(pl.LightningDataModule):
    def train_dataloader(self):
        values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(values, batch_size=4)

    val_dataloader = train_dataloader


class _Watch(pl.Callback):
    """Keeps the weights after each step, and those that validation sees; may break the run off."""

    def __init__(self, stop_at=None):
        self.steps, self.validated, self.stop_at, self.plan = [], [], stop_at, None

    def on_train_batch_end(self, trainer, plan, *_):
        self.plan = plan
        self.steps.append({name: value.clone() for name, value in plan.module.state_dict().items()})
        if len(self.steps) == self.stop_at:
            raise KeyboardInterrupt

    def on_validation_batch_start(self, trainer, plan, *_):
        self.validated.append(plan.module.weight.detach().clone())


def train(watch, *, averaging, max_epochs=1):
    plan = MaskedTrainingPlan(_Line(), ratio_schedule=FixedRatio(0.5), averaging=averaging)
    fit(
        plan,
        _Data(),
        max_epochs=max_epochs,
        n_obs_epoch=400,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=[watch],
    )
    return plan.module


def reference(steps, *, share):
    average = None
    for t, step in enumerate(steps, start=1):
        apart = max(1, min(8, int(share * t / 4)))
        if (t - 1) % apart == 0:
            now = {name: value.double() for name, value in step.items()}
            weight = min(1.0, apart / (share * t))
            average = (
                now if average is None else {k: average[k] + weight * (now[k] - average[k]) for k in now}
            )
    return average


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_the_trained_network_has_the_average_of_the_steps(share):
    watch = _Watch()
    module = train(watch, averaging=share)
    expected = reference(watch.steps, share=share)
    for name in ("weight", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(module.state_dict()[name].double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(module.weight, watch.steps[-1]["weight"])


def test_a_share_of_one_is_the_mean_of_all_steps_while_each_is_averaged():
    watch = _Watch(stop_at=8)
    with pytest.raises(KeyboardInterrupt):
        train(watch, averaging=1.0)
    mean = torch.stack([step["weight"] for step in watch.steps[:7]]).double().mean(dim=0)
    torch.testing.assert_close(watch.plan.module.weight.detach().double(), mean, rtol=1e-5, atol=1e-7)


def test_without_averaging_the_last_weights_remain():
    watch = _Watch()
    assert torch.equal(train(watch, averaging=None).weight, watch.steps[-1]["weight"])


def test_validation_scores_the_average_and_training_continues_from_the_last_weights():
    watch, plain = _Watch(), _Watch()
    module = train(watch, averaging=0.5, max_epochs=2)
    train(plain, averaging=None, max_epochs=2)
    for step, other in zip(watch.steps, plain.steps, strict=True):
        assert torch.equal(step["weight"], other["weight"])
    assert torch.equal(watch.validated[-1], module.weight)
    assert not torch.equal(watch.validated[-1], plain.validated[-1])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got"):
        RunningWeightAverage(share)


@pytest.mark.parametrize("averaging", [None, 0.5])
def test_weights_that_have_decayed_to_subnormal_numbers_become_zero(averaging):
    plan = MaskedTrainingPlan(_Line(), ratio_schedule=FixedRatio(0.5), averaging=averaging, weight_decay=0.0)
    tiny = torch.finfo(torch.float32).tiny
    below = tiny * (1 - torch.finfo(torch.float32).eps)  # the largest subnormal number
    plan.module.unused = torch.nn.Parameter(torch.tensor([1e-39, -1e-41, below, -below, tiny, -tiny]))
    loss = plan.module.training_loss

    def with_unused(tensors, **kwargs):
        out = loss(tensors, **kwargs)
        out.loss = out.loss + 0.0 * plan.module.unused.sum()
        return out

    plan.module.training_loss = with_unused
    fit(plan, _Data(), max_epochs=1, n_obs_epoch=400, accelerator="cpu", enable_progress_bar=False)
    assert plan.module.unused.tolist() == [
        0.0,
        0.0,
        0.0,
        0.0,
        tiny,
        -tiny,
    ]  # the smallest normal numbers stay
    assert (plan.module.weight != 0.0).all()
