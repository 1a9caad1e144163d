"""Soft clusters in the latent space, and the displacement of each batch onto the common means of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from sklearn.cluster import KMeans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["TEMPERATURE", "Solution", "covariance", "norms", "root", "solve"]

TEMPERATURE = 0.1
"""Scale of cluster weights, as in Harmony; halved for a new batch, whose clusters are not balanced."""

_N_ITER = 10  # further ones change scores by less than .001
_PSEUDO_CELLS = 0.5  # per latent dimension: weight of the shared covariance in that of a batch
_RIDGE = 0.02  # of the mean variance, so that covariances are invertible
# Share of the reference in a cluster, relative to the new batch's, at which half is trusted; .4 to 1.3 score the same.
_NOVELTY = 0.6
# In cosine: distance over which displacements carry over to other clusters; half of it mixes new types with known ones.
_NEAR = 0.2
_N_NEIGHBORS = 20  # of each cell, searched for pairs, as in Haghverdi et al. (2018)
_N_PAIRED = 3000  # most cells of a batch that are paired; their cosines take 36 MB
_N_SHIFTS = 3  # by the mean of pairs; each finds more of them
_N_START = 5000  # most cells of the k-means that starts the clusters; the iterations use all
_TINY = 1e-9  # against division by zero


class Solution(NamedTuple):
    """Displacement of each batch (tensors with a row per batch, as in an alignment), and displaced cells."""

    center: Tensor
    directions: Tensor
    log_masses: Tensor
    offsets: Tensor
    stretches: Tensor
    shared: Tensor
    moved: Tensor


def solve(Z: Tensor, sizes: list[int], *, n_clusters: int, anchored: bool, seed: int) -> Solution:
    """Alternate between soft clusters of the aligned cells and the displacement of batches onto the clusters' means.

    Cells are sorted by batch. With ``anchored``, the first batch is a reference that does not move, and the
    shares of clusters in the second may differ from it: clusters are not balanced, and start from pairs of
    mutual neighbors, not from equal means. Cells are handled in float32, moments of clusters in float64.
    """
    temperature = TEMPERATURE / 2 if anchored else TEMPERATURE
    center = (Z[: sizes[0]] if anchored else Z).mean(dim=0)
    Z = Z - center
    parts = Z.split(sizes)
    n_cells = torch.tensor(sizes, dtype=torch.float64, device=Z.device)
    codes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(Z.device)
    shifts = _shifts_by_pairs(*parts) if anchored else -torch.stack([part.mean(dim=0) for part in parts])
    aligned = Z + shifts[codes]
    start = KMeans(n_clusters, n_init=1, random_state=seed).fit(
        _unit(aligned[:: -(-len(Z) // _N_START)]).cpu()
    )
    directions = _unit(torch.as_tensor(start.cluster_centers_).to(Z))
    penalty, maps = Z.new_zeros(len(sizes), n_clusters), None
    for iteration in range(_N_ITER):
        unit = _unit(aligned)
        for _ in range(2):
            logits = 2 / temperature * unit @ directions.T
            # Balance batches within clusters, as Harmony does; undamped it would oscillate.
            for _ in range(3):
                weights = (logits + penalty[codes]).softmax(dim=1)
                by_batch = weights.split(sizes)
                masses = torch.stack([w.sum(dim=0, dtype=torch.float64) for w in by_batch])
                if anchored:
                    break
                expected = torch.outer(n_cells / len(Z), masses.sum(dim=0))
                penalty = (penalty + ((expected + 1) / (masses + 1)).log().to(Z)) / 2
            directions = _unit(weights.T @ unit)
        sums = torch.stack([(w.T @ part).double() for w, part in zip(by_batch, parts, strict=True)])
        sources, targets = (_anchored_means if anchored else _pooled_means)(masses, sums)
        if iteration % 4 == 3:  # these take half of the time
            maps = _transport_maps(parts, by_batch, sources, anchored=anchored)
        aligned, _ = _displace(parts, by_batch, sources, targets, maps)
    # Weights that need only the cell and its batch: directions and masses of the batch instead of the balance.
    units = _unit(Z).split(sizes)
    own = _unit(torch.stack([w.T @ u + _TINY * directions for w, u in zip(by_batch, units, strict=True)]))
    log_masses = (masses + 1e-3).log().to(Z)
    by_batch = [
        (2 / temperature * u @ d.T + log_mass).softmax(dim=1)
        for u, d, log_mass in zip(units, own, log_masses, strict=True)
    ]
    maps = _transport_maps(parts, by_batch, sources, anchored=anchored)
    aligned, offsets = _displace(parts, by_batch, sources, targets, maps)
    others = (masses.sum(dim=0) - masses) / (len(Z) - n_cells).clamp_min(1)[:, None]
    return Solution(
        center=center.expand(len(sizes), -1),
        directions=own * TEMPERATURE / temperature,
        log_masses=log_masses,
        offsets=offsets,
        stretches=maps.mT - torch.eye(len(center)).to(maps),
        shared=torch.minimum(masses / n_cells[:, None], others).sum(dim=1),
        moved=aligned + center,
    )


def _pooled_means(masses: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return cluster means by batch, with one pseudo-cell at the mean of all batches, and that mean for each batch."""
    pooled = sums.sum(dim=0) / masses.sum(dim=0).clamp_min(_TINY)[:, None]
    return (sums + pooled) / (masses + 1)[..., None], pooled.expand_as(sums)


