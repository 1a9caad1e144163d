"""Devices and precision, and an import that some versions of scvi-tools lack."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import rich.pretty  # noqa: F401  # needed and not imported by scvi-tools
import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["autocast", "check_device", "resolve_precision", "single_thread_after_fork", "torch_device"]

_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PROCESS = os.getpid()
_SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device of Lightning-style arguments; raise if the accelerator is unknown or absent.

    The helper of scvi-tools is in a private module that has moved between versions.
    """
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kinds: dict[str, Any] = {"gpu": "cuda", "cuda": "cuda", "mps": "mps", "cpu": "cpu"}
    if accelerator not in kinds:
        raise ValueError(f"accelerator must be 'auto', 'cpu', 'gpu' or 'mps', got {accelerator!r}.")
    kind = kinds[accelerator]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "accelerator='gpu' was requested, but there is no CUDA device; use accelerator='cpu'."
        )
    if kind == "mps" and not _has_mps():
        raise ValueError("accelerator='mps' was requested, but there is no Apple GPU; use accelerator='cpu'.")
    if isinstance(device, str) and device != "auto":
        return torch.device(device)
    index = 0 if isinstance(device, str) else device
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def check_device(device: torch.device | int | str) -> torch.device:
    """Return a device by its name or number; raise if this machine lacks it."""
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise ValueError(f"Wanted a device such as 'cpu', 'cuda:0' or 'mps', got {device!r}.") from None
    if found.type in ("cuda", "mps"):
        torch_device(found.type, "auto")
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"There is no device {found}; this machine has {torch.cuda.device_count()} GPUs."
            )
    return found


def single_thread_after_fork() -> None:
    """Compute on one thread in a process forked from the one that imported this package.

    A fork copies the state of OpenMP's threads but not the threads; waiting for them would hang.
    """
    global _PROCESS
    if os.getpid() != _PROCESS:
        torch.set_num_threads(1)
        _PROCESS = os.getpid()


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether matrix products are faster in bfloat16 than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_precision(precision: str | int | None, device: torch.device) -> Any:
    """Return ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; None (left to a Lightning plugin) stays None.

    ``"auto"`` is ``"bf16-mixed"`` if the device has native bfloat16 support. Lightning's short forms are accepted.
    """
    if precision == "auto":
        return "bf16-mixed" if _multiplies_bfloat16(device) else "32-true"
    if precision is None:
        return None
    name = _SHORT.get(str(precision), str(precision))
    if name not in _TYPES:
        raise ValueError(
            f"precision must be 'auto' or one of {list(_TYPES)}, since weights and likelihood are float32; got {precision!r}."
        )
    return name


def autocast(precision: str | int | None, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a trained network computes in this precision."""
    dtype = _TYPES[resolve_precision(precision, device) or "32-true"]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
