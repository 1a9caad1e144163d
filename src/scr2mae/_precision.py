"""Which number formats a device computes in quickly, under Lightning's names for them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["autocast", "resolve_precision"]

_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


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
