"""Splits of donors into training and test, with a record of which donors are on each side."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scr2mae._utils.files import as_path
from scr2mae._utils.shorten import shorten
from scr2mae.data.donors import warn_about_donors
from scr2mae.probe.inputs import as_text

logger = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
# Restarts of the greedy placement of rare classes; each costs microseconds.
_N_RESTARTS = 20


def check_no_donor_leak(train_donors: Iterable[Any], test_donors: Iterable[Any]) -> None:
    """Raise if a donor is on both sides of a split.

    Parameters
    ----------
    train_donors, test_donors
        Donors of each side, or the donor of each of its cells.

    Raises
    ------
    ValueError
        If a donor is on both sides or a side is empty.
    """
    train, test = {str(d) for d in train_donors}, {str(d) for d in test_donors}
    if shared := sorted(train & test):
        raise ValueError(
            f"{len(shared)} donor(s) on both sides of the split: {shorten(shared)}; put all cells of a donor on "
            "one side."
        )
    if not train or not test:
        raise ValueError(
            f"Wanted donors on both sides, got {len(train)} for training and {len(test)} for testing."
        )


@dataclass(frozen=True, kw_only=True)
class DonorSplit:
    """Donors for training and donors for testing.

    Parameters
    ----------
    train_donors, test_donors
        Disjoint donors; stored in sorted order.
    seed
        Seed used to draw the split, for the record.
    absent_train, absent_test
        Classes that no donor of that side has.

    Raises
    ------
    ValueError
        If a donor is on both sides or a side is empty.
    """

    train_donors: tuple[str, ...]
    test_donors: tuple[str, ...]
    seed: int | None = None
    absent_train: tuple[str, ...] = ()
    absent_test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train_donors", "test_donors", "absent_train", "absent_test"):
            object.__setattr__(self, name, tuple(sorted({str(x) for x in getattr(self, name)})))
        check_no_donor_leak(self.train_donors, self.test_donors)

    @property
    def hash(self) -> str:
        """SHA-256 of the donors on each side; equal for equal splits, however they were drawn."""
        sides = json.dumps([self.train_donors, self.test_donors], ensure_ascii=False)
        return hashlib.sha256(sides.encode()).hexdigest()

    def rows(self, donors: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the positions of training cells and of test cells, ascending.

        Parameters
        ----------
        donors
            Donor of each cell, shape ``(n_obs,)``. Cells of donors on neither side are left out.

        Raises
        ------
        ValueError
            If a side has no cell.
        """
        names = np.asarray(donors).astype(str)
        train = np.flatnonzero(np.isin(names, self.train_donors))
        test = np.flatnonzero(np.isin(names, self.test_donors))
        if not len(train) or not len(test):
            raise ValueError(
                f"The split matches {len(train)} training and {len(test)} test cells; its donors are "
                f"{shorten(self.train_donors)} and {shorten(self.test_donors)}, the data's "
                f"{shorten(sorted(set(names)))}."
            )
        return train, test

    def to_manifest(self) -> dict[str, Any]:
        """Return the split as a JSON-serializable dict."""
        return {"schema_version": _SCHEMA_VERSION, **asdict(self), "hash": self.hash}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """Return a split created from a manifest.

        Parameters
        ----------
        manifest
            Manifest from :meth:`to_manifest`, or read from JSON.

        Raises
        ------
        ValueError
            If the manifest has another schema or its donors do not match its hash.
        """
        fields = dict(manifest)
        if (version := fields.pop("schema_version", None)) != _SCHEMA_VERSION:
            raise ValueError(f"Wanted a split manifest of schema {_SCHEMA_VERSION}, got {version!r}.")
        recorded = fields.pop("hash", None)
        split = cls(**fields)
        if recorded != split.hash:
            raise ValueError(
                f"The manifest's donors hash to {split.hash}, not to its recorded {recorded}; it was edited. "
                "Draw the split again."
            )
        return split

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON.

        Parameters
        ----------
        path
            File to write; an existing file is replaced.
        """
        text = json.dumps(self.to_manifest(), indent=2, ensure_ascii=False)
        as_path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return a split written by :meth:`write`; raises the same errors as :meth:`from_manifest`.

        Parameters
        ----------
        path
            A JSON file.
        """
        return cls.from_manifest(json.loads(as_path(path).read_text(encoding="utf-8")))


