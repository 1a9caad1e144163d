"""Compilation of the loss of a training step."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compile_loss"]


def compile_loss(module: Any, **compile_kwargs: Any) -> Callable[..., torch.Tensor]:
    """Compile ``masked_nll`` of a network's class with :func:`torch.compile`; the first argument is then the network.

    Shapes are static unless ``dynamic`` says otherwise, as in scvi-tools. Compilation takes place at the
    first call, which raises RuntimeError if it fails.
    """
    kind = type(module)
    if not hasattr(kind, "masked_nll"):
        raise ValueError(
            f"compile=True needs a network with the method masked_nll, which {kind.__name__} lacks; omit compile."
        )
    # With static shapes, a mini-batch always uses the same graph, so resumed runs are bitwise identical.
    compiled = torch.compile(_copy_code(kind.masked_nll), **{"dynamic": False, **compile_kwargs})

    def loss(*args: Any) -> torch.Tensor:
        try:
            # A captured CUDA graph writes its next result to the same memory.
            return compiled(*args).clone()
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).strip().split("\n\n")[0].split())  # without advice on debugging
            raise RuntimeError(
                f"The training step could not be compiled: {reason}. "
                "torch.compile needs a C++ compiler such as g++, on GPUs Triton too; install it, or train without "
                "plan_kwargs={'compile': True}."
            ) from error

    return loss


def _copy_code(function: Any) -> Any:
    """Copy a function with its code object, with which PyTorch keeps at most eight compiled graphs."""
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
