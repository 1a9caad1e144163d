"""What differs between the supported versions of scvi-tools and anndata, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich.pretty  # noqa: F401  # scvi-tools shows registries with it and does not import it
import torch

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["layer_names", "torch_device"]


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; anndata 0.13 counts ``X`` among them, under None."""
    return [name for name in adata.layers if name is not None]


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
