"""A trained network applied to windows: embeddings, and predictions of masked bases."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scr2mae._utils.compat import torch_device
from scr2mae.extra.dna.alphabet import BASE_TOKENS, BASES, GAP_ID, MASK_ID, VOCABULARY
from scr2mae.extra.dna.compatibility import check_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scr2mae.extra.dna.dataset import MSAWindowDataset
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["embed", "evaluating", "predict_bases"]


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


def _batch_indices(n_obs: int, batch_size: int) -> Iterator[np.ndarray]:
    for first in range(0, n_obs, batch_size):
        yield np.arange(first, min(first + batch_size, n_obs))


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
        If species differ in number, name or order, or windows are longer than the network allows.
    """
    check_windows(network, data)
    half = data.window_size // 2
    forward = (data.windows["strand"] == "+").to_numpy()
    center = np.where(forward, half, data.window_size - 1 - half)
    embeddings = np.empty((len(data), network.config.hidden_size), dtype=np.float32)
    with evaluating(network, accelerator) as device:
        for indices in _batch_indices(len(data), batch_size):
            batch = data.batch(indices)
            hidden = network.encode(batch["input_ids"].to(device), batch["aux_features"].to(device))
            embeddings[indices] = hidden[np.arange(len(indices)), center[indices]].float().cpu().numpy()
    return embeddings


def predict_bases(
    network: GPNMSAForMaskedLM,
    data: MSAWindowDataset,
    *,
    ratio: float = 0.15,
    seed: int = 0,
    batch_size: int = 256,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Predict each known reference base of some windows while it and a share of its neighbors are masked.

    Parameters
    ----------
    network
        The network.
    data
        Windows, preferably without overlap.
    ratio
        Share masked at a time, in (0, 0.5]: positions are assigned at random to ``round(1 / ratio)`` folds, which are
        masked in turn.
    seed
        Seed of the folds.
    batch_size
        Windows per batch.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.

    Returns
    -------
    One row per known base: ``chrom``, ``pos`` (0-based), ``strand``, ``base`` on that strand, and the log-probabilities
    ``log_prob_A`` to ``log_prob_T``, normalized over the four bases.

    Raises
    ------
    ValueError
        If the ratio is out of range, species differ in number, name or order, or windows are longer than the network allows.
    """
    if not 0 < ratio <= 0.5:
        raise ValueError(f"ratio must lie in (0, 0.5], got {ratio!r}.")
    check_windows(network, data)
    n_folds = round(1 / ratio)
    rng, frames = np.random.default_rng(seed), []
    with evaluating(network, accelerator) as device:
        for indices in _batch_indices(len(data), batch_size):
            batch = data.batch(indices)
            tokens, species = batch["input_ids"].long(), batch["aux_features"].to(device)
            order = rng.random(tokens.shape).argsort(axis=1)  # every window has folds of equal size
            fold = torch.from_numpy(order % n_folds)
            logits = torch.empty(*tokens.shape, len(BASES))
            for k in range(n_folds):
                visible = tokens.masked_fill(fold == k, MASK_ID).to(device)
                found = network.predict(network.encode(visible, species))[..., BASE_TOKENS]
                logits[fold == k] = found.float().cpu()[fold == k]
            log_probs = logits.log_softmax(dim=-1).numpy()
            frames.append(_prediction_frame(data.windows.iloc[indices], tokens.numpy(), log_probs))
    return pd.concat(frames, ignore_index=True)


def _prediction_frame(windows: pd.DataFrame, tokens: np.ndarray, log_probs: np.ndarray) -> pd.DataFrame:
    """Return one row per known base of some windows."""
    offset = np.arange(tokens.shape[1])
    start, end = (windows[name].to_numpy()[:, None] for name in ("start", "end"))
    forward = (windows["strand"] == "+").to_numpy()[:, None]
    pos = np.where(forward, start + offset, end - 1 - offset)
    row, column = np.nonzero(tokens != GAP_ID)
    return pd.DataFrame(
        {
            "chrom": windows["chrom"].to_numpy()[row],
            "pos": pos[row, column],
            "strand": windows["strand"].to_numpy()[row],
            "base": np.array(list(VOCABULARY))[tokens[row, column]],
        }
        | {f"log_prob_{base}": log_probs[row, column, i] for i, base in enumerate(BASES)}
    )
