"""Add embeddings from other programs, matched by cell names."""

import os
from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from scr2mae._utils.files import as_path


def add_embedding(
    adata: AnnData,
    embedding: AnnData | pd.DataFrame | ArrayLike | str | os.PathLike[str],
    *,
    key: str,
    obs_names: Sequence[str] | None = None,
    use_rep: str | None = None,
) -> None:
    """Add an embedding from another program to ``adata.obsm``, in the order of its cells.

    Parameters
    ----------
    adata
        Cells, whose ``obsm`` is changed. They may be a subset of those of the embedding, in any order.
    embedding
        A table with the cells' names as index, an AnnData, or a file of one: ``.h5ad``, or ``.csv``, ``.tsv``
        (gzipped or not) or ``.parquet`` with names in the first column or the index. An array, or a ``.npy``
        file, needs ``obs_names``.
    key
        Name in ``adata.obsm``, such as ``"X_scgpt"``.
    obs_names
        Names of the cells in the rows of an array.
    use_rep
        Key of ``obsm`` of an AnnData; by default the only one, ``key``, or ``X`` if there is none.

    Raises
    ------
    KeyError
        If cells have no embedding, or the AnnData has no or several embeddings to choose from.
    ValueError
        If names repeat, their number is not that of the rows, or values are missing or not finite.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scr2mae
    >>> adata = scr2mae.datasets.simulate_donors(n_donors=2, n_cells_per_donor=5, n_genes=20)
    >>> table = pd.DataFrame(np.eye(10), index=adata.obs_names[::-1])
    >>> scr2mae.data.add_embedding(adata, table, key="X_mine")
    >>> int(adata.obsm["X_mine"][0].argmax())
    9
    """
    names, values = _read(embedding, key, obs_names, use_rep)
    if len(names) != len(values):
        raise ValueError(
            f"Wanted one name for each of {len(values)} rows of the embedding, got {len(names)}."
        )
    if repeated := names[names.duplicated()].tolist():
        raise ValueError(f"{len(repeated)} name(s) repeat in the embedding, for example {repeated[0]!r}.")
    if not adata.obs_names.is_unique:
        raise ValueError(
            "Names of cells repeat in adata; make them unique before anything is joined by name."
        )
    rows = names.get_indexer(adata.obs_names)
    if n_missing := int((rows < 0).sum()):
        example = adata.obs_names[rows < 0][0]
        raise KeyError(
            f"{n_missing} of {adata.n_obs} cells have no embedding, for example {example!r}; names of the embedding look "
            f"like {names[0]!r}. Embed these cells too, or drop them."
        )
    found = values[rows]
    if n_bad := int((~np.isfinite(found)).any(axis=1).sum()):
        raise ValueError(f"The embedding of {n_bad} cell(s) has NaN or infinite values.")
    adata.obsm[key] = found


def _read(
    source: Any, key: str, obs_names: Sequence[str] | None, use_rep: str | None
) -> tuple[pd.Index, np.ndarray]:
    """Return names and rows of an embedding, float32."""
    if isinstance(source, str | os.PathLike):
        source = _read_file(as_path(source))
    if isinstance(source, AnnData):
        name = use_rep or _only_embedding(source, key)
        values = source.X if name == "X" else source.obsm[name]
        values = values.toarray() if hasattr(values, "toarray") else values
        return source.obs_names, np.asarray(values, dtype=np.float32)
    if isinstance(source, pd.DataFrame):
        return pd.Index(source.index.astype(str)), source.to_numpy(dtype=np.float32)
    values = np.asarray(source, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"An embedding has shape (n_obs, n_dimensions), got {values.shape}.")
    if obs_names is None:
        raise ValueError("An array has no names of cells; pass obs_names=.")
    return pd.Index(obs_names).astype(str), values


def _read_file(path: Any) -> Any:
    """Read a file by its suffix."""
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if kind == ".h5ad":
        return anndata.read_h5ad(path)
    if kind == ".npy":
        return np.load(path, allow_pickle=False)
    if kind in (".csv", ".tsv"):
        return pd.read_csv(path, sep="," if kind == ".csv" else "\t", index_col=0)
    if kind == ".parquet":
        return pd.read_parquet(path)
    raise ValueError(f"Embeddings are read from .h5ad, .csv, .tsv, .parquet and .npy, got {path.name}.")


def _only_embedding(adata: AnnData, key: str) -> str:
    """Return the key of the embedding, or of the only one if the AnnData lacks it."""
    names = list(adata.obsm)
    if key in names:
        return key
    if len(names) > 1:
        raise KeyError(f"The AnnData has the embeddings {names}; choose one with use_rep=.")
    if not names and adata.X is None:
        raise KeyError("The AnnData has neither an embedding in obsm nor values in X.")
    return names[0] if names else "X"
