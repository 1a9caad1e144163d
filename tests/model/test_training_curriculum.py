"""A model with a curriculum: frozen, then trained; logged, saved, resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.strategies import DDPStrategy

from scr2mae import R2MAEModel
from scr2mae.nn.curriculum import Curriculum, GradientSchedule
from scr2mae.nn.module import R2MAEModule
from scr2mae.train.callbacks import expression_deciles

Train = Callable[..., R2MAEModel]
OPTIONS: dict[str, Any] = {
    "curriculum": Curriculum(n_ratios=4, schedule=GradientSchedule(frozen=4, start=5, end=9))
}


def _weights(model: R2MAEModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items() if k.startswith("curriculum")}


def test_the_network_is_frozen_first_even_under_weight_decay(adata: AnnData, train_tiny: Train) -> None:
    fresh = R2MAEModel(adata, n_hidden=16, n_latent=4, **OPTIONS)
    decay = {"plan_kwargs": {"weight_decay": 0.1}}
    one = train_tiny(adata, max_epochs=1, model=OPTIONS, **decay)  # four steps an epoch
    two = train_tiny(adata, max_epochs=2, model=OPTIONS, **decay)
    assert all(
        torch.equal(a, b) for a, b in zip(_weights(fresh).values(), _weights(one).values(), strict=True)
    )
    assert not any(
        torch.equal(a, b) for a, b in zip(_weights(fresh).values(), _weights(two).values(), strict=True)
    )


def test_curves_show_multiplier_mass_and_weights_by_expression(adata: AnnData, train_tiny: Train) -> None:
    model = train_tiny(adata, max_epochs=3, model=OPTIONS)
    history = model.history_
    assert history["curriculum_multiplier"]["curriculum_multiplier"].tolist() == [0.0, 0.0, -1.0]
    for side in ("row", "column"):
        assert (history[f"curriculum_{side}_error"][f"curriculum_{side}_error"] < 1e-4).all()
    lowest = [f"curriculum_weight_0.1_decile_{k}" for k in range(1, 11)]
    assert all(name in history for name in lowest)
    assert np.mean([history[name][name].iloc[-1] for name in lowest]) == pytest.approx(1, abs=1e-3)


def test_deciles_are_equal_in_size_and_ordered_by_expression() -> None:
    mean = np.random.default_rng(0).permutation(60).astype(float)
    deciles = expression_deciles(mean)
    assert np.bincount(deciles).tolist() == [6] * 10
    assert max(mean[deciles == 3]) < min(mean[deciles == 4])


def test_weights_are_a_balanced_frame_of_genes_by_ratios(adata: AnnData, train_tiny: Train) -> None:
    frame = train_tiny(adata, model=OPTIONS).get_curriculum_weights()
    assert frame.index.tolist() == adata.var_names.tolist()
    np.testing.assert_allclose(frame.columns, np.linspace(0.1, 0.5, 4))
    np.testing.assert_allclose(frame.sum(axis=0), adata.n_vars, rtol=1e-4)
    np.testing.assert_allclose(frame.sum(axis=1), 4, rtol=1e-4)


def test_a_model_without_a_curriculum_has_no_weights(trained: R2MAEModel) -> None:
    with pytest.raises(ValueError, match="has no curriculum"):
        trained.get_curriculum_weights()


@pytest.mark.parametrize("mask_ratio", [(0.1, 0.5), 0.25], ids=["range", "fixed"])
def test_saving_and_loading_keep_it(
    mask_ratio: Any, adata: AnnData, train_tiny: Train, tmp_path: Path
) -> None:
    model = train_tiny(adata, model={**OPTIONS, "mask_ratio": mask_ratio})
    model.save(tmp_path / "model")
    loaded = R2MAEModel.load(tmp_path / "model", adata)
    assert loaded.curriculum == model.curriculum
    assert loaded.get_curriculum_weights().equals(model.get_curriculum_weights())


def test_a_resumed_run_equals_a_whole_one_bit_for_bit(
    simulate: Callable[..., AnnData], train_tiny: Train, tmp_path: Path
) -> None:
    whole = train_tiny(simulate(), max_epochs=4, model=OPTIONS)
    train_tiny(simulate(), max_epochs=2, checkpoint_dir=tmp_path, model=OPTIONS)
    resumed = train_tiny(simulate(), max_epochs=4, resume=tmp_path, model=OPTIONS)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["cl", "cl_k0"])
def test_names_choose_the_schedule(name: str, adata: AnnData) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2, curriculum=name)
    assert model.curriculum is not None
    assert model.curriculum.schedule.final == {"cl": -1.0, "cl_k0": 1.0}[name]
    assert model.module.curriculum.n_ratios == 10


@pytest.mark.parametrize(
    "options", [{"devices": 2}, {"devices": [0, 1]}, {"devices": 1, "num_nodes": 2}], ids=str
)
@pytest.mark.parametrize("curriculum", ["cl", None])
def test_several_processes_allow_for_the_frozen_network(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], curriculum: str | None
) -> None:
    asked = _trainer_options(adata, monkeypatch, curriculum, options)
    assert isinstance(asked["strategy"], DDPStrategy)
    assert asked["strategy"]._ddp_kwargs["find_unused_parameters"] == (curriculum is not None)


@pytest.mark.parametrize(
    ("options", "strategy"),
    [({"devices": 2, "strategy": "fsdp"}, "fsdp"), ({"devices": 1}, None), ({}, None)],
)
def test_a_user_defined_strategy_is_kept_and_one_process_needs_none(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], strategy: str | None
) -> None:
    assert _trainer_options(adata, monkeypatch, "cl", options).get("strategy") == strategy


def _trainer_options(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch, curriculum: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    class StopError(Exception):
        pass

    asked: dict[str, Any] = {}

    def trainer(**kwargs: Any) -> None:
        asked.update(kwargs)
        raise StopError

    monkeypatch.setattr("scr2mae.train.loop.pl.Trainer", trainer)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2, curriculum=curriculum)
    with pytest.raises(StopError):
        model.train(1, accelerator="cpu", **options)
    return asked


def test_each_step_is_weighted_by_the_column_of_its_own_ratio(
    adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int]] = []
    step = R2MAEModule.training_loss

    def watched(self: R2MAEModule, tensors: Any, **kwargs: Any) -> Any:
        if kwargs.get("ratio_index") is not None:
            seen.append((kwargs["ratio"], kwargs["ratio_index"]))
        return step(self, tensors, **kwargs)

    monkeypatch.setattr(R2MAEModule, "training_loss", watched)
    model = R2MAEModel(adata, n_hidden=8, n_latent=2, curriculum="cl")
    model.train(20, batch_size=16, accelerator="cpu", enable_progress_bar=False)
    ratios = np.linspace(0.1, 0.5, 10)
    assert len({column for _, column in seen}) > 5
    np.testing.assert_allclose([ratio for ratio, _ in seen], [ratios[column] for _, column in seen])


@pytest.mark.parametrize("column", [0, 7])
def test_the_loss_is_the_mean_of_weight_times_negative_log_likelihood(adata: AnnData, column: int) -> None:
    module = R2MAEModel(adata, n_hidden=8, n_latent=2, curriculum="cl", encoder="mlp").module
    assert module.curriculum is not None
    torch.nn.init.normal_(module.curriculum.to_ratios.weight, std=20.0)
    counts = torch.as_tensor(adata.X[:32].toarray(), dtype=torch.float32)
    tensors = {"X": counts, "batch": torch.zeros(32, 1, dtype=torch.long)}
    got = module.training_loss(tensors, ratio=0.3, seed=0, step=0, ratio_index=column).loss
    mask = module.draw_gene_mask(tensors, 0.3, seed=0, step=0)
    logits = module.generative(module.inference(counts, tensors["batch"], mask=mask)["z"], tensors["batch"])[
        "logits"
    ]
    weights = module.curriculum_weights(tensors)[:, column]
    nll = module.element_nll(tensors, logits)
    torch.testing.assert_close(got, (nll * weights)[:, mask].mean())
    assert (got - nll[:, mask].mean()).abs() > 1e-3
