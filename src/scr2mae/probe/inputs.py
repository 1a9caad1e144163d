"""Labels, donors and representations of an AnnData, validated for probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from numpy.typing import ArrayLike, NDArray

from scr2mae.data.columns import as_keys, find_column, key_name, warn_about_missing_text
from scr2mae.data.containers import check_anndata
from scr2mae.data.donors import warn_about_donors

if TYPE_CHECKING:
    from scr2mae.data.columns import Key

Kind = Literal["classification", "regression"]
Protocol = Literal["stratified", "paper"]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Target:
    """Labeled cells of one target.

    ``rows`` are positions in the AnnData; ``y``, ``donors`` and ``units`` are aligned with them. ``unit`` names what
    ``units`` are, such as "donor"; None if only cells are scored.
    """

    name: str
    kind: Kind
    rows: Rows
    y: NDArray[Any]
    donors: NDArray[np.str_]
    units: NDArray[np.intp]
    unit: str | None
    n_dropped: int

    @property
    def levels(self) -> list[tuple[str, str]]:
        """Levels at which the target is scored, each with its unit."""
        return [("cell", "cell")] if self.unit is None else [("cell", "cell"), ("donor", self.unit)]


def kinds_of(targets: Any) -> Mapping[str, Kind]:
    """Return the kind of each target; raise unless targets are a mapping."""
    if not isinstance(targets, Mapping):
        example = next(iter(targets), "disease") if isinstance(targets, (list, tuple)) else targets
        raise TypeError(
            f"targets maps columns of adata.obs to kinds, such as {{{example!r}: 'classification'}} or "
            f"{{'age': 'regression'}}; got {targets!r}."
        )
    return targets


def check_protocol(protocol: str, max_cells_per_donor_and_class: int | None) -> None:
    """Raise unless the protocol is known and allows this cap of cells."""
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {get_args(Protocol)}, got {protocol!r}.")
    if protocol == "paper" and max_cells_per_donor_and_class is not None:
        raise ValueError(
            "protocol='paper' caps the cells of a donor, whatever their class; pass max_cells_per_donor in place of "
            "max_cells_per_donor_and_class."
        )


def as_text(values: ArrayLike | pd.Series, what: str) -> NDArray[np.str_]:
    """Return names as text; raise if one is missing."""
    column = values if isinstance(values, pd.Series) else pd.Series(np.asarray(values))
    if n_missing := int(column.isna().sum()):
        raise ValueError(f"{n_missing} cell(s) have no {what}; drop them or name their {what}.")
    return column.astype(str).to_numpy(dtype=str)


def read_names(obs: pd.DataFrame, key: Key) -> NDArray[np.str_]:
    """Return a column of samples, batches or the like as text; raise for missing values, warn if text stands for them."""
    column = find_column(obs, key)
    warn_about_missing_text(column, key_name(key))
    return as_text(column, repr(key_name(key)))


def read_donors(obs: pd.DataFrame, donor_key: Key, *, check: bool = True) -> NDArray[np.str_]:
    """Return the donor of each cell as text, shape ``(n_obs,)``; raise unless there are two donors.

    ``check`` warns about names that may not be donors.
    """
    donors = as_text(find_column(obs, donor_key), repr(key_name(donor_key)))
    if check:
        warn_about_donors(donors, donor_key, obs=obs)
    if len(np.unique(donors)) < 2:
        raise ValueError(
            f"Holding donors out needs two donors, adata.obs[{key_name(donor_key)!r}] has one: {str(donors[0])!r}."
        )
    return donors


def checked_obs(adata: AnnData, donor_key: Key) -> pd.DataFrame:
    """Return ``adata.obs``; raise unless this is an AnnData with two donors, and warn about names that may not be donors."""
    check_anndata(adata)
    read_donors(adata.obs, donor_key)
    return adata.obs


def read_target(
    obs: pd.DataFrame,
    name: str,
    kind: Kind,
    *,
    donor_key: Key,
    sample_key: Key | None = None,
    cell_level: Sequence[str] = (),
) -> Target:
    """Read the labels of a target, drop cells without a label and find the units over which cells are averaged."""
    if not isinstance(name, str):
        raise TypeError(f"A target is the name of one column of adata.obs, got {name!r}.")
    if kind not in get_args(Kind):
        raise ValueError(f"Wanted the kind of {name!r} to be one of {get_args(Kind)}, got {kind!r}.")
    # Callers have already read the donors and warned about them.
    donors, column = read_donors(obs, donor_key, check=False), find_column(obs, name)
    warn_about_missing_text(column, name)
    rows = np.flatnonzero(column.notna().to_numpy())
    if not len(rows):
        raise ValueError(f"No cell has a label in adata.obs[{name!r}].")
    known, donors = column.iloc[rows], donors[rows]
    if len(np.unique(donors)) < 2:
        raise ValueError(f"Only donor {str(donors[0])!r} has labels in adata.obs[{name!r}]; two are needed.")
    y = _classes(known, name) if kind == "classification" else _numbers(known, name)
    units, unit = np.arange(len(rows)), None
    if name not in as_keys(cell_level, "cell_level"):
        groups, unit = donors, "donor"
        if sample_key is not None:
            groups, unit = _samples(obs.iloc[rows], donors, sample_key), "sample"
        units, unit = _units(y, groups, unit, "class" if kind == "classification" else "value")
    return Target(name, kind, rows, y, donors, units, unit, n_dropped=len(obs) - len(rows))


def _classes(column: pd.Series, name: str) -> NDArray[Any]:
    """Return the labels of a classification target; raise for fractions and for a single class."""
    values = as_text(column, "label")
    if pd.api.types.is_float_dtype(column.dtype) and np.any(np.mod(column.to_numpy(dtype=float), 1) != 0):
        raise ValueError(f"adata.obs[{name!r}] holds fractions; make it a regression target or bin it.")
    if len(classes := np.unique(values)) < 2:
        raise ValueError(
            f"Classifying {name!r} needs two classes, all {len(values)} labeled cells are {str(classes[0])!r}."
        )
    return values


def _numbers(column: pd.Series, name: str) -> NDArray[Any]:
    """Return the values of a regression target; raise for dates, text and constants."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or column.dtype.kind == "m":
        raise ValueError(
            f"Regression target {name!r} holds dates or times ({column.dtype}); convert it to numbers, for example days: "
            f"(adata.obs[{name!r}] - adata.obs[{name!r}].min()) / pd.Timedelta(days=1)."
        )
    values = column.astype(object)
    numeric = pd.to_numeric(values, errors="coerce")
    is_text = values.map(lambda value: isinstance(value, str)).astype(bool)
    if (is_text | numeric.isna()).any():
        example = values[is_text if is_text.any() else numeric.isna()].iloc[0]
        raise ValueError(
            f"Regression target {name!r} holds text such as {example!r}; convert it to numbers or make it a "
            "classification target."
        )
    y = numeric.to_numpy(dtype=np.float64)
    if n_infinite := int((~np.isfinite(y)).sum()):
        raise ValueError(f"Regression target {name!r} holds {n_infinite} infinite value(s).")
    if np.ptp(y) == 0:
        raise ValueError(f"Regression target {name!r} is {y[0]} for every labeled cell; it needs two values.")
    return y


