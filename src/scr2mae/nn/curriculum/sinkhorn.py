"""Sinkhorn balancing: equal mass for every feature and every ratio."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

__all__ = ["balance", "balance_errors", "column_factors", "sinkhorn"]


def sinkhorn(weights: Tensor, *, n_iter: int = 5, valid: Tensor | None = None) -> Tensor:
    """Balance a positive matrix so that rows sum to its width and columns to its height.

    Parameters
    ----------
    weights
        Positive, shape ``(..., n_features, n_ratios)``.
    n_iter
        Alternating normalizations, >= 1; columns come last and hold exactly, rows up to convergence.
    valid
        Boolean, shape ``(..., n_features)``; False for padding, whose weights are set to zero and do not count as height.

    Returns
    -------
    Balanced weights of the same shape, mean one over valid rows. Differentiable.

    Raises
    ------
    ValueError
        If an entry is not positive, ``n_iter < 1`` or no row is valid.

    Notes
    -----
    Sinkhorn-Knopp scaling in the log domain, as in appendix A.3 of Dong et al. (2025).

    Examples
    --------
    >>> import torch
    >>> from scr2mae.nn.curriculum import sinkhorn
    >>> balanced = sinkhorn(torch.rand(6, 3) + 0.1, n_iter=20)
    >>> torch.allclose(balanced.sum(0), torch.tensor(6.0)), torch.allclose(balanced.sum(1), torch.tensor(3.0), atol=1e-3)
    (True, True)
    """
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}.")
    if weights.dim() < 2:
        raise ValueError(f"weights must have shape (..., n_features, n_ratios), got {tuple(weights.shape)}.")
    kept = weights if valid is None else weights[valid]
    if not bool((kept > 0).all()):
        raise ValueError(f"weights must be positive, got a smallest entry of {float(kept.min()):g}.")
    if valid is not None and not bool(valid.any(dim=-1).all()):
        raise ValueError("valid has no true entry in some matrix; there is nothing to balance.")
    return balance(weights, n_iter=n_iter, valid=valid)


def balance(weights: Tensor, *, n_iter: int, valid: Tensor | None) -> Tensor:
    """Balance without checking values, which would make the host wait for a GPU.

    A ``valid`` of numbers weighs the rows: with the share e_g of a row, columns have the mean ``sum e_g w_gl / sum e_g = 1``.
    """
    n_features, n_ratios = weights.shape[-2:]
    if valid is None:
        log_w = weights.log()
        for _ in range(n_iter):
            log_w = log_w - log_w.logsumexp(dim=-1, keepdim=True) + log(n_ratios)
            log_w = log_w - log_w.logsumexp(dim=-2, keepdim=True) + log(n_features)
        return log_w.exp()
    padding = (valid == 0)[..., None]
    log_height = valid.sum(dim=-1).to(weights.dtype).log()[..., None, None]
    log_share = 0.0 if valid.dtype == torch.bool else valid.masked_fill(valid == 0, 1.0).log()[..., None]
    log_w = weights.masked_fill(padding, 1.0).log()
    for _ in range(n_iter):
        log_w = log_w - log_w.logsumexp(dim=-1, keepdim=True) + log(n_ratios)
        # The lowest finite number, not minus infinity, keeps differences and their gradients defined.
        log_w = log_w.masked_fill(padding, torch.finfo(log_w.dtype).min / 2)
        log_w = log_w - (log_w + log_share).logsumexp(dim=-2, keepdim=True) + log_height
        log_w = log_w.masked_fill(padding, 0.0)
    return log_w.exp().masked_fill(padding, 0.0)


@torch.no_grad()
def column_factors(
    log_w: Tensor, valid: Tensor | None, *, tolerance: float = 2e-5, n_iter: int = 40
) -> Tensor:
    """Return the log factors of the columns that balance a matrix, by damped Newton steps; shape (..., 1, n_ratios).

    With rows normalized exactly, only the column factors ``v`` are unknown; they minimize the convex function
    ``mean_g logsumexp_l(log_w + v) - mean(v)``. For nearly binary weights, alternating normalizations need thousands of
    rounds, Newton steps a dozen.
    """
    log_w = log_w.double()
    n_ratios = log_w.shape[-1]
    share = torch.full(log_w.shape[:-1], 1.0, dtype=log_w.dtype, device=log_w.device)
    share = share if valid is None else share * valid
    share = share / share.sum(dim=-1, keepdim=True)  # (..., n_features), weight of each row in the mean
    v = torch.zeros_like(log_w[..., 0, :])  # (..., n_ratios)
    ones = torch.ones(n_ratios, n_ratios, dtype=log_w.dtype, device=log_w.device) / n_ratios
    steps = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.01], dtype=log_w.dtype, device=log_w.device)
    for _ in range(n_iter):
        p = (log_w + v[..., None, :]).softmax(dim=-1)
        mass = (p * share[..., None]).sum(dim=-2)
        error = mass - 1 / n_ratios
        if bool(error.abs().max() * n_ratios < tolerance):
            break
        curvature = torch.diag_embed(mass + 1e-12) - p.mT @ (p * share[..., None]) + ones
        direction = torch.linalg.solve(curvature, error).clamp(-20, 20)
        trial = v - steps.view(-1, *[1] * v.dim()) * direction  # (n_steps, ..., n_ratios)
        value = ((log_w + trial[..., None, :]).logsumexp(dim=-1) * share).sum(dim=-1) - trial.mean(dim=-1)
        best = value.argmin(dim=0)
        v = trial.gather(0, best[None, ..., None].expand(1, *v.shape))[0]
    return v[..., None, :]


def balance_errors(weights: Tensor) -> tuple[float, float]:
    """Return the largest relative deviations of a row sum and of a column sum from balance.

    Parameters
    ----------
    weights
        Shape ``(n_features, n_ratios)``.
    """
    n_features, n_ratios = weights.shape
    rows = (weights.sum(dim=1) / n_ratios - 1).abs().max()
    columns = (weights.sum(dim=0) / n_features - 1).abs().max()
    return float(rows), float(columns)
