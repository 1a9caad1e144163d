"""Model folders: safetensors and JSON, written so that a reader finds the old model or the new one."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from scr2mae import masking
from scr2mae._utils.files import (
    RUN_FILE,
    cannot_write,
    folder_lock,
    is_free,
    is_leftover,
    sync_folder,
    write_durably,
)
from scr2mae._utils.files import run_document as document_of
from scr2mae._utils.untrusted import LARGEST_JSON, check_size, is_inside, read_json, tensors_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SCHEMA_VERSION",
    "decode_schedule",
    "encode_schedule",
    "read_metadata",
    "read_model",
    "weights_file",
    "write_model",
]

SCHEMA_VERSION = 1
_FORMAT = "scr2mae.model"
_METADATA = "model.json"
_WEIGHTS = re.compile(r"weights-([0-9a-f]{64})\.safetensors")
_DTYPE = re.compile(r"object|[<>|=]?[biuf][1248]")
_PARTS = {
    "curriculum",
    "history",
    "init_params",
    "is_trained",
    "mask_ratio",
    "model",
    "n_new_categories",
    "registry",
    "split",
    "weights",
}


def _encode(value: Any) -> Any:
    """Make a registry's arrays and scalars into JSON."""
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
    if "__array__" not in value:
        return value
    content, dtype = value["__array__"], str(value.get("dtype"))
    if not isinstance(content, list) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"an array of type {dtype!r} is none that a model has")
    try:
        return np.array(content, dtype=dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"an array is none of {dtype}: {error}") from error


def encode_schedule(mask_ratio: Any) -> Any:
    """Describe a ``mask_ratio`` argument in JSON; None for a callable of the user's own, which cannot be.

    Parameters
    ----------
    mask_ratio
        A float, a pair or a schedule of :mod:`scr2mae.masking`.

    Returns
    -------
    A number, a list or a dictionary.
    """
    if isinstance(mask_ratio, (int, float)):
        return float(mask_ratio)
    if isinstance(mask_ratio, (tuple, list)):
        return [float(value) for value in mask_ratio]
    if is_dataclass(mask_ratio) and type(mask_ratio).__name__ in masking.__all__:
        return {"schedule": type(mask_ratio).__name__, **asdict(mask_ratio)}  # type: ignore[arg-type]
    return None


def decode_schedule(described: Any) -> Any:
    """Undo :func:`encode_schedule`.

    Parameters
    ----------
    described
        As :func:`encode_schedule` returns it.

    Returns
    -------
    A float, a pair or a schedule, as the ``mask_ratio`` argument takes it.

    Raises
    ------
    ValueError
        If the schedule is none of this package's.
    """
    if isinstance(described, list):
        return tuple(described)
    if isinstance(described, dict):
        options = dict(described)
        name = options.pop("schedule", None)
        if name not in masking.__all__ or not str(name).endswith("Ratio"):
            raise ValueError(
                f"Unknown masking schedule {name!r} in a model folder; was it made by a newer version?"
            )
        return getattr(masking, name)(**options)
    return described


def _check_free(folder: Path) -> None:
    """Refuse a folder with anything in it but what a first save that was killed has left.

    Raises
    ------
    FileExistsError
        If there is anything else.
    """
    if folder.is_dir() and not is_free(folder):
        raise FileExistsError(
            f"{folder} already exists and is not empty; choose another folder or pass overwrite=True."
        )


def _sweep(folder: Path, name: str) -> None:
    """Remove weights that no metadata name, and what saves that were killed have left; to be called under the lock."""
    ours = (f".{_METADATA}.", f".{RUN_FILE}.", ".weights-")
    for item in folder.iterdir():
        is_orphan = _WEIGHTS.fullmatch(item.name) is not None and item.name != name
        if is_orphan or (is_leftover(item) and item.name.startswith(ours)):
            item.unlink(missing_ok=True)


