"""Simulated alignments with known conservation."""

from __future__ import annotations

import numpy as np

from scr2mae.extra.dna.alignment import GenomeMSA
from scr2mae.extra.dna.alphabet import BASES
from scr2mae.extra.dna.tracks import ArrayTrack

__all__ = ["simulate_alignment"]


def simulate_alignment(
    n_positions: int = 20_000,
    n_species: int = 8,
    *,
    divergence: tuple[float, float] = (0.2, 0.6),
    conserved: float = 0.2,
    element_length: int = 40,
    gap: float = 0.05,
    chrom: str = "chr1",
    seed: int = 0,
) -> tuple[GenomeMSA, ArrayTrack]:
    """Simulate an alignment in which conserved elements change less than the rest.

    Bases follow a Markov chain, so that neighbors are informative. The share of positions at which a species differs from
    the reference increases linearly over the species, and is a fifth of that inside elements; transitions are twice as
    frequent as each transversion. Gaps come in runs.

    Parameters
    ----------
    n_positions
        Length of the alignment.
    n_species
        Number of species besides the reference.
    divergence
        Share of positions outside elements at which the first and the last species differ from the reference.
    conserved
        Share of positions in elements.
    element_length
        Length of an element.
    gap
        Share of gaps in each species.
    chrom
        Name of the chromosome.
    seed
        Seed of all draws.

    Returns
    -------
    The alignment, and a track like phastCons: 0.95 inside elements, 0.05 outside.

    Raises
    ------
    ValueError
        If a size or share is out of range.

    Examples
    --------
    >>> from scr2mae.extra.dna import simulate_alignment
    >>> alignment, conservation = simulate_alignment(1000, 3)
    >>> alignment.tokens("chr1", 0, 128).shape
    (128, 4)
    """
    if n_positions < 2 or n_species < 1 or element_length < 1:
        raise ValueError(
            f"n_positions >= 2, n_species >= 1 and element_length >= 1 are required, got {n_positions}, {n_species} and {element_length}."
        )
    if not 0 <= min(divergence) <= max(divergence) <= 1:
        raise ValueError(f"divergence must be two shares in [0, 1], got {divergence!r}.")
    if not 0 <= conserved <= 1 or not 0 <= gap < 1:
        raise ValueError(f"conserved must lie in [0, 1] and gap in [0, 1), got {conserved!r} and {gap!r}.")
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(4, 1.5), size=4).cumsum(axis=1)
    reference = np.zeros(n_positions, dtype=int)
    for i, u in enumerate(rng.random(n_positions - 1)):
        reference[i + 1] = min(np.searchsorted(chain[reference[i]], u), 3)
    inside = np.repeat(rng.random(-(-n_positions // element_length)) < conserved, element_length)[
        :n_positions
    ]
    columns = [reference]
    transition, others = np.array([2, 3, 0, 1]), np.array([[1, 3], [0, 2], [1, 3], [0, 2]])  # A-G, C-T
    for rate in np.linspace(*divergence, n_species):
        changed = rng.random(n_positions) < rate * np.where(inside, 0.2, 1.0)
        kind, which = rng.random(n_positions), rng.integers(2, size=n_positions)
        changes = np.where(kind < 0.5, transition[reference], others[reference, which])
        columns.append(np.where(changed, changes, reference))
    symbols = np.frombuffer(BASES.encode(), dtype="S1")[np.stack(columns, axis=1)]
    run = 10
    gaps = np.repeat(rng.random((-(-n_positions // run), n_species)) < gap, run, axis=0)[:n_positions]
    symbols[:, 1:][gaps] = b"-"
    names = ["reference", *(f"species{i + 1}" for i in range(n_species))]
    track = ArrayTrack({chrom: np.where(inside, 0.95, 0.05)})
    return GenomeMSA.from_numpy(symbols, chrom=chrom, species=names), track
