"""Whether an alignment and its windows are such as a network takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.network import GPNMSAForMaskedLM

__all__ = ["check_species", "check_window"]


def check_species(model: GPNMSAForMaskedLM, msa: GenomeMSA) -> None:
    """Compare the species of an alignment with those of a network, by name and order where both are known.

    Raises
    ------
    ValueError
        If they differ in number, or in name or order.
    """
    wanted, found = model.config.n_species, msa.n_species
    if found != wanted:
        raise ValueError(
            f"The network takes {wanted} species beside the reference, the alignment has {found}; choose the columns that the network "
            f"was made for, or make one with GPNMSAConfig(n_species={found})."
        )
    if model.species_ is None or msa.species is None or msa.species[1:] == model.species_:
        return
    i = next(i for i, (a, b) in enumerate(zip(model.species_, msa.species[1:], strict=True)) if a != b)
    raise ValueError(
        f"Species {i + 1} of the alignment is {msa.species[1 + i]!r}, the network was trained with {model.species_[i]!r} there; put the "
        "columns in the order of model.species_ (GenomeMSA.from_maf(species=model.species_)), or, if only the names differ, make "
        "the alignment without names."
    )


def check_window(model: GPNMSAForMaskedLM, size: int) -> None:
    """Compare the length of windows with the longest that a network takes.

    Raises
    ------
    ValueError
        If they are longer.
    """
    longest = model.config.max_position_embeddings
    if size > longest:
        raise ValueError(
            f"Windows of {size} positions are longer than max_position_embeddings={longest}; cut shorter ones, or make the network "
            "with a larger GPNMSAConfig(max_position_embeddings=)."
        )
