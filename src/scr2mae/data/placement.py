"""Where counts are while a network trains: on its device, in memory, or on disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psutil
from anndata.abc import CSRDataset

from scr2mae.data.backed import is_streamable
from scr2mae.data.counts import get_counts

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["PLACES", "stays_on_disk"]

logger = logging.getLogger(__name__)

PLACES = ("auto", "device", "memory", "disk")
_SHARE_OF_FREE_MEMORY = 0.5
_BYTES_A_NON_ZERO = 8  # a float32 count and the int32 number of its gene


def stays_on_disk(adata: AnnData, layer: str | None, counts_on: str) -> bool:
    """Whether counts are read from disk for each mini-batch.

    Parameters
    ----------
    adata
        Raw counts, in memory or backed.
    layer
        Where they are; None for ``X``.
    counts_on
        What was asked for. ``"auto"`` loads what takes no more than half of the free memory.

    Returns
    -------
    False where they are, or are to be loaded, in memory.

    Raises
    ------
    ValueError
        If ``counts_on`` is unknown, or asks for a disk on which the counts are not.
    """
    if counts_on not in PLACES:
        raise ValueError(f"counts_on must be one of {list(PLACES)}, got {counts_on!r}.")
    stored = get_counts(adata, layer)
    if not is_streamable(stored):
        if counts_on == "disk":
            raise ValueError(
                "counts_on='disk', but the counts are in memory or stored by columns; open the file with "
                "scr2mae.data.open_store(path), or anndata.read_h5ad(path, backed='r'), its X as CSR or dense."
            )
        return False
    if counts_on != "auto":
        return counts_on == "disk"
    n_values = (
        stored.group["data"].shape[0] if isinstance(stored, CSRDataset) else stored.shape[0] * stored.shape[1]
    )
    needed, free = _BYTES_A_NON_ZERO * n_values, psutil.virtual_memory().available
    fits = needed <= _SHARE_OF_FREE_MEMORY * free
    logger.info(
        "Counts of %d cells take %.2f GB of memory, of which %.2f GB are free: they %s.",
        adata.n_obs, needed / 1e9, free / 1e9, "are loaded" if fits else "stay on disk",
    )  # fmt: skip
    return not fits
