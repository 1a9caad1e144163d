"""Read HDF5 files of Cell Ranger by row, as cells by features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from scr2mae.data.formats import is_tenx

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TenX", "tenx_group", "tenx_table"]


class TenX:
    """Counts of Cell Ranger, shape ``(n_cells, n_features)``; ``counts[start:stop]`` reads these cells as CSR.

    Cell Ranger stores features by cells in columns, which are the rows of cells by features.
    """

    format = "csr"

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        n_features, n_cells = (int(n) for n in group["shape"][...])
        self.shape = n_cells, n_features
        self._indptr = group["indptr"][...].astype(np.int64)

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1 or start > stop:
            raise IndexError(f"Wanted ascending neighboring cells, got {rows}.")
        indptr = self._indptr[start : stop + 1]
        part = slice(indptr[0], indptr[-1])
        counts, indices = self._group["data"][part], self._group["indices"][part]
        return sparse.csr_matrix((counts, indices, indptr - indptr[0]), shape=(stop - start, self.shape[1]))


def tenx_group(file: h5py.File, path: Path) -> h5py.Group:
    """Return the group with the counts: "matrix", or that of the genome in files before Cell Ranger 3."""
    found = [name for name in file if is_tenx(file[name])]
    if len(found) > 1:
        raise ValueError(
            f"{path} has counts of {len(found)} genomes, {found}; write one of them: "
            f"scanpy.read_10x_h5({str(path)!r}, genome={found[0]!r}).write_h5ad('counts.h5ad')."
        )
    return file[found[0]]


def tenx_table(group: h5py.Group, name: str) -> pd.DataFrame:
    """Return the table of cells, "obs", or of features, "var", whose names are made unique as anndata does."""
    if name == "obs":
        return pd.DataFrame(index=pd.Index(_text(group["barcodes"])))
    if "features" not in group:  # before Cell Ranger 3
        names = pd.Index(_text(group["gene_names"]))
        return pd.DataFrame({"gene_ids": _text(group["genes"])}, index=make_index_unique(names))
    features = group["features"]
    columns = {"id": "gene_ids", "feature_type": "feature_types"}
    table = {
        columns.get(key, key): _text(features[key])
        for key in features
        if key not in ("name", "_all_tag_keys") and features[key].shape == features["id"].shape
    }
    return pd.DataFrame(table, index=make_index_unique(pd.Index(_text(features["name"]))))


def _text(array: h5py.Dataset) -> np.ndarray:
    is_text = h5py.check_string_dtype(array.dtype) is not None
    return np.asarray(array.asstr()[...] if is_text else array[...], dtype=object)
