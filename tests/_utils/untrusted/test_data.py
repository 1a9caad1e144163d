"""Untrusted counts, images and alignments: no pickle is opened, no other file is read, no size is trusted."""

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from anndata import AnnData
from anndata.io import write_elem

from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.data import open_store

ENORMOUS = 10**15


def test_a_zarr_array_whose_codec_unpickles_is_refused(
    bomb: bytes, tmp_path: Path, adata: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    import numcodecs.pickles

    # Newer versions refuse by themselves unless this is set; older ones do not know it.
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = tmp_path / "cells.zarr"
    write_elem(zarr.open_group(str(path), mode="w", zarr_format=2), "/", adata)
    names = path / "obs" / "_index"
    array = names if (names / ".zarray").exists() else names / "values"  # a group in newer versions
    about = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**about, "compressor": {"id": "pickle", "protocol": 5}}))
    (path / ".zmetadata").unlink(missing_ok=True)
    for chunk in array.glob("[0-9]*"):
        chunk.write_bytes(bomb)
    with pytest.raises(
        ValueError, match=r"obs/_index\S* of .* is encoded by \['pickle'\], which may run code"
    ):
        open_store(path)


def test_an_alignment_whose_codec_unpickles_is_refused(bomb: bytes, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from scr2mae.extra.dna import GenomeMSA

    path = tmp_path / "msa.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("chr1", shape=(4, 2), chunks=(4, 2), dtype="uint8")
    about = json.loads((path / "chr1" / ".zarray").read_text())
    # The first codec that handles objects is the one that zarr looks at.
    about |= {"filters": [{"id": "vlen-bytes"}], "compressor": {"id": "pickle", "protocol": 5}}
    (path / "chr1" / ".zarray").write_text(json.dumps({**about, "dtype": "|O", "fill_value": None}))
    (path / "chr1" / "0.0").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"is encoded by \['pickle'\]"):
        GenomeMSA.from_zarr(path)


def test_pickled_arrays_of_images_and_tracks_are_refused(trap: Any, bomb: bytes, tmp_path: Path) -> None:
    from scr2mae.extra.dna import open_track

    vision = pytest.importorskip("scr2mae.extra.vision")
    objects = np.array([trap], dtype=object)
    np.savez(tmp_path / "images.npz", x=objects)
    np.save(tmp_path / "track.npy", objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        vision.open_images(tmp_path / "images.npz")
    with pytest.raises(ValueError, match=r"track\.npy is not a \.npy file"):
        open_track(tmp_path / "track.npy", chrom="1")


def test_a_list_of_images_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    vision = pytest.importorskip("scr2mae.extra.vision")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "list_attr_celeba.txt").write_text("1\nSmiling\n../../secret.jpg 1\n")
    (tmp_path / "list_eval_partition.txt").write_text("../../secret.jpg 0\n")
    with pytest.raises(ValueError, match=r"names '\.\./\.\./secret\.jpg', which is not a file of"):
        vision.CelebA(tmp_path)


