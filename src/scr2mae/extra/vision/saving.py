"""Folders with a network: its arguments in JSON, its weights in safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from scr2mae._utils.model_folder import FolderFormat, read_folder, write_folder
from scr2mae.extra.networks import load_weights

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["VISION_FORMAT", "SavedNetwork"]

VISION_FORMAT = FolderFormat(
    name="scr2mae.vision",
    noun="vision network",
    required=frozenset({"scr2mae_network", "init_params"}),
    legacy_key="scr2mae_network",
    files=("model.safetensors", "preprocessor_config.json", "scr2mae.json"),
)


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
        """
        document = {"scr2mae_network": type(self).__name__, "init_params": self.init_params}
        document |= {**self._extra_config(), "about": self.about}
        runs = getattr(self, "runs_", None) or None
        write_folder(folder, VISION_FORMAT, self.state_dict(), document, runs=runs, overwrite=overwrite)

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
        tensors, document, _ = read_folder(folder, VISION_FORMAT, follow_links=True)
        if (name := document["scr2mae_network"]) != cls.__name__:
            raise ValueError(f"{folder} does not contain a {cls.__name__} but {name!r}.")
        try:
            network = cls._from_config(document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder} does not describe a {cls.__name__}: {error!r}.") from error
        load_weights(network, tensors, place=folder)
        network.about = document.get("about", {})
        return network.eval()

    def _extra_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def _from_config(cls, document: dict[str, Any]) -> Self:
        return cls(**document["init_params"])
