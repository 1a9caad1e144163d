"""Mini-batches of windows: tokens, loss weights and probabilities of label flips."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from scr2mae.extra.dna.alphabet import encode, reverse_complement
from scr2mae.extra.dna.windows import WINDOW_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

    from scr2mae.extra.dna.alignment import GenomeMSA
    from scr2mae.extra.dna.tracks import Track

__all__ = ["MSAWindowDataset"]

logger = logging.getLogger(__name__)

_SMOOTHING = 3  # positions on either side
_LOWER_CASE = ord("a")
_N_CHECKED = 50  # windows in which a track should have a value


def _smoothed(track: Track, chrom: str, start: int, end: int) -> np.ndarray:
    """Return the largest value within three positions, 0 where there is none; shape (end - start,)."""
    around = np.nan_to_num(track.values(chrom, start - _SMOOTHING, end + _SMOOTHING))
    return np.lib.stride_tricks.sliding_window_view(around, 2 * _SMOOTHING + 1).max(axis=-1)


class MSAWindowDataset:
    """Windows of an alignment with the loss weights of GPN-MSA.

    Parameters
    ----------
    msa
        The alignment.
    windows
        Columns ``chrom``, ``start``, ``end`` and ``strand``, as from :func:`make_windows`; all windows of one length.
    phylop
        Multiplies weights by ``max(phyloP, 1)``, where a missing value counts as 1; None for no such factor.
    phastcons
        Multiplies weights by ``0.1 + p``, with p the largest phastCons within three positions and 0 where it is missing;
        None for no such factor.
    repeat_weight
        Weight of soft-masked (lower-case) reference bases.
    flip_probability
        Probability that the label of an unconserved position (p below ``flip_below``) is replaced by a random base in
        training; needs ``phastcons``. Use 0 for validation data.
    flip_below
        See ``flip_probability``.

    Raises
    ------
    ValueError
        If the table is empty or lacks columns, lengths differ, a strand is invalid, or a number is out of range.
    IndexError
        If a window extends beyond the alignment.
    KeyError
        If a chromosome is not in the alignment or a track.

    Notes
    -----
    Weights as in Benegas et al. (2025) and its workflow.
    """

    def __init__(
        self,
        msa: GenomeMSA,
        windows: pd.DataFrame,
        *,
        phylop: Track | None = None,
        phastcons: Track | None = None,
        repeat_weight: float = 0.1,
        flip_probability: float = 0.5,
        flip_below: float = 0.1,
    ) -> None:
        if missing := [name for name in WINDOW_COLUMNS if name not in windows]:
            raise ValueError(f"The table of windows lacks {missing}; make it with make_windows.")
        if not len(windows):
            raise ValueError("The table of windows is empty.")
        lengths = np.unique(windows["end"] - windows["start"])
        if len(lengths) > 1:
            raise ValueError(f"All windows must have the same length, got {lengths[:5].tolist()}.")
        if lengths[0] < 1:
            raise ValueError(f"Windows need start < end, got a length of {lengths[0]}.")
        if wrong := sorted(set(windows["strand"]) - {"+", "-"}, key=str):
            raise ValueError(f"strand must be '+' or '-', got {wrong[:5]}.")
        if not repeat_weight > 0:
            raise ValueError(
                f"repeat_weight must be positive, got {repeat_weight!r}; 1 gives repeats the weight of other bases."
            )
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must lie in [0, 1], got {flip_probability!r}.")
        self.msa, self.windows = msa, windows.reset_index(drop=True)
        self.phylop, self.phastcons = phylop, phastcons
        self.repeat_weight = repeat_weight
        self.flip_probability, self.flip_below = flip_probability, flip_below
        self.window_size = int(lengths[0])
        self._places = list(zip(*(self.windows[name].tolist() for name in WINDOW_COLUMNS), strict=True))
        for chrom, places in self.windows.groupby("chrom", sort=False):
            first, last = msa.span(chrom)
            if places["start"].min() < first or places["end"].max() > last:
                raise IndexError(
                    f"Some windows extend beyond the alignment, which covers {chrom}:{first}-{last}."
                )
        for name, track in (("phyloP", phylop), ("phastCons", phastcons)):
            if track is not None:
                self._check_track(name, track)

    def _check_track(self, name: str, track: Track) -> None:
        """Warn if a track has no values in the windows, which would give all of them the same weight."""
        for chrom, start, end in (
            self.windows.groupby("chrom", sort=False)[["start", "end"]].first().itertuples()
        ):
            track.values(chrom, start, end)
        checked = np.unique(np.linspace(0, len(self) - 1, _N_CHECKED).astype(int))
        if all(np.isnan(track.values(*self._places[i][:3])).all() for i in checked):
            logger.warning(
                "%s has no value in any of %d windows that were checked; do its coordinates match the alignment?",
                name,
                len(checked),
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one window as arrays; the keys are those of :meth:`batch`."""
        chrom, start, end, strand = self._places[index]
        symbols = self.msa.get(chrom, start, end)
        weight = np.where(symbols[:, 0].view(np.uint8) >= _LOWER_CASE, self.repeat_weight, 1.0)
        flip = None
        if self.phylop is not None:
            weight = weight * np.fmax(self.phylop.values(chrom, start, end), 1.0)
        if self.phastcons is not None:
            conserved = _smoothed(self.phastcons, chrom, start, end)
            weight = weight * (0.1 + conserved)
            if self.flip_probability > 0:
                flip = np.where(conserved < self.flip_below, self.flip_probability, 0.0)
        if strand == "-":
            symbols, weight = reverse_complement(symbols), weight[::-1]
            flip = flip if flip is None else flip[::-1]
        tokens = encode(symbols)
        item = {
            "input_ids": tokens[:, 0],
            "aux_features": tokens[:, 1:],
            "loss_weight": weight.astype(np.float32),
        }
        return item if flip is None else item | {"flip_probability": flip.astype(np.float32)}

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Return a mini-batch as tensors.

        Parameters
        ----------
        indices
            Rows of ``windows``.

        Returns
        -------
        ``input_ids`` (n_obs, n_positions) and ``aux_features`` (n_obs, n_positions, n_species), uint8 tokens; ``loss_weight``
        and, with flips, ``flip_probability``, float32 (n_obs, n_positions).
        """
        items = [self[int(i)] for i in indices]
        return {
            key: torch.from_numpy(np.ascontiguousarray(np.stack([item[key] for item in items])))
            for key in items[0]
        }
