"""Warn about placeholder donors, donors under several names, and duplicated cells."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae.data.columns import spelling

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scr2mae.data.columns import Key

__all__ = [
    "Fingerprints",
    "donor_columns",
    "warn_about_copied_cells",
    "warn_about_donors",
    "warn_about_origin",
    "warn_about_shared_names",
]

_PLACEHOLDERS = {
    *("", "unknown", "unk", "pooled", "pool", "na", "n/a", "nan", "nat", "none", "null", "<na>", "missing", "other"),
    *("not reported", "not collected", "not provided", "not recorded", "not specified", "unspecified", "anonymous"),
    *("n.a.", "unassigned", "undefined", "undetermined", "not available", "not applicable", "multiple", "mixed", "?", "-"),
}  # fmt: skip
_STUDIES = ("file", "study", "study_id", "dataset", "dataset_id", "collection_id")
_DONOR_WORDS = re.compile(
    r"(donor|patient|individual|subject|participant|specimen|sample)([ _.-]?(id|name|key|number))?",
    re.IGNORECASE,
)
_OF_A_DONOR = re.compile(
    r" ?(donor|patient|individual|subject|participant|sample|id)$|^(donor|patient|sample) "
)
_BARCODE = re.compile(r"[ACGTN]{12,}")
_MAX_NAMED = 5


def warn_about_donors(names: Any, key: Key, *, obs: pd.DataFrame | None = None) -> None:
    """Warn about placeholder donors, and donors with several names or in several studies.

    ``names`` has the donor of each cell; ``obs``, the table that it is from, is searched for the studies and for cells
    that are copies.
    """
    column = pd.Series(np.asarray(names, dtype=object)).dropna().astype(str)
    counts = column.value_counts()
    if found := [name for name in counts.index if _is_placeholder(name)]:
        _warn(
            f"{_where(key)} has {_with_counts(found, counts)}: no donor's name, but taken as one donor on one side of a split. "
            "Drop those cells, or give them their donors."
        )
    groups: dict[str, list[str]] = {}
    for name in counts.index:
        groups.setdefault(spelling(name), []).append(name)
    alike = [sorted(group) for group in groups.values() if len(group) > 1]
    if alike:
        shown = "; ".join(" and ".join(map(repr, group)) for group in alike[:_MAX_NAMED])
        _warn(
            f"{_where(key)} has {len(alike)} donor(s) under several names, {shown}: taken as different people, which may be on "
            "both sides of a split. Give each donor one name."
        )
    if obs is not None:
        warn_about_origin(names, key, obs)


def _is_placeholder(name: str) -> bool:
    words = re.sub(r"[\s_-]+", " ", name).strip().casefold()
    return words in _PLACEHOLDERS or _OF_A_DONOR.sub("", words) in _PLACEHOLDERS - {""}


def warn_about_origin(names: Any, key: Key | None, obs: pd.DataFrame) -> None:
    """Warn about donors that several studies share, and about cells that are copies of others."""
    if isinstance(key, str):
        _warn_about_studies(names, key, obs)
    _warn_about_copies(obs)


def _warn_about_studies(names: Any, key: str, obs: pd.DataFrame) -> None:
    """Warn if donors of the same name occur in several studies."""
    donors = pd.Series(np.asarray(names, dtype=object))
    for study in _STUDIES:
        if study == key or study not in obs or isinstance(obs[study], pd.DataFrame):
            continue
        n_studies = pd.Series(obs[study].to_numpy()).groupby(donors).nunique()
        shared = [str(name) for name in n_studies.index[n_studies > 1] if not _is_placeholder(str(name))]
        if shared:
            _warn(
                f"{len(shared)} of {len(n_studies)} donors of {_where(key)}, such as {shared[:_MAX_NAMED]}, occur in several "
                f"values of obs[{study!r}]. If they are different people, pass donor_key=[{study!r}, {key!r}]."
            )
            return


def _warn_about_copies(obs: pd.DataFrame) -> None:
    """Warn about cells that CELLxGENE marks as copies of cells of other data sets."""
    if "is_primary_data" not in obs or isinstance(obs["is_primary_data"], pd.DataFrame):
        return
    is_copy = obs["is_primary_data"].astype(str).str.lower() == "false"
    if n_copies := int(is_copy.sum()):
        _warn(
            f"{n_copies} of {len(obs)} cells have is_primary_data False: they are copies of cells in other data sets, which "
            "may be on the other side of a split. Drop them: adata[adata.obs['is_primary_data']]."
        )


def donor_columns(obs: pd.DataFrame) -> list[str]:
    """Return the columns whose names say that they hold donors."""
    return [str(name) for name in obs.columns if _DONOR_WORDS.fullmatch(str(name))]


def warn_about_shared_names(tables: Iterable[pd.DataFrame], labels: Iterable[str]) -> None:
    """Warn about names of donors that several files have and that may belong to different people."""
    seen: dict[str, dict[str, list[str]]] = {}
    for table, label in zip(tables, labels, strict=True):
        for key in donor_columns(table):
            for name in table[key].dropna().astype(str).unique():
                seen.setdefault(key, {}).setdefault(name, []).append(label)
    for key, names in seen.items():
        if shared := {name: files for name, files in names.items() if len(files) > 1}:
            name, files = next(iter(shared.items()))
            _warn(
                f"{len(shared)} of {len(names)} names in obs[{key!r}] occur in several files, such as {name!r} in "
                f"{' and '.join(files[:3])}. If they are different people, pass prefix=[{key!r}] (--prefix {key})."
            )


class Fingerprints:
    """A number per cell, equal for equal counts, to find duplicated cells.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and genes.
    """

    def __init__(self, n_obs: int, n_vars: int) -> None:
        self._weights = np.random.default_rng(0).random(n_vars) + 0.5
        self.values = np.zeros(n_obs)

    def add(self, first: int, counts: Any) -> None:
        """Add the cells of a block that starts at ``first``."""
        self.values[first : first + counts.shape[0]] = counts @ self._weights

    def warn(self, names: Any, *, stacklevel: int = 4) -> None:
        """Warn if cells of the same barcode, whatever their suffix, have the same counts."""
        table = pd.DataFrame({"name": [_barcode(name) for name in names], "value": self.values.round(6)})
        table = table[table["value"] != 0]
        n_twice = int(table.duplicated().sum())
        if n_twice:
            example = table["name"][table.duplicated(keep=False)].iloc[0]
            _warn(
                f"{n_twice} cells occur more than once, with the same barcode and the same counts, such as {example!r}; copies "
                "may be on both sides of a split. Drop them.",
                stacklevel=stacklevel,
            )


def warn_about_copied_cells(counts: Any, names: Any) -> None:
    """Warn about duplicated cells of a matrix in memory."""
    prints = Fingerprints(*counts.shape)
    prints.add(0, counts)
    prints.warn(names, stacklevel=5)


def _barcode(name: Any) -> str:
    """Return the part of a name that identifies a cell before files were joined."""
    found = _BARCODE.search(str(name))
    return found[0] if found else re.sub(r"-[^-]*$", "", str(name))


def _where(key: Key) -> str:
    return f"adata.obs[{key!r}]" if isinstance(key, str) else f"The key {list(key)}"


def _with_counts(names: list[str], counts: pd.Series) -> str:
    return " and ".join(f"{int(counts[name])} cells of {name!r}" for name in names[:_MAX_NAMED])


def _warn(message: str, *, stacklevel: int = 4) -> None:
    warnings.warn(message, stacklevel=stacklevel)
