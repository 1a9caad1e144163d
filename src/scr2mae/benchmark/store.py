"""Finished work on disk: written whole or not at all, found again by what it depends on."""

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scr2mae._utils.files import atomic_write

logger = logging.getLogger(__name__)

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def digest(*parts: Any) -> str:
    """SHA-256 of arrays, frames and whatever JSON can hold; anything else counts by its ``repr``."""
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path in the same folder to write to; it takes the name of ``path`` once the block ends well."""
    part = path.with_name(f".{os.getpid()}.part.{path.name}")  # the suffix tells what is drawn
    with atomic_write(path, part):
        yield part


class Store:
    """Embeddings and scores in a folder, or nowhere.

    Parameters
    ----------
    folder
        Where to; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, kind: str, name: str, key: str, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / kind / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}-{key[:16]}{suffix}"

    def read_scores(self, name: str, key: str) -> dict[str, Any] | None:
        """Return what :meth:`write_scores` wrote under this key; None where there is nothing to be read."""
        path = self._path("cells", name, key, ".json")
        if path is None or not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content["value"] if content["key"] == key else None
        except _UNREADABLE as error:
            logger.warning("Cannot read %s (%s); computing it anew.", path, error)
            return None

    def write_scores(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep what JSON can hold."""
        path = self._path("cells", name, key, ".json")
        if path is None:
            return
        with replacing(path) as part:
            part.write_text(json.dumps({"key": key, "value": value}, indent=1), encoding="utf-8")

    def read_embedding(self, name: str, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Return what :meth:`write_embedding` wrote under this key; None where there is nothing to be read."""
        path = self._path("embeddings", name, key, ".npz")
        if path is None or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                about = json.loads(str(content["about"]))
                return (content["values"], about["value"]) if about["key"] == key else None
        except _UNREADABLE as error:
            logger.warning("Cannot read %s (%s); computing it anew.", path, error)
            return None

    def write_embedding(self, name: str, key: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
        """Keep an embedding, and what JSON can hold beside it."""
        path = self._path("embeddings", name, key, ".npz")
        if path is None:
            return
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, values=values, about=np.array(json.dumps({"key": key, "value": about})))
