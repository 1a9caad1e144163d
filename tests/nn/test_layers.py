"""Covariates in a linear layer."""

import pytest
import torch
from torch import nn

from scr2mae.nn.layers import CovariateLinear


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
