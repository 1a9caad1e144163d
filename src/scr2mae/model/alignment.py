"""Align batches in the latent space: fitted without gradients, applied to each cell in closed form."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans

from scr2mae.model.soft_clusters import TEMPERATURE, covariance, powers, solve

if TYPE_CHECKING:
    from torch import Tensor

    from scr2mae.model.soft_clusters import Solution

__all__ = ["N_CELLS", "Alignment", "fit_alignment", "sample_cells"]

N_CELLS = 20_000
"""Most cells of a fit; more change the moments of clusters little and take longer."""

_N_CLUSTERS = 20  # fewer join cell types, more split them by batch
_CELLS_PER_CLUSTER = 30  # of small data, so that each cluster has a mean
# Each mixes what the one before left: two studies .67, .73, .75 after one, two, three (total of scIB).
_N_PASSES = 3
_N_COMPONENTS, _CELLS_PER_COMPONENT, _MIXTURE_CELLS = 100, 15, 5000
_N_DRAWN = 300, 3000  # cells drawn as the reference of a new batch, as many as it has within these limits
_SHAPE = "length", "means", "masses", "covariance"  # of all batches together
_SHARED = 0.4, 0.5  # overlap up to which a batch stays where it is, and from which it is aligned in full


@dataclass(frozen=True)
class Alignment:
    """Displacement of each batch onto what the batches have in common.

    In each of three passes, a latent vector z of batch b moves to ::

        z + sum_k r_k (t_k - m_bk) + (A_b - I) (z - sum_k r_k m_bk),   r_k ~ n_bk exp(2 cos(z, u_bk) / temperature)

    with soft clusters k, their means m_bk in the batch and t_k over batches, and the Gaussian
    optimal-transport map A_b from the residual covariance of the batch to that of all. Cells move by the
    fraction ``strengths`` of the displacement. All vectors are relative to ``center``; ``directions`` are u, twice
    as long for new batches, which halves their temperature; ``log_masses`` are log n, ``offsets`` t - A m,
    ``stretches`` the transposes of A - I. If the vectors of all cells have one ``length`` (else it is 0), it is
    restored after each pass: otherwise cells far from the means of their clusters have few neighbors of other
    batches.

    A row is for the codes of covariates and measured genes in ``keys``, -1 for any covariate. ``shared`` is
    the overlap of a batch's clusters with those of the others. New batches are aligned with draws from the
    Gaussian mixture of ``means``, ``masses`` and ``covariance``.
    """

    center: Tensor  # (n_rows, n_passes, n_latent)
    directions: Tensor  # (n_rows, n_passes, n_clusters, n_latent)
    log_masses: Tensor  # (n_rows, n_passes, n_clusters)
    offsets: Tensor  # (n_rows, n_passes, n_clusters, n_latent)
    stretches: Tensor  # (n_rows, n_passes, n_latent, n_latent)
    shared: Tensor  # (n_rows,)
    strengths: Tensor  # (n_rows,)
    keys: Tensor  # int64, (n_rows, n_covariates + 1)
    length: Tensor  # ()
    means: Tensor  # (n_components, n_latent)
    masses: Tensor  # (n_components,)
    covariance: Tensor  # (n_latent, n_latent)

    def apply(self, z: Tensor, keys: np.ndarray) -> Tensor:
        """Move latent vectors (n_obs, n_latent) of cells with the given keys (n_obs, n_covariates + 1); unknown ones stay."""
        moved = z.clone()
        unique, inverse = _unique_rows(keys)
        for i, row in enumerate(self.rows(unique)):
            if row is None or self.strengths[row] == 0:
                continue
            at = torch.from_numpy(np.flatnonzero(inverse == i)).to(z.device)
            cells = z[at]
            moved[at] = self._scaled(torch.lerp(cells, self._moved(cells, row), self.strengths[row]))
        return moved

    def _moved(self, z: Tensor, row: int) -> Tensor:
        """Return vectors of a batch after all passes."""
        passes = (self.center, self.directions, self.log_masses, self.offsets, self.stretches)
        for center, directions, log_masses, offsets, stretches in zip(
            *(of[row] for of in passes), strict=True
        ):
            centered = z - center
            logits = torch.addcdiv(
                log_masses, centered @ directions.T, _norms(centered), value=2 / TEMPERATURE
            )
            z = torch.addmm(z, logits.softmax(dim=1), offsets).addmm_(centered, stretches)
            z = self._scaled(z)
        return z

    def _scaled(self, z: Tensor) -> Tensor:
        length = float(self.length)
        return z * (length / _norms(z)) if length else z

    def rows(self, keys: np.ndarray) -> list[int | None]:
        """Return the row of each key (n, n_covariates + 1), None if there is none."""
        known = {tuple(key): row for row, key in enumerate(self.keys.tolist())}
        anything = (-1,) * (keys.shape[1] - 2)
        return [known.get(tuple(key), known.get((key[0], *anything, key[-1]))) for key in keys.tolist()]

    def nearest(self, keys: np.ndarray, lacks_few: np.ndarray) -> np.ndarray:
        """Return the keys, with all genes in place of nearly all (n_obs,) where batches were not aligned on those."""
        unique, inverse = _unique_rows(np.column_stack([keys, lacks_few]))
        is_unknown = np.array([row is None for row in self.rows(unique[:, :-1])], dtype=bool)
        unique[is_unknown & (unique[:, -1] == 1), -2] = 0
        return unique[inverse, :-1]

    def extend(self, Z: np.ndarray, key: tuple[int, ...], *, seed: int = 0) -> Alignment:
        """Add or replace the row of a new batch with latent vectors Z, aligned with draws from the mixture.

        The other rows do not change.
        """
        masses, length = self.masses.double().numpy(), float(self.length)
        rng, n = np.random.default_rng(seed), int(np.clip(len(Z), *_N_DRAWN))
        at = rng.choice(len(masses), n, p=masses / masses.sum())
        noise = rng.standard_normal((n, Z.shape[1])) @ powers(self.covariance.double().numpy(), 0.5)[0]
        reference = _of_length(self.means.double().numpy()[at] + noise, length)
        both, codes = np.concatenate([reference, Z[np.lexsort(Z.T)]]), np.repeat([0, 1], [n, len(Z)])
        n_passes, n_clusters = self.directions.shape[1:3]
        passes, _ = _solve_passes(both, codes, n_passes, n_clusters, length=length, anchored=True, seed=seed)
        new = {name: values[1:] for name, values in _to_rows(passes, np.ones(2)).items()}
        return self.join(replace(self, keys=torch.tensor([key]), **new))

    def join(self, other: Alignment) -> Alignment:
        """Add the rows of another alignment, in place of those with the same keys; length and mixture stay."""
        theirs = other.keys.tolist()
        kept = torch.tensor([key not in theirs for key in self.keys.tolist()])
        names = [field.name for field in fields(self) if field.name not in _SHAPE]
        return replace(
            self, **{name: torch.cat([getattr(self, name)[kept], getattr(other, name)]) for name in names}
        )

    def to(self, device: torch.device) -> Alignment:
        """Return a copy on a device."""
        return Alignment(**{name: values.to(device) for name, values in self.to_state().items()})

    def to_state(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], *, n_covariates: int) -> Alignment:
        """Make an alignment of tensors from a file; raise if they do not fit together."""
        names = {field.name for field in fields(cls)}
        if set(tensors) != names:
            raise ValueError(f"The alignment of batches lacks or adds {sorted(set(tensors) ^ names)}.")
        n_rows, n_components, n_latent = (len(tensors[name]) for name in ("keys", "masses", "covariance"))
        n_passes, n_clusters = (*tensors["log_masses"].shape[1:], 0, 0)[:2]
        shapes = {
            "center": (n_rows, n_passes, n_latent),
            "directions": (n_rows, n_passes, n_clusters, n_latent),
            "log_masses": (n_rows, n_passes, n_clusters),
            "offsets": (n_rows, n_passes, n_clusters, n_latent),
            "stretches": (n_rows, n_passes, n_latent, n_latent),
            "shared": (n_rows,),
            "strengths": (n_rows,),
            "keys": (n_rows, n_covariates + 1),
            "length": (),
            "means": (n_components, n_latent),
            "masses": (n_components,),
            "covariance": (n_latent, n_latent),
        }
        for name, shape in shapes.items():
            values, dtype = tensors[name], torch.int64 if name == "keys" else torch.float32
            if tuple(values.shape) != shape or values.dtype != dtype or not bool(values.isfinite().all()):
                raise ValueError(
                    f"The alignment of batches is damaged: {name} is {values.dtype} {tuple(values.shape)}, "
                    f"expected finite {dtype} {shape}."
                )
        return cls(**tensors)


def _norms(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1e-12)


def _unique_rows(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different rows and the position of each row among them; many times faster than ``np.unique`` by axis."""
    inverse, first = np.zeros(len(keys), dtype=np.int64), np.zeros(0, dtype=np.int64)
    for column in keys.T:
        pairs = inverse * (column.max(initial=0) + 2) + column
        _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return keys[first], inverse


