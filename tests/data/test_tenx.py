"""Files of Cell Ranger: cells of any version of the format, read by row, and joined to a store."""

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scr2mae import datasets
from scr2mae.cli import main
from scr2mae.data import open_store
from scr2mae.data.store import read_file
from scr2mae.data.tenx import TenX, tenx_group


def write_10x(path: Path, adata: AnnData, *, genomes: tuple[str, ...] = (), text: Any = "S") -> Path:
    """Write counts as Cell Ranger 3 does, or with ``genomes`` as Cell Ranger 2 does: features by cells, CSC."""
    counts = sp.csc_matrix(adata.X.T.astype(np.int32))
    names = np.array(adata.var_names, dtype=text)
    with h5py.File(path, "w") as file:
        for name in genomes or ("matrix",):
            group = file.create_group(name)
            group["barcodes"] = np.array(adata.obs_names, dtype=text)
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(counts, part)
            group["shape"] = np.array(counts.shape, dtype=np.int32)
            if genomes:
                group["genes"], group["gene_names"] = names, names
                continue
            features = group.create_group("features")
            features["id"], features["name"] = names, names
            features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype=text)
            features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype=text)
            features["_all_tag_keys"] = np.array(["genome"], dtype=text)
    return path


def write_mudata(path: Path, adata: AnnData) -> Path:
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file.create_group("mod"), "rna", adata)
        anndata.io.write_elem(file, "obs", adata.obs[[]])
        anndata.io.write_elem(file, "var", adata.var[[]])
    return path


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("options", [{}, {"genomes": ("hg19",)}, {"text": h5py.string_dtype()}])
def test_cells_are_those_that_scanpy_reads(options: Any, adata: AnnData, tmp_path: Path) -> None:
    import scanpy as sc

    adata.var_names = [*adata.var_names[:-2], "gene0", "gene0"]  # symbols repeat
    path = write_10x(tmp_path / "counts.h5", adata, **options)
    expected = sc.read_10x_h5(path, gex_only=False)
    expected.var_names_make_unique()
    for found in (read_file(path), open_store(path)):
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
        assert found.obs_names.tolist() == expected.obs_names.tolist()
        assert found.var_names.tolist() == expected.var_names.tolist()
        assert set(found.var) == set(expected.var)
        for column in expected.var:
            assert found.var[column].tolist() == expected.var[column].tolist()


def test_rows_are_read_without_the_others(adata: AnnData, tmp_path: Path) -> None:
    path = write_10x(tmp_path / "counts.h5", adata)
    with h5py.File(path) as file:
        counts = TenX(tenx_group(file, path))
        assert counts.shape == adata.shape
        for rows in (slice(0, 0), slice(3, 9), slice(118, 500), slice(None)):
            np.testing.assert_array_equal(counts[rows].toarray(), adata.X[rows].toarray())
        with pytest.raises(IndexError, match="Wanted ascending neighboring cells"):
            counts[::2]


def test_counts_of_two_genomes_are_refused_with_what_separates_them(adata: AnnData, tmp_path: Path) -> None:
    path = write_10x(tmp_path / "counts.h5", adata, genomes=("hg19", "mm10"))
    for use in (read_file, open_store, lambda p: datasets.prepare(p, tmp_path / "s.zarr")):
        with pytest.raises(ValueError, match=r"counts of 2 genomes, \['hg19', 'mm10'\].*genome='hg19'"):
            use(path)


@pytest.mark.parametrize("write", [write_10x, write_mudata])
@pytest.mark.parametrize("memory_limit", [1e6, 2.5e8])
def test_a_store_of_such_files_is_that_of_anndata(
    write: Any, memory_limit: float, adata: AnnData, tmp_path: Path
) -> None:
    del adata.obs["donor"]  # which would be warned about, since both files have the same
    parts = [adata[:70].copy(), adata[70:].copy()]
    options = {"n_top_genes": 20, "progressbar": False, "memory_limit": memory_limit}
    stores = []
    for writer in (lambda path, part: part.write_h5ad(path), write):
        folder = tmp_path / f"from{len(stores)}"
        folder.mkdir()
        paths = [folder / f"sample{i}.h5" for i in range(2)]
        for path, part in zip(paths, parts, strict=True):
            writer(path, part)
        stores.append(anndata.read_zarr(datasets.prepare(paths, folder / "store.zarr", **options)))
    assert stores[1].obs_names.tolist() == stores[0].obs_names.tolist()
    assert stores[1].var_names.tolist() == stores[0].var_names.tolist()
    np.testing.assert_array_equal(stores[1].X.toarray(), stores[0].X.toarray())
    assert stores[1].obs["file"].unique().tolist() == stores[0].obs["file"].unique().tolist()


def test_the_command_line_prepares_both_formats_and_anndata_together(adata: AnnData, tmp_path: Path) -> None:
    del adata.obs["donor"]
    write_10x(tmp_path / "one.h5", adata[:40].copy())
    write_mudata(tmp_path / "two.h5mu", adata[40:80].copy())
    adata[80:].copy().write_h5ad(tmp_path / "three.h5ad")
    files = [str(tmp_path / name) for name in ("one.h5", "two.h5mu", "three.h5ad")]
    assert main(["prepare", *files, "-o", str(tmp_path / "s.zarr"), "-q"]) == 0
    store = anndata.read_zarr(tmp_path / "s.zarr")[adata.obs_names]
    np.testing.assert_array_equal(store[:, adata.var_names].X.toarray(), adata.X.toarray())
    assert store.obs["file"].value_counts().to_dict() == {"one": 40, "two": 40, "three": 40}


def test_a_layer_of_a_file_of_cell_ranger_is_absent(adata: AnnData, tmp_path: Path) -> None:
    path = write_10x(tmp_path / "counts.h5", adata)
    with pytest.raises(KeyError, match="No 'counts' in the layers of"):
        datasets.prepare(path, tmp_path / "s.zarr", layer="counts")


def test_damaged_counts_are_named(adata: AnnData, tmp_path: Path) -> None:
    path = write_10x(tmp_path / "counts.h5", adata)
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][0] = 10_000
    with pytest.raises(ValueError, match=r"damaged"):
        datasets.prepare(path, tmp_path / "s.zarr")
    with h5py.File(path, "r+") as file:
        del file["matrix/shape"]
    with pytest.raises(ValueError, match="damaged or not an AnnData file"):
        read_file(path)


def test_row_numbers_and_antibodies_are_warned_about_when_files_are_joined(
    adata: AnnData, tmp_path: Path
) -> None:
    adata.var_names = [str(i) for i in range(60)]
    adata.var["feature_types"] = ["Gene Expression"] * 50 + ["Antibody Capture"] * 10
    adata.write_h5ad(tmp_path / "a.h5ad")
    with (
        pytest.warns(UserWarning, match="Gene names are row numbers"),
        pytest.warns(UserWarning, match="10 'Antibody Capture'"),
    ):
        datasets.prepare(tmp_path / "a.h5ad", tmp_path / "s.zarr")
