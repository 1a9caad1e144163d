"""Align batches in the latent space: fitted without gradients, applied to each cell in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans

from scr2mae.model.soft_clusters import TEMPERATURE, Solution, covariance, norms, root, solve

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["N_CELLS", "N_REFERENCE", "Alignment", "fit_alignment", "sample_cells"]

N_CELLS = 20_000
"""Most cells of a fit; more change the moments of clusters little and take longer."""

_N_CLUSTERS = 20  # fewer join cell types, more split them by batch
_CELLS_PER_CLUSTER = 30  # of small data, so that each cluster has a mean
# Each mixes what the one before left: two studies .67, .73, .75 after one, two, three (total of scIB).
_N_PASSES = 3
# Of the mixture: several components per cell type, each of enough cells that none can be read from it.
_N_COMPONENTS, _CELLS_PER_COMPONENT = 100, 15
_MIXTURE_CELLS = 5000  # fifty per component; more only take longer
N_REFERENCE = 300
"""Fewest cells of a reference that a new batch is aligned with: fewer are not fifteen per cluster."""

_MOST_DRAWN = 3000  # cells, where the reference is drawn from its mixture: as many as are paired at most
# Overlap up to which a batch stays, and from which it is aligned in full: T cells and monocytes have .3, two studies .55.
_SHARED = 0.4, 0.5

_DIMENSIONS = {
    "center": ("row", "pass", "latent"),
    "directions": ("row", "pass", "cluster", "latent"),
    "log_masses": ("row", "pass", "cluster"),
    "offsets": ("row", "pass", "cluster", "latent"),
    "stretches": ("row", "pass", "latent", "latent"),
    "shared": ("row",),
    "strengths": ("row",),
    "keys": ("row", "key"),
    "length": (),
    "means": ("component", "latent"),
    "masses": ("component",),
    "covariance": ("latent", "latent"),
}


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
    the overlap of a batch's clusters with those of the others. Where the reference's cells are not at hand, new
    batches are aligned with draws from the Gaussian mixture of ``means``, ``masses`` and ``covariance``.
    """

    center: Tensor
    directions: Tensor
    log_masses: Tensor
    offsets: Tensor
    stretches: Tensor
    shared: Tensor
    strengths: Tensor
    keys: Tensor  # int64
    length: Tensor
    means: Tensor
    masses: Tensor
    covariance: Tensor

    def apply(self, z: Tensor, keys: np.ndarray) -> Tensor:
        """Move latent vectors (n_obs, n_latent) of cells with the given keys (n_obs, n_covariates + 1); unknown ones stay."""
        moved = z.clone()
        unique, inverse = _unique_rows(keys)
        for i, row in enumerate(self.rows(unique)):
            if row is None or self.strengths[row] == 0:
                continue
            at = torch.from_numpy(np.flatnonzero(inverse == i)).to(z.device)
            cells = z[at]
            moved[at] = _of_length(
                torch.lerp(cells, self._moved(cells, row), self.strengths[row]), self.length
            )
        return moved

    def _moved(self, z: Tensor, row: int) -> Tensor:
        """Return vectors of a batch after all passes."""
        passes = (self.center, self.directions, self.log_masses, self.offsets, self.stretches)
        for center, directions, log_masses, offsets, stretches in zip(
            *(of[row] for of in passes), strict=True
        ):
            centered = z - center
            logits = torch.addcdiv(
                log_masses, centered @ directions.T, norms(centered), value=2 / TEMPERATURE
            )
            z = torch.addmm(z, logits.softmax(dim=1), offsets).addmm_(centered, stretches)
            z = _of_length(z, self.length)
        return z

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

    def extend(
        self, Z: Tensor, key: tuple[int, ...], *, reference: Tensor | None = None, seed: int = 0
    ) -> Alignment:
        """Add or replace the row of a new batch with latent vectors Z, aligned with those of the reference's cells.

        Without ``reference`` (aligned latent vectors), draws from the mixture take its place. The other rows do
        not change.
        """
        if reference is None:
            reference = self._draw(min(max(len(Z), N_REFERENCE), _MOST_DRAWN), seed)
        else:
            reference = reference[_order(reference)]
        both = torch.cat([reference.to(Z), Z[_order(Z)]])
        sizes, (n_passes, n_clusters) = [len(reference), len(Z)], self.directions.shape[1:3]
        passes = _solve_passes(both, sizes, n_passes, n_clusters, self.length, anchored=True, seed=seed)
        new = {name: values[1:] for name, values in _to_rows(passes, torch.ones(2)).items()}
        return self.join(replace(self, keys=torch.tensor([key]), **new))

    def _draw(self, n_obs: int, seed: int) -> Tensor:
        """Return latent vectors drawn from the mixture."""
        generator = torch.Generator().manual_seed(seed)
        at = torch.multinomial(self.masses, n_obs, replacement=True, generator=generator)
        noise = torch.randn(n_obs, self.means.shape[1], generator=generator) @ root(self.covariance)
        return _of_length(self.means[at] + noise, self.length)

    def join(self, other: Alignment) -> Alignment:
        """Add the rows of another alignment, in place of those with the same keys; length and mixture stay."""
        theirs = other.keys.tolist()
        kept = torch.tensor([key not in theirs for key in self.keys.tolist()])
        names = [name for name, dimensions in _DIMENSIONS.items() if "row" in dimensions]
        return replace(
            self, **{name: torch.cat([getattr(self, name)[kept], getattr(other, name)]) for name in names}
        )

    def to(self, device: torch.device) -> Alignment:
        """Return a copy on a device."""
        return Alignment(**{name: values.to(device) for name, values in self.to_state().items()})

    def to_state(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {name: getattr(self, name) for name in _DIMENSIONS}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], *, n_covariates: int) -> Alignment:
        """Make an alignment of tensors from a file; raise if they do not fit together."""
        if set(tensors) != set(_DIMENSIONS):
            raise ValueError(
                f"The alignment of batches lacks or adds {sorted(set(tensors) ^ set(_DIMENSIONS))}."
            )
        sizes = {"key": n_covariates + 1}
        for name, dimensions in _DIMENSIONS.items():
            values, dtype = tensors[name], torch.int64 if name == "keys" else torch.float32
            for dimension, size in zip(dimensions, values.shape, strict=False):
                sizes.setdefault(dimension, size)
            shape = tuple(sizes.get(dimension, dimension) for dimension in dimensions)
            if tuple(values.shape) != shape or values.dtype != dtype or not bool(values.isfinite().all()):
                raise ValueError(
                    f"The alignment of batches is damaged: {name} is {values.dtype} {tuple(values.shape)}, "
                    f"expected finite {dtype} {shape}."
                )
        return cls(**tensors)


