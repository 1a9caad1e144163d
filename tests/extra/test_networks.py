"""What the networks of every modality share."""

import pytest
import torch
from torch import nn

from scr2mae.extra.networks import DecayingNetwork, load_weights, repeatable_dropout


def dropped(module: nn.Module, seed: int, step: int) -> list[float]:
    with repeatable_dropout(module, torch.device("cpu"), seed=seed, step=step):
        return module(torch.ones(64)).tolist()


def test_dropout_is_a_function_of_seed_and_step_and_leaves_the_global_generator_alone() -> None:
    dropout = nn.Dropout(0.5).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert dropped(dropout, 1, 2) == dropped(dropout, 1, 2)
    assert len({tuple(dropped(dropout, *key)) for key in ((1, 2), (2, 1), (1, 3))}) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_that_train_together_drop_other_units(monkeypatch) -> None:
    dropout, seen = nn.Dropout(0.5).train(), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen.append(dropped(dropout, 1, 2))
    assert seen[0] != seen[1]


def test_evaluation_draws_nothing() -> None:
    assert dropped(nn.Dropout(0.5).eval(), 1, 2) == [1.0] * 64


def test_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    network = DecayingNetwork()
    network.layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    network.layers[2].weight.requires_grad_(False)
    decayed, others = network.parameter_groups(0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in others["params"]] == [(4,), (4,), (4,), (2,)]
    assert others["weight_decay"] == 0


def test_weights_load_if_all_names_but_tied_ones_and_all_shapes_agree() -> None:
    network, weights = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    load_weights(network, {"weight": weights["weight"]}, place="here", tied=["bias"])
    assert torch.equal(network.weight, weights["weight"])
    for wrong, message in (
        (
            {"weight": weights["weight"]},
            r"weights in here do not .*: \['bias'\] are missing, \[\] are unexpected",
        ),
        ({**weights, "other": weights["bias"]}, r"\[\] are missing, \['other'\] are unexpected"),
        ({**weights, "bias": torch.zeros(3)}, r"size mismatch for bias"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(network, wrong, place="here")
