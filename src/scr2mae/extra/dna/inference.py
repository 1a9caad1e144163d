"""A trained network in use: its evaluation mode on a device, and embeddings of windows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from scr2mae._utils.compat import torch_device
from scr2mae.extra.dna.compatibility import check_species, check_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.extra.dna.dataset import MSAWindowDataset
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["embed", "evaluating"]


@contextmanager
def evaluating(network: GPNMSAForMaskedLM, accelerator: str) -> Iterator[torch.device]:
    """Put a network in evaluation mode on a device, without gradients; restore mode and device at the end."""
    training, before = network.training, network.cos.device
    device = torch_device(accelerator, "auto")
    network.eval().to(device)
    try:
        with torch.no_grad():
            yield device
    finally:
        network.to(before).train(training)


def embed(
    network: GPNMSAForMaskedLM,
    data: MSAWindowDataset,
    *,
    batch_size: int = 256,
    accelerator: str = "auto",
) -> np.ndarray:
    """Embed windows: the last hidden state of the position in their center, with no base masked.

    Parameters
    ----------
    network
        The network.
    data
        Windows. Both strands of a window share the center, position ``start + size // 2`` of the reference.
    batch_size
        Windows per batch.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.

    Returns
    -------
    float32, shape (n_windows, hidden_size).

    Raises
    ------
    ValueError
        If species differ in number, name or order, or windows are longer than the network takes.
    """
    check_species(network, data.msa)
    check_window(network, data.window_size)
    half = data.window_size // 2
    forward = (data.windows["strand"] == "+").to_numpy()
    center = np.where(forward, half, data.window_size - 1 - half)
    embeddings = np.empty((len(data), network.config.hidden_size), dtype=np.float32)
    with evaluating(network, accelerator) as device:
        for first in range(0, len(data), batch_size):
            rows = np.arange(first, min(first + batch_size, len(data)))
            batch = data.batch(rows)
            hidden = network.encode(batch["input_ids"].to(device), batch["aux_features"].to(device))
            embeddings[rows] = hidden[np.arange(len(rows)), center[rows]].float().cpu().numpy()
    return embeddings