def _anchored_means(masses: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return cluster means in the reference and the new batch, and their targets.

    Clusters that are new move by the mean displacement of the shared ones near them, so that they stay apart.
    """
    own = sums / masses.clamp_min(1e-6)[..., None]
    common = masses[0] * masses[1] / (masses.sum(dim=0) + _TINY)
    directions = _unit(own[1])
    nearness = ((directions @ directions.T - 1) / _NEAR).exp() * (common + _TINY)
    drift = nearness / nearness.sum(dim=1, keepdim=True) @ (own[0] - own[1])
    shares = masses / masses.sum(dim=1, keepdim=True)
    known = (shares[0] / shares[1].clamp_min(_TINY)) ** 2
    trust = (known / (known + _NOVELTY**2) * masses[0] / (masses[0] + 1))[:, None]
    target = trust * own[0] + (1 - trust) * (own[1] + drift)
    source = (sums[1] + target - drift) / (masses[1] + 1)[:, None]
    return torch.stack([own[0], source]), torch.stack([own[0], target])


def _shifts_by_pairs(reference: Tensor, new: Tensor) -> Tensor:
    """Return global displacements: zero for the reference, for the new batch that between mutual nearest neighbors."""
    reference, new = (Z[:: -(-len(Z) // _N_PAIRED)] for Z in (reference, new))
    shift = torch.zeros_like(new[0])
    for _ in range(_N_SHIFTS):
        cosines = _unit(new + shift) @ _unit(reference).T
        pairs = (_is_near(cosines, dim=0) & _is_near(cosines, dim=1)).to(new)
        n_pairs = pairs.sum(dim=1, keepdim=True)
        is_paired = (n_pairs > 0).to(new)
        moves = is_paired * (pairs @ reference / n_pairs.clamp_min(1) - new - shift)
        shift = shift + moves.sum(dim=0) / is_paired.sum().clamp_min(1)
    return torch.stack([torch.zeros_like(shift), shift])


def _is_near(cosines: Tensor, dim: int) -> Tensor:
    n_near = min(_N_NEIGHBORS, cosines.shape[dim])
    return cosines >= cosines.topk(n_near, dim=dim).values.amin(dim=dim, keepdim=True)


def _transport_maps(
    parts: Sequence[Tensor], weights: Sequence[Tensor], sources: Tensor, *, anchored: bool
) -> Tensor:
    """Return the optimal-transport maps between Gaussians, from the residuals of each batch to those of all.

    For covariances S = L L^T and P that is ``L^-T (L^T P L)^1/2 L^-1`` (Knott and Smith 1984).
    """
    spreads = torch.stack(
        [covariance(part - w @ m.to(w)) for part, w, m in zip(parts, weights, sources, strict=True)]
    )
    n_cells = spreads.new_tensor([len(part) for part in parts])
    shared = spreads[0] if anchored else torch.tensordot(n_cells / n_cells.sum(), spreads, 1)
    n_latent = len(shared)
    eye = torch.eye(n_latent).to(shared)
    ridge = _RIDGE * (shared.trace() / n_latent).clamp_min(_TINY) * eye
    shares = _PSEUDO_CELLS * n_latent / (n_cells + _PSEUDO_CELLS * n_latent)
    maps = []
    for spread, share in zip(spreads, shares, strict=True):
        lower = torch.linalg.cholesky(torch.lerp(spread, shared, share) + ridge)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        maps.append(inverse.mT @ root(lower.mT @ (shared + ridge) @ lower) @ inverse)
    return torch.stack(maps)


def _displace(
    parts: Sequence[Tensor], weights: Sequence[Tensor], sources: Tensor, targets: Tensor, maps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the moved vectors, and the offset of each cluster; without maps, residuals stay as they are."""
    offsets = targets - (sources if maps is None else sources @ maps.mT)
    stretched = parts if maps is None else [part @ a.T.to(part) for part, a in zip(parts, maps, strict=True)]
    moved = [torch.addmm(part, w, t.to(w)) for part, w, t in zip(stretched, weights, offsets, strict=True)]
    return torch.cat(moved), offsets


def norms(z: Tensor) -> Tensor:
    """Return the lengths of vectors (..., n, n_latent) as (..., n, 1), never 0."""
    return torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(1e-12)


def _unit(z: Tensor) -> Tensor:
    return z / norms(z)


def covariance(residuals: Tensor) -> Tensor:
    """Return the covariance of vectors with mean zero, in float64, in which it stays positive semi-definite."""
    residuals = residuals.double()
    return residuals.T @ residuals / max(len(residuals) - 1, 1)


def root(matrices: Tensor) -> Tensor:
    """Return the square roots of positive semi-definite matrices."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
