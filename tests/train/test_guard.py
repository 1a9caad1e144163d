"""Non-finite values: none arise from hard counts; a step that has one is skipped, counted and named."""

import logging
import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.masking import FixedRatio
from scr2mae.train import MaskedTrainingPlan, NonFiniteError, fit
from scr2mae.train.guard import MAX_SKIPPED_IN_A_ROW, StepGuard

pytestmark = pytest.mark.filterwarnings("ignore:Gene names are row numbers:UserWarning")

QUICK = {"batch_size": 32, "accelerator": "cpu", "enable_progress_bar": False, "precision": "32-true"}
TEN_TIMES_THE_DEFAULT = {"plan_kwargs": {"lr": 1e-2}}


def is_finite(model: R2MAEModel) -> bool:
    return all(bool(value.isfinite().all()) for value in model.module.state_dict().values())


def hard_counts(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 1.0, (160, 40))).astype(np.float32)
    if kind == "one gene":
        counts[:, 1:] = 0
        counts[:, 0] += 1
    elif kind == "a million":
        counts *= 1e6
    elif kind == "empty cells":
        counts[16:] = 0
    elif kind == "all in one cell":
        counts[1:] = 0
        counts[0] = 1e6
    return counts


@pytest.mark.filterwarnings("ignore:.* cells have no counts:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "one gene", "a million", "empty cells", "all in one cell"])
def test_hard_counts_and_ten_times_the_learning_rate_stay_finite(kind: str) -> None:
    adata = AnnData(sp.csr_matrix(hard_counts(kind)))
    model = R2MAEModel(adata, n_hidden=16, n_latent=4)
    model.train(20, **QUICK, **TEN_TIMES_THE_DEFAULT)
    assert "skipped_steps" not in model.history
    assert all(np.isfinite(curve.to_numpy()).all() for curve in model.history.values())
    assert len(model.history["train_loss_step"]) == 20 * 5
    assert is_finite(model)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.get_normalized_expression(return_numpy=True)).all()


def extreme(adata: AnnData, cells: Any) -> R2MAEModel:
    """A model of cells some of which have a covariate at the end of float32's range, and which does not standardize it."""
    adata.obs["age"] = adata.obs["age"].astype(np.float32)
    adata.obs.loc[cells, "age"] = np.float32(3e38)
    R2MAEModel.setup_anndata(adata, continuous_covariate_keys=["age"])
    model = R2MAEModel(adata, n_hidden=16, n_latent=4)
    counts = torch.from_numpy(adata.X.toarray())
    model.module.start_from(counts, counts.sum(dim=1, keepdim=True).log(), seed=0)
    model.module.standardize.fit = lambda values: None
    return model


def test_a_bad_step_is_skipped_and_counted_and_its_cell_is_named(
    adata: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    model = extreme(adata, ["cell5"])
    with caplog.at_level(logging.WARNING, logger="scr2mae"):
        model.train(3, train_size=1.0, **QUICK)
    assert model.history["skipped_steps"]["skipped_steps"].tolist() == [1, 1, 1]
    assert model.history["skipped_steps"].index.name == "epoch"
    assert is_finite(model)
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()
    assert len(model.history["train_loss_step"]) == 12
    named = [record.getMessage() for record in caplog.records if "was skipped" in record.getMessage()]
    assert len(named) == 1
    assert "cells ['cell5'] (positions [5]) make the loss or gradient infinite" in named[0]


def test_a_skipped_step_leaves_weights_statistics_and_optimizer_unchanged(adata: AnnData) -> None:
    class Watch(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, torch.Tensor]] = []
            self.steps: list[float] = []

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            self.seen.append({k: v.clone() for k, v in pl_module.module.state_dict().items()})
            self.steps.append(float(next(iter(trainer.optimizers[0].state.values()))["step"]))

    model, watch = extreme(adata, ["cell5"]), Watch()
    fresh = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.train(1, train_size=1.0, callbacks=[watch], plan_kwargs={"averaging": None}, **QUICK)
    at = [k for k in range(4) if 5 in model.train_indices_[order(120)[k * 32 : (k + 1) * 32]]]
    assert at == [0]  # before anything is learned
    tracked = {name for name in fresh if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(watch.seen[0][name], fresh[name]) for name in tracked)
    assert not any(torch.equal(watch.seen[1][name], fresh[name]) for name in tracked if "running" in name)
    assert watch.steps == [0, 1, 2, 3]


def order(n: int) -> np.ndarray:
    return np.random.default_rng([0, 0]).permutation(n)


