import hashlib
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests

from scr2mae import datasets
from scr2mae._utils import progress as _progress
from scr2mae.datasets import download as _download

BODY = np.random.default_rng(0).bytes(50_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def url(site) -> str:
    site.files["/data.h5ad"] = BODY
    return f"{site.address}/data.h5ad"


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_fresh_download_leaves_the_file_and_nothing_else(site, url, tmp_path):
    path = datasets.fetch(url, tmp_path / "new" / "folder", sha256=DIGEST, size=len(BODY))
    assert path == tmp_path / "new" / "folder" / "data.h5ad"
    assert path.read_bytes() == BODY
    assert _names_in(path.parent) == ["data.h5ad"]
    assert site.requests == [("/data.h5ad", None)]


def test_a_second_call_uses_the_file_without_network(url, tmp_path, monkeypatch):
    path = datasets.fetch(url, tmp_path)
    monkeypatch.setattr(requests, "get", _no_network)
    assert datasets.fetch(url, tmp_path) == path
    assert datasets.fetch(url, tmp_path, sha256=DIGEST, size=len(BODY)) == path
    assert path.read_bytes() == BODY


def test_a_later_call_resumes_where_the_connection_broke(site, url, tmp_path):
    site.break_after = [30_000]
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    part = tmp_path / "data.h5ad.part"
    done = part.stat().st_size
    assert 28_000 < done <= 30_000
    assert part.read_bytes() == BODY[:done]
    assert not (tmp_path / "data.h5ad").exists()
    site.sent = 0
    assert datasets.fetch(url, tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert site.requests[-1] == ("/data.h5ad", f"bytes={done}-")
    assert site.sent == len(BODY) - done
    assert _names_in(tmp_path) == ["data.h5ad"]


def test_broken_connections_are_retried_and_resumed_within_one_call(site, url, tmp_path, caplog):
    site.break_after = [20_000, 0, 10_000]
    assert datasets.fetch(url, tmp_path, sha256=DIGEST, retries=3).read_bytes() == BODY
    assert len(site.requests) == 4
    assert caplog.text.count("The connection broke") == 3
    assert site.sent < len(BODY) + 4000  # at most the last chunk of a broken answer is sent twice


def test_a_server_without_ranges_sends_everything_again(site, url, tmp_path):
    site.break_after = [30_000]
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    site.ranges, site.sent = False, 0
    assert datasets.fetch(url, tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert site.sent == len(BODY)


def test_a_server_without_validators_is_not_trusted_to_resume(site, url, tmp_path):
    site.break_after, site.validators = [30_000], False
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    assert datasets.fetch(url, tmp_path).read_bytes() == BODY
    assert site.requests[-1] == ("/data.h5ad", None)


def test_a_changed_file_is_not_appended_to_the_old_part(site, url, tmp_path):
    site.break_after = [30_000]
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    site.files["/data.h5ad"] = BODY[::-1]
    assert datasets.fetch(url, tmp_path).read_bytes() == BODY[::-1]


def test_a_complete_part_of_another_address_is_not_used(site, url, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.fetch(url, tmp_path)
    site.files["/other.h5ad"] = BODY[::-1]
    path = datasets.fetch(f"{site.address}/other.h5ad", tmp_path, filename="data.h5ad")
    assert path.read_bytes() == BODY[::-1]


def test_a_part_longer_than_the_file_is_dropped(site, url, tmp_path):
    site.break_after = [30_000]
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    with (tmp_path / "data.h5ad.part").open("ab") as part:
        part.write(BODY)
    assert datasets.fetch(url, tmp_path).read_bytes() == BODY


def test_a_range_that_was_not_asked_for_is_never_appended(site, url, tmp_path):
    site.break_after, site.shift = [30_000], 7
    with pytest.raises(requests.RequestException):
        datasets.fetch(url, tmp_path, retries=0)
    with pytest.raises(ValueError, match="answered 206 with a range that was not asked for"):
        datasets.fetch(url, tmp_path)
    assert _names_in(tmp_path) == []


def test_a_download_killed_during_its_checksum_is_not_downloaded_again(site, url, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.fetch(url, tmp_path, sha256=DIGEST)
    assert not (tmp_path / "data.h5ad").exists()
    assert datasets.fetch(url, tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert len(site.requests) == 1
    assert _names_in(tmp_path) == ["data.h5ad"]


def test_a_complete_part_is_checked_against_the_size_of_the_next_call(url, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            datasets.fetch(url, tmp_path)
    with pytest.raises(ValueError, match="has 50000 bytes, expected 49999"):
        datasets.fetch(url, tmp_path, size=49_999)
    assert _names_in(tmp_path) == []


def test_a_file_is_not_overwritten_through_the_part_it_came_from(site, url, tmp_path):
    path = datasets.fetch(url, tmp_path)
    (tmp_path / "data.h5ad.part").hardlink_to(path)  # as if killed just before the part was dropped
    site.files["/data.h5ad"] = BODY[::-1]
    with pytest.raises(ValueError, match="does not match the known hash"):
        datasets.fetch(url, tmp_path, sha256="0" * 64)
    assert path.read_bytes() == BODY


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_file_systems_without_hard_links_work(url, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no hard links here")

    monkeypatch.setattr(_download.os, "link", refuse)
    assert datasets.fetch(url, tmp_path, sha256=DIGEST).read_bytes() == BODY
    assert _names_in(tmp_path) == ["data.h5ad"]


def test_a_wrong_checksum_leaves_no_file(url, tmp_path):
    with pytest.raises(ValueError, match="does not match the known hash"):
        datasets.fetch(url, tmp_path, sha256="0" * 64)
    assert _names_in(tmp_path) == []


def test_a_wrong_checksum_leaves_the_file_that_was_there(url, tmp_path):
    old = tmp_path / "data.h5ad"
    old.write_bytes(b"old")
    with pytest.raises(ValueError, match="does not match the known hash"):
        datasets.fetch(url, tmp_path, sha256="0" * 64)
    assert old.read_bytes() == b"old"
    assert _names_in(tmp_path) == ["data.h5ad"]


def test_a_wrong_size_leaves_no_file(url, tmp_path):
    with pytest.raises(ValueError, match="has 50000 bytes, expected 49999"):
        datasets.fetch(url, tmp_path, size=49_999)
    assert _names_in(tmp_path) == []


def test_an_unannounced_surplus_leaves_no_file(site, url, tmp_path):
    site.lengths = False
    with pytest.raises(ValueError, match="sent more than the 40000 bytes expected"):
        datasets.fetch(url, tmp_path, size=40_000)
    assert _names_in(tmp_path) == []
    assert datasets.fetch(url, tmp_path, size=len(BODY)).read_bytes() == BODY


def test_an_answer_that_ends_early_is_refused(site, url, tmp_path):
    site.lengths = False
    with pytest.raises(requests.ConnectionError, match="ended after 50000 of 60000 bytes"):
        datasets.fetch(url, tmp_path, size=60_000, retries=1)
    assert not (tmp_path / "data.h5ad").exists()


def test_a_cached_file_of_another_size_is_reported_and_kept(url, tmp_path):
    path = datasets.fetch(url, tmp_path)
    with pytest.raises(ValueError, match="has 50000 bytes, expected 3"):
        datasets.fetch(url, tmp_path, size=3)
    assert path.read_bytes() == BODY


def test_a_missing_file_is_reported_and_leaves_nothing(site, tmp_path):
    with pytest.raises(requests.HTTPError, match="404"):
        datasets.fetch(f"{site.address}/nothing.h5ad", tmp_path)
    assert _names_in(tmp_path) == []


def test_a_full_disk_is_noticed_before_writing(url, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 49_999})
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="free some space or choose another folder"):
        datasets.fetch(url, tmp_path)
    assert "data.h5ad" not in _names_in(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks")
def test_two_processes_do_not_write_one_file(url, tmp_path):
    with (
        _download._exclusively(tmp_path / "data.h5ad.part"),
        pytest.raises(OSError, match="Another process is downloading"),
    ):
        datasets.fetch(url, tmp_path)
    assert (tmp_path / "data.h5ad.part").exists()
    assert datasets.fetch(url, tmp_path).read_bytes() == BODY


BAD_NAMES = [
    "../evil.h5ad",
    "..%2f..%2fevil.h5ad",
    "/tmp/evil.h5ad",
    "a/b.h5ad",
    "a\\b.h5ad",
    "C:evil.h5ad",
    "..",
    "",
]


@pytest.mark.parametrize(
    "name", [*BAD_NAMES, ".hidden", "x.part", "x.part.json", "nul\0.h5ad", "line\n.h5ad", "a" * 300]
)
def test_a_malicious_file_name_cannot_escape_the_folder(site, url, tmp_path, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="A file name has letters, digits"):
        datasets.fetch(url, folder, filename=name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert site.requests == []


def test_a_malicious_address_cannot_escape_the_folder(site, tmp_path):
    for path in ("/%2e%2e%2fevil.h5ad", "/..%2F..%2Fevil.h5ad", "/a/..", "/"):
        with pytest.raises(ValueError, match="A file name has letters, digits"):
            datasets.fetch(site.address + path, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert site.requests == []


@pytest.mark.parametrize("name", ["data.h5ad.part", "data.h5ad.part.json"])
def test_a_planted_link_is_not_followed_out_of_the_folder(url, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(outside)
    assert datasets.fetch(url, folder).read_bytes() == BODY
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/x.h5ad",
        "ftp://example.org/x.h5ad",
        "file:///etc/passwd",
        "/etc/passwd",
        "https:///x",
    ],
)
def test_unsafe_addresses_are_refused(address, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", _no_network)
    with pytest.raises(ValueError, match="The address must be https, or http with a sha256 checksum"):
        datasets.fetch(address, tmp_path)


def test_plain_http_is_accepted_from_this_machine_or_with_a_checksum(url, tmp_path):
    assert datasets.fetch(url.replace("127.0.0.1", "localhost"), tmp_path).read_bytes() == BODY
    with pytest.raises(requests.ConnectionError):  # reaches the connection, unlike without a checksum
        datasets.fetch("http://nowhere.invalid/x.h5ad", tmp_path, sha256=DIGEST, retries=0)


def test_a_redirect_to_an_unsafe_address_is_refused(site, tmp_path, monkeypatch):
    site.files["/data.h5ad"] = BODY
    site.redirects["/moved.h5ad"] = f"{site.address}/data.h5ad"
    assert datasets.fetch(f"{site.address}/moved.h5ad", tmp_path).read_bytes() == BODY
    monkeypatch.setattr(
        _download, "_is_loopback", lambda host: len(site.requests) == 2
    )  # the first address only
    with pytest.raises(ValueError, match="The address must be https"):
        datasets.fetch(f"{site.address}/moved.h5ad", tmp_path / "other")
    assert _names_in(tmp_path / "other") == []


def test_invalid_download_arguments_are_refused(url, tmp_path):
    with pytest.raises(ValueError, match="retries must not be negative, got -1"):
        datasets.fetch(url, tmp_path, retries=-1)
    with pytest.raises(ValueError, match="sha256 must be 64 hexadecimal digits, got 'abc'"):
        datasets.fetch(url, tmp_path, sha256="abc")


def _no_network(*args, **kwargs):
    raise AssertionError("the network was used")


@pytest.mark.parametrize("progressbar", [True, False])
def test_a_download_shows_its_progress_on_a_terminal_only(progressbar, url, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        _progress.progress, "__kwdefaults__", {**_progress.progress.__kwdefaults__, "after": 0.0}
    )
    datasets.fetch(url, tmp_path / "unseen", progressbar=progressbar)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    datasets.fetch(url, tmp_path / "seen", progressbar=progressbar)
    shown = capsys.readouterr().err
    assert ("B/s]" in shown) == progressbar
    assert ("data.h5ad" in shown) == progressbar
