"""What a probe reads from AnnData: labels, the units they are averaged over, representations, subsamples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

Kind = Literal["classification", "regression"]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Target:
    """Labeled cells of one target.

    ``rows`` are their positions in the AnnData; ``y``, ``donors`` and ``units`` are aligned with it. ``unit``
    names what ``units`` are, None where only cells are scored.
    """

    name: str
    kind: Kind
    rows: Rows
    y: NDArray[Any]
    donors: NDArray[np.str_]
    units: NDArray[np.intp]
    unit: str | None
    n_dropped: int


def obs_column(adata: AnnData, key: str) -> pd.Series:
    """Return a column of ``adata.obs``, or say which there are."""
    if key not in adata.obs:
        raise KeyError(f"No {key!r} in adata.obs; choose one of {list(adata.obs)}.")
    return adata.obs[key]


def read_donors(adata: AnnData, donor_key: str) -> NDArray[np.str_]:
    """Donor of every cell as text, shape ``(n_obs,)``."""
    column = obs_column(adata, donor_key)
    if n_missing := int(column.isna().sum()):
        raise ValueError(f"{n_missing} cell(s) have no {donor_key!r}; drop them or name their donor.")
    donors = column.astype(str).to_numpy(dtype=str)
    if len(np.unique(donors)) < 2:
        raise ValueError(
            f"Holding donors out needs two donors, adata.obs[{donor_key!r}] has one: {str(donors[0])!r}."
        )
    return donors


def read_target(
    adata: AnnData,
    name: str,
    kind: Kind,
    *,
    donor_key: str,
    sample_key: str | None,
    cell_level: Iterable[str],
) -> Target:
    """Read a target's labels, drop cells without one and find the units over which cells are averaged."""
    if kind not in get_args(Kind):
        raise ValueError(f"Wanted targets[{name!r}] to be one of {get_args(Kind)}, got {kind!r}.")
    donors, column = read_donors(adata, donor_key), obs_column(adata, name)
    rows = np.flatnonzero(column.notna().to_numpy())
    if not len(rows):
        raise ValueError(f"No cell has a label in adata.obs[{name!r}].")
    known, donors = column.iloc[rows], donors[rows]
    if len(np.unique(donors)) < 2:
        raise ValueError(f"Only donor {str(donors[0])!r} has labels in adata.obs[{name!r}]; two are needed.")
    y = _classes(known, name) if kind == "classification" else _numbers(known, name)
    units, unit = np.arange(len(rows)), None
    if name not in cell_level:
        units, unit = _units(adata, y, donors, rows, kind, sample_key)
    return Target(
        name=name,
        kind=kind,
        rows=rows,
        y=y,
        donors=donors,
        units=units,
        unit=unit,
        n_dropped=adata.n_obs - len(rows),
    )


def _classes(column: pd.Series, name: str) -> NDArray[Any]:
    values = column.astype(str).to_numpy(dtype=str)
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
    text = [v for v, is_text in zip(values, values.map(lambda v: isinstance(v, str)), strict=True) if is_text]
    if text or numeric.isna().any():
        example = text[0] if text else values[numeric.isna()].iloc[0]
        raise ValueError(
            f"Regression target {name!r} holds text such as {example!r}; convert it to numbers or make it a "
            "classification target."
        )
    y = numeric.to_numpy(dtype=np.float64)
    if not np.all(np.isfinite(y)):
        raise ValueError(
            f"Regression target {name!r} holds {int((~np.isfinite(y)).sum())} infinite value(s)."
        )
    if np.ptp(y) == 0:
        raise ValueError(f"Regression target {name!r} is {y[0]} for every labeled cell; it needs two values.")
    return y


def _units(
    adata: AnnData,
    y: NDArray[Any],
    donors: NDArray[np.str_],
    rows: Rows,
    kind: Kind,
    sample_key: str | None,
) -> tuple[Rows, str | None]:
    """Codes of the units within which the target is constant, and their name."""
    groups, unit = donors, "donor"
    if sample_key is not None:
        column = obs_column(adata, sample_key).iloc[rows]
        if column.isna().any():
            raise ValueError(
                f"{int(column.isna().sum())} labeled cell(s) have no {sample_key!r}; name their sample."
            )
        groups, unit = column.astype(str).to_numpy(dtype=str), "sample"
        n_donors = pd.Series(donors).groupby(groups).nunique()
        if shared := n_donors.index[n_donors > 1].tolist():
            raise ValueError(f"Samples {shared[:10]} hold cells of several donors; a sample belongs to one.")
    by_group = pd.DataFrame({"group": groups, "y": y})
    codes: Rows
    if by_group.groupby("group")["y"].nunique().max() > 1:
        codes = by_group.groupby(["group", "y"], sort=True).ngroup().to_numpy().astype(np.intp)
        unit += "_and_class" if kind == "classification" else "_and_value"
    else:
        codes = np.unique(groups, return_inverse=True)[1].astype(np.intp)
    # Averaging single cells would repeat the cell level under another name.
    return codes, (unit if codes.max() + 1 < len(codes) else None)


def read_representation(adata: AnnData, use_rep: str) -> Any:
    """Return ``adata.X``, an entry of ``adata.obsm`` or a layer, dense or CSR, checked to be finite."""
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
    if isinstance(X, pd.DataFrame):
        X = X.to_numpy()
    X = sp.csr_array(X) if sp.issparse(X) else np.asarray(X)
    n_bad = int(np.size(v := X.data if sp.issparse(X) else X) - np.isfinite(v).sum())
    if n_bad:
        raise ValueError(
            f"{use_rep!r} holds {n_bad} NaN or infinite value(s); drop those cells or embed them again."
        )
    return X


def cap_cells(rows: Rows, keys: Sequence[NDArray[Any]], names: pd.Index, *, limit: int, seed: int) -> Rows:
    """Keep at most ``limit`` random cells of every combination of ``keys``.

    ``rows`` index ``keys`` and ``names``; the draw depends on the cells' names, not on their order.
    """
    if limit < 1:
        raise ValueError(f"Wanted a cap of at least one cell, got {limit}.")
    ordered = rows[np.argsort(names[rows].to_numpy(dtype=str), kind="stable")]
    shuffled = np.random.default_rng(seed).permutation(ordered)
    rank = (
        pd.DataFrame({j: key[shuffled] for j, key in enumerate(keys)})
        .groupby(list(range(len(keys))))
        .cumcount()
    )
    return np.sort(shuffled[rank.to_numpy() < limit])
