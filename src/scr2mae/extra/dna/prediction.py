"""What a network says about every base of some windows, each hidden once; what simpler rules say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scr2mae._utils.compat import torch_device
from scr2mae.extra.dna.alphabet import BASES, GAP_ID, MASK_ID, VOCABULARY
from scr2mae.extra.dna.compatibility import check_species, check_window

if TYPE_CHECKING:
    from scr2mae.extra.dna.dataset import MSAWindowDataset
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["alignment_log_probs", "predict_bases", "unigram_log_probs"]

_BASE_TOKENS = slice(VOCABULARY.index(BASES[0]), VOCABULARY.index(BASES[-1]) + 1)
_COLUMNS = [f"log_prob_{base}" for base in BASES]


@torch.no_grad()
def _logits(
    model: GPNMSAForMaskedLM, tokens: Tensor, species: Tensor, fold: np.ndarray, n_folds: int
) -> Tensor:
    """Logits of each position's four bases while its fold is hidden, (n_obs, n_positions, 4)."""
    found = torch.empty(*tokens.shape, len(BASES))
    device = model.cos.device
    for k in range(n_folds):
        hidden = torch.from_numpy(fold == k)
        seen = torch.where(hidden, MASK_ID, tokens.long())
        out = model.predict(model.encode(seen.to(device), species.to(device)))[..., _BASE_TOKENS]
        found[hidden] = out.float().cpu()[hidden]
    return found


def predict_bases(
    model: GPNMSAForMaskedLM,
    data: MSAWindowDataset,
    *,
    ratio: float = 0.15,
    seed: int = 0,
    batch_size: int = 256,
    accelerator: str = "auto",
) -> pd.DataFrame:
    """Predict each known reference base of some windows while it is hidden, with a share of its neighbors.

    Parameters
    ----------
    model
        The network.
    data
        Windows; best without overlap.
    ratio
        Share hidden at a time, in (0, 0.5]: positions fall at random into ``round(1 / ratio)`` folds, hidden one after another.
    seed
        Seed of the folds.
    batch_size
        Windows at a time.
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.

    Returns
    -------
    One row a known base: ``chrom``, ``pos`` (0-based), ``strand``, ``base`` on that strand, and the log-probabilities
    ``log_prob_A`` to ``log_prob_T``, which sum to one.

    Raises
    ------
    ValueError
        If the ratio is out of range, species differ in number, name or order, or windows are longer than the network takes.
    """
    if not 0 < ratio <= 0.5:
        raise ValueError(f"ratio must lie in (0, 0.5], got {ratio!r}.")
    check_species(model, data.msa)
    check_window(model, data.window_size)
    n_folds = round(1 / ratio)
    training, before = model.training, model.cos.device
    model.eval().to(torch_device(accelerator, "auto"))
    rng, frames = np.random.default_rng(seed), []
    try:
        for first in range(0, len(data), batch_size):
            rows = np.arange(first, min(first + batch_size, len(data)))
            batch = data.batch(rows)
            tokens = batch["input_ids"]
            order = rng.random(tokens.shape).argsort(axis=1)  # every window has folds of equal size
            logits = _logits(model, tokens, batch["aux_features"], order % n_folds, n_folds)
            frames.append(_frame(data.windows.iloc[rows], tokens.numpy(), logits.log_softmax(dim=-1).numpy()))
    finally:
        model.to(before).train(training)
    return pd.concat(frames, ignore_index=True)


def _frame(windows: pd.DataFrame, tokens: np.ndarray, log_probs: np.ndarray) -> pd.DataFrame:
    """One row a known base of some windows."""
    n_positions = tokens.shape[1]
    offset = np.arange(n_positions)
    forward = (windows["strand"] == "+").to_numpy()[:, None]
    pos = np.where(
        forward,
        windows["start"].to_numpy()[:, None] + offset,
        windows["end"].to_numpy()[:, None] - 1 - offset,
    )
    row, column = np.nonzero(tokens != GAP_ID)
    return pd.DataFrame(
        {
            "chrom": windows["chrom"].to_numpy()[row],
            "pos": pos[row, column],
            "strand": windows["strand"].to_numpy()[row],
            "base": np.array(list(VOCABULARY))[tokens[row, column]],
        }
        | {name: log_probs[row, column, i] for i, name in enumerate(_COLUMNS)}
    )


def unigram_log_probs(tokens: np.ndarray) -> np.ndarray:
    """Log-frequencies of A, C, G and T in the reference: the simplest baseline.

    Parameters
    ----------
    tokens
        Tokens of an alignment that may be learned from, the reference in the last axis' first place.

    Returns
    -------
    Shape (4,).
    """
    counts = np.bincount(tokens[..., 0].ravel(), minlength=len(VOCABULARY))[_BASE_TOKENS]
    return np.log((counts + 1) / (counts + 1).sum())


def alignment_log_probs(tokens: np.ndarray, prior: np.ndarray, *, pseudocount: float = 1.0) -> np.ndarray:
    """Log-probabilities of the reference base from the other species' bases at its position: the alignment-count baseline.

    Parameters
    ----------
    tokens
        Tokens of an alignment, shape (..., 1 + n_species); the reference's are not looked at.
    prior
        Log-probabilities without any species, shape (4,), such as :func:`unigram_log_probs` returns.
    pseudocount
        What the prior weighs, in species, > 0.

    Returns
    -------
    Shape (..., 4).

    Raises
    ------
    ValueError
        If the pseudocount is not positive.
    """
    if not pseudocount > 0:
        raise ValueError(f"pseudocount must be positive, got {pseudocount!r}.")
    bases = np.arange(len(VOCABULARY))[_BASE_TOKENS]
    counts = (tokens[..., 1:, None] == bases).sum(axis=-2) + pseudocount * np.exp(prior)
    return np.log(counts / counts.sum(axis=-1, keepdims=True))
