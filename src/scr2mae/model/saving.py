"""Folders, the hub, and scvi-tools' own file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.data import AnnDataManager

from scr2mae._utils.compat import torch_device
from scr2mae._utils.model_folder import read_folder, read_index, write_folder
from scr2mae.model import hub_io as hub
from scr2mae.model import state as saved
from scr2mae.model.base import CellModel

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from anndata import AnnData


class StorageMixin(CellModel):
    """``save``, ``load`` and ways to share."""

    def save(  # type: ignore[override]
        self, dir_path: str | Path, *, overwrite: bool = False
    ) -> None:
        """Save the model as a folder of safetensors and JSON. Of several processes that train together, only the first writes.

        Parameters
        ----------
        dir_path
            Folder to make.
        overwrite
            Whether a folder that exists may be written to; until the last moment it holds the old model, then the new.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        OSError
            If the disk is full or read-only; a model that was there is as it was.
        """
        tensors, metadata = saved.to_state(self)
        write_folder(dir_path, saved.FORMAT, tensors, metadata, runs=metadata["runs"], overwrite=overwrite)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Load a saved model. Nothing is unpickled.

        Parameters
        ----------
        dir_path
            Its folder.
        adata
            Data to attach, genes as in the model; None for a model that embeds what it is given.
        accelerator, device
            Where the model goes.

        Returns
        -------
        The model, ready to embed.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder is damaged or foreign, or the genes of ``adata`` are not the model's.
        """
        place = torch_device(accelerator, device)
        tensors, document, _ = read_folder(dir_path, saved.FORMAT)
        model = saved.from_state(cls, tensors, document, adata=adata, place=dir_path)
        model.to_device(place)
        return model

    @staticmethod
    def load_registry(dir_path: str | Path) -> dict[str, Any]:  # type: ignore[override]
        """Read how the data of a saved model were set up. Nothing is unpickled.

        Parameters
        ----------
        dir_path
            Its folder.

        Returns
        -------
        The registry, as ``model.registry``.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the folder is damaged or foreign.
        """
        return read_index(dir_path, saved.FORMAT)["registry"]

    @staticmethod
    def view_setup_args(dir_path: str | Path) -> None:  # type: ignore[override]
        """Print the arguments of :meth:`setup_anndata` that the data of a saved model were set up with.

        Parameters
        ----------
        dir_path
            Its folder.
        """
        AnnDataManager.view_setup_method_args(read_index(dir_path, saved.FORMAT)["registry"])

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """Refuse: there are no folders of this class in scvi-tools' old layout, which is a pickle.

        Parameters
        ----------
        args, kwargs
            Not looked at.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{cls.__name__} was never saved in scvi-tools' old layout, and reading that would unpickle it; "
            "model folders of every version are read by load()."
        )

    def push_to_hub(self, repo: str, **kwargs: Any) -> str:
        """Upload the model to the Hugging Face hub, with a card; see :func:`scr2mae.model.hub_io.push_to_hub`.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        kwargs
            ``private``, ``revision``, ``commit_message``, ``license``, ``group_names``, ``card`` and ``token``.

        Returns
        -------
        Hash of the commit.
        """
        return hub.push_to_hub(self, repo, **kwargs)

    @classmethod
    def from_hub(cls, repo: str, *, revision: str | None = None, **kwargs: Any) -> Self:
        """Load a model from the Hugging Face hub. Nothing is unpickled; see :func:`scr2mae.model.hub_io.from_hub`.

        Parameters
        ----------
        repo
            ``"owner/name"``.
        revision
            Branch, tag or commit; None for ``main``.
        kwargs
            ``adata``, ``accelerator``, ``device`` and ``token``.

        Returns
        -------
        The model, ready to embed.
        """
        return hub.from_hub(cls, repo, revision=revision, **kwargs)

    def export_scvi(self, dir_path: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.pt``, a pickle in scvi-tools' layout; see :func:`scr2mae.model.hub_io.export_scvi`.

        Parameters
        ----------
        dir_path
            Folder that receives the file.
        overwrite
            Whether a file that is there is replaced.
        """
        hub.export_scvi(self, dir_path, overwrite=overwrite)
