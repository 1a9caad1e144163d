"""Check that data are an AnnData, and say how to convert other containers."""

from __future__ import annotations

import os
from typing import Any

from anndata import AnnData

__all__ = ["check_anndata"]

_ADVICE = {
    "AnnCollection": "load it: adata = collection[:].to_adata()",
    "AnnCollectionView": "load it: adata = view.to_adata()",
    "DataFrame": "make one of it, cells in rows: anndata.AnnData(frame)",
    "ndarray": "make one of it: anndata.AnnData(X), with names in obs_names and var_names",
    "SpatialData": "pass one of its tables: sdata.tables[name]",
}


def check_anndata(adata: Any, argument: str = "adata") -> None:
    """Raise TypeError unless this is an AnnData; the message says how to convert it."""
    if isinstance(adata, AnnData):
        return
    name = type(adata).__name__
    if name == "MuData":
        advice = f"pass one of its modalities, such as mdata[{next(iter(adata.mod), 'rna')!r}]"
    elif isinstance(adata, (str, os.PathLike)):
        advice = "read the file first: anndata.read_h5ad(path), or scr2mae.data.open_store(path)"
    else:
        advice = _ADVICE.get(name, "pass an AnnData of raw counts")
    raise TypeError(f"{argument} must be an AnnData, got {name}; {advice}.")
