"""Downloads that resume, and that are verified before they get their final name."""

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pooch
import requests

from scr2mae._utils.files import as_path
from scr2mae._utils.progress import progress

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""

_CHUNK_BYTES = 1 << 20
_BACKOFF_SECONDS = 1.0
_BROKEN_CONNECTION = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def fetch(
    url: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    filename: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    retries: int = 5,
    progressbar: bool = True,
) -> Path:
    """Download a file once, resuming where an earlier attempt stopped.

    Bytes are collected in ``<filename>.part`` and continued by an HTTP range request, also in a later process, as long
    as the server still has the same version (its ``ETag`` or ``Last-Modified``). The final name appears only
    after size and checksum are verified. An existing file is returned without using the network.

    Parameters
    ----------
    url
        Address of the file. Plain ``http`` is only accepted with a checksum or from this machine.
    folder
        Folder of the file, created if missing; nothing is written elsewhere. By default the cache of the user.
    filename
        Name in the folder; by default the last part of the address. Letters, digits, ``.``, ``_`` and ``-``.
    sha256
        Expected checksum, 64 hexadecimal digits. Without it only the size is checked.
    size
        Expected size in bytes; by default the length that the server announces.
    retries
        Number of further attempts after a broken connection, >= 0, with increasing delays.
    progressbar
        Whether to show a progress bar; never shown if standard error is not a terminal.

    Returns
    -------
    Path of the complete file.

    Raises
    ------
    ValueError
        If the address or file name is unsafe, or size or checksum differ; then no new file is left, and an existing
        one is not changed.
    requests.RequestException
        If the server refuses, or the connection breaks more than ``retries`` times; the part is kept.
    OSError
        If the disk is full, or another process is downloading the same file.
    """
    _check_url(url, verified=sha256 is not None)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}.")
    filename = _checked_filename(filename if filename is not None else PurePosixPath(urlsplit(url).path).name)
    folder = as_path(folder if folder is not None else pooch.os_cache("scr2mae")).resolve()
    target = folder / filename
    if retries < 0:
        raise ValueError(f"retries must not be negative, got {retries}.")
    if size is not None and target.exists() and target.stat().st_size != size:
        raise ValueError(
            f"{target} has {target.stat().st_size} bytes, expected {size}. Delete it to download again, or correct size."
        )
    part = folder / f"{filename}.part"
    _discard_if_finished(part, target)
    try:
        pooch.retrieve(
            url,
            known_hash=None if sha256 is None else f"sha256:{sha256.lower()}",
            fname=filename,
            path=folder,
            downloader=_ResumableDownloader(
                part, size=size, verified=sha256 is not None, retries=retries, progressbar=progressbar
            ),
        )
    except ValueError:  # wrong size or checksum: a later attempt cannot use these bytes
        _discard(part)
        raise
    _discard_if_finished(part, target)
    return target


