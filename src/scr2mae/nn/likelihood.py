"""Negative binomial likelihood of counts: in log space, stable, and cheap where counts are zero.

With ``a = log(mean) - log(theta)`` the log-probability splits into

    log p = [lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x softplus(-a)] - theta softplus(a)

and the bracket vanishes at ``x = 0``. The costly terms, which cancel badly in single precision, are therefore evaluated
in double precision at the non-zero counts alone; everything else is one float32 pass.

Compiled code needs shapes that do not depend on values. On a CPU all of this is one opaque operator; on a GPU the
compiler gets the formula in double precision for every count, which it can fuse and which makes the host wait for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax, softplus

__all__ = ["log_mean_of_counts", "nb_log_prob"]

_SERIES_BELOW = 0.1
_LARGE_LOG_THETA = 7.0
_SMALL_COUNT = 4


def shapes_are_free(device: torch.device) -> bool:
    """Return whether compiled code may have data-dependent shapes on a device; on a GPU they make the host wait."""
    return device.type != "cuda"


def _softplus_minus_sigmoid(softplus_a: Tensor, sigmoid: Tensor, log_theta: Tensor) -> Tensor:
    """Return ``softplus(a) - sigmoid(a)``, without cancellation where it would show.

    With ``u = sigmoid(a)`` it equals ``-log(1 - u) - u = u^2/2 + u^3/3 + ...``, used below 0.1. The difference is
    multiplied by theta afterwards, so that float32 is enough while every theta is below a thousand; on the CPU, where
    checking costs nothing, the series is then left out.
    """
    difference = softplus_a - sigmoid
    if log_theta.device.type == "cpu" and bool(log_theta.max() < _LARGE_LOG_THETA):
        return difference
    series = sigmoid / 7
    for coefficient in (1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2):
        series.add_(coefficient).mul_(sigmoid)
    return torch.where(sigmoid < _SERIES_BELOW, series.mul_(sigmoid), difference)


def _log_binomial(
    x: Tensor, theta: Tensor, lgamma_theta: Tensor, digamma_theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``log[gamma(x + theta) / (gamma(theta) x!)]`` of counts from 1, and its derivative by theta.

    On the CPU that of small counts, nearly all of those with unique molecular identifiers, is the logarithm of
    ``theta (theta + 1) ... (theta + x - 1) / x!``, in a fifth of the time of the gamma functions.
    """

    def by_gammas(
        x: Tensor, theta: Tensor, lgamma_theta: Tensor, digamma_theta: Tensor
    ) -> tuple[Tensor, Tensor]:
        value = torch.lgamma(x + theta) - lgamma_theta - torch.lgamma(x + 1)
        return value, torch.digamma(x + theta) - digamma_theta

    is_small = (x <= _SMALL_COUNT) & (x == x.floor())
    if x.device.type != "cpu" or 2 * int(is_small.count_nonzero()) < len(x):
        return by_gammas(x, theta, lgamma_theta, digamma_theta)
    product, by_theta = theta.clone(), theta.reciprocal()
    for k in range(1, _SMALL_COUNT):
        has_factor, factor = (x > k).to(theta), theta + k
        by_theta.addcdiv_(has_factor, factor)
        product.mul_(factor.div_(k + 1).sub_(1).mul_(has_factor).add_(1))
    product.log_()
    if len(at := (~is_small).nonzero().squeeze(1)):
        of_large = by_gammas(*(t.index_select(0, at) for t in (x, theta, lgamma_theta, digamma_theta)))
        for values, large in zip((product, by_theta), of_large, strict=True):
            values.index_copy_(0, at, large)
    return product, by_theta


