"""Effective rank of a matrix, shared by the metrics and the theory."""

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
        Entropy of the singular values scaled to sum to one, in nats.
    rank
        Exponential of the entropy, between 1 and the number of directions.
    """

    entropy: float
    rank: float


def effective_rank(X: ArrayLike) -> EffectiveRank:
    """Return the entropy of the singular values, scaled to sum to one, and its exponential.

    Parameters
    ----------
    X
        Matrix, such as an embedding, shape ``(n_obs, n_features)``. It is not centered; center it first to exclude
        the mean.

    Returns
    -------
    Entropy in nats and its exponential, which lies in [1, min(n_obs, n_features)]: k for k equal singular values.

    Raises
    ------
    ValueError
        If the matrix is not two-dimensional and finite, is empty, or all entries are zero.

    Notes
    -----
    Roy and Vetterli (2007), the measure of Dong et al. (2025), who report the entropy itself.

    Examples
    --------
    >>> import numpy as np
    >>> from scr2mae.metrics import effective_rank
    >>> round(effective_rank(np.eye(4)).rank, 6)
    4.0
    """
    matrix = np.asarray(X, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ValueError(f"effective_rank needs a finite, non-empty 2-d matrix, got shape {matrix.shape}.")
    values = np.linalg.svd(matrix, compute_uv=False)
    if values[0] == 0:
        raise ValueError("The effective rank of a zero matrix is undefined; check the embedding.")
    share = values / values.sum()
    share = share[share > 0]
    entropy = max(float(-(share * np.log(share)).sum()), 0.0)
    return EffectiveRank(entropy=entropy, rank=float(np.exp(entropy)))
