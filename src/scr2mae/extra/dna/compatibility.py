"""Checks that an alignment and its windows fit a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scr2mae.extra.dna.config import check_length

if TYPE_CHECKING:
    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.dataset import MSAWindowDataset
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["check_species", "check_windows"]


def check_species(network: GPNMSAForMaskedLM, msa: GenomeMSA) -> None:
    """Raise a ValueError unless the species agree in number and, where both name them, in name and order."""
    wanted, found = network.config.n_species, msa.n_species
    if found != wanted:
        raise ValueError(
            f"The network takes {wanted} species besides the reference, the alignment has {found}; choose the columns that the "
            f"network was made for, or make one with GPNMSAConfig(n_species={found})."
        )
    if network.species_ is None or msa.species is None or msa.species[1:] == network.species_:
        return
    i = next(i for i, (a, b) in enumerate(zip(network.species_, msa.species[1:], strict=True)) if a != b)
    raise ValueError(
        f"Species {i + 1} of the alignment is {msa.species[1 + i]!r}, the network was trained with {network.species_[i]!r} there; "
        "put the columns in the order of network.species_ (GenomeMSA.from_maf(species=network.species_)), or, if only the names "
        "differ, make the alignment without names."
    )


def check_windows(network: GPNMSAForMaskedLM, data: MSAWindowDataset) -> None:
    """Raise a ValueError unless a network takes the species and the length of the windows."""
    check_species(network, data.msa)
    check_length(network.config, data.window_size)
