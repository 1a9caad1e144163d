"""Scores of the integration of batches, by scib-metrics on exact neighbors."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_array, check_consistent_length, column_or_1d

from scr2mae._utils.optional import require

__all__ = ["INTEGRATION_SCORES", "batch_mixing", "integration_scores"]

_BIO = ("isolated_labels", "nmi", "ari", "silhouette_label", "clisi")
_BATCH = ("bras", "ilisi", "kbet", "graph_connectivity")
INTEGRATION_SCORES = (*_BIO, *_BATCH, "bio_conservation", "batch_correction", "total")
"""Scores of the separation of labels and of the mixing of batches, and their summaries."""


def batch_mixing(X: ArrayLike, batch: ArrayLike, *, n_neighbors: int = 90) -> float:
    """Return the integration LISI of scib-metrics: how well batches mix among a cell's neighbors.

    Parameters
    ----------
    X
        Embedding, shape ``(n_obs, n_latent)``.
    batch
        Batch of each cell, shape ``(n_obs,)``.
    n_neighbors
        Number of neighbors per cell, below ``n_obs``; the perplexity is a third of it.

    Returns
    -------
    Score from 0 (separate) to 1 (mixed as evenly as the batch sizes allow).

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    ValueError
        If there are fewer than two batches or too few cells.
    """
    scib = require("scib_metrics", extra="metrics")
    Z, codes = np.asarray(check_array(X)), _codes(batch)
    _check_batches(Z, codes, n_neighbors)
    neighbors = _Neighbors(Z, n_neighbors)
    return float(scib.ilisi_knn(neighbors.nearest(n_neighbors), codes, perplexity=n_neighbors // 3))


def integration_scores(X: ArrayLike, batch: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Score an integrated embedding as scib-metrics does (Luecken et al. 2022).

    Parameters
    ----------
    X
        Embedding, shape ``(n_obs, n_latent)``, more than 90 cells with a label.
    batch, labels
        Batch and cell type of each cell, shape ``(n_obs,)``. Cells without a label are left out.

    Returns
    -------
    Scores in [0, 1], larger is better, by name. ``bio_conservation`` is the mean of
    ``isolated_labels``, ``nmi`` and ``ari`` of K-means, ``silhouette_label`` and ``clisi``; ``batch_correction`` that of
    ``bras``, ``ilisi``, ``kbet`` and ``graph_connectivity``; ``total`` is 0.6 times the former plus 0.4 times the latter.

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    ValueError
        If there are fewer than two batches or labels, too few cells, or no label that two batches have.

    Notes
    -----
    Neighbors are exact, so the scores are the same on every run. The principal component regression score needs
    the counts and is left out.
    """
    scib = require("scib_metrics", extra="metrics")
    check_consistent_length(X, batch, labels)
    values = np.asarray(column_or_1d(labels))
    labeled = ~np.asarray(pd.isna(values))
    Z = np.asarray(check_array(X, dtype=np.float32))[labeled]
    batches, types = _codes(np.asarray(batch)[labeled]), _codes(values[labeled].astype(str))
    _check_batches(Z, batches, 90)
    if types.max() < 1 or (pd.Series(batches).groupby(types).nunique() < 2).all():
        raise ValueError("Wanted two labels, and one that cells of two batches have; batches share no label.")
    neighbors = _Neighbors(Z, 90)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # progress of single labels
        warnings.simplefilter("ignore")
        clusters = scib.nmi_ari_cluster_labels_kmeans(Z, types)
        scores = {
            "isolated_labels": scib.isolated_labels(Z, types, batches),
            **clusters,
            "silhouette_label": scib.silhouette_label(Z, types),
            "clisi": scib.clisi_knn(neighbors.nearest(90), types),
            "bras": scib.bras(Z, types, batches),
            "ilisi": scib.ilisi_knn(neighbors.nearest(90), batches),
            "kbet": scib.kbet_per_label(neighbors.nearest(50), batches, types),
            "graph_connectivity": scib.graph_connectivity(neighbors.nearest(15), types),
        }
    scores["bio_conservation"] = np.mean([scores[name] for name in _BIO])
    scores["batch_correction"] = np.mean([scores[name] for name in _BATCH])
    scores["total"] = 0.6 * scores["bio_conservation"] + 0.4 * scores["batch_correction"]
    return {name: float(scores[name]) for name in INTEGRATION_SCORES}


class _Neighbors:
    """Exact nearest neighbors in the form that scib-metrics reads."""

    def __init__(self, X: np.ndarray, n_neighbors: int) -> None:
        self.distances, self.indices = NearestNeighbors(n_neighbors=n_neighbors).fit(X).kneighbors(X)

    def nearest(self, n: int) -> Any:
        module = require("scib_metrics.nearest_neighbors", extra="metrics")
        return module.NeighborsResults(indices=self.indices[:, :n], distances=self.distances[:, :n])


def _codes(values: ArrayLike) -> np.ndarray:
    return np.unique(column_or_1d(values), return_inverse=True)[1]


def _check_batches(X: np.ndarray, codes: np.ndarray, n_neighbors: int) -> None:
    check_consistent_length(X, codes)
    if not len(X) or codes.max() < 1 or len(X) <= n_neighbors:
        n_batches = len(np.unique(codes))
        raise ValueError(
            f"Wanted two batches and more than {n_neighbors} cells, got {n_batches} and {len(X)}."
        )
