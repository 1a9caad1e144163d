"""Labels, donors and representations of an AnnData, validated for probing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

Kind = Literal["classification", "regression"]
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


def obs_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column of ``adata.obs``; the error lists the columns."""
    if key not in obs:
        raise KeyError(f"No {key!r} in adata.obs; choose one of {list(obs)}.")
    return obs[key]


def as_text(values: ArrayLike | pd.Series, what: str) -> NDArray[np.str_]:
    """Return names as text; raise if one is missing."""
    column = values if isinstance(values, pd.Series) else pd.Series(np.asarray(values))
    if n_missing := int(column.isna().sum()):
        raise ValueError(f"{n_missing} cell(s) have no {what}; drop them or name their {what}.")
    return column.astype(str).to_numpy(dtype=str)


def read_donors(obs: pd.DataFrame, donor_key: str) -> NDArray[np.str_]:
    """Return the donor of each cell as text, shape ``(n_obs,)``; raise unless there are two donors."""
    donors = as_text(obs_column(obs, donor_key), repr(donor_key))
    if len(np.unique(donors)) < 2:
        raise ValueError(
            f"Holding donors out needs two donors, adata.obs[{donor_key!r}] has one: {str(donors[0])!r}."
        )
    return donors


def read_target(
    obs: pd.DataFrame,
    name: str,
    kind: Kind,
    *,
    donor_key: str,
    sample_key: str | None = None,
    cell_level: Iterable[str] = (),
) -> Target:
    """Read the labels of a target, drop cells without a label and find the units over which cells are averaged."""
    if kind not in get_args(Kind):
        raise ValueError(f"Wanted targets[{name!r}] to be one of {get_args(Kind)}, got {kind!r}.")
    donors, column = read_donors(obs, donor_key), obs_column(obs, name)
    rows = np.flatnonzero(column.notna().to_numpy())
    if not len(rows):
        raise ValueError(f"No cell has a label in adata.obs[{name!r}].")
    known, donors = column.iloc[rows], donors[rows]
    if len(np.unique(donors)) < 2:
        raise ValueError(f"Only donor {str(donors[0])!r} has labels in adata.obs[{name!r}]; two are needed.")
    y = _classes(known, name) if kind == "classification" else _numbers(known, name)
    units, unit = np.arange(len(rows)), None
    if name not in cell_level:
        groups, unit = donors, "donor"
        if sample_key is not None:
            groups, unit = _samples(obs.iloc[rows], donors, sample_key), "sample"
        units, unit = _units(y, groups, unit, "class" if kind == "classification" else "value")
    return Target(name, kind, rows, y, donors, units, unit, n_dropped=len(obs) - len(rows))


def _classes(column: pd.Series, name: str) -> NDArray[Any]:
    values = as_text(column, "label")
    if pd.api.types.is_float_dtype(column.dtype) and np.any(np.mod(column.to_numpy(dtype=float), 1) != 0):
        raise ValueError(f"adata.obs[{name!r}] holds fractions; make it a regression target or bin it.")
    if len(classes := np.unique(values)) < 2:
        raise ValueError(
            f"Classifying {name!r} needs two classes, all {len(values)} labeled cells are {str(classes[0])!r}."
        )
    return values


def _numbers(column: pd.Series, name: str) -> NDArray[Any]:
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


def _samples(obs: pd.DataFrame, donors: NDArray[np.str_], sample_key: str) -> NDArray[np.str_]:
    samples = as_text(obs_column(obs, sample_key), repr(sample_key))
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
    X = sp.csr_array(X) if sp.issparse(X) else np.asarray(X)
    if n_bad := int((~np.isfinite(X.data if sp.issparse(X) else X)).sum()):
        raise ValueError(
            f"{use_rep!r} holds {n_bad} NaN or infinite value(s); drop those cells or embed them again."
        )
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
