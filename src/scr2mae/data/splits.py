"""Training, validation and test cells, split by donor or another group."""

from __future__ import annotations

import hashlib
import logging
import warnings
from dataclasses import dataclass
from math import ceil, floor
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scr2mae.data.donors import warn_about_donors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIDES", "Split", "split_cells"]

logger = logging.getLogger(__name__)

SIDES = ("train", "validation", "test")
_DRAWN_SETS = 200  # random sets of groups to choose from


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of the cells for training, validation and test.

    Attributes
    ----------
    train, validation, test
        Positions of the cells, int64, sorted, disjoint.
    key
        Column of ``adata.obs`` whose groups stay on one side; None if cells were drawn one by one.
    groups
        Groups on each side, sorted; empty without a key.
    seed
        Seed of the draw; None if positions were given.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    key: str | None
    groups: dict[str, list[str]]
    seed: int | None

    @property
    def sha256(self) -> str:
        """Hash of the positions on each side; equal splits have equal hashes."""
        digest = hashlib.sha256()
        for side in SIDES:
            digest.update(side.encode() + np.ascontiguousarray(getattr(self, side), dtype="<i8").tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{side}={len(getattr(self, side))}" for side in SIDES)
        return f"Split({sizes}, key={self.key!r}, sha256={self.sha256[:12]})"


def _check_sizes(train_size: float, validation_size: float | None) -> tuple[float, float]:
    """Check the shares of training and validation; fill in that of validation."""
    for name, size in (("train_size", train_size), ("validation_size", validation_size)):
        if not isinstance(size, (Real, type(None))):
            raise TypeError(f"{name} must be a number, got {size!r}.")
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size must lie in (0, 1], got {train_size!r}.")
    if validation_size is None:
        validation_size = 1 - train_size
    if not 0 <= validation_size < 1 or train_size + validation_size > 1 + 1e-9:
        raise ValueError(
            f"validation_size must lie in [0, 1) and train_size + validation_size must not exceed 1, "
            f"got {train_size!r} and {validation_size!r}."
        )
    return train_size, validation_size


def _by_cell(
    n_obs: int, train_size: float, validation_size: float, seed: int, shuffle: bool
) -> list[np.ndarray]:
    n_train = min(ceil(train_size * n_obs), n_obs)
    n_validation = min(floor(validation_size * n_obs + 1e-9), n_obs - n_train)
    order = np.random.default_rng(seed).permutation(n_obs) if shuffle else np.arange(n_obs)
    return np.split(order, [n_train, n_train + n_validation])


def _by_group(codes: np.ndarray, train_size: float, validation_size: float, seed: int) -> list[np.ndarray]:
    """Assign whole groups to test, then to validation: at least one, and one is left for each side after it."""
    sizes = np.bincount(codes)
    rng = np.random.default_rng(seed)
    side_of = np.zeros(len(sizes), dtype=np.int64)
    wanted = {2: (1 - train_size - validation_size) * len(codes), 1: validation_size * len(codes)}
    sides = [side for side, cells in wanted.items() if cells >= 1 - 1e-6]
    for position, side in enumerate(sides):
        free = np.flatnonzero(side_of == 0)
        n_later = len(sides) - position
        side_of[free[_nearest_groups(sizes[free], wanted[side], rng, at_most=len(free) - n_later)]] = side
    return [np.flatnonzero(side_of[codes] == side) for side in range(3)]


def _nearest_groups(sizes: np.ndarray, wanted: float, rng: np.random.Generator, *, at_most: int) -> list[int]:
    """Return the groups, among random sets, whose number of cells is nearest to the wanted one.

    Relative errors are rounded to twentieths; among ties, the set drawn first is returned. Three or more groups
    take precedence over fewer if their error is at most a fifth.
    """
    best: list[int] = []
    best_rank = (np.inf, np.inf)
    smallest = sizes.min()
    for _ in range(_DRAWN_SETS):
        chosen: list[int] = []
        missing = wanted
        for group in rng.permutation(len(sizes)):
            if len(chosen) == at_most or missing <= smallest / 2:
                break
            if abs(missing - sizes[group]) < missing:
                chosen.append(int(group))
                missing -= sizes[group]
        chosen = chosen or [int(sizes.argmin())]
        miss = abs(sizes[chosen].sum() - wanted) / wanted
        rank = (float(len(chosen) < 3 or miss > 0.2), round(miss * 20))
        if rank < best_rank:
            best, best_rank = chosen, rank
    return best


def _group_codes(groups: pd.Series, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return codes and names of the groups; None, with a warning, if there are too few to split."""
    warn_about_donors(groups, key)
    if groups.isna().any():
        warnings.warn(
            f"adata.obs[{key!r}] has {int(groups.isna().sum())} missing values; those cells are kept together, as one group.",
            stacklevel=4,
        )
    codes, names = pd.factorize(groups.astype(object).where(groups.notna(), "(missing)"), sort=False)
    if len(names) < 3:
        warnings.warn(
            f"adata.obs[{key!r}] has {len(names)} groups; at least 3 are needed to split by group, so cells are split at random. "
            "A cell's donor may be on both sides.",
            stacklevel=4,
        )
        return None
    return codes, names.astype(str).to_numpy()


def split_cells(
    n_obs: int,
    *,
    groups: pd.Series | None = None,
    key: str | None = None,
    train_size: float = 0.9,
    validation_size: float | None = None,
    seed: int = 0,
    shuffle: bool = True,
    external_indexing: Sequence[np.ndarray] | None = None,
) -> Split:
    """Split cells into training, validation and test.

    Parameters
    ----------
    n_obs
        Number of cells.
    groups
        Group (donor) of each cell, length n_obs; groups are not divided. None splits cell by cell.
    key
        Name of that column, kept in the result.
    train_size, validation_size
        Fractions of cells; the rest is for testing. Groups are kept whole: among random sets of
        them, the one with the nearest share is chosen; three groups are preferred to fewer that are about as near.
    seed
        Seed of the draw.
    shuffle
        Whether cells are drawn at random (cell by cell only).
    external_indexing
        Given positions for training, validation and optionally test; they need not cover every cell.

    Returns
    -------
    The split.

    Raises
    ------
    ValueError
        If shares are impossible, positions overlap or are out of range, or there are fewer than two training cells.
    """
    train_size, validation_size = _check_sizes(train_size, validation_size)
    coded = None if groups is None or external_indexing is not None else _group_codes(groups, str(key))
    if external_indexing is not None:
        sides = [np.asarray(side, dtype=np.int64) for side in external_indexing]
        sides += [np.zeros(0, dtype=np.int64)] * (3 - len(sides))
        _check_positions(sides, n_obs)
    elif coded is None:
        sides = _by_cell(n_obs, train_size, validation_size, seed, shuffle)
    else:
        sides = _by_group(coded[0], train_size, validation_size, seed)
    if len(sides[0]) < 2:
        raise ValueError(
            f"Training needs at least two cells, got {len(sides[0])} of {n_obs}; raise train_size or add cells."
        )
    names: dict[str, list[str]] = {}
    if coded is not None:
        names = {
            side: sorted(coded[1][np.unique(coded[0][indices])].tolist())
            for side, indices in zip(SIDES, sides, strict=True)
        }
    if len(names.get("validation", ())) == 1:
        _warn_about_one(names["validation"][0], str(key), len(coded[1]))  # type: ignore[index]
    train, validation, test = (np.sort(side).astype(np.int64) for side in sides)
    return Split(
        train,
        validation,
        test,
        key=key if coded is not None else None,
        groups=names,
        seed=None if external_indexing is not None else seed,
    )


def _warn_about_one(group: str, key: str, n_groups: int) -> None:
    """Warn that one group is too little for validation, and say how to hold out three."""
    advice = "more donors would be needed to hold out three"
    if n_groups >= 6:
        advice = f"train_size={floor(20 * (1 - 3 / n_groups)) / 20:g} holds out about three of {n_groups}"
    logger.warning(
        "Validation is on %s %r alone, and its loss says little about others; %s.", key, group, advice
    )


def _check_positions(sides: list[np.ndarray], n_obs: int) -> None:
    if len(sides) != 3:
        raise ValueError(
            f"external_indexing holds training, validation and test positions, got {len(sides)} lists."
        )
    joined = np.concatenate(sides)
    if len(joined) and (joined.min() < 0 or joined.max() >= n_obs):
        raise ValueError(f"external_indexing must lie in [0, {n_obs}), got {joined.min()} to {joined.max()}.")
    if len(np.unique(joined)) != len(joined):
        raise ValueError(
            "external_indexing contains a cell twice; training, validation and test must be disjoint."
        )
