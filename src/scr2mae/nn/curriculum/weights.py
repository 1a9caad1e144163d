"""The network that computes the weights, and the scale of its gradient."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae.nn.curriculum.sinkhorn import balance, column_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CurriculumWeights", "scale_gradient"]


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad_scale: float) -> Tensor:
        ctx.grad_scale = grad_scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.grad_scale, None


def scale_gradient(x: Tensor, grad_scale: float) -> Tensor:
    """Return ``x`` unchanged; its gradient is multiplied in the backward pass.

    Parameters
    ----------
    x
        Tensor of any shape.
    grad_scale
        Factor of the gradient; a negative one turns learning into unlearning.
    """
    return _ScaleGradient.apply(x, grad_scale)


class CurriculumWeights(nn.Module):
    """Network that computes balanced loss weights from the targets.

    Cells: ``n_features`` is the number of genes; ``log1p`` of the uncorrupted counts passes two hidden layers, is averaged
    over the mini-batch (inferred) unless ``per_cell``, and becomes one ``(n_genes, n_ratios)`` matrix. Tokens:
    ``n_features`` is None; the state of each masked token, detached from the backbone (inferred), becomes one row.

    Parameters
    ----------
    n_in
        Width of the input: number of genes, or width of the token state.
    n_ratios
        Number of columns L, >= 2.
    n_features
        Rows of the matrix that one input gives; None if each input gives one row.
    hidden
        Widths of the hidden layers: (128, 256) for cells, (128, 128) for tokens in the paper.
    rank
        Width of each row before the row-wise projection (cells only).
    per_cell
        Whether each cell has a matrix of its own.
    offset
        Added after the sigmoid, > 0: 1e-9 for cells, 0.5 for tokens in the paper.
    n_iter
        Sinkhorn iterations.

    Raises
    ------
    ValueError
        If ``n_ratios < 2`` or the offset is not positive.
    """

    def __init__(
        self,
        n_in: int,
        n_ratios: int,
        *,
        n_features: int | None = None,
        hidden: Sequence[int] = (128, 256),
        rank: int = 2,
        per_cell: bool = False,
        offset: float = 1e-9,
        n_iter: int = 5,
    ) -> None:
        super().__init__()
        if n_ratios < 2:
            raise ValueError(
                f"n_ratios must be at least 2, got {n_ratios}: with one column every weight is one."
            )
        if not offset > 0:
            raise ValueError(f"offset must be positive, got {offset!r}: Sinkhorn needs positive weights.")
        self.n_ratios, self.n_features, self.rank = n_ratios, n_features, rank
        self.per_cell, self.offset, self.n_iter = per_cell, offset, n_iter
        widths = [n_in, *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        if n_features is None:
            self.to_rows: nn.Module | None = None
            self.to_ratios = nn.Linear(widths[-1], n_ratios)
        else:
            self.to_rows = nn.Linear(widths[-1], n_features * rank)
            self.to_ratios = nn.Linear(rank, n_ratios)

    def forward(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Return balanced weights.

        Parameters
        ----------
        x
            Cells: ``log1p`` counts, shape ``(n_obs, n_in)``. Tokens: states, shape ``(..., n_tokens, n_in)``.
        valid
            Tokens: False for padding, shape ``(..., n_tokens)``. Cells: False for unmeasured genes, shape
            ``(n_features,)``, or ``(n_obs, n_features)`` if ``per_cell``; numbers of shape ``(n_features,)`` are the share
            that each gene has in the loss, where only some cells measure it.

        Returns
        -------
        float32, mean one over valid rows: ``(n_features, n_ratios)``, or with a leading ``n_obs`` if ``per_cell``;
        tokens: ``(..., n_tokens, n_ratios)``.
        """
        h = self.hidden(x)
        if self.n_features is not None and self.to_rows is not None:
            h = h if self.per_cell else h.mean(dim=0)
            h = self.to_rows(h).unflatten(-1, (self.n_features, self.rank))  # (..., n_features, rank)
            valid = valid if valid is None or not self.per_cell else valid.expand(h.shape[:-1])
        positive = torch.sigmoid(self.to_ratios(h).float()) + self.offset
        # Balancing does not depend on the initial scale of the columns. Started at the fixed point, the few differentiable
        # rounds are exact in value, and their gradient is a truncation of the exact one.
        factors = column_factors(positive.log(), valid).exp().to(positive.dtype)
        return balance(positive * factors, n_iter=self.n_iter, valid=valid)
