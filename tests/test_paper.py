"""The paper's settings: one source for models, the benchmark, the command line and the loaders of atlases."""

import inspect

import pytest

import scr2mae
from scr2mae import datasets
from scr2mae.masking import DecayRatio
from scr2mae.nn.curriculum import Curriculum
from scr2mae.train import MaskedTrainingPlan


def test_the_preset_is_that_of_appendix_c8(adata):
    model = scr2mae.R2MAEModel.paper(adata)
    assert model.module.to_latent.in_features == 1000
    assert model.module.to_latent.out_features == 512
    sizes = {name: model.init_params_[name] for name in scr2mae.paper().model}
    assert sizes == {
        "encoder": "mlp",
        "n_hidden": 1000,
        "n_latent": 512,
        "n_layers": 2,
        "n_layers_decoder": 1,
    }
    train = scr2mae.paper().train
    plan = MaskedTrainingPlan(model.module, ratio_schedule=lambda *_: 0.5, **train["plan_kwargs"])
    assert plan.optimizer_kwargs | {"betas": None, "eps": None} == {
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "betas": None,
        "eps": None,
    }
    assert plan.averaging is None
    assert (plan.optimizer_name, train["precision"], train["split_key"]) == ("Adam", "32-true", False)
    assert (train["max_epochs"], train["batch_size"], train["train_size"]) == (50, 400, 0.9)


def test_models_and_the_benchmark_have_the_same_settings():
    settings = scr2mae.paper("sea_ad")
    assert settings.benchmark["model_kwargs"] == settings.model
    shared = settings.benchmark["train_kwargs"]
    assert shared == {name: value for name, value in settings.train.items() if name in shared}
    accepted = inspect.signature(scr2mae.benchmark.run).parameters
    assert settings.benchmark.keys() <= accepted.keys()
    assert (
        settings.train.keys() - {"precision"} <= inspect.signature(scr2mae.R2MAEModel.train).parameters.keys()
    )


@pytest.mark.parametrize(("atlas", "load"), [("hlca", datasets.hlca), ("sea_ad", datasets.sea_ad)])
def test_the_loaders_preprocess_as_the_preset_does(atlas, load):
    defaults = {
        name: parameter.default
        for each in (datasets.load_atlas, load)
        for name, parameter in inspect.signature(each).parameters.items()
    }
    settings = {"min_genes": 0} | scr2mae.paper(atlas).preprocess
    assert settings == {name: defaults[name] for name in settings}


def test_another_atlas_is_refused():
    with pytest.raises(ValueError, match="atlas must be one of"):
        scr2mae.paper("lung")


@pytest.mark.parametrize(
    ("atlas", "steps", "rate", "end"),
    [("hlca", 243_000, 1 / 300_000, 0.176), ("sea_ad", 155_000, 1 / 150_000, 0.1)],
)
def test_an_atlas_has_the_steps_of_the_paper(atlas, steps, rate, end):
    rows = scr2mae.schemes(atlas, seed=3)
    dynamic, combined = rows["dynamic"].mask_ratio, rows["r2mae_dynamic"].mask_ratio
    assert dynamic == DecayRatio(0.5, 0.1, rate)
    assert dynamic(150_000, steps) == pytest.approx(0.5 - 0.4 * min(150_000 * rate, 1))
    assert dynamic(steps, steps) == pytest.approx(end)
    assert (combined.rate, combined.seed) == (rate, 3)
    assert max(combined(steps - i, steps) for i in range(50)) <= 2 * end - 0.1 + 1e-4
    schedule = rows["cl"].curriculum.schedule
    assert [schedule(step, steps) for step in (4_999, 5_000, 30_000, 75_000, 120_000, steps)] == [
        0,
        1,
        1,
        0,
        -1,
        -1,
    ]
    assert rows["r2mae_cl_k0"].curriculum.schedule(steps, steps) == 1


def test_settings_replace_those_of_the_curricula():
    settings = Curriculum(n_ratios=5)
    rows = scr2mae.schemes(curriculum=settings)
    assert rows["cl"].curriculum is rows["r2mae_cl"].curriculum is settings
    assert rows["cl_k0"].curriculum.n_ratios == 5
    assert rows["cl_k0"].curriculum.schedule.final == 1.0
    assert rows["mae"].curriculum is None


def test_the_curriculum_of_dna_turns_over_its_whole_run():
    from scr2mae.extra.dna import GPNMSAConfig

    schedule = GPNMSAConfig(curriculum="cl").curriculum.schedule
    assert [schedule.is_frozen(step, 30_000) for step in (4_999, 5_000)] == [True, False]
    assert schedule(15_000, 30_000) == pytest.approx(0)
    assert schedule(30_000, 30_000) == pytest.approx(-1)
    assert GPNMSAConfig(curriculum="cl_k0").curriculum.schedule(30_000, 30_000) == 1