def _samples(obs: pd.DataFrame, donors: NDArray[np.str_], sample_key: Key) -> NDArray[np.str_]:
    samples = read_names(obs, sample_key)
    n_donors = pd.Series(donors).groupby(samples).nunique()
    if shared := n_donors.index[n_donors > 1].tolist():
        raise ValueError(f"Samples {shared[:10]} hold cells of several donors; a sample belongs to one.")
    return samples


def _units(
    y: NDArray[Any], groups: NDArray[np.str_], unit: str, suffix: str
) -> tuple[NDArray[np.intp], str | None]:
    """Return codes of the units within which the target is constant, and what a unit is."""
    by_group = pd.DataFrame({"group": groups, "y": y})
    if by_group.groupby("group")["y"].nunique().max() > 1:
        codes = by_group.groupby(["group", "y"], sort=True).ngroup().to_numpy().astype(np.intp)
        unit = f"{unit}_and_{suffix}"
    else:
        codes = np.unique(groups, return_inverse=True)[1].astype(np.intp)
    # Averages over single cells would repeat the cell level under another name.
    return codes, (unit if codes.max() + 1 < len(codes) else None)


def read_representation(adata: AnnData, use_rep: str) -> Any:
    """Return ``adata.X``, an entry of ``adata.obsm`` or a layer as a finite dense or CSR array."""
    if not isinstance(use_rep, str):
        raise TypeError(
            f"use_rep is 'X' or the name of one entry of adata.obsm or adata.layers, got {use_rep!r}."
        )
    if use_rep == "X":
        X: Any = adata.X
    elif use_rep in adata.obsm:
        X = adata.obsm[use_rep]
    elif use_rep in adata.layers:
        X = adata.layers[use_rep]
    else:
        raise KeyError(
            f"No {use_rep!r} in adata.obsm or adata.layers; choose 'X', one of {list(adata.obsm)} or of "
            f"{[name for name in adata.layers if name]}."
        )
    if X is None:
        raise ValueError("adata.X is empty; name a layer or an entry of adata.obsm.")
    X = _in_memory(X, use_rep)
    if n_bad := int((~np.isfinite(X.data if sp.issparse(X) else X)).sum()):
        raise ValueError(
            f"{use_rep!r} holds {n_bad} NaN or infinite value(s); drop those cells or embed them again."
        )
    return X


def _in_memory(X: Any, use_rep: str) -> Any:
    """Return a representation as a dense or CSR array of numbers."""
    if isinstance(X, pd.DataFrame):
        if wrong := [name for name, dtype in X.dtypes.items() if dtype.kind not in "fiub"]:
            raise ValueError(
                f"{use_rep!r} is a table in which {wrong[:5]} hold no numbers; drop or convert these columns."
            )
        return X.to_numpy(dtype=np.float64)
    if isinstance(X, (CSRDataset, CSCDataset)):
        X = X.to_memory()
    if sp.issparse(X):
        return sp.csr_array(X)
    X = np.asarray(X[:] if isinstance(X, h5py.Dataset) else X)
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{use_rep!r} holds {X.dtype}, not numbers; convert it.")
    return X


def cap_cells(rows: Rows, keys: Sequence[NDArray[Any]], names: pd.Index, *, limit: int, seed: int) -> Rows:
    """Keep at most ``limit`` random cells per combination of ``keys``.

    ``rows`` index ``keys`` and ``names``; the draw depends on the names of the cells, not on their order.
    """
    if limit < 1:
        raise ValueError(f"Wanted a cap of at least one cell, got {limit}.")
    ordered = rows[np.argsort(names[rows].to_numpy(dtype=str), kind="stable")]
    shuffled = np.random.default_rng(seed).permutation(ordered)
    columns = pd.DataFrame({j: key[shuffled] for j, key in enumerate(keys)})
    rank = columns.groupby(list(columns)).cumcount().to_numpy()
    return np.sort(shuffled[rank < limit])
