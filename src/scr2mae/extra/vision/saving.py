"""Folders with a network: its arguments in JSON, its weights in safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import nn

from scr2mae._utils.files import RUN_FILE, run_document
from scr2mae._utils.untrusted import load_tensors, read_json

if TYPE_CHECKING:
    from typing import Self

__all__ = ["SavedNetwork", "read_config"]

_SCHEMA_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LARGEST_CONFIG = 1 << 24


class SavedNetwork(nn.Module):
    """Network that is saved and loaded by its arguments, ``init_params``, and its weights."""

    def __init__(self, **init_params: Any) -> None:
        super().__init__()
        self.init_params = init_params
        self.about: dict[str, Any] = {}

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the network as JSON and safetensors, with ``about``: anything that JSON can hold, such as class names.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a network in the folder may be replaced.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        """
        place = Path(folder)
        check_folder(place, overwrite=overwrite)
        place.mkdir(parents=True, exist_ok=True)
        document = {
            "scr2mae_network": type(self).__name__,
            "schema_version": _SCHEMA_VERSION,
            "init_params": self.init_params,
            **self._extra_config(),
            "about": self.about,
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        part = place / f".{_WEIGHTS}.{os.getpid()}.part"
        try:
            safetensors.torch.save_file(tensors, part)
            part.replace(place / _WEIGHTS)
        finally:
            part.unlink(missing_ok=True)
        (place / _CONFIG).write_text(json.dumps(document, indent=1), encoding="utf-8")
        write_runs(self, place)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a network that :meth:`save_pretrained` saved, in evaluation mode.

        Parameters
        ----------
        folder
            The folder.

        Returns
        -------
        The network, on the CPU.

        Raises
        ------
        FileNotFoundError
            If there is no network in the folder.
        ValueError
            If it is damaged, of another class, or from a newer version.
        """
        place = Path(folder)
        document = read_config(place)
        path = place / _CONFIG
        if (name := document.get("scr2mae_network")) != cls.__name__:
            raise ValueError(f"{path} does not describe a {cls.__name__} but {name!r}.")
        version = document.get("schema_version")
        if not isinstance(version, int) or version > _SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {version!r}; this version of scr2mae reads up to {_SCHEMA_VERSION}."
            )
        try:
            network = cls._from_config(document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not describe a {cls.__name__}: {error!r}.") from error
        try:
            network.load_state_dict(load_tensors(place / _WEIGHTS))
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"The weights in {place} are missing, damaged or of another network: {error}."
            ) from error
        network.about = document.get("about", {})
        return network.eval()

    def _extra_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _from_config(cls, document: dict[str, Any]) -> Self:
        return cls(**document["init_params"])


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError if the folder holds files that may not be replaced."""
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty; choose another folder or pass overwrite=True to replace the network in it."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a folder."""
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"No network in {folder}: it has no {_CONFIG}.")
    document = read_json(path, largest=_LARGEST_CONFIG)
    if not isinstance(document, dict):
        raise ValueError(f"{path} does not describe a network for images.")
    return document


def write_runs(network: Any, folder: Path) -> None:
    """Write the records of a network's runs, or remove those of an earlier network."""
    if runs := getattr(network, "runs_", []):
        (folder / RUN_FILE).write_bytes(run_document(runs))
    else:
        (folder / RUN_FILE).unlink(missing_ok=True)
