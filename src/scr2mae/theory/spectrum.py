"""Effective rank of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class EffectiveRank(NamedTuple):
    """Spread of a matrix over its singular directions.

    Attributes
    ----------
    entropy
        Of the sum-normalized singular values, nats.
    rank
        Its exponential, between 1 and the number of directions.
    """

    entropy: float
    rank: float


def effective_rank(matrix: ArrayLike) -> EffectiveRank:
    """Measure how evenly a matrix spreads over its directions.

    Parameters
    ----------
    matrix
        Shape ``(n_obs, n_features)``, for example an embedding. It is not centered.

    Returns
    -------
    Entropy, which the paper plots, and its exponential, which counts directions: 1 for rank one, k for k equal
    singular values.

    Raises
    ------
    ValueError
        If the matrix is not two-dimensional and finite, or is zero.

    Notes
    -----
    Roy and Vetterli (2007).
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"effective_rank needs a finite, non-empty 2-d matrix, got shape {values.shape}.")
    singular = np.linalg.svd(values, compute_uv=False)
    if singular[0] == 0:
        raise ValueError("The effective rank of a zero matrix is undefined.")
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log(shares)).sum())
    return EffectiveRank(entropy, float(np.exp(entropy)))