@dataclass(frozen=True)
class _ResumableDownloader:
    """A pooch downloader that keeps partial downloads in ``part`` until the file is verified."""

    part: Path
    size: int | None
    verified: bool
    retries: int
    progressbar: bool

    def __call__(self, url: str, output_file: str, _pooch: Any, /) -> None:
        with _exclusively(self.part) as stream:
            try:
                self._transfer_with_retries(url, stream)
            finally:
                stream.flush()
                if os.fstat(stream.fileno()).st_size == 0:
                    _discard(self.part)
            os.fsync(stream.fileno())
        # A hard link, not a move: after a kill during the checksum, the next attempt still finds the complete part.
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)
        except OSError:  # file systems without hard links
            os.replace(self.part, output_file)

    def _transfer_with_retries(self, url: str, stream: BinaryIO) -> None:
        """Download, and resume after broken connections."""
        for attempt in range(self.retries + 1):
            try:
                return self._transfer(url, stream)
            except _BROKEN_CONNECTION as error:
                if attempt == self.retries:
                    raise
                stream.flush()
                logger.warning("The connection broke (%s); resuming at byte %d.", error, stream.tell())
                time.sleep(min(_BACKOFF_SECONDS * 2**attempt, 30))

    def _transfer(self, url: str, stream: BinaryIO) -> None:
        """Download what the partial file lacks, or the whole file if it has changed."""
        offset = stream.seek(0, os.SEEK_END)
        validator, total = _read_origin(self.part, url)
        if self.size not in (None, total):
            validator, total = None, None  # a part of another version
        if offset and offset == total:
            return
        headers = {"Accept-Encoding": "identity"}
        if offset and validator:
            # If-Range makes the server send the whole file if it has changed since the part was downloaded.
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            for hop in (*response.history, response):  # a redirect must not be less safe
                _check_url(hop.url, verified=self.verified)
            if offset and response.status_code == 416:  # the part is longer than the file
                stream.truncate(0)
                return self._transfer(url, stream)
            response.raise_for_status()
            if not (response.status_code == 206 and _content_range(response) == (offset, total)):
                offset, total = 0, self._announced_size(response)
                stream.truncate(0)
                stream.seek(0)
                _write_origin(self.part, url, response, total)
            self._append(response, stream, offset, total)

    def _announced_size(self, response: requests.Response) -> int | None:
        """Return the size in bytes that the server announces; raise if it is not the expected one."""
        if response.status_code != 200:
            raise ValueError(
                f"{response.url} answered {response.status_code} with a range that was not asked for. "
                "Try again, the download starts over; or use another address."
            )
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if None not in (self.size, total) and total != self.size:
            raise ValueError(
                f"{response.url} has {total} bytes, expected {self.size}. The file has changed, or size is wrong; "
                "check the source before trusting it."
            )
        return total if total is not None else self.size

    def _append(self, response: requests.Response, stream: BinaryIO, offset: int, total: int | None) -> None:
        """Write the content of a response to the file, with a progress bar."""
        _check_free_space(self.part.parent, None if total is None else total - offset)
        options: dict[str, Any] = {"total": total, "initial": offset, "unit_scale": True}
        with progress(desc=self.part.stem, unit="B", show=self.progressbar, **options) as bar:
            for chunk in response.iter_content(_CHUNK_BYTES):
                offset += len(chunk)
                if total is not None and offset > total:
                    raise ValueError(f"{response.url} sent more than the {total} bytes expected.")
                stream.write(chunk)
                bar.update(len(chunk))
        stream.flush()
        if total is not None and offset < total:
            raise requests.ConnectionError(f"{response.url} ended after {offset} of {total} bytes.")


def _check_url(url: str, *, verified: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname and (verified or _is_loopback(parts.hostname)):
        return
    raise ValueError(f"The address must be https, or http with a sha256 checksum; got {url!r}.")


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _checked_filename(name: str) -> str:
    name = unquote(name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name) or name.endswith((".part", ".part.json")):
        raise ValueError(
            f"A file name has letters, digits, '.', '_' and '-', begins with a letter or digit and does not end in "
            f"'.part'; got {name!r}. Pass filename= with a plain one."
        )
    return name


@contextmanager
def _exclusively(path: Path) -> Iterator[BinaryIO]:
    """Open for reading and writing with an exclusive lock, never through a symbolic link."""
    if path.is_symlink():
        path.unlink()  # following it would write elsewhere
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o644), "r+b") as stream:
        if sys.platform != "win32":
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(f"Another process is downloading {path}; wait for it to finish.") from error
            except OSError:  # file systems without locks
                logger.debug("%s cannot be locked.", path)
        yield stream


def _origin_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_origin(part: Path, url: str, response: requests.Response, total: int | None) -> None:
    """Record the source of ``part``, so that bytes of another file are never appended."""
    etag = response.headers.get("ETag", "")
    # only a strong validator promises the same bytes
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    path = _origin_path(part)
    path.unlink(missing_ok=True)
    path.write_text(json.dumps({"url": url, "validator": validator, "total": total}), encoding="utf-8")


def _read_origin(part: Path, url: str) -> tuple[str | None, int | None]:
    """Return the validator and total size recorded for ``part``, or None twice if it has another source."""
    try:
        origin = json.loads(_origin_path(part).read_text(encoding="utf-8"))
        if origin["url"] == url and origin["validator"]:
            return str(origin["validator"]), origin["total"]
    except (OSError, ValueError, KeyError, TypeError):
        logger.debug("No usable record of the source of %s; starting over.", part)
    return None, None


def _content_range(response: requests.Response) -> tuple[int, int] | None:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _check_free_space(folder: Path, needed: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if needed is not None and needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB remain to be downloaded; "
            "free some space or choose another folder."
        )


def _discard_if_finished(part: Path, target: Path) -> None:
    """Remove a part that is a hard link of the target, so that nothing is written through it."""
    if target.exists() and (not part.exists() or part.samefile(target)):
        _discard(part)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _origin_path(part).unlink(missing_ok=True)
