"""Model folders of safetensors and JSON, written so that a reader finds either the old model or the new one.

An index (JSON) contains the name of the weights file and its hash. Two layouts share it:

- Weights named by their hash, for formats of this package. One rename of the index makes the new model the current
  one, and unrelated files in the folder stay where they are.
- Fixed names, as ``transformers`` reads them. A whole new folder is written next to the old one and replaces it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from scr2mae._utils.files import (
    DATA_FILE,
    RUN_FILE,
    as_path,
    cannot_write,
    clear_errors,
    exchange,
    folder_lock,
    is_free,
    is_leftover,
    run_document,
    sync_folder,
    write_durably,
)
from scr2mae._utils.untrusted import (
    LARGEST_JSON,
    check_size,
    is_inside,
    parse_json,
    read_json,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

__all__ = ["FolderFormat", "ModelFolder", "read_folder", "read_index", "weights_file", "write_folder"]

_MAY_BE_NAN = ("history", "runs")  # curves may have gaps, arguments may be infinite
_PLAIN_WEIGHTS = "model.safetensors"
_WEIGHTS = re.compile(r"weights-([0-9a-f]{64})\.safetensors")
_DTYPE = re.compile(r"object|[<>|=]?[biuf][1248]")


@dataclass(frozen=True)
class FolderFormat:
    """Names of the files in one kind of model folder, and what its index must hold."""

    name: str  # entry "format" of the index
    noun: str  # in messages: "a <noun> folder"
    index: str = "config.json"
    version: int = 1
    required: frozenset[str] = frozenset()
    legacy_key: str | None = None  # entry that marks an index of the first versions, without a format
    weights: str | None = None  # fixed name of the weights; None names them by their hash
    # Further names of this format, earlier ones too; a save removes those that it does not write.
    files: tuple[str, ...] = ()


class ModelFolder(NamedTuple):
    """Content of a model folder: tensors by name, the index, and further files by name."""

    tensors: dict[str, Tensor]
    document: dict[str, Any]
    files: dict[str, bytes]


def write_folder(
    dir_path: str | Path,
    form: FolderFormat,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    runs: Sequence[dict[str, Any]] | None = None,
    overwrite: bool = False,
    check: Callable[[ModelFolder], object] | None = None,
    data: str | None = None,
) -> None:
    """Write a model folder; a kill at any moment leaves the old model or the new one.

    ``document`` (JSON, arrays allowed) becomes the index; ``files`` needs a format with a fixed name of the
    weights; ``runs`` goes to ``run.json``, None removes that file. The contents are first read back as
    from a folder, then passed to ``check``; if either raises, nothing is replaced. ``data`` names a file of
    cells that is in the folder already and belongs to this model. Concurrent saves are serialized by a lock;
    of processes that train together, only rank 0 writes.
    """
    if _rank():
        return
    folder = as_path(dir_path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a model is saved as a folder. Choose another path.")
    if not overwrite:
        _check_free(folder)
    metadata = None if form.weights is None else {"format": "pt"}  # transformers asks for it
    weights = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata=metadata
    )
    digest = _sha256(weights)
    name = form.weights or f"weights-{digest}.safetensors"
    contents = {name: weights, **(files or {})}
    contents[form.index] = _index(form, document, weights={"file": name, "sha256": digest}, files=files)
    try:
        read_back = _read_back(folder, form, contents)
        if check is not None:
            check(read_back)
    except ValueError as error:
        raise ValueError(
            f"Nothing was written to {folder}, since it could not be read again: {error}"
        ) from error
    if runs is not None:
        contents[RUN_FILE] = run_document(runs, weights=digest)
    if form.weights is None:
        _write_into(folder, form, contents, overwrite=overwrite, data=data)
    else:
        _replace_whole(folder, form, contents, overwrite=overwrite)


def _read_back(folder: Path, form: FolderFormat, contents: Mapping[str, bytes]) -> ModelFolder:
    """Return what a reader of these files will find; raise if it would refuse them."""
    document = parse_json(
        contents[form.index], path=folder / form.index, may_be_nan=_MAY_BE_NAN, object_hook=_decode
    )
    document = _checked_index(document, folder, form)
    name = weights_file(document, place=folder)
    tensors = tensors_of(contents[name], path=folder / name)
    return ModelFolder(tensors, document, {each: contents[each] for each in document.get("files", {})})


def read_index(dir_path: str | Path, form: FolderFormat, *, follow_links: bool = False) -> dict[str, Any]:
    """Read and check the index of a model folder; ``follow_links`` allows links out of it, as in the hub's cache."""
    folder = as_path(dir_path)
    path = folder / form.index
    if not folder.is_dir():
        raise FileNotFoundError(f"No model folder at {folder}.")
    if not path.is_file():
        found = sorted(item.name for item in folder.iterdir())[:5]
        raise FileNotFoundError(
            f"{folder} is not a {form.noun} folder: it has no {form.index}, only {found}."
        )
    if not (follow_links or is_inside(path, folder)):
        raise ValueError(f"{path} is a link out of its folder; refusing to follow it.")
    document = read_json(path, may_be_nan=_MAY_BE_NAN, object_hook=_decode)
    return _checked_index(document, folder, form)