def donor_split(
    donors: ArrayLike,
    *,
    n_train_donors: int | None = None,
    labels: ArrayLike | None = None,
    seed: int = 0,
) -> DonorSplit:
    """Draw donors for training; the others are for testing.

    Parameters
    ----------
    donors
        Donor of each cell, shape ``(n_obs,)``, without missing values.
    n_train_donors
        Number of training donors, in [1, n_donors - 1]; by default half of them, rounded down.
    labels
        Class of each cell, shape ``(n_obs,)``. With labels, a class present in at least two donors is
        placed on both sides if there is room, rarest class first; the remaining donors are drawn uniformly.
    seed
        Random seed for the draw. The order of the cells does not matter.

    Returns
    -------
    The split. Classes absent from one side are recorded in it and logged.

    Raises
    ------
    ValueError
        If there are fewer than two donors, a donor is missing, or ``n_train_donors`` is out of range.

    Examples
    --------
    >>> from scr2mae.probe import donor_split
    >>> split = donor_split(["a", "a", "b", "c", "d"], n_train_donors=2, seed=0)
    >>> len(split.train_donors), len(split.test_donors)
    (2, 2)
    """
    warn_about_donors(donors, "donors")
    split = _donor_split(donors, n_train_donors=n_train_donors, labels=labels, seed=seed)
    for side, absent in (("training", split.absent_train), ("test", split.absent_test)):
        if absent:
            logger.warning("No %s donor has the class(es) %s.", side, shorten(absent))
    return split


def _donor_split(
    donors: ArrayLike, *, n_train_donors: int | None, labels: ArrayLike | None, seed: int
) -> DonorSplit:
    """Draw a split of the donors; of several draws that in which the fewest classes are absent."""
    names, codes = np.unique(as_text(donors, "donor"), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"Holding donors out needs at least two donors, got {names.tolist()}.")
    n_train = len(names) // 2 if n_train_donors is None else n_train_donors
    if not 1 <= n_train < len(names):
        raise ValueError(
            f"Wanted n_train_donors between 1 and {len(names) - 1} ({len(names)} donors, at least one for testing), "
            f"got {n_train}."
        )
    carries, classes = _carriers(codes, labels, len(names))
    rng = np.random.default_rng(seed)
    sides = [_draw(carries, n_train, rng) for _ in range(_N_RESTARTS if len(classes) else 1)]
    train = min(sides, key=lambda side: _n_absent(carries, side))  # the first draw among equals
    return DonorSplit(
        train_donors=tuple(names[train]),
        test_donors=tuple(names[~train]),
        seed=seed,
        absent_train=tuple(classes[~carries[train].any(axis=0)]),
        absent_test=tuple(classes[~carries[~train].any(axis=0)]),
    )


def draw_splits(
    donors: NDArray[np.str_],
    labels: NDArray[Any] | None,
    *,
    n_train_donors: int | None,
    seeds: Sequence[int],
    what: str = "",
) -> list[DonorSplit]:
    """Draw a split per seed with at least two training donors, so that a penalty can be chosen across them."""
    if not isinstance(n_train_donors, (Integral, type(None))):
        raise TypeError(f"n_train_donors must be an integer, got {n_train_donors!r}.")
    if n_train_donors is not None and n_train_donors < 2:
        raise ValueError(f"Choosing a penalty across donors needs n_train_donors >= 2, got {n_train_donors}.")
    if (n_donors := len(np.unique(donors))) < 3:
        raise ValueError(
            f"Probing{what} needs two donors to train and one to test, got {n_donors} with labels."
        )
    n_train = max(2, n_donors // 2) if n_train_donors is None else n_train_donors
    return [_donor_split(donors, n_train_donors=n_train, labels=labels, seed=seed) for seed in seeds]


def _carriers(
    donor_codes: NDArray[np.intp], labels: ArrayLike | None, n_donors: int
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which donor has which class, shape ``(n_donors, n_classes)``, and the classes."""
    if labels is None:
        return np.zeros((n_donors, 0), dtype=bool), np.array([], dtype=str)
    column = pd.Series(np.asarray(labels))
    if len(column) != len(donor_codes):
        raise ValueError(f"Got {len(column)} labels for {len(donor_codes)} cells.")
    known = column.notna().to_numpy()
    classes, codes = np.unique(as_text(column[known], "label"), return_inverse=True)
    carries = np.zeros((n_donors, len(classes)), dtype=bool)
    carries[donor_codes[known], codes] = True
    return carries, classes


def _draw(carries: NDArray[np.bool_], n_train: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Place donors of rare classes on both sides, then fill up at random; True is training."""
    n_donors = len(carries)
    room = {True: n_train, False: n_donors - n_train}
    side = np.zeros(n_donors, dtype=bool)
    placed = np.zeros(n_donors, dtype=bool)
    n_carriers = carries.sum(axis=0)
    for label in np.argsort(n_carriers, kind="stable"):
        if n_carriers[label] < 2:
            continue
        for to_train in (True, False):
            if (carries[:, label] & placed & (side == to_train)).any() or not room[to_train]:
                continue
            free = np.flatnonzero(carries[:, label] & ~placed)
            if len(free):
                donor = rng.choice(free)
                side[donor], placed[donor] = to_train, True
                room[to_train] -= 1
    rest = rng.permutation(np.flatnonzero(~placed))
    side[rest[: room[True]]] = True
    return side


def _n_absent(carries: NDArray[np.bool_], train: NDArray[np.bool_]) -> int:
    return int((~carries[train].any(axis=0)).sum() + (~carries[~train].any(axis=0)).sum())