def changed(adata: AnnData, path: Path, change: Callable[[h5py.File], None]) -> Path:
    """Write an AnnData and change its file."""
    adata.uns["note"] = "mine"
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def _external_link(file: h5py.File) -> None:
    del file["obsm"]
    file["obsm"] = h5py.ExternalLink("/etc/passwd", "/")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("uns/secret", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("uns/secret", layout)


@pytest.mark.parametrize(
    ("point_elsewhere", "message"),
    [
        (_external_link, "obsm of .* is a link to another file, '/etc/passwd'"),
        (_external_storage, "uns/secret of .* is stored in other files"),
        (_virtual, "uns/secret of .* is stored in other files"),
    ],
)
def test_an_h5ad_with_links_to_other_files_is_refused(
    point_elsewhere: Callable[[h5py.File], None],
    message: str,
    adata: AnnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(adata, tmp_path / "cells.h5ad", point_elsewhere)
    with pytest.raises(ValueError, match=message):
        open_store(path)
    assert main(["train", str(path), "-o", str(tmp_path / "model"), "-q"]) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_groups_that_contain_themselves_are_visited_once(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        loop = file.create_group("obsp/loop")
        loop["again"] = loop
        loop["soft"] = h5py.SoftLink("/obsp")
    assert open_store(tmp_path / "cells.h5ad").shape == adata.shape


def _bomb_in_uns(file: h5py.File) -> None:
    file.create_dataset("uns/bomb", (ENORMOUS,), "f8", chunks=(1 << 20,), compression="gzip")


def _bomb_in_obs(file: h5py.File) -> None:
    del file["obs/age"]
    file.create_dataset("obs/age", (ENORMOUS,), "f4", chunks=(1 << 20,), compression="gzip")


def _bomb_of_text(file: h5py.File) -> None:
    text = h5py.string_dtype()
    file.create_dataset("uns/bomb", (10**9,), text, chunks=(1 << 16,), fillvalue="x" * 100_000)


def _bomb_of_one_item(file: h5py.File) -> None:
    file.create_dataset("uns/bomb", (10**6,), "S1000000000", chunks=(1,))


def _bomb_of_pointers(file: h5py.File) -> None:
    del file["X/indptr"]
    file.create_dataset("X/indptr", (ENORMOUS,), "i8", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize(
    "plant", [_bomb_in_uns, _bomb_in_obs, _bomb_of_text, _bomb_of_one_item, _bomb_of_pointers]
)
def test_an_h5ad_that_unpacks_to_more_than_memory_is_refused(
    plant: Callable[[h5py.File], None],
    adata: AnnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(adata, tmp_path / "cells.h5ad", plant)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        MemoryError, match=r"All but the counts of .* takes .* GB of memory, of which .* are free"
    ):
        open_store(path)
    assert main(["train", str(path), "-o", str(tmp_path / "model"), "-q"]) == 1
    assert re.search(r"takes [0-9,.]+ GB of memory, of which", capsys.readouterr().err)
    assert not (tmp_path / "model").exists()


def test_an_enormous_attribute_is_refused(adata: AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+", libver="latest") as file:
        # Only a group of the newest format takes more than 64 kB.
        file.create_group("uns/planted").attrs.create("note", np.zeros(1 << 22))
    with pytest.raises(
        ValueError, match=r"'note' of uns/planted in .* has 33554432 bytes, more than the limit"
    ):
        open_store(tmp_path / "cells.h5ad")


def test_a_zarr_store_of_enormous_shape_is_refused(adata: AnnData, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "cells.zarr"
    for shape, chunk, message in (
        (ENORMOUS, 1000, "All but the counts of"),
        (10, ENORMOUS, "A chunk of obs/bomb in"),
    ):
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        write_elem(group, "/", adata)
        group["obs"].create_array("bomb", shape=(shape,), chunks=(chunk,), dtype="f8")
        with pytest.raises(MemoryError, match=message):
            open_store(path)


def test_images_that_unpack_to_more_than_their_header_states_are_refused(tmp_path: Path) -> None:
    vision = pytest.importorskip("scr2mae.extra.vision")
    header = struct.pack(">HBB2I", 0, 8, 2, 3, 3)
    (tmp_path / "more.gz").write_bytes(gzip.compress(header + b"\0" * (1 << 24)))
    with pytest.raises(ValueError, match=r"declares the shape \(3, 3\), but contains more of data"):
        vision.read_idx(tmp_path / "more.gz")
    (tmp_path / "huge").write_bytes(struct.pack(">HBB3I", 0, 14, 3, 2**31, 2**31, 4))
    with pytest.raises(MemoryError, match=r"takes .* GB of memory"):
        vision.read_idx(tmp_path / "huge")


def test_an_archive_of_images_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    vision = pytest.importorskip("scr2mae.extra.vision")
    np.savez_compressed(tmp_path / "images.npz", x=np.zeros((100, 1, 40, 40), np.float32))
    assert (tmp_path / "images.npz").stat().st_size < 10_000
    free = psutil.virtual_memory()._replace(available=500_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(MemoryError, match=r"images\.npz takes 0\.0 GB of memory"):
        vision.open_images(tmp_path / "images.npz")


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("indices", 5, 60, "its indices run from 0 to 60, outside its columns"),
        ("indices", 5, -1, "its indices run from -1 to 59, outside its columns"),
        ("indptr", 3, 10**6, "indptr does not rise"),
        ("indptr", 3, -1, "indptr does not rise"),
    ],
)
def test_sparse_counts_with_indices_out_of_range_are_refused(
    part: str, place: int, value: int, message: str, adata: AnnData, trained: R2MAEModel, tmp_path: Path
) -> None:
    from scr2mae.datasets import prepare

    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X"][part][place] = value
    getattr(adata.X, part)[place] = value
    store = open_store(tmp_path / "cells.h5ad")
    for cells in (adata, store):
        for use in (R2MAEModel.setup_anndata, trained.get_latent_representation):
            with pytest.raises(ValueError, match=message):
                use(cells)
    with pytest.raises(ValueError, match=r"indptr does not rise|outside its columns|index"):
        prepare(tmp_path / "cells.h5ad", tmp_path / "out.h5ad", progressbar=False)
    assert not (tmp_path / "out.h5ad").exists()