def _checked_index(document: Any, folder: Path, form: FolderFormat) -> dict[str, Any]:
    """Return a parsed index; raise unless it is that of this kind of folder."""
    path = folder / form.index
    stated = document.get("format") if isinstance(document, dict) else None
    is_legacy = stated is None and isinstance(document, dict) and form.legacy_key in document
    if stated != form.name and not is_legacy:
        raise ValueError(f"{path} does not describe a {form.noun}.")
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= form.version:
        raise ValueError(
            f"{folder} has schema version {version!r}, this version of scr2mae reads up to {form.version}; upgrade scr2mae."
        )
    if missing := form.required - set(document):
        raise ValueError(f"{path} is damaged: it lacks {sorted(missing)}. Restore the folder from a copy.")
    weights = document.get("weights", {"file": _PLAIN_WEIGHTS, "sha256": None})
    if not isinstance(weights, dict) or not {"file", "sha256"} <= set(weights):
        raise ValueError(
            f"{path} is damaged: it does not say where the weights are. Restore the folder from a copy."
        )
    return document


def weights_file(document: Mapping[str, Any], *, place: str | Path) -> str:
    """Return the name of the weights in a checked index, a plain file name; ``place`` is for messages."""
    if "weights" not in document:  # folders of earlier versions
        return _PLAIN_WEIGHTS
    name, digest = str(document["weights"]["file"]), document["weights"]["sha256"]
    match = _WEIGHTS.fullmatch(name)
    if match is None and name != _PLAIN_WEIGHTS:
        raise ValueError(f"{place} lists {name!r} as weights, which is not a file name of a model.")
    if match is not None and match[1] != digest:
        raise ValueError(f"{place} is damaged: its hash does not match the weights file name, {name}.")
    return name


def read_folder(dir_path: str | Path, form: FolderFormat, *, follow_links: bool = False) -> ModelFolder:
    """Read a model folder and verify its hashes; nothing is unpickled. Folders of earlier versions may have none."""
    folder = as_path(dir_path)
    document = read_index(folder, form, follow_links=follow_links)
    while True:
        try:
            return _read_contents(folder, form, document, follow_links=follow_links)
        except (FileNotFoundError, ValueError):
            # The model may have been overwritten since its index was read; the new one is whole.
            current = read_index(folder, form, follow_links=follow_links)
            if all(current.get(key) == document.get(key) for key in ("weights", "files")):
                raise
            document = current


def _read_contents(
    folder: Path, form: FolderFormat, document: dict[str, Any], *, follow_links: bool
) -> ModelFolder:
    """Read weights and further files, and compare them with their checksums."""
    name = weights_file(document, place=folder / form.index)
    path = folder / name
    if not path.is_file() or (path.is_symlink() and not follow_links):
        raise FileNotFoundError(f"{folder} lacks its weights {name}; restore the folder from a copy.")
    check_size(2 * path.stat().st_size, str(path))  # the bytes, and the tensors made of them
    weights = _verified(path, document.get("weights", {}).get("sha256"))
    stated = document.get("files", {})
    if not isinstance(stated, dict) or not set(stated) <= set(form.files):
        raise ValueError(f"{folder / form.index} names files that a {form.noun} does not have: {stated!r}.")
    files = {}
    for each, digest in stated.items():
        if not (folder / each).is_file():
            raise FileNotFoundError(f"{folder} lacks {each}; restore the folder from a copy.")
        files[each] = _verified(folder / each, digest)
    return ModelFolder(tensors_of(weights, path=path), document, files)


