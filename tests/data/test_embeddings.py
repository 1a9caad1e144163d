"""Embeddings of other programs are joined by name, and nothing that does not fit is accepted."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scr2mae.data import add_embedding


@pytest.fixture
def embedded(adata) -> AnnData:
    """More cells than ``adata``, in another order, with an embedding of their own."""
    names = [*adata.obs_names[::-1], "another cell"]
    values = np.random.default_rng(0).normal(size=(len(names), 3)).astype(np.float32)
    return AnnData(values, obs=pd.DataFrame(index=names))


@pytest.mark.parametrize("kind", ["adata", "obsm", "frame", "array", "h5ad", "csv", "tsv.gz", "npy"])
def test_every_source_gives_each_cell_its_row(adata, embedded, tmp_path, kind):
    frame = pd.DataFrame(embedded.X, index=embedded.obs_names)
    options = {"obs_names": list(embedded.obs_names)} if kind in ("array", "npy") else {}
    path = tmp_path / f"embedding.{kind}"
    if kind == "h5ad":
        embedded.write_h5ad(path)
    elif kind == "npy":
        np.save(path, embedded.X)
    elif kind in ("csv", "tsv.gz"):
        frame.to_csv(path, sep="," if kind == "csv" else "\t")
    source = {"adata": embedded, "frame": frame, "array": embedded.X}.get(kind, path)
    if kind == "obsm":
        source = AnnData(obs=embedded.obs, obsm={"X_scGPT": embedded.X})
    add_embedding(adata, source, key="X_scgpt", **options)
    np.testing.assert_allclose(adata.obsm["X_scgpt"], frame.loc[adata.obs_names].to_numpy(), rtol=1e-6)


def test_cells_without_an_embedding_are_counted_and_named(adata, embedded):
    with pytest.raises(KeyError, match=r"2 of 120 cells have no embedding, for example 'cell3'"):
        add_embedding(adata, embedded[~embedded.obs_names.isin(["cell3", "cell5"])], key="X_uce")
    assert "X_uce" not in adata.obsm


def test_what_does_not_fit_is_refused(adata, embedded):
    frame = pd.DataFrame(embedded.X.copy(), index=embedded.obs_names)
    with pytest.raises(ValueError, match="repeat in the embedding, for example 'another cell'"):
        add_embedding(adata, pd.concat([frame, frame.iloc[-1:]]), key="X")
    frame.iloc[5, 1] = np.nan
    with pytest.raises(ValueError, match="of 1 cell"):
        add_embedding(adata, frame, key="X")
    with pytest.raises(ValueError, match="pass obs_names="):
        add_embedding(adata, embedded.X, key="X")
    with pytest.raises(ValueError, match="one name for each of 121 rows"):
        add_embedding(adata, embedded.X, key="X", obs_names=["a"])
    several = AnnData(obs=embedded.obs, obsm={"a": embedded.X, "b": embedded.X})
    with pytest.raises(KeyError, match="choose one with use_rep="):
        add_embedding(adata, several, key="X_c")
    add_embedding(adata, several, key="X_c", use_rep="b")
    assert adata.obsm["X_c"].shape == (120, 3)
