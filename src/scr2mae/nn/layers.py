"""Layers: a linear map with covariates, and stacks of it with batch normalization and ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CovariateLinear",
    "CovariateMLP",
    "CovariateShift",
    "Linear",
    "SparseRows",
    "Standardize",
    "batch_norm",
    "linear",
]

_SMALLEST_SCALE = 1e-7  # of a standard deviation, relative to the values; float32 resolves no less


class SparseRows(NamedTuple):
    """Non-zeros of the rows of a matrix, as in CSR."""

    columns: Tensor  # (n_non_zeros,), int32 or int64
    starts: Tensor  # (n_obs,), of the same type: where each row begins in ``columns``
    values: Tensor  # (n_non_zeros,), float32

    def lengths(self) -> Tensor:
        """Return the number of non-zeros per row, int64, (n_obs,)."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.values)])])
        return (ends - self.starts).long()

    def matmul(self, table: Tensor) -> Tensor:
        """Multiply by a (n_columns, n_out) matrix, float32 or bfloat16; float32, (n_obs, n_out)."""
        return nn.functional.embedding_bag(
            self.columns, table, self.starts, mode="sum", per_sample_weights=self.values.to(table.dtype)
        ).float()


_WIDE, _LARGE = 1000, 2e8  # inputs, and multiplications, from which transposing first is faster
_ROWS = 100  # transposed at a time, so that what is read and written fits in the cache


class _WideLinear(torch.autograd.Function):
    """Linear map in bfloat16 that transposes the gradient in memory before it multiplies the input by it.

    oneDNN multiplies by a transposed view at a third to two thirds of the speed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_needed, weight_needed, bias_needed = ctx.needs_input_grad
        by_weight = None
        if weight_needed:
            transposed = grad.new_empty(grad.shape[1], grad.shape[0])
            for rows, columns in zip(grad.split(_ROWS), transposed.split(_ROWS, dim=1), strict=True):
                columns.copy_(rows.T)
            by_weight = transposed @ x
        return grad @ weight if x_needed else None, by_weight, grad.sum(dim=0) if bias_needed else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``nn.functional.linear``, but with faster gradients where it is wide and computed in bfloat16 on a CPU."""
    is_slow = (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.shape[1] >= _WIDE
        and x.shape[0] * weight.numel() >= _LARGE
    )
    if not is_slow:
        return nn.functional.linear(x, weight, bias)
    return _WideLinear.apply(*(None if t is None else t.bfloat16() for t in (x, weight, bias)))  # type: ignore[no-any-return]


class Linear(nn.Linear):
    """Linear layer that uses :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (n_obs, n_in) to (n_obs, n_out)."""
        return linear(x, self.weight, self.bias)


class _CategoryTable(nn.Module):
    """One row of weights per category: the part of a linear layer that multiplies a one-hot covariate.

    Categories that a query has added have their rows in a second parameter, so that neither gradients nor weight decay
    change the rows of the reference.
    """

    def __init__(self, n_categories: int, n_new: int, n_out: int, scale: float) -> None:
        super().__init__()
        self.reference = nn.Parameter(torch.empty(n_categories - n_new, n_out).uniform_(-scale, scale))
        self.new = nn.Parameter(torch.zeros(n_new, n_out)) if n_new else None

    def forward(self, codes: Tensor) -> Tensor:
        table = self.reference if self.new is None else torch.cat([self.reference, self.new])
        return nn.functional.embedding(codes, table)