def _at_non_zeros(
    x: Tensor, log_mean: Tensor, log_theta: Tensor, gene: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and its gradients by log mean and log theta, in double precision where the device has it.

    All have shape (n_non_zeros,), except ``log_theta`` with one entry per gene if ``gene`` gives that of each non-zero.
    """
    precise = torch.float32 if x.device.type == "mps" else torch.float64
    x, log_mean, log_theta = (t.to(precise) for t in (x, log_mean, log_theta))
    theta = log_theta.exp()
    of_theta = torch.stack([log_theta, theta, torch.lgamma(theta), torch.digamma(theta)])
    if gene is not None:
        of_theta = of_theta.index_select(1, gene)
    log_theta, theta, lgamma_theta, digamma_theta = of_theta
    a = log_mean - log_theta
    softplus_a = softplus(a, threshold=100.0)
    log_binomial, by_theta = _log_binomial(x, theta, lgamma_theta, digamma_theta)
    value = log_binomial - x * (softplus_a - a) - theta * softplus_a
    by_log_mean = torch.sigmoid(-a) * (x - log_mean.exp())
    by_log_theta = theta * (by_theta - softplus_a) - by_log_mean
    return value, by_log_mean, by_log_theta


def _value_and_gradients(
    counts: Tensor, log_mean: Tensor, log_theta: Tensor, *, with_gradients: bool = True
) -> tuple[Tensor, Any, Any]:
    """Log-probability of each count, and its gradients by log mean and log theta, or None."""
    minus_theta = -log_theta.exp()
    a = log_mean - log_theta
    softplus_a = softplus(a)
    by_log_mean = by_log_theta = None
    if with_gradients:
        sigmoid = torch.sigmoid(a)
        by_log_theta = _softplus_minus_sigmoid(softplus_a, sigmoid, log_theta).mul_(minus_theta)
        by_log_mean = sigmoid.mul_(minus_theta)
    value = softplus_a.mul_(minus_theta)
    indices = counts.reshape(-1).nonzero().squeeze(1)
    if indices.numel():
        of_gene = log_theta.dim() == 1
        exact = _at_non_zeros(
            counts.reshape(-1).index_select(0, indices),
            log_mean.reshape(-1).index_select(0, indices),
            log_theta if of_gene else log_theta.expand_as(log_mean).reshape(-1).index_select(0, indices),
            indices % counts.shape[-1] if of_gene else None,
        )
        for dense, sparse in zip((value, by_log_mean, by_log_theta), exact, strict=True):
            if dense is not None:
                dense.view(-1).index_copy_(0, indices, sparse.float())
    return value, by_log_mean, by_log_theta


class _NegativeBinomial(torch.autograd.Function):
    """Element-wise log-probability with hand-written gradients, computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        value, by_log_mean, by_log_theta = _value_and_gradients(
            counts, log_mean, log_theta, with_gradients=any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(by_log_mean, by_log_theta)
        ctx.theta_shape = log_theta.shape
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        by_log_mean, by_log_theta = ctx.saved_tensors
        _, mean_needed, theta_needed = ctx.needs_input_grad
        return (
            None,
            grad * by_log_mean if mean_needed else None,
            (grad * by_log_theta).sum_to_size(ctx.theta_shape) if theta_needed else None,
        )


@torch.library.custom_op(
    "scr2mae::nb_log_prob",
    mutates_args=(),
    schema="(Tensor counts, Tensor log_mean, Tensor log_theta) -> (Tensor, Tensor, Tensor)",
)
def _opaque(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients as one operator that a compiler does not trace."""
    return _value_and_gradients(counts, log_mean, log_theta)


@_opaque.register_fake
def _shapes(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.empty_like(log_mean + log_theta)
    return value, torch.empty_like(value), torch.empty_like(value)


def _keep_gradients(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.theta_shape = inputs[2].shape


def _opaque_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[None, Tensor, Tensor]:
    by_log_mean, by_log_theta = ctx.saved_tensors
    return None, grad * by_log_mean, (grad * by_log_theta).sum_to_size(ctx.theta_shape)


_opaque.register_autograd(_opaque_backward, setup_context=_keep_gradients)


def _in_double(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Log-probability of each count in double precision, differentiated by autograd."""
    x, log_mean, log_theta = counts.double(), log_mean.double(), log_theta.double()
    theta, a = log_theta.exp(), log_mean - log_theta
    softplus_a = softplus(a, threshold=100.0)
    value = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return (value + x * (a - softplus_a) - theta * softplus_a).float()


def nb_log_prob(counts: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Return the log-probability of each count under its negative binomial.

    Parameters
    ----------
    counts
        Non-negative counts x, shape ``(n_obs, n_vars)``.
    log_mean
        Natural log of the means, same shape.
    log_theta
        Natural log of the inverse dispersions, ``variance = mean + mean^2 / theta``; any shape that broadcasts to
        that of ``counts``.

    Returns
    -------
    Log-probabilities in nats, float32, same shape. Differentiable once in ``log_mean`` and ``log_theta``.

    Notes
    -----
    Inputs are converted to float32 whatever the autocast dtype. For counts and means up to 1e6 and theta from 1e-4 to
    1e8, value and gradients agree with the float64 formula to ``1e-5 (1 + |true value|)``; on MPS devices, which lack
    float64, large counts are less exact.

    Examples
    --------
    >>> import torch
    >>> from scr2mae.nn.likelihood import nb_log_prob
    >>> counts = torch.arange(500.0)
    >>> log_prob = nb_log_prob(counts, torch.full_like(counts, 2.0).log(), torch.tensor(3.0).log())
    >>> round(log_prob.exp().sum().item(), 3)
    1.0
    """
    inputs = counts.float(), log_mean.float(), log_theta.float()
    if not torch.compiler.is_compiling():
        return _NegativeBinomial.apply(*inputs)
    return _opaque(*inputs)[0] if shapes_are_free(log_mean.device) else _in_double(*inputs)


def log_mean_of_counts(logits: Tensor, log_library: Tensor, *, measured: Tensor | None = None) -> Tensor:
    """Return the log of ``library * softmax(logits)``, with the softmax over the measured genes.

    Parameters
    ----------
    logits
        Decoder output, shape ``(n_obs, n_vars)``.
    log_library
        Natural log of the total count over the measured genes, shape ``(n_obs, 1)``.
    measured
        Boolean, shape ``(n_vars,)``, True for measured genes; None for all.

    Returns
    -------
    Log means, float32, shape ``(n_obs, n_vars)``. An unmeasured gene gets its expected mean in the same cell at the same
    depth, ``library * rho_g / sum of rho over measured genes``.
    """
    logits = logits.float()
    if measured is None:
        return log_softmax(logits, dim=-1) + log_library
    total = logits.masked_fill(~measured, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return logits - total + log_library
