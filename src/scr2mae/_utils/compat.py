"""Differences between supported versions of scvi-tools; devices and number formats."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import rich.pretty  # noqa: F401  # scvi-tools shows registries with it and does not import it
import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["autocast", "resolve_precision", "torch_device"]

_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device that Lightning-style arguments name.

    scvi-tools has a helper for this, but in a private module that has moved between versions.

    Raises
    ------
    ValueError
        If the accelerator is unknown or absent.
    """
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    kinds: dict[str, Any] = {"gpu": "cuda", "cuda": "cuda", "mps": "mps", "cpu": "cpu"}
    if accelerator not in kinds:
        raise ValueError(f"accelerator must be 'auto', 'cpu', 'gpu' or 'mps', got {accelerator!r}.")
    kind = kinds[accelerator]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "accelerator='gpu' was asked for, but no CUDA device is here; use accelerator='cpu'."
        )
    if kind == "mps" and not _has_mps():
        raise ValueError("accelerator='mps' was asked for, but no Apple GPU is here; use accelerator='cpu'.")
    if isinstance(device, str) and device != "auto":
        return torch.device(device)
    index = 0 if isinstance(device, str) else device
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_precision(precision: str | int | None, device: torch.device) -> Any:
    """Choose ``"bf16-mixed"`` where the device multiplies bfloat16 in hardware, for ``"auto"``.

    Parameters
    ----------
    precision
        ``"auto"``, ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``, or Lightning's short forms of these; None leaves the choice
        to a plugin of Lightning's, and without one is ``"32-true"``.
    device
        Where the network is.

    Returns
    -------
    One of the three, or None for None.

    Raises
    ------
    ValueError
        If it is another. Weights and likelihood are float32 always.
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
    """Return the context in which a trained network computes in this precision.

    Raises
    ------
    ValueError
        If the precision is none that :func:`resolve_precision` knows.
    """
    dtype = _TYPES[resolve_precision(precision, device) or "32-true"]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