def write_model(
    dir_path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write a model folder.

    The weights go into a file named by their hash; one atomic rename of ``model.json``, which names that file, makes
    the new model the current one; only then are the old weights removed. ``run.json`` repeats what the metadata say of the
    runs. Of processes that save into one folder at the same time, one comes after the other. Where several processes have trained together,
    the first one writes and the others return at once.

    Parameters
    ----------
    dir_path
        Folder to make, or to overwrite.
    tensors
        Weights and other arrays by name.
    metadata
        Everything else; arrays are allowed.
    overwrite
        Whether a folder that is not empty may be written to.

    Raises
    ------
    FileExistsError
        If the folder is not empty and ``overwrite`` is False.
    NotADirectoryError
        If the path is a file.
    ValueError
        If the metadata are longer than :func:`read_metadata` takes.
    OSError
        If the disk is full or read-only, with what to do; an old model is then as it was.
    """
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_rank()
    ):
        return
    folder = Path(dir_path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a model is saved as a folder. Choose another path.")
    if not overwrite:
        _check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    name = f"weights-{digest}.safetensors"
    document = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        "weights": {"file": name, "sha256": digest},
        **_encode(metadata),
    }
    text = json.dumps(document, indent=1, allow_nan=True).encode()
    if len(text) > LARGEST_JSON:
        raise ValueError(
            f"{_METADATA} would take {len(text):,} bytes, and no more than {LARGEST_JSON:,} are read back; shorten what is long: "
            "categories in the columns that were set up, or model.history_."
        )
    run = document_of(document.get("runs", []), weights=digest)
    with folder_lock(folder):
        if not overwrite:
            _check_free(folder)  # another process may have come first
        write_durably({folder / name: content, folder / _METADATA: text, folder / RUN_FILE: run})
        sync_folder(folder)
        _sweep(folder, name)


def read_metadata(dir_path: str | Path, *, follow_links: bool = False) -> dict[str, Any]:
    """Read and check ``model.json`` of a model folder.

    Parameters
    ----------
    dir_path
        The folder.
    follow_links
        Whether the file may be a symbolic link out of the folder, as in the cache of ``huggingface_hub``.

    Returns
    -------
    The document, lists of arrays turned back into arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or file.
    ValueError
        If it is no model of this package, is damaged, or was made by a newer version.
    """
    folder = Path(dir_path)
    path = folder / _METADATA
    if not folder.is_dir():
        raise FileNotFoundError(f"No model folder at {folder}.")
    if not path.is_file():
        found = sorted(item.name for item in folder.iterdir())[:5]
        raise FileNotFoundError(
            f"{folder} is not a scr2mae model folder: it has no {_METADATA}, only {found}."
        )
    if not (follow_links or is_inside(path, folder)):
        raise ValueError(f"{path} is a link out of its folder; refusing to follow it.")
    # Curves may have gaps, and arguments no bounds.
    document = read_json(path, may_be_nan=("history", "runs"), object_hook=_decode)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"{path} does not describe a scr2mae model.")
    version = document.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema version {version!r}, this version of scr2mae reads up to {SCHEMA_VERSION}; upgrade scr2mae."
        )
    if missing := _PARTS - set(document):
        raise ValueError(f"{path} is damaged: it lacks {sorted(missing)}. Restore the folder from a copy.")
    weights = document["weights"]
    if not isinstance(weights, dict) or not {"file", "sha256"} <= set(weights):
        raise ValueError(
            f"{path} is damaged: it does not say where the weights are. Restore the folder from a copy."
        )
    return document


def weights_file(document: dict[str, Any], *, place: str | Path) -> str:
    """Name of the file of weights that checked metadata point to.

    Parameters
    ----------
    document
        As :func:`read_metadata` returns it.
    place
        Where it comes from, for messages.

    Returns
    -------
    A plain file name: ``weights-``, the SHA-256 of the content, ``.safetensors``.

    Raises
    ------
    ValueError
        If the name is none that :func:`write_model` gives, or states another hash than the metadata.
    """
    name = str(document["weights"]["file"])
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        raise ValueError(f"{place} names {name!r} as weights, which is no file name of a model.")
    if match[1] != document["weights"]["sha256"]:
        raise ValueError(f"{place} is damaged: it states another hash than the name of its weights, {name}.")
    return name


def read_model(
    dir_path: str | Path, *, follow_links: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model folder: its arrays and its metadata. Nothing is unpickled.

    Parameters
    ----------
    dir_path
        The folder.
    follow_links
        Whether the files may be symbolic links, as in the cache of ``huggingface_hub``; the hash of the weights is
        checked either way.

    Returns
    -------
    Weights and other arrays by name; everything else.

    Raises
    ------
    FileNotFoundError
        If the folder, its metadata or its weights are absent.
    MemoryError
        If the weights take more memory than is free.
    ValueError
        If anything is damaged, foreign, or points outside the folder.
    """
    folder = Path(dir_path)
    document = read_metadata(folder, follow_links=follow_links)
    while True:
        try:
            return _read_weights(folder, document, follow_links=follow_links), document
        except FileNotFoundError:
            # The model may have been overwritten since its metadata were read; the new one is whole.
            current = read_metadata(folder, follow_links=follow_links)
            if current["weights"] == document["weights"]:
                raise
            document = current


def _read_weights(folder: Path, document: dict[str, Any], *, follow_links: bool) -> dict[str, Tensor]:
    name = weights_file(document, place=folder / _METADATA)
    path = folder / name
    if not path.is_file() or (path.is_symlink() and not follow_links):
        raise FileNotFoundError(f"{folder} lacks its weights {name}; restore the folder from a copy.")
    check_size(2 * path.stat().st_size, str(path))  # the bytes, and the tensors made of them
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != document["weights"]["sha256"]:
        raise ValueError(
            f"{path} is damaged: its hash is not the one in its name. Restore the folder from a copy."
        )
    return tensors_of(content, path=path)