class _Covariates(nn.Module):
    """Contribution of covariates to a layer: a row per category, and a linear map of continuous ones.

    The one-hot product is a table look-up, so that adding a category changes no other number. ``n_categories`` has one
    entry per categorical covariate, ``n_new_categories`` how many of each, the last ones, a query has added.
    """

    def _add_tables(
        self,
        n_in: int,
        n_out: int,
        *,
        n_categories: Sequence[int] = (),
        n_new_categories: Sequence[int] | None = None,
        n_continuous: int = 0,
    ) -> None:
        """Add a row of weights per category and a column per continuous covariate."""
        n_new = n_new_categories or [0] * len(n_categories)
        scale = (n_in + sum(n_categories) + n_continuous) ** -0.5
        # A constant covariate adds nothing to the bias.
        self.tables = nn.ModuleDict(
            {
                str(i): _CategoryTable(n, new, n_out, scale)
                for i, (n, new) in enumerate(zip(n_categories, n_new, strict=True))
                if n > 1
            }
        )
        self.continuous = nn.Linear(n_continuous, n_out, bias=False) if n_continuous else None

    def add_covariates(
        self, h: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Add the contribution of the covariates to the product ``h`` (n_obs, n_out) of weights and ``x``."""
        for i, table in self.tables.items():
            if categories is None:
                raise ValueError("This layer has categorical covariates; pass their codes.")
            h = h + table(categories[:, int(i)])
        if self.continuous is not None:
            if continuous is None:
                raise ValueError("This layer has continuous covariates; pass their values.")
            h = h + self.continuous(continuous)
        return h


class CovariateLinear(_Covariates):
    """Linear layer on ``[x, one-hot covariates, continuous covariates]``."""

    def __init__(self, n_in: int, n_out: int, **covariates: Any) -> None:
        super().__init__()
        self.linear = Linear(n_in, n_out)
        self._add_tables(n_in, n_out, **covariates)

    def forward(
        self, x: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Map ``x`` (n_obs, n_in), codes (n_obs, n_covariates), values (n_obs, n_continuous) to (n_obs, n_out)."""
        return self.add_covariates(self.linear(x), categories, continuous)


class CovariateShift(_Covariates):
    """Shift of the input by covariates, for linear decoders."""

    def __init__(self, n_features: int, **covariates: Any) -> None:
        super().__init__()
        self._add_tables(n_features, n_features, **covariates)

    def forward(
        self, x: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Shift ``x`` (n_obs, n_features) by codes (n_obs, n_covariates) and values (n_obs, n_continuous)."""
        return self.add_covariates(x, categories, continuous)


class CovariateMLP(nn.Module):
    """Hidden layers, each linear, batch-normalized and rectified; covariates enter the first.

    ``covariates`` are ``n_categories``, ``n_new_categories`` and ``n_continuous`` of :class:`CovariateLinear`.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, **covariates: Any) -> None:
        super().__init__()
        self.first = CovariateLinear(n_in, n_hidden, **covariates)
        layers: list[nn.Module] = [batch_norm(n_hidden), nn.ReLU()]
        for _ in range(n_layers - 1):
            layers += [Linear(n_hidden, n_hidden), batch_norm(n_hidden), nn.ReLU()]
        self.rest = nn.Sequential(*layers)

    def forward(
        self, x: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Map ``x`` (n_obs, n_in) and covariates to (n_obs, n_hidden)."""
        return self.rest(self.first(x, categories, continuous))

    def forward_sparse(
        self, x: SparseRows, table: Tensor, categories: Tensor | None = None, continuous: Tensor | None = None
    ) -> Tensor:
        """Map rows given by their non-zeros; ``table`` is the result of :meth:`table`."""
        h = x.matmul(table) + self.first.linear.bias
        return self.rest(self.first.add_covariates(h, categories, continuous))

    def table(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights of the first layer, rounded to ``dtype``; contiguous, (n_in, n_hidden)."""
        return self.first.linear.weight.detach().to(dtype).T.contiguous()


def batch_norm(n_features: int, *, affine: bool = True) -> nn.BatchNorm1d:
    """Batch normalization with scvi-tools' epsilon and PyTorch's momentum.

    At scvi-tools' momentum of 0.01 the running statistics, which embeddings use, lag a hundred steps behind the weights:
    a good part of the whole training on a thousand cells.
    """
    return nn.BatchNorm1d(n_features, eps=1e-3, momentum=0.1, affine=affine)


class Standardize(nn.Module):
    """Subtract the mean of continuous covariates over the training cells and divide by their standard deviation.

    Before :meth:`fit`, as in models of the first versions, values stay as they are. A column that does not vary over the
    training cells becomes zero.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, n_continuous: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_continuous))
        self.register_buffer("factor", torch.ones(n_continuous))

    def fit(self, values: Tensor) -> None:
        """Take mean and scale from the values of the training cells, (n_obs, n_continuous)."""
        values = values.double()
        scale = values.std(dim=0, correction=0)
        varies = scale > _SMALLEST_SCALE * values.abs().amax(dim=0)
        self.mean.copy_(values.mean(dim=0))
        self.factor.copy_(torch.where(varies, 1 / scale, 0.0))

    def forward(self, values: Tensor) -> Tensor:
        """Return standardized values, (n_obs, n_continuous)."""
        return (values - self.mean) * self.factor
