"""Soft clusters in the latent space, and the displacement of each batch onto the common means of clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

__all__ = ["TEMPERATURE", "Solution", "covariance", "powers", "solve"]

TEMPERATURE = 0.1
"""Of the weights of clusters, as in Harmony; half of it for a new batch, whose clusters are not balanced."""

_N_ITER = 10  # further ones change scores by less than .001
_PSEUDO_CELLS = 0.5  # per latent dimension: weight of the shared covariance in that of a batch
_RIDGE = 0.02  # of the mean variance, so that covariances are invertible
_NOVELTY = 0.6  # share of the reference in a cluster, relative to the new batch's, at which half is trusted
_NEAR = 0.2  # in cosine: how far the displacement of a cluster speaks for others
_N_NEIGHBORS = 20  # of each cell, among which pairs are looked for
_N_PAIRED = 3000  # most cells of a batch that are paired
_N_SHIFTS = 3  # by the mean of pairs; each finds more of them
_N_START = 5000  # most cells of the k-means that starts the clusters
_TINY = 1e-9


@dataclass
class Solution:
    """Clusters of batches (arrays by batch, then cluster), and the aligned vectors of cells."""

    directions: np.ndarray  # of length TEMPERATURE / temperature
    masses: np.ndarray
    sources: np.ndarray  # m
    targets: np.ndarray  # t
    maps: np.ndarray  # A
    shared: np.ndarray
    aligned: np.ndarray


def solve(Z: np.ndarray, codes: np.ndarray, *, n_clusters: int, anchored: bool, seed: int) -> Solution:
    """Alternate between soft clusters of the aligned cells and the displacement of batches onto the clusters' means.

    With ``anchored``, the first batch is a reference that does not move, and the shares of clusters in the second
    may differ from it: clusters are not balanced, and start from pairs of mutual neighbors, not from equal means.
    Cells are handled in float32, moments of clusters in float64.
    """
    Z = Z.astype(np.float32)
    temperature = TEMPERATURE / 2 if anchored else TEMPERATURE
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    place = np.argsort(np.concatenate(members))  # of a cell among those sorted by batch
    parts = [Z[at] for at in members]
    sizes = np.array([len(part) for part in parts])
    shifts = _shifts_by_pairs(*parts) if anchored else -np.stack([part.mean(axis=0) for part in parts])
    aligned = Z + shifts[codes]
    sample = _unit(aligned[:: -(-len(Z) // _N_START)])
    start = KMeans(n_clusters, n_init=1, random_state=seed).fit(sample)
    directions, penalty = _unit(start.cluster_centers_), np.zeros((len(parts), n_clusters), Z.dtype)
    maps = None
    for iteration in range(_N_ITER):
        unit = _unit(aligned)
        for _ in range(2):
            cosines = unit @ directions.T
            # Balance batches within clusters, as Harmony does; undamped it would oscillate.
            for _ in range(3):
                weights = softmax(2 / temperature * cosines + penalty[codes], axis=1)
                masses = np.stack([weights[at].sum(axis=0, dtype=np.float64) for at in members])
                if anchored:
                    break
                expected = np.outer(sizes / sizes.sum(), masses.sum(axis=0))
                penalty = ((penalty + np.log((expected + 1) / (masses + 1))) / 2).astype(Z.dtype)
            directions = _unit(weights.T @ unit)
        by_batch = [weights[at] for at in members]
        sums = np.stack([(w.T @ part).astype(np.float64) for w, part in zip(by_batch, parts, strict=True)])
        sources, targets = (_anchored_means if anchored else _pooled_means)(masses, sums)
        if iteration % 4 == 3:  # these take half of the time
            maps = _transport_maps(parts, by_batch, sources, anchored=anchored)
        aligned = np.concatenate(_displace(parts, by_batch, sources, targets, maps))[place]
    shares = masses / sizes[:, None]
    others = (masses.sum(axis=0) - masses) / np.maximum(sizes.sum() - sizes, 1)[:, None]
    # Weights that need only the cell and its batch: directions and masses of the batch instead of the balance.
    units = [_unit(part) for part in parts]
    own = np.stack([_unit(w.T @ u + _TINY * directions) for w, u in zip(by_batch, units, strict=True)])
    by_batch = [
        softmax(2 / temperature * u @ d.T + np.log(mass + 1e-3).astype(Z.dtype), axis=1)
        for u, d, mass in zip(units, own, masses, strict=True)
    ]
    maps = _transport_maps(parts, by_batch, sources, anchored=anchored)
    return Solution(
        directions=own * TEMPERATURE / temperature,
        masses=masses,
        sources=sources,
        targets=targets,
        maps=maps,
        shared=np.minimum(shares, others).sum(axis=1),
        aligned=np.concatenate(_displace(parts, by_batch, sources, targets, maps))[place],
    )


def _pooled_means(masses: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means of clusters by batch, with one pseudo-cell at that of all batches, and the latter for each batch."""
    pooled = sums.sum(axis=0) / np.maximum(masses.sum(axis=0), _TINY)[:, None]
    sources = (sums + pooled) / (masses + 1)[..., None]
    return sources, np.broadcast_to(pooled, sums.shape)


