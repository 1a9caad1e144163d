"""One shuffled store from several files: content, order, memory, interruptions and invalid input."""

import logging
import shutil
import signal
import subprocess
import sys
import tracemalloc

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from scipy import stats

from scr2mae import datasets
from scr2mae.cli import main
from scr2mae.data import open_store
from scr2mae.data.prepare import pipeline, writer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* occur in several files:UserWarning"),  # as parts of one data set do
    pytest.mark.filterwarnings("ignore:.* cells occur more than once:UserWarning"),
]

QUIET = {"progressbar": False}


def write_zarr(adata, path):
    """Write a folder without anndata's warning about its future default."""
    import zarr

    write_elem(zarr.open_group(str(path), mode="w", zarr_format=2), "/", adata)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def whole(simulated):
    """The cells of all files, in the order of the files."""
    adata = simulated[:900].copy()
    adata.obs["n_counts"] = np.asarray(adata.X.sum(1)).ravel().astype(int)
    return adata


@pytest.fixture
def files(folder, whole):
    """Three files, sparse and dense, genes in three orders."""
    orders = (slice(None), slice(None, None, -1), np.roll(np.arange(whole.n_vars), 7))
    first, second, third = (whole[300 * i : 300 * (i + 1), order].copy() for i, order in enumerate(orders))
    first.write_h5ad("a.h5ad")
    second.X = second.X.toarray()
    second.write_h5ad("b.h5ad")
    third.write_h5ad("c.h5ad")
    return ["a.h5ad", "b.h5ad", "c.h5ad"]


def read(path):
    return anndata.read_zarr(path) if str(path).endswith(".zarr") else anndata.read_h5ad(path)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


# --- content


