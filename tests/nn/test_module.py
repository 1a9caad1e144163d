"""The network: input, loss, covariates, missing genes."""

import pytest
import torch
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial
from torch import nn

from scr2mae.model.query import add_categories
from scr2mae.nn.module import R2MAEModule
from scr2mae.nn.panels import MEASURED_KEY

N_VARS = 40


def _module(**kwargs) -> R2MAEModule:
    torch.manual_seed(0)
    return R2MAEModule(N_VARS, **{"n_hidden": 16, "n_latent": 5, **kwargs}).eval()


def _tensors(n_obs: int = 12, **extra) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(torch.full((n_obs, N_VARS), 1.5), generator=generator)
    return {REGISTRY_KEYS.X_KEY: counts, REGISTRY_KEYS.BATCH_KEY: torch.arange(n_obs)[:, None] % 3, **extra}


def _mask(ratio: float = 0.3) -> torch.Tensor:
    mask = torch.zeros(N_VARS, dtype=torch.bool)
    mask[: round(ratio * N_VARS)] = True
    return mask


def test_loss_is_the_mean_nll_of_masked_counts_at_the_unmasked_library():
    module, tensors, mask = _module(n_categories=[3]), _tensors(), _mask()
    inference, generative, loss = module(tensors, inference_kwargs={"mask": mask}, loss_kwargs={"mask": mask})
    counts = tensors["X"]
    mean = counts.sum(1, keepdim=True) * generative["logits"].softmax(-1)
    nll = -NegativeBinomial(mu=mean, theta=module.log_theta.exp()).log_prob(counts)
    assert inference["z"].shape == (12, 5)
    assert loss.loss.item() == pytest.approx(nll[:, mask].mean().item(), rel=1e-4)
    assert loss.reconstruction_loss["reconstruction_loss"].shape == (12,)


def test_masked_counts_reach_the_network_as_targets_only():
    module, tensors, mask = _module(), _tensors(), _mask()
    changed = {**tensors, "X": tensors["X"] + 5 * mask}
    z = [module.inference(t["X"], mask=mask)["z"] for t in (tensors, changed)]
    assert torch.equal(*z)
    assert not torch.equal(module.inference(tensors["X"])["z"], module.inference(changed["X"])["z"])


def test_the_gradient_reaches_no_visible_target():
    module, tensors, mask = _module(), _tensors(), _mask()
    loss = module(tensors, inference_kwargs={"mask": mask}, loss_kwargs={"mask": mask})[2].loss
    (grad,) = torch.autograd.grad(loss, module.log_theta)
    assert bool((grad[mask] != 0).all())
    assert bool((grad[~mask] == 0).all())


def test_nothing_is_masked_unless_the_call_says_so_even_in_training_mode():
    module, tensors = _module(), _tensors()
    unmasked = module.inference(tensors["X"], mask=torch.zeros(N_VARS, dtype=torch.bool))["z"]
    assert torch.equal(module.inference(tensors["X"])["z"], unmasked)
    module.train()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.eval()
    assert torch.equal(module.inference(tensors["X"])["z"], unmasked)


def test_a_step_is_a_pure_function_of_seed_and_step():
    module, tensors = _module(), _tensors()
    again = [module.training_loss(tensors, ratio=0.3, seed=0, step=4).loss for _ in range(2)]
    others = [module.training_loss(tensors, ratio=0.3, seed=s, step=t).loss for s, t in ((1, 4), (0, 5))]
    assert torch.equal(*again)
    assert all(not torch.equal(again[0], other) for other in others)


def test_unmeasured_genes_are_neither_masked_nor_scored():
    module = _module()
    measured = torch.arange(N_VARS) % 4 > 0
    tensors = _tensors(**{MEASURED_KEY: measured})
    tensors["X"] = tensors["X"] * measured
    for step in range(20):
        mask = module.draw_gene_mask(tensors, 0.3, seed=0, step=step)
        assert int(mask.sum()) == round(0.3 * 30)
        assert not (mask & ~measured).any()
    (grad,) = torch.autograd.grad(
        module.training_loss(tensors, ratio=0.5, seed=0, step=0).loss, module.log_theta
    )
    assert bool((grad[~measured] == 0).all())


@pytest.mark.parametrize("was_constant", [False, True])
def test_a_network_with_new_categories_embeds_the_reference_bit_for_bit_and_trains_new_rows_only(
    was_constant,
):
    before = [1, 2] if was_constant else [3, 2]
    reference = _module(n_categories=before)
    codes = torch.stack([torch.arange(12) % before[0], torch.arange(12) % 2], dim=1)
    tensors = {**_tensors(), "batch": codes[:, :1], "extra_categorical_covs": codes[:, 1:]}
    extended = _module(n_categories=[before[0] + 2, 2], n_new_categories=[2, 0])
    add_categories(reference, extended)
    extended.train()
    frozen = {name: p.clone() for name, p in extended.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in extended.parameters() if p.requires_grad], weight_decay=0.1)
    query = {**tensors, "batch": torch.full((12, 1), before[0])}
    for step in range(3):
        optimizer.zero_grad()
        extended.training_loss(query, ratio=0.3, seed=0, step=step).loss.backward()
        optimizer.step()
    assert {name for name, p in extended.named_parameters() if p.requires_grad} == {
        "encoder.first.tables.0.new",
        "decoder.first.tables.0.new",
    }
    assert all(torch.equal(dict(extended.named_parameters())[name], p) for name, p in frozen.items())
    old, new = (m.eval()(tensors, compute_loss=False) for m in (reference, extended))
    assert torch.equal(old[0]["z"], new[0]["z"])
    assert torch.equal(old[1]["logits"], new[1]["logits"])
    assert not torch.equal(
        extended.inference(tensors["X"], query["batch"].expand(-1, 2) * 0 + torch.tensor([before[0], 0]))[
            "z"
        ],
        new[0]["z"],
    )


def test_a_size_factor_replaces_the_library_of_a_model_that_uses_one():
    tensors = _tensors()
    given = {**tensors, REGISTRY_KEYS.SIZE_FACTOR_KEY: torch.full((12, 1), 3.0)}
    counts = tensors["X"].sum(1, keepdim=True)
    assert torch.equal(_module(use_size_factor=True).log_library(given), torch.full((12, 1), 3.0).log())
    torch.testing.assert_close(_module().log_library(given).exp(), counts)
    torch.testing.assert_close(_module().log_library(tensors).exp(), counts)
    empty = {"X": torch.zeros(2, N_VARS)}
    assert torch.equal(_module().log_library(empty), torch.zeros(2, 1))