def test_twenty_bad_steps_stop_training_and_name_the_cells(adata: AnnData) -> None:
    model = extreme(adata, adata.obs_names)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(
        NonFiniteError, match=r"last 20 steps .* cells \['cell\d+', .*drop or scale them"
    ) as caught:
        model.train(50, train_size=1.0, **QUICK)
    assert set(caught.value.positions) <= set(range(120))
    assert len(model.history["train_loss_step"]) == MAX_SKIPPED_IN_A_ROW
    assert model.history["skipped_steps"]["skipped_steps"].sum() == MAX_SKIPPED_IN_A_ROW
    after = model.module.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if not k.endswith("num_batches_tracked"))
    with pytest.raises(RuntimeError, match="not trained yet"):
        model.get_latent_representation()


def test_a_short_run_of_which_every_step_was_skipped_does_not_end_as_trained(adata: AnnData) -> None:
    model = extreme(adata, adata.obs_names)
    with pytest.raises(NonFiniteError, match=r"All 8 steps had a loss or gradient that is not finite"):
        model.train(2, train_size=1.0, **QUICK)
    assert not model.is_trained
    adata.obs["age"] = np.float32(0.5)
    model.train(1, train_size=1.0, **QUICK)
    assert model.is_trained


class Fragile(torch.nn.Module):
    """A network of any modality: its mini-batches are pairs, and row ``bad`` has a loss or a gradient without end."""

    def __init__(self, *, sick: str = "loss", every: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.sick, self.every = sick, every

    def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> Any:
        values, is_bad = tensors
        loss = ((values @ self.weight) ** 2).mean()
        if self.training is False or step % self.every == 0:
            if self.sick == "loss":
                loss = loss + torch.where(is_bad.any(), torch.nan, 0.0)
            else:  # sqrt has a value at zero but no slope
                loss = loss + torch.sqrt(
                    (is_bad.float() @ torch.ones(len(is_bad)) < 1) * self.weight.square().sum()
                )
        return type("Loss", (), {"loss": loss, "n_obs_minibatch": len(values)})()


def run(module: Fragile, *, epochs: int = 1, **options: Any) -> tuple[MaskedTrainingPlan, pl.Trainer]:
    rng = torch.Generator().manual_seed(0)
    is_bad = torch.zeros(320, dtype=torch.bool)
    is_bad[::8] = True  # one a mini-batch of eight
    data = torch.utils.data.TensorDataset(torch.randn(320, 3, generator=rng), is_bad)
    plan = MaskedTrainingPlan(module, ratio_schedule=FixedRatio(0.5), **options.pop("plan", {}))
    trainer = fit(
        plan,
        Loaders(torch.utils.data.DataLoader(data, batch_size=8)),
        max_epochs=epochs,
        n_obs_epoch=320,
        accelerator="cpu",
        enable_progress_bar=False,
        unit="images",
        limit_val_batches=0,
        **options,
    )
    return plan, trainer


class Loaders(pl.LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return []


@pytest.mark.parametrize("sick", ["loss", "gradient"])
def test_every_modality_is_guarded_and_rows_are_named_where_positions_are_unknown(sick: str) -> None:
    with pytest.raises(NonFiniteError, match=r"rows \[0\] make the loss or gradient") as caught:
        run(Fragile(sick=sick))
    assert caught.value.positions is None


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW"])
@pytest.mark.parametrize("sick", ["loss", "gradient"])
def test_bad_steps_do_not_affect_those_between_them(sick: str, optimizer: str) -> None:
    plan, trainer = run(Fragile(sick=sick, every=2), plan={"optimizer": optimizer, "averaging": None})
    assert plan.history["skipped_steps"]["skipped_steps"].tolist() == [20]
    state = next(iter(trainer.optimizers[0].state.values()))
    assert float(state["step"]) == 20
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert 0 < float((plan.module.weight.detach() - 1).abs().max()) < 0.1


def test_clipping_and_accumulated_gradients_are_guarded_too() -> None:
    plan, trainer = run(Fragile(every=4), accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert plan.history["skipped_steps"]["skipped_steps"].tolist() == [10]
    assert float(next(iter(trainer.optimizers[0].state.values()))["step"]) == 10
    assert bool(plan.module.weight.isfinite().all())


def test_an_optimizer_that_is_not_fused_skips_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MaskedTrainingPlan.configure_optimizers

    def plain(self: MaskedTrainingPlan) -> Any:
        groups = made(self).param_groups
        return torch.optim.Adam(
            [{"params": g["params"], "lr": g["lr"], "peak_lr": g["lr"]} for g in groups], fused=False
        )

    monkeypatch.setattr(MaskedTrainingPlan, "configure_optimizers", plain)
    plan, trainer = run(Fragile(every=2))
    assert plan.history["skipped_steps"]["skipped_steps"].tolist() == [20]
    assert float(next(iter(trainer.optimizers[0].state.values()))["step"]) == 20


def test_rare_checks_stop_training_later_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = StepGuard(unit="images", check_every=16)
    monkeypatch.setattr("scr2mae.train.loop.StepGuard", lambda *_, **__: guard)
    module = Fragile()
    with pytest.raises(NonFiniteError, match="last 32 steps"):
        run(module)
    assert torch.equal(module.weight, torch.ones(3))
    assert guard.n_skipped == 32


def test_the_count_survives_a_checkpoint(tmp_path: Any) -> None:
    run(Fragile(every=2), checkpoint_dir=tmp_path)
    plan, _ = run(Fragile(every=2), epochs=2, resume=tmp_path)
    assert plan.history["skipped_steps"]["skipped_steps"].tolist() == [20, 20]


def test_the_mean_loss_of_an_epoch_leaves_skipped_steps_out() -> None:
    plan, _ = run(Fragile(every=2))
    losses = plan.history["train_loss_step"]["train_loss_step"]
    assert np.isnan(losses.to_numpy()).tolist() == [True, False] * 20
    expected = math.fsum(losses.dropna()) / 20
    pd.testing.assert_frame_equal(
        plan.history["train_loss"],
        pd.DataFrame({"train_loss": [expected]}, index=pd.Index([0], name="epoch")),
    )


def test_one_gene_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="gene"):
        R2MAEModel(AnnData(sp.csr_matrix(np.ones((10, 1), np.float32)))).train(1, **QUICK)


def test_thirty_thousand_genes_stay_finite(simulate: Callable[..., AnnData]) -> None:
    rng = np.random.default_rng(0)
    adata = AnnData(
        sp.random(
            64, 30_000, 0.01, "csr", np.float32, rng, lambda n: rng.integers(1, 1e6, n).astype(np.float32)
        )
    )
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    model.train(3, **QUICK, **TEN_TIMES_THE_DEFAULT)
    assert "skipped_steps" not in model.history
    assert is_finite(model)


class Whole(torch.nn.Module):
    """A network that takes whole mini-batches only, and fails on each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> Any:
        if len(tensors["x"]) < 8:
            raise ValueError("needs whole mini-batches")
        loss = (tensors["x"] @ self.weight).mean() * torch.nan
        return type("Loss", (), {"loss": loss, "n_obs_minibatch": 8})()


def guarded(
    module: torch.nn.Module, batches: list[dict[str, torch.Tensor]], *, positions: bool
) -> NonFiniteError:
    loader = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    if positions:
        loader.positions = lambda batch_idx: np.arange(8) + 8 * batch_idx  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError) as caught:
        fit(
            MaskedTrainingPlan(module, ratio_schedule=FixedRatio(0.5)),
            Loaders(loader),
            max_epochs=1,
            n_obs_epoch=240,
            accelerator="cpu",
            enable_progress_bar=False,
            unit="images",
            limit_val_batches=0,
        )
    return caught.value


@pytest.mark.parametrize("at", ["values", "weights"])
def test_rows_with_non_finite_values_are_named(at: str) -> None:
    batch = {"x": torch.ones(8, 3), "w": torch.ones(8), "temperature": torch.tensor(1.0)}
    batch["x" if at == "values" else "w"][5] = torch.inf
    error = guarded(Whole(), [batch] * 30, positions=True)
    assert "images [157] have values that are not finite" in str(error)
    assert error.positions.tolist() == [157]


@pytest.mark.parametrize("positions", [True, False])
def test_the_whole_mini_batch_is_named_if_rows_cannot_be_scored_alone(positions: bool) -> None:
    error = guarded(Whole(), [{"x": torch.ones(8, 3)}] * 30, positions=positions)
    assert "none of the images causes it alone" in str(error)
    listed = "images [152, 153, 154, 155, 156] and 3 more" if positions else "their positions are unknown"
    assert listed in str(error)


def test_a_mini_batch_without_rows_names_none() -> None:
    class Scalar(Whole):
        def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> Any:
            loss = tensors["x"] * self.weight.sum() * torch.nan
            return type("Loss", (), {"loss": loss, "n_obs_minibatch": 1})()

    error = guarded(Scalar(), [{"x": torch.tensor(1.0)}] * 30, positions=False)
    assert "their positions are unknown" in str(error)


def test_a_step_without_gradients_is_not_checked() -> None:
    class Frozen(Whole):
        def training_loss(self, tensors: Any, *, ratio: float, seed: int, step: int) -> Any:
            return type("Loss", (), {"loss": torch.tensor(1.0, requires_grad=True), "n_obs_minibatch": 8})()

    plan = MaskedTrainingPlan(Frozen(), ratio_schedule=FixedRatio(0.5))
    loader = torch.utils.data.DataLoader([{"x": torch.ones(8, 3)}] * 3, batch_size=None)  # type: ignore[arg-type]
    fit(
        plan,
        Loaders(loader),
        max_epochs=1,
        n_obs_epoch=24,
        accelerator="cpu",
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    assert torch.equal(plan.module.weight, torch.ones(3))
    assert "skipped_steps" not in plan.history
