"""Layers: a linear map with covariates, and stacks of it with batch normalization and ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CovariateLinear", "CovariateMLP", "SparseRows"]


class SparseRows(NamedTuple):
    """Rows of a matrix, of which only the non-zeros are held.

    Attributes
    ----------
    columns
        Of each non-zero, row after row; int32 or int64, shape (n_non_zeros,).
    starts
        Where each row begins in ``columns``; same type, shape (n_obs,).
    values
        float32, shape (n_non_zeros,).
    """

    columns: Tensor
    starts: Tensor
    values: Tensor

    def matmul(self, table: Tensor) -> Tensor:
        """Multiply by a matrix.

        Parameters
        ----------
        table
            Shape (n_columns, n_out), float32 or bfloat16.

        Returns
        -------
        float32, shape (n_obs, n_out).
        """
        return nn.functional.embedding_bag(
            self.columns, table, self.starts, mode="sum", per_sample_weights=self.values.to(table.dtype)
        ).float()


class _CategoryTable(nn.Module):
    """One weight row a category: the part of a linear layer that reads a one-hot covariate.

    Rows of categories added by a query live in a second parameter, so that the optimizer, weight decay
    included, can leave the reference rows alone.
    """

    def __init__(self, n_categories: int, n_new: int, n_out: int, scale: float) -> None:
        super().__init__()
        self.reference = nn.Parameter(torch.empty(n_categories - n_new, n_out).uniform_(-scale, scale))
        self.new = nn.Parameter(torch.zeros(n_new, n_out)) if n_new else None

    def forward(self, codes: Tensor) -> Tensor:
        table = self.reference if self.new is None else torch.cat([self.reference, self.new])
        return nn.functional.embedding(codes, table)


class CovariateLinear(nn.Module):
    """A linear layer on ``[x, one-hot covariates, continuous covariates]``.

    The one-hot product is a table look-up, so adding a category changes no other number.

    Parameters
    ----------
    n_in, n_out
        Widths.
    n_categories
        Number of categories of each categorical covariate.
    n_new_categories
        How many of them, the last ones, came with a query; same length.
    n_continuous
        Number of continuous covariates.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_categories: Sequence[int] = (),
        n_new_categories: Sequence[int] | None = None,
        n_continuous: int = 0,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        n_new = n_new_categories or [0] * len(n_categories)
        scale = (n_in + sum(n_categories) + n_continuous) ** -0.5
        # A constant covariate says nothing that the bias does not.
        self.tables = nn.ModuleDict(
            {
                str(i): _CategoryTable(n, new, n_out, scale)
                for i, (n, new) in enumerate(zip(n_categories, n_new, strict=True))
                if n > 1
            }
        )
        self.continuous = nn.Linear(n_continuous, n_out, bias=False) if n_continuous else None

    def forward(
        self, x: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Map ``x`` (n_obs, n_in), codes (n_obs, n_covariates), values (n_obs, n_continuous) to (n_obs, n_out).

        Parameters
        ----------
        x
            Shape (n_obs, n_in).
        categories
            Codes, shape (n_obs, n_covariates).
        continuous
            Shape (n_obs, n_continuous).

        Returns
        -------
        Shape (n_obs, n_out).

        Raises
        ------
        ValueError
            If a covariate that the layer has is not passed.
        """
        return self.add_covariates(self.linear(x), categories, continuous)

    def add_covariates(
        self, h: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Add what covariates contribute to the product with ``x``.

        Parameters
        ----------
        h
            The product, shape (n_obs, n_out).
        categories, continuous
            As in :meth:`forward`.

        Returns
        -------
        Shape (n_obs, n_out).

        Raises
        ------
        ValueError
            If a covariate that the layer has is not passed.
        """
        for i, table in self.tables.items():
            if categories is None:
                raise ValueError("This layer has categorical covariates; pass their codes.")
            h = h + table(categories[:, int(i)])
        if self.continuous is not None:
            if continuous is None:
                raise ValueError("This layer has continuous covariates; pass their values.")
            h = h + self.continuous(continuous)
        return h


class CovariateMLP(nn.Module):
    """Hidden layers, each linear, batch-normalized and rectified; covariates enter the first.

    Parameters
    ----------
    n_in, n_hidden, n_layers
        Input width, hidden width, number of hidden layers (>= 1).
    n_categories, n_new_categories, n_continuous
        Covariates, as in :class:`CovariateLinear`.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        *,
        n_categories: Sequence[int] = (),
        n_new_categories: Sequence[int] | None = None,
        n_continuous: int = 0,
    ) -> None:
        super().__init__()
        self.first = CovariateLinear(
            n_in,
            n_hidden,
            n_categories=n_categories,
            n_new_categories=n_new_categories,
            n_continuous=n_continuous,
        )
        layers: list[nn.Module] = [_norm(n_hidden), nn.ReLU()]
        for _ in range(n_layers - 1):
            layers += [nn.Linear(n_hidden, n_hidden), _norm(n_hidden), nn.ReLU()]
        self.rest = nn.Sequential(*layers)

    def forward(
        self, x: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Map ``x`` (n_obs, n_in) and covariates to (n_obs, n_hidden).

        Parameters
        ----------
        x
            Shape (n_obs, n_in).
        categories, continuous
            As in :meth:`CovariateLinear.forward`.

        Returns
        -------
        Shape (n_obs, n_hidden).
        """
        return self.rest(self.first(x, categories, continuous))

    def forward_sparse(
        self, x: SparseRows, table: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Do the same for rows of which the non-zeros alone are given.

        Parameters
        ----------
        x
            Rows of shape (n_obs, n_in).
        table
            What :meth:`table` returns.
        categories, continuous
            As in :meth:`CovariateLinear.forward`.

        Returns
        -------
        Shape (n_obs, n_hidden).
        """
        h = x.matmul(table) + self.first.linear.bias
        return self.rest(self.first.add_covariates(h, categories, continuous))

    def table(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights of the first layer, one row an input.

        Parameters
        ----------
        dtype
            What they are rounded to.

        Returns
        -------
        Shape (n_in, n_hidden), contiguous.
        """
        return self.first.linear.weight.detach().to(dtype).T.contiguous()


def _norm(n_features: int) -> nn.BatchNorm1d:
    """Batch normalization with scvi-tools' epsilon and PyTorch's momentum.

    At scvi-tools' momentum of 0.01 the running statistics, which embeddings use, lag a hundred steps behind the weights:
    a good part of the whole training of a thousand cells.
    """
    return nn.BatchNorm1d(n_features, eps=1e-3, momentum=0.1)
