"""Cells of the input file: opened, and their counts placed where a model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

    from scr2mae.cli.options import Counts
    from scr2mae.model import R2MAEModel


def open_counts(path: Path, *, use_raw: bool = False, use_rep: Sequence[str] = ()) -> AnnData:
    """Open a file or a store of cells and leave the counts on disk; of a store, attach ``raw`` and embeddings on request."""
    from scr2mae.data.store import open_group, open_store, read_file

    if not path.is_dir():
        return read_file(path, backed="r")
    stored = open_group(path).get("obsm", {})
    return open_store(path, use_raw=use_raw, obsm_keys=[name for name in use_rep if name in stored])


@contextmanager
def opened_cells(
    path: Path, model: R2MAEModel | None, counts: Counts, *, use_rep: Sequence[str] = ()
) -> Iterator[AnnData]:
    """Yield cells as :func:`open_counts` does, with raw if the options or the data of the model say so; close the file."""
    from scr2mae.data.counts import RAW_LAYER

    is_raw = counts.layer is None and model is not None and model.spec.layer == RAW_LAYER
    adata = open_counts(path, use_raw=counts.use_raw or is_raw, use_rep=use_rep)
    try:
        yield adata
    finally:
        if adata.isbacked:
            adata.file.close()


def place_counts(adata: AnnData, model: R2MAEModel | None, counts: Counts) -> AnnData:
    """Return the cells with the counts of a layer, of ``"X"`` or of raw where a model reads them."""
    from scr2mae.data.counts import move_counts, named_layer

    source = named_layer(counts.layer, use_raw=counts.use_raw)
    if source is None or model is None:
        return adata
    is_x = source == "X" and source not in adata.layers
    return move_counts(adata, None if is_x else source, model.spec.layer)


def read_with_genes_of_paper(path: Path, atlas: str | None, *, layer: str | None = None) -> AnnData:
    """Read the raw counts of a file or store, with the paper's selection of genes and cells."""
    from scr2mae._paper import paper
    from scr2mae.data.preprocess import preprocess
    from scr2mae.datasets.atlas import HLCA, SEA_AD, load_atlas

    settings = paper(atlas).preprocess
    if atlas is not None:
        return load_atlas({"hlca": HLCA, "sea_ad": SEA_AD}[atlas], path, **settings)
    return preprocess(open_counts(path), layer=layer, **settings)
