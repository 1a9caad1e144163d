"""The data in the record of a run: hashed whole in memory, by a sample on disk."""

from pathlib import Path

import numpy as np
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.data import CellSpec, open_store, read_cells
from scr2mae.model.provenance import describe_data


def test_counts_on_disk_are_hashed_by_a_sample(adata: AnnData, tmp_path: Path) -> None:
    model = R2MAEModel(adata, n_hidden=8, n_latent=2)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    stored = open_store(tmp_path / "counts.h5ad")
    cells = read_cells(stored, model.spec, on_disk=True)
    described = describe_data(cells, model.spec.var_names)
    assert (described["n_obs"], described["n_obs_hashed"]) == (120, 64)
    assert described == describe_data(cells, model.spec.var_names)


def test_how_the_indices_are_stored_does_not_change_the_hash(adata: AnnData) -> None:
    spec = CellSpec.from_registry(R2MAEModel(adata).registry)
    first = describe_data(read_cells(adata, spec), spec.var_names)
    adata.X.indices, adata.X.indptr = adata.X.indices.astype(np.int64), adata.X.indptr.astype(np.int64)
    assert describe_data(read_cells(adata, spec), spec.var_names) == first