def _of_length(z: Tensor, length: Tensor) -> Tensor:
    """Scale vectors to a common length; 0 keeps their own."""
    return z * (length.to(z) / norms(z)) if length else z


def _order(Z: Tensor) -> np.ndarray:
    """Return an order of cells (their bytes') that does not depend on the one they have."""
    rows = np.ascontiguousarray(Z.cpu().numpy())
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel().argsort(kind="stable")


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
    Z: Tensor,
    codes: np.ndarray,
    *,
    n_covariates: int = 1,
    genes: int = 0,
    n_clusters: int | None = None,
    guard: bool = True,
    seed: int = 0,
) -> Alignment:
    """Fit latent vectors (n_obs, n_latent) of batches (n_obs,); neither the order of cells nor that of batches matters.

    Computes on the device of ``Z``. ``genes`` is the code of the measured genes, for the keys. With ``guard``, a
    batch whose clusters overlap little with those of the others is moved less, or not at all.
    """
    if not len(Z) or not bool(Z.isfinite().all()):
        raise ValueError(f"Wanted finite latent vectors of one cell or more, got shape {tuple(Z.shape)}.")
    order = _order(Z)
    names, of_batch = np.unique(codes[order], return_inverse=True)
    members = [order[of_batch == i] for i in range(len(names))]
    by_content = sorted(range(len(names)), key=lambda i: Z[members[i]].cpu().numpy().tobytes())
    names, members = names[by_content], [members[i] for i in by_content]
    sizes = [len(each) for each in members]
    Z = Z[np.concatenate(members)]
    lengths = norms(Z)
    is_one = bool(lengths.max() - lengths.min() < 1e-3 * lengths.mean())
    length = lengths.mean() if is_one else Z.new_zeros(())
    n_clusters = n_clusters or int(np.clip(len(Z) // _CELLS_PER_CLUSTER, 1, _N_CLUSTERS))
    passes = _solve_passes(Z, sizes, _N_PASSES, n_clusters, length, anchored=False, seed=seed)
    low, high = _SHARED
    strengths = ((passes[0].shared - low) / (high - low)).clamp(0, 1) if guard else torch.ones(len(names))
    strengths = strengths.to(Z) * (len(names) > 1)  # one batch stays, to the bit
    aligned = _of_length(
        torch.lerp(Z, passes[-1].moved, strengths[np.repeat(np.arange(len(sizes)), sizes), None]), length
    )
    keys = torch.full((len(names), n_covariates + 1), -1)
    keys[:, 0], keys[:, -1] = torch.from_numpy(names.astype(np.int64)), genes
    return Alignment(
        keys=keys, length=length.cpu(), **_to_rows(passes, strengths), **_mixture(aligned, seed=seed)
    )


def _solve_passes(
    Z: Tensor, sizes: list[int], n_passes: int, n_clusters: int, length: Tensor, *, anchored: bool, seed: int
) -> list[Solution]:
    """Align repeatedly, each time what the time before has moved."""
    passes = []
    for _ in range(n_passes):
        solution = solve(Z, sizes, n_clusters=n_clusters, anchored=anchored, seed=seed)
        Z = _of_length(solution.moved, length)
        passes.append(solution._replace(moved=Z))
    return passes


def _mixture(Z: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Return a Gaussian mixture with a common covariance, from which single cells cannot be read."""
    Z = Z.cpu()[np.sort(np.random.default_rng(seed).permutation(len(Z))[:_MIXTURE_CELLS])]
    n_components = int(np.clip(len(Z) // _CELLS_PER_COMPONENT, 1, _N_COMPONENTS))
    found = KMeans(n_components, n_init=1, random_state=seed).fit(Z.numpy())
    means, labels = torch.from_numpy(found.cluster_centers_), torch.from_numpy(found.labels_).long()
    masses = labels.bincount(minlength=n_components)
    return {"means": means, "masses": masses.float(), "covariance": covariance(Z - means[labels]).float()}


def _to_rows(passes: list[Solution], strengths: Tensor) -> dict[str, Tensor]:
    """Return the tensors of an alignment that have a row for each batch."""
    by_pass = ("center", "directions", "log_masses", "offsets", "stretches")
    rows = {name: torch.stack([getattr(each, name) for each in passes], dim=1) for name in by_pass}
    rows |= {"shared": passes[0].shared, "strengths": strengths}
    return {name: values.float().cpu() for name, values in rows.items()}
