"""Covariates in a linear layer."""

import pytest
import torch
from torch import nn

from scr2mae.nn import layers
from scr2mae.nn.layers import CovariateLinear, Linear


def test_a_covariate_table_is_a_linear_layer_on_the_one_hot_code():
    torch.manual_seed(0)
    layer = CovariateLinear(6, 4, n_categories=[3, 2, 1], n_continuous=2)
    dense = nn.Linear(6 + 3 + 2 + 2, 4)
    with torch.no_grad():
        dense.weight.copy_(
            torch.cat(
                [
                    layer.linear.weight,
                    layer.tables["0"].reference.T,
                    layer.tables["1"].reference.T,
                    layer.continuous.weight,
                ],
                dim=1,
            )
        )
        dense.bias.copy_(layer.linear.bias)
    x, values = torch.randn(10, 6), torch.randn(10, 2)
    codes = torch.stack(
        [torch.arange(10) % 3, torch.arange(10) % 2, torch.zeros(10, dtype=torch.long)], dim=1
    )
    one_hot = [nn.functional.one_hot(codes[:, i], n).float() for i, n in enumerate((3, 2))]
    torch.testing.assert_close(layer(x, codes, values), dense(torch.cat([x, *one_hot, values], dim=1)))
    with pytest.raises(ValueError, match="categorical covariates"):
        layer(x)
    with pytest.raises(ValueError, match="continuous covariates"):
        layer(x, codes)


@pytest.mark.parametrize("n_obs", [200, 1001])
def test_a_wide_layer_in_bfloat16_has_the_gradients_of_a_linear_one(n_obs, monkeypatch):
    torch.manual_seed(0)
    layer = Linear(1200, 900)
    x, direction = torch.randn(n_obs, 1200, requires_grad=True), torch.randn(n_obs, 900)
    found = []
    for limit in (layers._WIDE, 2000):
        monkeypatch.setattr(layers, "_WIDE", limit)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            assert type(y.grad_fn).__name__.startswith("_WideLinear" if limit < 2000 else "Addmm")
        found.append(
            (y.detach(), *torch.autograd.grad((y.float() * direction).sum(), (x, *layer.parameters())))
        )
    assert all(gradient.dtype == torch.float32 for gradient in found[0][1:])
    for values, wanted in zip(*found, strict=True):
        torch.testing.assert_close(values, wanted, rtol=2**-7, atol=2**-7 * float(wanted.abs().mean()))


def test_a_wide_layer_in_float32_is_a_linear_one():
    layer, x = Linear(1200, 900), torch.randn(200, 1200)
    assert type(layer(x).grad_fn).__name__.startswith("Addmm")
