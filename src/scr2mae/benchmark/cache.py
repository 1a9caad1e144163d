"""Cache of scores and embeddings on disk, keyed by the hash of everything they depend on."""

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae._utils.files import atomic_write

logger = logging.getLogger(__name__)

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def digest(*parts: Any) -> str:
    """Return the SHA-256 of arrays, frames and JSON-able values; anything else counts by its ``repr``."""
    total = hashlib.sha256()
    for part in parts:
        if sp.issparse(part):
            part = sp.csr_matrix(part)
            total.update(digest(part.indptr, part.indices, part.data, part.shape).encode())
        elif isinstance(part, (pd.DataFrame, pd.Series, pd.Index)):
            names = list(part.columns) if isinstance(part, pd.DataFrame) else None
            values = pd.util.hash_pandas_object(part, index=not isinstance(part, pd.Index)).to_numpy()
            total.update(digest(names, values).encode())
        elif isinstance(part, np.ndarray):
            total.update(f"{part.dtype} {part.shape}".encode())
            total.update(np.ascontiguousarray(part).data)
        else:
            total.update(json.dumps(part, sort_keys=True, default=repr).encode())
        total.update(b"\0")
    return total.hexdigest()


class Store:
    """Scores and embeddings in a folder; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, kind: str, name: str, key: str, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / kind / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}-{key[:16]}{suffix}"

    def read_scores(self, name: str, key: str) -> dict[str, Any] | None:
        """Return the scores stored under this key, or None."""
        return _read(self._path("cells", name, key, ".json"), key, _load_json)

    def write_scores(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Store JSON-able scores."""
        path = self._path("cells", name, key, ".json")
        if path is not None:
            with atomic_write(path) as part:
                part.write_text(json.dumps({"key": key, "value": value}, indent=1), encoding="utf-8")

    def read_embedding(self, name: str, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Return the embedding stored under this key and its JSON-able values, or None."""
        return _read(self._path("embeddings", name, key, ".npz"), key, _load_npz)

    def write_embedding(self, name: str, key: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
        """Store an embedding and JSON-able values."""
        path = self._path("embeddings", name, key, ".npz")
        if path is not None:
            with atomic_write(path) as part, part.open("wb") as file:
                np.savez(file, values=values, about=np.array(json.dumps({"key": key, "value": about})))


def _read(path: Path | None, key: str, load: Callable[[Path], tuple[str, Any]]) -> Any:
    """Return the content of a file if it can be read and has this key, else None."""
    if path is None or not path.exists():
        return None
    try:
        found, value = load(path)
    except _UNREADABLE as error:
        logger.warning("Cannot read %s (%s); computing it anew.", path, error)
        return None
    return value if found == key else None


def _load_json(path: Path) -> tuple[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["key"], content["value"]


def _load_npz(path: Path) -> tuple[str, Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        return about["key"], (content["values"], about["value"])
