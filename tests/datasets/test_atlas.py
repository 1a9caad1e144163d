import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests

from scr2mae import datasets
from scr2mae.datasets import atlas as _atlas


@pytest.fixture
def atlas(site, atlas_like, tmp_path) -> datasets.Atlas:
    """An atlas on the local site: current version on its portal, and an older, pinned one."""
    atlas_like.write_h5ad(tmp_path / "source.h5ad")
    body = (tmp_path / "source.h5ad").read_bytes()
    site.files |= {"/assets/v2.h5ad": body, "/assets/v1.h5ad": body}
    asset = {"filetype": "H5AD", "filesize": len(body), "url": f"{site.address}/assets/v2.h5ad"}
    others = [{"dataset_id": "other", "assets": []}]
    collection = {"datasets": [*others, {"dataset_id": "d1", "assets": [{"filetype": "RDS"}, asset]}]}
    site.files["/api/collections/c1"] = json.dumps(collection).encode()
    return datasets.Atlas(
        name="small",
        collection_id="c1",
        dataset_id="d1",
        pinned_url=f"{site.address}/assets/v1.h5ad",
        obs_columns=("donor", "cell_type"),
        api=f"{site.address}/api",
    )


def _edit_portal(site, **changes):
    collection = json.loads(site.files["/api/collections/c1"])
    collection["datasets"][1]["assets"][1] |= changes
    site.files["/api/collections/c1"] = json.dumps(collection).encode()


def test_an_atlas_is_found_on_its_portal_and_preprocessed(site, atlas, atlas_like, tmp_path):
    cache = tmp_path / "cache"
    loaded = datasets.load_atlas(atlas, cache_dir=cache, n_top_genes=60, min_genes=20)
    expected = datasets.preprocess(atlas_like, n_top_genes=60, min_genes=20)
    np.testing.assert_array_equal(loaded.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(loaded.obs, expected.obs, check_categorical=False, check_index_type=False)
    assert not loaded.isbacked
    assert _names_in(cache) == ["small-v2.h5ad"]
    assert [path for path, _ in site.requests] == ["/api/collections/c1", "/assets/v2.h5ad"]


def test_a_cached_atlas_needs_no_network(site, atlas, tmp_path, monkeypatch):
    digest = hashlib.sha256(site.files["/assets/v2.h5ad"]).hexdigest()
    first = datasets.load_atlas(atlas, cache_dir=tmp_path / "cache", n_top_genes=60)
    monkeypatch.setattr(requests, "get", _no_network)
    again = datasets.load_atlas(atlas, cache_dir=tmp_path / "cache", n_top_genes=60, sha256=digest)
    np.testing.assert_array_equal(first.X.toarray(), again.X.toarray())


def test_a_cached_atlas_with_another_checksum_is_not_used(atlas, tmp_path):
    datasets.load_atlas(atlas, cache_dir=tmp_path / "cache", n_top_genes=60)
    with pytest.raises(ValueError, match="does not match the known hash"):
        datasets.load_atlas(atlas, cache_dir=tmp_path / "cache", sha256="0" * 64)


def test_a_cached_atlas_of_another_size_is_replaced_by_the_current_version(site, atlas, tmp_path):
    cached = tmp_path / "cache" / "small-v1.h5ad"
    cached.parent.mkdir()
    cached.write_bytes(b"truncated")
    size = len(site.files["/assets/v2.h5ad"])
    datasets.load_atlas(atlas, cache_dir=cached.parent, n_top_genes=60, size=size)
    assert site.requests[-1] == ("/assets/v2.h5ad", None)


@pytest.mark.parametrize(
    "answer", [None, b"{}", b"not json", b'{"datasets": [{"dataset_id": "d2"}]}', b"[1]"]
)
def test_the_pinned_version_is_used_when_the_portal_has_no_answer(site, atlas, answer, tmp_path, caplog):
    if answer is None:
        del site.files["/api/collections/c1"]
    else:
        site.files["/api/collections/c1"] = answer
    datasets.load_atlas(atlas, cache_dir=tmp_path / "cache", n_top_genes=60)
    assert _names_in(tmp_path / "cache") == ["small-v1.h5ad"]
    assert "using the dated version" in caplog.text


def test_an_address_given_by_hand_is_used_without_asking_the_portal(site, atlas, tmp_path):
    datasets.load_atlas(
        atlas, cache_dir=tmp_path / "cache", url=f"{site.address}/assets/v1.h5ad", n_top_genes=60
    )
    assert [path for path, _ in site.requests] == ["/assets/v1.h5ad"]


def test_a_portal_cannot_place_files_elsewhere_or_make_us_read_local_ones(site, atlas, tmp_path):
    _edit_portal(site, url="file:///etc/passwd")
    with pytest.raises(ValueError, match="The address must be https"):
        datasets.load_atlas(atlas, cache_dir=tmp_path / "cache")
    _edit_portal(site, url=f"{site.address}/assets/..%2f..%2fevil.h5ad")
    with pytest.raises(ValueError, match="A file name has letters, digits"):
        datasets.load_atlas(atlas, cache_dir=tmp_path / "cache")
    assert _names_in(tmp_path / "cache") == []


def test_a_file_smaller_than_the_portal_says_is_refused(site, atlas, tmp_path):
    _edit_portal(site, filesize=10)
    with pytest.raises(ValueError, match="bytes, expected 10"):
        datasets.load_atlas(atlas, cache_dir=tmp_path / "cache")
    assert _names_in(tmp_path / "cache") == []


def test_another_data_set_is_refused_as_the_atlas(atlas, tmp_path):
    with pytest.raises(ValueError, match=r"is not small: obs lacks \['Subclass'\], it has"):
        datasets.load_atlas(replace(atlas, obs_columns=("donor", "Subclass")), tmp_path / "source.h5ad")


def test_without_a_number_of_genes_the_atlas_is_whole_and_backed(atlas, atlas_like, tmp_path):
    whole = datasets.load_atlas(atlas, tmp_path / "source.h5ad", n_top_genes=None)
    assert whole.isbacked
    assert whole.shape == atlas_like.shape
    whole.file.close()


@pytest.mark.parametrize(
    ("load", "atlas_name", "n_dropped"), [(datasets.hlca, "HLCA", 5), (datasets.sea_ad, "SEA_AD", 0)]
)
def test_the_papers_atlases_are_read_from_a_file_with_the_papers_filters(
    load, atlas_name, n_dropped, atlas_like, tmp_path, monkeypatch
):
    monkeypatch.setattr(requests, "get", _no_network)
    for column in getattr(_atlas, atlas_name).obs_columns:
        atlas_like.obs[column] = "x"
    atlas_like.write_h5ad(tmp_path / "atlas.h5ad")
    loaded = load(tmp_path / "atlas.h5ad")
    assert atlas_like.n_obs - loaded.n_obs == n_dropped
    assert loaded.n_vars == 300  # fewer genes than the 5000 asked for
    with pytest.raises(FileNotFoundError, match="leave path out to download"):
        load(tmp_path / "missing.h5ad")


def test_every_public_name_is_documented():
    for name in datasets.__all__:
        assert len(getattr(datasets, name).__doc__) > 100


def _no_network(*args, **kwargs):
    raise AssertionError("the network was used")


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
