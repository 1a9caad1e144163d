"""The part of a training step that holds tensors alone, compiled."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compile_loss"]


def compile_loss(module: Any, **compile_kwargs: Any) -> Callable[..., torch.Tensor]:
    """Compile a network's ``masked_nll``.

    Parameters
    ----------
    module
        The network; left as it is, and not held.
    compile_kwargs
        Arguments of :func:`torch.compile`. Shapes are static unless ``dynamic`` says otherwise, as in scvi-tools.

    Returns
    -------
    ``masked_nll`` with the network as its first argument, compiled at its first call, which raises RuntimeError if that
    cannot be done.

    Raises
    ------
    ValueError
        If the network has no ``masked_nll``.
    """
    kind = type(module)
    if not hasattr(kind, "masked_nll"):
        raise ValueError(
            f"compile=True needs a network with the method masked_nll, which {kind.__name__} lacks; leave compile out."
        )
    # Static shapes: the same graph computes a mini-batch whatever came before it, so that a resumed run goes on bit for bit.
    compiled = torch.compile(_with_own_cache(kind.masked_nll), **{"dynamic": False, **compile_kwargs})

    def loss(*args: Any) -> torch.Tensor:
        try:
            # A captured graph writes its next result where it wrote this one.
            return compiled(*args).clone()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                f"The training step could not be compiled: {_reason(error)}. "
                "torch.compile needs a C++ compiler such as g++, on GPUs Triton too; install it, or train without "
                "plan_kwargs={'compile': True}."
            ) from error

    return loss


def _reason(error: Exception) -> str:
    """Return what PyTorch says of an error, without its advice on debugging."""
    return " ".join(str(error).strip().split("\n\n")[0].split())


def _with_own_cache(function: Any) -> Any:
    """Copy a function down to its code, which PyTorch keeps compiled graphs with, and no more than eight of them."""
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