def sample_cells(codes: np.ndarray, *, n_cells: int = N_CELLS, seed: int = 0) -> np.ndarray:
    """Return sorted positions of at most ``n_cells`` cells: as many of each batch as it has, up to a common limit."""
    sizes = np.sort(np.unique(codes, return_counts=True)[1])
    limit, left = n_cells, n_cells
    for i, size in enumerate(sizes):  # small batches leave their room to the others
        limit = left // (len(sizes) - i)
        if size > limit:
            break
        left -= size
    else:
        limit = int(sizes.max(initial=0))
    order = np.random.default_rng(seed).permutation(len(codes))
    rank = np.empty(len(codes), dtype=np.int64)  # of a cell in its batch
    for code in np.unique(codes):
        members = order[codes[order] == code]
        rank[members] = np.arange(len(members))
    return np.flatnonzero(rank < limit)


def fit_alignment(
    Z: np.ndarray,
    codes: np.ndarray,
    *,
    n_covariates: int = 1,
    genes: int = 0,
    n_clusters: int | None = None,
    guard: bool = True,
    seed: int = 0,
) -> Alignment:
    """Fit latent vectors (n_obs, n_latent) of batches (n_obs,); neither the order of cells nor that of batches matters.

    ``genes`` is the code of the measured genes, for the keys. With ``guard``, a batch whose clusters overlap
    little with those of the others is moved less, or not at all.
    """
    Z, codes = np.asarray(Z, dtype=np.float64), np.asarray(codes)
    if not len(Z) or not np.isfinite(Z).all():
        raise ValueError(f"Wanted finite latent vectors of one cell or more, got shape {Z.shape}.")
    order = np.lexsort(Z.T)
    Z, (names, codes) = Z[order], np.unique(codes[order], return_inverse=True)
    lengths = np.linalg.norm(Z, axis=1)
    length = float(lengths.mean()) if np.ptp(lengths) < 1e-3 * lengths.mean() else 0.0
    n_clusters = n_clusters or int(np.clip(len(Z) // _CELLS_PER_CLUSTER, 1, _N_CLUSTERS))
    passes, moved = _solve_passes(Z, codes, _N_PASSES, n_clusters, length=length, anchored=False, seed=seed)
    low, high = _SHARED
    strengths = np.clip((passes[0][1].shared - low) / (high - low), 0, 1) if guard else np.ones(len(names))
    strengths = strengths * (len(names) > 1)  # one batch stays, to the bit
    aligned = _of_length(Z + strengths[codes, None] * (moved - Z), length)
    keys = torch.full((len(names), n_covariates + 1), -1)
    keys[:, 0], keys[:, -1] = torch.from_numpy(names.astype(np.int64)), genes
    shape = {"length": np.array(length), **_mixture(aligned, seed=seed)}
    tensors = {name: torch.from_numpy(values.astype(np.float32)) for name, values in shape.items()}
    return Alignment(keys=keys, **_to_rows(passes, strengths), **tensors)


def _solve_passes(
    Z: np.ndarray,
    codes: np.ndarray,
    n_passes: int,
    n_clusters: int,
    *,
    length: float,
    anchored: bool,
    seed: int,
) -> tuple[list[tuple[np.ndarray, Solution]], np.ndarray]:
    """Align repeatedly; return the center and solution of each pass, and the vectors after the last."""
    passes = []
    for _ in range(n_passes):
        center = Z[codes == 0].mean(axis=0) if anchored else Z.mean(axis=0)
        solution = solve(Z - center, codes, n_clusters=n_clusters, anchored=anchored, seed=seed)
        Z = _of_length(solution.aligned + center, length)
        passes.append((center, solution))
    return passes, Z


def _of_length(Z: np.ndarray, length: float) -> np.ndarray:
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12) * length if length else Z


def _mixture(Z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Return a Gaussian mixture with a common covariance, from which single cells cannot be read."""
    Z = Z[np.sort(np.random.default_rng(seed).permutation(len(Z))[:_MIXTURE_CELLS])]
    n_components = int(np.clip(len(Z) // _CELLS_PER_COMPONENT, 1, _N_COMPONENTS))
    found = KMeans(n_components, n_init=1, random_state=seed).fit(Z)
    residuals = Z - found.cluster_centers_[found.labels_]
    masses = np.bincount(found.labels_, minlength=n_components)
    return {"means": found.cluster_centers_, "masses": masses, "covariance": covariance(residuals)}


def _to_rows(passes: list[tuple[np.ndarray, Solution]], strengths: np.ndarray) -> dict[str, Tensor]:
    """Return the tensors of an alignment that have a row for each batch."""
    stacked = [
        {
            "center": np.broadcast_to(center, (len(strengths), len(center))),
            "directions": solution.directions,
            "log_masses": np.log(solution.masses + 1e-3),
            "offsets": solution.targets - solution.sources @ solution.maps.transpose(0, 2, 1),
            "stretches": solution.maps.transpose(0, 2, 1) - np.eye(solution.maps.shape[-1]),
        }
        for center, solution in passes
    ]
    arrays = {name: np.stack([each[name] for each in stacked], axis=1) for name in stacked[0]}
    arrays |= {"shared": passes[0][1].shared, "strengths": strengths}
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in arrays.items()}