@pytest.mark.parametrize("output", ["store.zarr", "store.h5ad"])
@pytest.mark.parametrize("memory_limit", [1e6, 2.5e8])
def test_the_store_is_the_preprocessed_concatenation_in_another_order(files, whole, output, memory_limit):
    if output.endswith(".zarr"):
        write_zarr(read(files[2]), "c.zarr")
        files[2] = "c.zarr"
    path = datasets.prepare(
        files, output, n_top_genes=80, memory_limit=memory_limit, chunk_size=5000, **QUIET
    )
    store, expected = read(path), datasets.preprocess(whole, n_top_genes=80, progressbar=False)
    assert store.X.dtype == np.float32
    assert store.X.has_sorted_indices
    assert list(store.var_names) == list(expected.var_names)
    assert sorted(store.obs_names) == sorted(expected.obs_names)
    assert (store[expected.obs_names].X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(store.var, expected.var, check_dtype=False)
    obs = store.obs.loc[expected.obs_names]
    pd.testing.assert_frame_equal(obs.drop(columns="file"), expected.obs, check_categorical=False)
    assert obs["file"].tolist() == ["a"] * 300 + ["b"] * 300 + ["c"] * 300


def test_all_genes_can_be_kept_and_cells_with_few_genes_dropped(files, whole):
    floor = int(np.median(np.diff(whole.X.indptr)))
    store = read(datasets.prepare(files, "store.h5ad", n_top_genes=None, min_genes=floor, **QUIET))
    rich = whole[np.diff(whole.X.indptr) >= floor]
    assert 0 < rich.n_obs < whole.n_obs
    assert sorted(store.obs_names) == sorted(rich.obs_names)
    assert (store[rich.obs_names, rich.var_names].X != rich.X).nnz == 0


def test_counts_come_from_the_layer_or_from_raw_before_x(folder, whole, caplog):
    moved = AnnData(X=whole.X * 0.5, obs=whole.obs, var=whole.var, layers={"counts": whole.X * 2})
    moved.raw = whole.copy()
    moved.write_h5ad("in.h5ad")
    caplog.set_level("INFO", logger="scr2mae")
    for layer, factor in ((None, 1), ("counts", 2)):
        store = read(
            datasets.prepare("in.h5ad", "store.h5ad", n_top_genes=None, layer=layer, overwrite=True, **QUIET)
        )
        assert (whole.X * factor != store[whole.obs_names].X).nnz == 0
        assert ("Taking the counts of in.h5ad from raw." in caplog.text) == (layer is None)
        caplog.clear()


def test_the_store_records_its_settings(files):
    datasets.prepare(files, "store.h5ad", n_top_genes=80, seed=3, **QUIET)
    record = read("store.h5ad").uns["scr2mae_store"]
    assert list(record["sources"]) == files
    assert list(record["n_obs"]) == [300, 300, 300]
    assert (int(record["seed"]), int(record["n_top_genes"]), record["join"]) == (3, 80, "inner")
    assert {"scr2mae_version", "anndata_version"} <= set(record)


def test_counts_and_indices_have_chunks_of_the_requested_size(files):
    zarr = pytest.importorskip("zarr")
    datasets.prepare(files, "store.zarr", n_top_genes=80, chunk_size=1000, **QUIET)
    stored = zarr.open_group("store.zarr", mode="r")["X"]
    assert stored["data"].chunks == stored["indices"].chunks == (1000,)
    assert stored["indptr"].dtype == np.int64


# --- order


def test_the_order_depends_on_the_seed_only(files):
    def names(seed, **options):
        return list(
            read(
                datasets.prepare(
                    files, "s.h5ad", n_top_genes=80, seed=seed, overwrite=True, **QUIET, **options
                )
            ).obs_names
        )

    first = names(0)
    assert first == names(0, memory_limit=1e6, chunk_size=777)
    assert first == names(0)
    assert first != names(1)


def test_cells_of_every_file_are_spread_over_the_whole_store(files, whole):
    store = read(datasets.prepare(files, "store.h5ad", n_top_genes=80, memory_limit=1e6, **QUIET))
    position = pd.Series(np.arange(store.n_obs), index=store.obs_names)[whole.obs_names].to_numpy()
    counts = np.histogram2d(np.arange(whole.n_obs), position, bins=6)[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4
    # neighbors in a file are no closer in the store than any two cells: a third of its length on average
    assert np.abs(np.diff(position)).mean() == pytest.approx(whole.n_obs / 3, rel=0.1)


# --- genes and tables of several files


def _small(names, *, n_obs=6, seed=0, prefix="c", **obs):
    rng = np.random.default_rng(seed)
    X = sp.csr_matrix(rng.poisson(2.0, (n_obs, len(names))).astype(np.float32))
    index = [f"{prefix}{i}" for i in range(n_obs)]
    return AnnData(X=X, obs=pd.DataFrame(obs, index=index), var=pd.DataFrame(index=list(names)))


@pytest.mark.parametrize(("join", "genes"), [("inner", ["g1", "g2"]), ("outer", ["g0", "g1", "g2", "g3"])])
def test_genes_are_joined_by_name(folder, caplog, join, genes):
    one, two = _small(["g0", "g1", "g2"]), _small(["g3", "g2", "g1"], seed=1, prefix="d")
    one.write_h5ad("one.h5ad")
    two.write_h5ad("two.h5ad")
    with caplog.at_level(logging.INFO, logger="scr2mae"):
        store = read(
            datasets.prepare(["one.h5ad", "two.h5ad"], "s.h5ad", n_top_genes=None, join=join, **QUIET)
        )
    expected = anndata.concat([one, two], join=join, fill_value=0)
    assert list(store.var_names) == genes
    np.testing.assert_array_equal(store[expected.obs_names].X.toarray(), expected[:, genes].X.toarray())
    dropped = 1 if join == "inner" else 0
    assert f"one.h5ad: {3 - dropped} of its 3 genes are kept, {dropped} dropped" in caplog.text


def test_versions_of_ensembl_ids_are_one_gene(folder):
    _small(["ENSG01.1", "ENSG02.4"]).write_h5ad("one.h5ad")
    _small(["ENSG02.5", "ENSG01"], prefix="d").write_h5ad("two.h5ad")
    store = read(datasets.prepare(["one.h5ad", "two.h5ad"], "s.h5ad", n_top_genes=None, **QUIET))
    assert list(store.var_names) == ["ENSG01.1", "ENSG02.4"]


def test_columns_of_all_files_are_joined_with_missing_values(folder):
    n = 6
    one = _small(
        "ab",
        kind=pd.Categorical(["x", "y"] * 3),
        flag=[True, False] * 3,
        size=range(n),
        grade=pd.Categorical(["lo", "hi"] * 3, categories=["lo", "hi"], ordered=True),
        empty=[np.nan] * n,
    )
    two = _small(
        "ab", prefix="d", kind=["z"] * n, grade=pd.Categorical(one.obs["grade"]), empty=["text", "more"] * 3
    )
    one.write_h5ad("one.h5ad")
    two.write_h5ad("two.h5ad")
    obs = read(
        datasets.prepare(["one.h5ad", "two.h5ad"], "s.h5ad", n_top_genes=None, **QUIET)
    ).obs.sort_index()
    assert list(obs["kind"].cat.categories) == ["x", "y", "z"]
    assert obs["kind"].tolist() == ["x", "y"] * 3 + ["z"] * 6
    assert obs["grade"].cat.ordered
    assert obs["grade"].tolist() == ["lo", "hi"] * 6
    assert obs["size"].tolist()[:n] == list(range(n))
    assert obs["size"].isna().tolist() == obs["flag"].isna().tolist() == [False] * 6 + [True] * 6
    assert obs["flag"].tolist()[:n] == [True, False] * 3
    assert obs["empty"].tolist()[n:] == ["text", "more"] * 3


def test_repeated_names_get_their_file_as_a_suffix(folder):
    (folder / "x").mkdir()
    (folder / "y").mkdir()
    _small("ab").write_h5ad("x/cells.h5ad")
    two = _small("ab")
    two.obs_names = ["c0", *(f"d{i}" for i in range(5))]
    two.write_h5ad("y/cells.h5ad")
    store = read(datasets.prepare(["x/cells.h5ad", "y/cells.h5ad"], "s.h5ad", n_top_genes=None, **QUIET))
    assert store.obs_names.is_unique
    assert {"c0-x/cells", "c0-y/cells", "c1", "d0"} <= set(store.obs_names)
    assert set(store.obs["file"]) == {"x/cells", "y/cells"}


# --- invalid input


def test_inputs_that_cannot_be_joined_are_refused(folder):
    small = _small("ab", label=[1.0] * 6)
    small.write_h5ad("one.h5ad")
    _small("cd").write_h5ad("other_genes.h5ad")
    _small("ab", label=["x"] * 6).write_h5ad("text.h5ad")
    shutil.copy("one.h5ad", "file.h5ad")
    by_gene = small.copy()
    by_gene.X = by_gene.X.tocsc()
    by_gene.write_h5ad("by_gene.h5ad")
    bad = small.copy()
    bad.X[2, 1] = 0.5
    bad.write_h5ad("bad.h5ad")
    for paths, error, message in (
        ([], ValueError, "at least one file to prepare, got none"),
        (["absent.h5ad"], FileNotFoundError, "No file or folder absent.h5ad"),
        (["one.h5ad", folder / "one.h5ad"], ValueError, "is given twice"),
        (
            ["one.h5ad", "other_genes.h5ad"],
            ValueError,
            r"other_genes.h5ad shares no gene .* it has \['c', 'd'\]",
        ),
        (
            ["one.h5ad", "text.h5ad"],
            ValueError,
            r"obs\['label'\] holds numbers in one and text in text; make",
        ),
        (["by_gene.h5ad"], ValueError, r"by_gene.h5ad is stored by gene \(CSC\)"),
        (
            ["one.h5ad", "bad.h5ad"],
            ValueError,
            r"bad.h5ad, X: Raw counts .* got 0.5 in cell 'c2' and gene 'b'",
        ),
        ([__file__], ValueError, "is not an HDF5 file"),
    ):
        with pytest.raises(error, match=message):
            datasets.prepare(paths, "s.zarr", **QUIET)
    with pytest.raises(KeyError, match=r"No 'counts' in the layers of one.h5ad; choose one of \[\]"):
        datasets.prepare("one.h5ad", "s.zarr", layer="counts", **QUIET)
    with pytest.raises(ValueError, match="obs already has a column 'label'; choose another file_key"):
        datasets.prepare("one.h5ad", "s.zarr", file_key="label", **QUIET)
    with pytest.raises(ValueError, match="No cell has 9 of the 2 genes detected"):
        datasets.prepare("one.h5ad", "s.zarr", n_top_genes=None, min_genes=9, **QUIET)
    assert not [name for name in entries(folder) if "s.zarr" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_top_genes": 0}, "n_top_genes must be at least 1, or None"),
        ({"min_genes": -1}, "min_genes must not be negative"),
        ({"target_sum": 0}, "target_sum must be positive"),
        ({"join": "left"}, "join must be 'inner' or 'outer', got 'left'"),
        ({"memory_limit": 10}, "memory_limit must be at least a million bytes, got 10"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.prepare("one.h5ad", "s.zarr", **options)


def test_outputs_that_cannot_be_made_are_refused_before_any_work(files, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "open_sources", lambda *args, **kwargs: pytest.fail("work has started"))
    (folder / "home.zarr").mkdir()
    (folder / "home.zarr" / "letter").touch()
    shutil.copy("a.h5ad", "there.h5ad")
    for output, overwrite, error, message in (
        ("store", False, ValueError, "must end in .zarr .* or .h5ad"),
        ("no/store.zarr", False, FileNotFoundError, "No folder .*no to write store.zarr in"),
        ("a.h5ad", True, ValueError, "is, or holds, the input a.h5ad"),
        (
            "there.h5ad",
            False,
            FileExistsError,
            r"exists; choose another path or pass overwrite=True",
        ),
        ("home.zarr", True, FileExistsError, "is not an AnnData and is not replaced"),
    ):
        with pytest.raises(error, match=message):
            datasets.prepare(files, output, overwrite=overwrite, **QUIET)


def test_a_full_disk_is_noticed_before_writing(files, folder, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    before = entries(folder)
    with pytest.raises(OSError, match=r"Not enough room in .*0\.00 GB are free"):
        datasets.prepare(files, "store.zarr", n_top_genes=80, **QUIET)
    assert entries(folder) == before


# --- interruptions


@pytest.mark.parametrize("output", ["store.zarr", "store.h5ad"])
def test_a_store_is_replaced_only_by_a_complete_one(files, folder, monkeypatch, output):
    datasets.prepare(files, output, n_top_genes=80, **QUIET)
    before = entries(folder)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            datasets.prepare(files, output, n_top_genes=40, overwrite=True, **QUIET)
    assert entries(folder) == before
    assert read(output).n_vars == 80
    datasets.prepare(files, output, n_top_genes=40, overwrite=True, **QUIET)
    assert entries(folder) == before
    assert read(output).n_vars == 40


KILLED = """
import os, signal, sys
from scr2mae import datasets
from scr2mae.data.prepare import pipeline

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(pipeline, sys.argv[1], die)
datasets.prepare(["a.h5ad", "b.h5ad"], "store.zarr", n_top_genes=80, progressbar=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_leftovers_of_a_killed_run_are_not_stores_and_do_not_disturb_the_next(files, folder, caplog):
    for stage in ("write_counts", "write_tables"):
        done = subprocess.run([sys.executable, "-c", KILLED, stage], check=False)
        assert done.returncode == -signal.SIGKILL
    left = [folder / name for name in entries(folder) if name.startswith(".store.zarr.")]
    assert len(left) == 2
    assert not (folder / "store.zarr").exists()
    for path in [*left, *(inner for outer in left for inner in outer.iterdir())]:
        with pytest.raises(ValueError, match=r"not an HDF5 file|without a zarr group|not a whole AnnData"):
            open_store(path)
    datasets.prepare(files, "store.zarr", n_top_genes=80, **QUIET)
    assert open_store("store.zarr").shape == (900, 80)
    assert "belongs to a run that was killed or is still active" in caplog.text


# --- memory


def _peak_bytes(n_obs, block, folder):
    """Peak memory of Python and NumPy while preparing copies of a block with n_obs cells in total."""
    with h5py.File(folder / "in.h5ad", "w") as file:
        write_elem(file, "X", block)
        matrix = sparse_dataset(file["X"])
        for _ in range(n_obs // block.shape[0] - 1):
            matrix.append(block)
        write_elem(file, "obs", pd.DataFrame(index=[f"c{i}" for i in range(n_obs)]))
        write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(block.shape[1])]))
    tracemalloc.start()
    datasets.prepare(
        folder / "in.h5ad", folder / "s.h5ad", n_top_genes=None, memory_limit=4e6, overwrite=True, **QUIET
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_counts(folder):
    block = sp.random(2000, 200, density=0.3, format="csr", dtype=np.float32, random_state=0)
    block.data = np.ceil(block.data * 4)
    few, many = (_peak_bytes(n_obs, block, folder) for n_obs in (4_000, 16_000))
    per_cell = 8 * block.nnz / block.shape[0]
    # What grows is the table of cells: their names, positions and offsets.
    assert (many - few) / 12_000 < 0.5 * per_cell


# --- command line


def test_the_command_writes_what_the_function_does(files, capsys):
    options = ["--n-top-genes", "80", "--seed", "4", "--memory-limit", "0.001", "-q"]
    assert main(["prepare", *files, "-o", "cli.h5ad", *options]) == 0
    assert capsys.readouterr().out == "output\tcli.h5ad\nfiles\t3\ncells\t900\ngenes\t80\n"
    ours, theirs = read("cli.h5ad"), read(datasets.prepare(files, "s.h5ad", n_top_genes=80, seed=4, **QUIET))
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert (ours.X != theirs.X).nnz == 0
    assert main(["prepare", *files, "-o", "cli.h5ad", *options]) == 1
    assert "cli.h5ad exists" in capsys.readouterr().err
    assert main(["prepare", *files, "-o", "cli.h5ad", *options, "--force"]) == 0


def test_files_without_counts_or_with_repeated_genes_or_of_another_shape_are_refused(folder):
    AnnData(obs=pd.DataFrame(index=["c0"]), var=pd.DataFrame(index=["a", "b"])).write_h5ad("empty.h5ad")
    with pytest.warns(UserWarning, match="not unique"):
        twice = AnnData(np.ones((2, 2), np.float32), var=pd.DataFrame(index=["a", "a"]))
    twice.write_h5ad("twice.h5ad")
    _small("ab").write_h5ad("short.h5ad")
    with h5py.File("short.h5ad", "r+") as file:
        del file["X"]
        write_elem(file, "X", np.ones((4, 2), np.float32))
    for path, message in (
        ("empty.h5ad", "has no matrix in X and no raw; name the layer"),
        ("twice.h5ad", r"must be unique, but \['a'\] occur more than once in twice.h5ad"),
        ("short.h5ad", r"Expected counts of 6 cells x 2 genes in short.h5ad, both at least 1, got \(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.prepare(path, "s.zarr", **QUIET)
    assert not (folder / "s.zarr").exists()


def test_files_with_one_name_are_labeled_by_their_folders_and_suffixes(folder):
    for name in ("first", "second"):
        (folder / name).mkdir()
        _small("ab").write_h5ad(folder / name / "cells.h5ad")
    datasets.prepare(
        ["first/cells.h5ad", "second/cells.h5ad"], "folders.zarr", n_top_genes=None, file_key="file", **QUIET
    )
    assert set(open_store("folders.zarr").obs["file"]) == {"first/cells", "second/cells"}
    write_zarr(_small("ab"), folder / "first" / "cells.zarr")
    datasets.prepare(
        ["first/cells.h5ad", "first/cells.zarr"], "suffix.zarr", n_top_genes=None, file_key="file", **QUIET
    )
    assert set(open_store("suffix.zarr").obs["file"]) == {"cells.h5ad", "cells.zarr"}


@pytest.mark.parametrize("first", ["has it", "has it not"])
def test_booleans_and_integers_that_a_file_lacks_are_missing_there(folder, first):
    _small("ab", flag=np.array([True, False] * 3), n=np.arange(6)).write_h5ad("has.h5ad")
    _small("ab").write_h5ad("lacks.h5ad")
    paths = ["has.h5ad", "lacks.h5ad"] if first == "has it" else ["lacks.h5ad", "has.h5ad"]
    datasets.prepare(paths, "s.zarr", n_top_genes=None, **QUIET)
    obs = open_store("s.zarr").obs
    assert obs["flag"].isna().sum() == 6
    assert int(obs["flag"].dropna().astype(bool).sum()) == 3
    assert obs["n"].isna().sum() == 6
    assert float(obs["n"].dropna().astype(float).sum()) == 15
