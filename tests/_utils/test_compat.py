"""Number formats: what is chosen, and how little bfloat16 changes."""

from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae._utils.compat import autocast, resolve_precision, torch_device
from scr2mae.nn.likelihood import nb_log_prob

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, "32-true"), (True, False, "bf16-mixed"), (False, True, "bf16-mixed")],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: str
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed")])
def test_auto_on_a_gpu_asks_for_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device("cuda", 0)) == expected


def test_auto_is_float32_on_other_devices_and_short_forms_are_known() -> None:
    assert resolve_precision("auto", torch.device("mps")) == "32-true"
    short = [resolve_precision(p, CPU) for p in (None, 32, 16, "bf16", "16-mixed")]
    assert short == [None, "32-true", "16-mixed", "bf16-mixed", "16-mixed"]


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "fast", 8])
def test_a_precision_in_which_no_network_computes_is_refused(
    trained: R2MAEModel, adata: AnnData, precision: Any
) -> None:
    message = (
        r"precision must be 'auto' or one of .*'bf16-mixed'.* since weights and likelihood are float32; got"
    )
    with pytest.raises(ValueError, match=message):
        trained.get_latent_representation(precision=precision)
    with pytest.raises(ValueError, match=message):
        R2MAEModel(adata, n_hidden=4, n_latent=2).train(1, accelerator="cpu", precision=precision)
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def fitted(simulate: object) -> R2MAEModel:
    model = R2MAEModel(simulate(1000, 400), n_hidden=64, n_latent=8, encoder="mlp")
    model.train(
        6, batch_size=64, precision="32-true", accelerator="cpu", enable_progress_bar=False, train_size=0.9
    )
    return model


@pytest.mark.parametrize("density_limit", [0.0, 1.0], ids=["dense", "non-zeros alone"])
def test_an_embedding_in_bfloat16_is_within_three_percent_of_each_dimensions_spread(
    fitted: R2MAEModel, monkeypatch: pytest.MonkeyPatch, density_limit: float
) -> None:
    monkeypatch.setattr("scr2mae.model.streaming._SPARSE", density_limit)
    exact = fitted.get_latent_representation()
    rounded = fitted.get_latent_representation(precision="bf16-mixed")
    assert rounded.dtype == np.float32
    error = np.sqrt(((rounded - exact) ** 2).mean(axis=0)) / exact.std(axis=0)
    assert 0 < error.max() < 0.03


def test_an_embedding_in_float16_is_within_one_percent_of_each_dimensions_spread(fitted: R2MAEModel) -> None:
    exact = fitted.get_latent_representation()
    rounded = fitted.get_latent_representation(precision="16-mixed")
    error = np.sqrt(((rounded - exact) ** 2).mean(axis=0)) / exact.std(axis=0)
    assert 0 < error.max() < 0.01


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.float16, 11), (torch.bfloat16, 8)], ids=["float16", "bfloat16"]
)
def test_a_likelihood_of_rounded_inputs_is_off_by_what_rounding_moves_them(
    dtype: torch.dtype, bits: int
) -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 2000, (64, 30), generator=rng).float()
    log_mean = torch.empty(64, 30).uniform_(-6, 7, generator=rng)
    log_theta = torch.empty(30).uniform_(-3, 3, generator=rng)
    rounded = nb_log_prob(counts, log_mean.to(dtype), log_theta.to(dtype))
    assert rounded.dtype == torch.float32
    same = nb_log_prob(counts, log_mean.to(dtype).float(), log_theta.to(dtype).float())
    torch.testing.assert_close(rounded, same, rtol=0, atol=0)
    # |slope| by log mean is at most max(x, theta), by log theta at most 2 x + mean + theta; a tenth for the curvature.
    exact, mean, theta = nb_log_prob(counts, log_mean, log_theta), log_mean.exp(), log_theta.exp()
    moved = log_mean.abs() * counts.maximum(theta) + log_theta.abs() * (2 * counts + mean + theta)
    bound = 1.1 * 2.0**-bits * moved + 1e-4 * (1 + exact.abs())
    assert bool(((rounded - exact).abs() <= bound).all())
    assert not torch.equal(rounded, exact)


def test_training_in_float16_on_a_processor_takes_bfloat16_and_says_so(simulate: object) -> None:
    model = R2MAEModel(simulate(200, 60), n_hidden=16, n_latent=4)
    quick = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 64}
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU. Using .*bf16-mixed"):
        model.train(1, precision="16-mixed", **quick)
    assert model.runs_[-1]["precision"] == "bf16-mixed"
    assert "skipped_steps" not in model.history


@pytest.mark.filterwarnings(
    "ignore:Few shared genes:UserWarning", "ignore:No alignment of batches:UserWarning"
)
def test_multiplying_the_non_zeros_alone_gives_the_dense_embedding(
    train_tiny: object, adata: AnnData, covariates: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train_tiny(adata, setup=covariates)
    panel = adata[:, 20:].copy()
    embedded = {}
    for limit in (0.0, 1.0):
        monkeypatch.setattr("scr2mae.model.streaming._SPARSE", limit)
        embedded[limit] = [
            model.get_latent_representation(),
            model.get_latent_representation(panel),
            model.get_latent_representation(indices=[5, 3, 3, 70]),
        ]
    for dense, sparse in zip(embedded[0.0], embedded[1.0], strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-5)


def test_training_in_bfloat16_has_the_loss_curve_of_float32(simulate: object) -> None:
    def curve(precision: str) -> np.ndarray:
        model = R2MAEModel(simulate(1000, 400), n_hidden=64, n_latent=8, encoder="mlp")
        model.train(
            6,
            batch_size=64,
            precision=precision,
            accelerator="cpu",
            enable_progress_bar=False,
            train_size=0.9,
        )
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}
        return model.history["validation_loss"].to_numpy()

    exact, rounded = curve("32-true"), curve("bf16-mixed")
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, rtol=0.005)


def test_a_curriculum_balances_in_float32_whatever_the_precision(adata: AnnData) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2, curriculum="cl")
    tensors = {"X": torch.from_numpy(adata.X[:32].toarray())}
    with autocast("bf16-mixed", CPU):
        weights = model.module.curriculum_weights(tensors)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, model.module.curriculum_weights(tensors))


@pytest.mark.parametrize(
    ("accelerator", "device", "cuda", "mps", "expected"),
    [
        ("auto", "auto", False, False, "cpu"),
        ("auto", "auto", False, True, "mps"),
        ("auto", 1, True, False, "cuda:1"),
        ("mps", 0, False, True, "mps"),
        ("cpu", "auto", True, False, "cpu"),
        ("cpu", "meta", False, False, "meta"),
    ],
)
def test_an_accelerator_becomes_a_device(
    accelerator: str, device: int | str, cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert torch_device(accelerator, device) == torch.device(expected)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [("tpu", "must be 'auto'"), ("gpu", "no CUDA device"), ("mps", "no Apple GPU")],
)
def test_a_device_that_is_not_there_is_refused(
    accelerator: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        torch_device(accelerator, "auto")
