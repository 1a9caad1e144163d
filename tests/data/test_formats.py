"""Files of cells in other formats: read, or named with the line that converts them."""

import gzip
import shlex
import zipfile
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.data import open_store
from scr2mae.data.formats import not_anndata
from scr2mae.data.store import read_file


def write_10x(path: Path, adata: AnnData, kinds: Any = "Gene Expression") -> None:
    """Write counts as Cell Ranger does: stored by gene, that is, a CSC matrix of genes by cells."""
    counts = sp.csc_matrix(adata.X.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = np.array(counts.shape, dtype=np.int32)
        features = group.create_group("features")
        for name in ("id", "name"):
            features[name] = np.array(adata.var_names, dtype="S")
        features["feature_type"] = np.array(np.broadcast_to(kinds, adata.n_vars), dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")


def write_mudata(path: Path, adata: AnnData, name: str = "rna") -> None:
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        anndata.io.write_elem(file.create_group("mod"), name, adata)


def _hdf5(path: Path, *keys: str) -> None:
    with h5py.File(path, "w") as file:
        for key in keys:
            file[key] = np.zeros(2) if key == "matrix" else h5py.SoftLink("/none")
            if key != "matrix":
                del file[key]
                file.create_group(key)


def _zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "{}")


def _market(path: Path) -> None:
    path.mkdir()
    (path / "matrix.mtx.gz").write_bytes(gzip.compress(b"%%MatrixMarket matrix coordinate integer general\n"))


FOREIGN: dict[str, tuple[Any, str]] = {
    "a.loom": (lambda p: _hdf5(p, "matrix", "row_attrs", "col_attrs"), "a loom file; convert it once: anndata.read_loom("),
    "a.h5seurat": (lambda p: _hdf5(p, "assays", "cell.names"), "an h5Seurat file; convert it once in R: SeuratDisk::Convert("),
    "a.h5mu": (lambda p: write_mudata(p, AnnData(np.ones((2, 2))), "atac"), "a MuData without a modality 'rna'"),
    "a.zarr.zip": (lambda p: _zip(p, "x/zarr.json"), "a zipped zarr store; unpack it first: python -m zipfile -e"),
    "a.xlsx": (lambda p: _zip(p, "xl/workbook.xml"), "an Excel file"),
    "mtx": (_market, "a folder in Matrix Market format, as Cell Ranger writes it; convert it once: scanpy.read_10x_mtx("),
    "a.csv": (lambda p: p.write_text("cell,g1,g2\nc1,0,1\n"), "a text table; convert it once: anndata.read_csv("),
    "a.csv.gz": (lambda p: p.write_bytes(gzip.compress(b"cell,g1,g2\nc1,0,1\n")), "a text table"),
    "a.tsv": (lambda p: p.write_text("cell\tg1\tg2\nc1\t0\t1\n"), "a text table"),
    "a.mtx": (lambda p: p.write_text("%%MatrixMarket matrix\n"), "a matrix in Matrix Market format"),
    "a.rds": (lambda p: p.write_bytes(gzip.compress(b"X\n\x00\x00\x00\x03")), "an R object; convert it once in R"),
    "a.h5ad.gz": (lambda p: p.write_bytes(gzip.compress(b"\x89HDF\r\n\x1a\n" + bytes(600))), "a compressed HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize("renamed", [False, True], ids=["named", "renamed"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_format_is_named_by_its_content_with_what_converts_it(
    name: str, renamed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FOREIGN[name]
    path = tmp_path / ("counts.h5ad" if renamed else name)
    make(path)
    for use in (open_store, read_file):
        with pytest.raises(ValueError, match=r" is an? ") as caught:
            use(path)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
    for line in (f"train {path} -o {tmp_path}/m", f"prepare {path} -o {tmp_path}/s.zarr"):
        assert main(shlex.split(line)) == 1
        assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
def test_what_is_unknown_or_an_anndata_is_not_named(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    for path in tmp_path.iterdir():
        assert not_anndata(path) is None


@pytest.mark.parametrize("write", [write_10x, write_mudata])
def test_cell_ranger_and_mudata_are_read_directly(write: Any, adata: AnnData, tmp_path: Path) -> None:
    write(tmp_path / "counts.h5", adata)
    for use in (open_store, read_file):
        read = use(tmp_path / "counts.h5")
        assert read.obs_names.tolist() == adata.obs_names.tolist()
        assert read.var_names.tolist() == adata.var_names.tolist()
        np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    assert main(shlex.split(f"train {tmp_path}/counts.h5 -o {tmp_path}/m --max-epochs 1 -q")) == 0
    assert main(shlex.split(f"embed {tmp_path}/counts.h5 --model {tmp_path}/m -o {tmp_path}/e.h5ad -q")) == 0
    assert anndata.read_h5ad(tmp_path / "e.h5ad").obsm["X_r2mae"].shape == (120, 160)


def test_antibodies_among_the_genes_are_warned_about(adata: AnnData, tmp_path: Path) -> None:
    kinds = ["Gene Expression"] * 50 + ["Antibody Capture"] * 10
    write_10x(tmp_path / "counts.h5", adata, kinds)
    with pytest.warns(
        UserWarning, match=r"has 50 'Gene Expression', 10 'Antibody Capture'; all are trained as genes"
    ):
        R2MAEModel.setup_anndata(read_file(tmp_path / "counts.h5"))


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("opened", [open, gzip.open])
def test_the_line_that_converts_a_table_reads_it(
    separator: str, opened: Any, adata: AnnData, tmp_path: Path
) -> None:
    path = tmp_path / ("table.txt.gz" if opened is gzip.open else "table.txt")
    with opened(path, "wt") as file:
        file.write(adata.to_df().to_csv(sep=separator))
    advice = str(not_anndata(path))
    assert f"anndata.read_csv({str(path)!r}, delimiter={separator!r})" in advice
    read = anndata.read_csv(path, delimiter=separator)
    np.testing.assert_array_equal(read.X, adata.X.toarray())


def test_pickles_and_archives_of_numpy_are_named(adata: AnnData, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x95rest")
    sp.save_npz(tmp_path / "a.npz", adata.X)
    assert "is a pickle, which may run code when it is read" in str(not_anndata(tmp_path / "a.pkl"))
    assert "is an archive of NumPy; convert it once: anndata.AnnData(scipy.sparse.load_npz(" in str(
        not_anndata(tmp_path / "a.npz")
    )


@pytest.mark.filterwarnings(
    "ignore:Writing zarr v2 data:UserWarning", "ignore:zarr v3 autosharding:UserWarning"
)
def test_a_store_where_a_file_is_wanted_is_told_how_to_become_one(
    adata: AnnData, tmp_path: Path, capsys: Any
) -> None:
    adata.write_zarr(tmp_path / "a.zarr")
    line = f"benchmark {tmp_path}/a.zarr --target age:regression --donor-key donor -o {tmp_path}/out -q"
    assert main(shlex.split(line)) == 1
    assert "anndata.read_zarr(" in capsys.readouterr().err