def _verified(path: Path, digest: str | None) -> bytes:
    """Return the content of a file; raise if its SHA-256 is not ``digest``, unless that is None."""
    content = path.read_bytes()
    if digest is not None and _sha256(content) != digest:
        where = "in its name" if _WEIGHTS.fullmatch(path.name) else "that the folder states"
        raise ValueError(
            f"{path} is damaged: its hash is not the one {where}. Restore the folder from a copy."
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _check_free(folder: Path) -> None:
    """Raise if a folder contains more than a killed first save has left."""
    if folder.is_dir() and not is_free(folder):
        raise FileExistsError(
            f"{folder} already exists and is not empty; choose another folder or pass overwrite=True."
        )


def _index(
    form: FolderFormat,
    document: Mapping[str, Any],
    *,
    weights: dict[str, str],
    files: Mapping[str, bytes] | None,
) -> bytes:
    """Return the JSON document of a folder: format, checksums, and the caller's entries."""
    whole = {"format": form.name, "schema_version": form.version, "weights": weights}
    if files:
        whole["files"] = {name: _sha256(content) for name, content in files.items()}
    text = json.dumps({**whole, **_encode(dict(document))}, indent=1, allow_nan=True).encode()
    if len(text) > LARGEST_JSON:
        raise ValueError(
            f"{form.index} would take {len(text):,} bytes, and no more than {LARGEST_JSON:,} are read back; reduce the largest entries: "
            "categories in the columns that were set up, or model.history_."
        )
    return text


def _write_into(
    folder: Path, form: FolderFormat, contents: dict[str, bytes], *, overwrite: bool, data: str | None
) -> None:
    """Add weights named by their hash to a folder, then rename the index that makes them the current ones."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with folder_lock(folder):
        if not overwrite:
            _check_free(folder)  # another process may have come first
        write_durably({folder / name: content for name, content in contents.items()})
        sync_folder(folder)
        for item in _own_items(folder, form):
            if item.name not in contents and item.name != data:
                item.unlink(missing_ok=True)


def _own_items(folder: Path, form: FolderFormat) -> Iterator[Path]:
    """Yield the files of models in a folder: current and earlier ones, and what killed saves have left."""
    names = {form.index, RUN_FILE, *form.files, *([form.weights] if form.weights else [])}
    parts = (*(f".{name}." for name in names), ".weights-")
    for item in folder.iterdir():
        is_part = is_leftover(item) and item.name.startswith(parts)
        is_content = _WEIGHTS.fullmatch(item.name) or DATA_FILE.fullmatch(item.name)
        if item.name in names or is_part or is_content:
            yield item


def _replace_whole(folder: Path, form: FolderFormat, contents: dict[str, bytes], *, overwrite: bool) -> None:
    """Write a new folder, exchange it with the old one, and move unrelated files from the old to the new."""
    folder = folder.resolve()
    part, old = (folder.with_name(f".{folder.name}.{state}.part") for state in ("new", "old"))
    with clear_errors(folder, part):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder.parent):
            if not folder.exists() and old.is_dir():  # killed between the two renames below
                old.rename(folder)
            for leftover in (part, old):
                _retire(leftover, folder, form)
            if not overwrite:
                _check_free(folder)
            try:
                part.mkdir()
                write_durably({part / name: content for name, content in contents.items()})
                sync_folder(part)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            if not (folder.is_dir() and exchange(part, folder)):
                if folder.is_dir():
                    folder.rename(old)
                part.rename(folder)
            sync_folder(folder.parent)
            for leftover in (part, old):
                _retire(leftover, folder, form)


def _retire(old: Path, folder: Path, form: FolderFormat) -> None:
    """Move unrelated files from a replaced folder to its successor, and remove the rest."""
    if not old.is_dir():
        return
    own = {item.name for item in _own_items(old, form)}
    for item in old.iterdir():
        if item.name not in own and folder.is_dir() and not (folder / item.name).exists():
            item.rename(folder / item.name)
    shutil.rmtree(old)


def _encode(value: Any) -> Any:
    """Turn arrays and NumPy scalars into JSON."""
    if isinstance(value, np.ndarray):
        return {
            "__array__": value.tolist(),
            "dtype": "object" if value.dtype.kind in "OUS" else value.dtype.str,
        }
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(value: dict[str, Any]) -> Any:
    """Turn the JSON form of an array back; an ``object_hook`` of :mod:`json`."""
    if "__array__" not in value:
        return value
    content, dtype = value["__array__"], str(value.get("dtype"))
    if not isinstance(content, list) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"an array of type {dtype!r} is not one that a model has")
    try:
        return np.array(content, dtype=dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"an array is not of {dtype}: {error}") from error