def _anchored_means(masses: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means of clusters in reference and new batch, and where they go.

    Clusters that are new move by the mean displacement of the shared ones near them, so that they stay apart.
    """
    own = sums / np.maximum(masses, 1e-6)[..., None]
    common = masses[0] * masses[1] / (masses.sum(axis=0) + _TINY)
    directions = _unit(own[1])
    nearness = np.exp((directions @ directions.T - 1) / _NEAR) * (common + _TINY)
    drift = nearness / nearness.sum(axis=1, keepdims=True) @ (own[0] - own[1])
    shares = masses / masses.sum(axis=1, keepdims=True)
    known = (shares[0] / np.maximum(shares[1], _TINY)) ** 2
    trust = (known / (known + _NOVELTY**2) * masses[0] / (masses[0] + 1))[:, None]
    target = trust * own[0] + (1 - trust) * (own[1] + drift)
    source = (sums[1] + target - drift) / (masses[1] + 1)[:, None]
    return np.stack([own[0], source]), np.stack([own[0], target])


def _shifts_by_pairs(reference: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the displacements of two batches as a whole: none of the reference, and that of the new one onto it."""
    shift = np.zeros_like(new[0])
    for _ in range(_N_SHIFTS):
        shift += _mean_of_pairs(reference, new + shift)
    return np.stack([np.zeros_like(shift), shift])


def _mean_of_pairs(reference: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the mean displacement of new cells to the reference cells that are their mutual nearest neighbors."""
    reference, new = (Z[:: -(-len(Z) // _N_PAIRED)] for Z in (reference, new))
    near = [
        NearestNeighbors(n_neighbors=min(_N_NEIGHBORS, len(host)), algorithm="brute")
        .fit(_unit(host))
        .kneighbors_graph(_unit(guest))
        for host, guest in ((reference, new), (new, reference))
    ]
    pairs = near[0].multiply(near[1].T).tocsr()
    n_pairs = np.asarray(pairs.sum(axis=1)).ravel()
    paired = n_pairs > 0
    if not paired.any():
        return np.zeros(reference.shape[1])
    return (pairs[paired] @ reference / n_pairs[paired, None] - new[paired]).mean(axis=0)


def _transport_maps(
    parts: list[np.ndarray], weights: list[np.ndarray], sources: np.ndarray, *, anchored: bool
) -> np.ndarray:
    """Return the optimal-transport maps between Gaussians, from the residuals of each batch to those of all.

    For covariances S and P that is ``S^-1/2 (S^1/2 P S^1/2)^1/2 S^-1/2`` (Knott and Smith 1984).
    """
    sizes = np.array([len(part) for part in parts])
    spreads = np.stack(
        [covariance(part - w @ m.astype(w.dtype)) for part, w, m in zip(parts, weights, sources, strict=True)]
    )
    shared = spreads[0] if anchored else np.tensordot(sizes / sizes.sum(), spreads, 1)
    n_latent = shared.shape[0]
    ridge = _RIDGE * max(np.trace(shared) / n_latent, _TINY) * np.eye(n_latent)
    maps = []
    for size, spread in zip(sizes, spreads, strict=True):
        n_pseudo = _PSEUDO_CELLS * n_latent
        mine = (size * spread + n_pseudo * shared) / (size + n_pseudo) + ridge
        root, inverse = powers(mine, 0.5, -0.5)
        maps.append(inverse @ powers(root @ (shared + ridge) @ root, 0.5)[0] @ inverse)
    return np.stack(maps)


def _displace(
    parts: list[np.ndarray],
    weights: list[np.ndarray],
    sources: np.ndarray,
    targets: np.ndarray,
    maps: np.ndarray | None,
) -> list[np.ndarray]:
    """Return the vectors of each batch, moved; without maps, residuals stay as they are."""
    moved = []
    for i, (part, w) in enumerate(zip(parts, weights, strict=True)):
        offsets = targets[i] - (sources[i] if maps is None else sources[i] @ maps[i].T)
        stretched = part if maps is None else part @ maps[i].T.astype(part.dtype)
        moved.append(stretched + w @ offsets.astype(part.dtype))
    return moved


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def covariance(residuals: np.ndarray) -> np.ndarray:
    """Return the covariance of vectors with mean zero."""
    return (residuals.T @ residuals).astype(np.float64) / max(len(residuals) - 1, 1)


def powers(matrix: np.ndarray, *exponents: float) -> list[np.ndarray]:
    """Return powers of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return [(vectors * np.maximum(values, 1e-10) ** exponent) @ vectors.T for exponent in exponents]
