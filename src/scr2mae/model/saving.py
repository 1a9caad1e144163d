"""Save and load models as folders of safetensors and JSON."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager

from scr2mae._utils.compat import torch_device
from scr2mae._utils.files import DATA_FILE, as_path, atomic_write, is_free
from scr2mae._utils.model_folder import read_folder, read_index, write_folder
from scr2mae.data import CellSpec, read_cells
from scr2mae.data.containers import check_anndata
from scr2mae.data.setup import make_actual
from scr2mae.data.splits import SIDES
from scr2mae.data.store import read_file
from scr2mae.masking import schedule_to_state
from scr2mae.model.base import CellModel
from scr2mae.model.scvi_words import understands_scvi
from scr2mae.model.state import (
    FORMAT,
    CheckedState,
    ModelState,
    check_state,
    n_obs,
    own_entries,
)
from scr2mae.train.provenance import history_to_state

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

__all__ = ["SavingMixin", "from_state", "to_state", "write_state"]

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=CellModel)


class SavingMixin(CellModel):
    """Methods for saving and loading, including those that scvi-tools expects."""

    @understands_scvi
    def save(  # type: ignore[override]
        self, dir_path: str | Path, *, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Save the model as a folder of safetensors and JSON.

        If several processes train together, only the first one writes.

        Parameters
        ----------
        dir_path
            Folder to create.
        overwrite
            Whether to replace a model in an existing folder. At any moment, the folder contains either the
            complete old model or the complete new one.
        save_anndata
            Whether to also save the model's data, which :meth:`load` then reads.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        OSError
            If the disk is full or read-only. An existing model stays unchanged.
        ValueError
            If there are no data in memory to save, or the model could not be loaded after saving. Nothing is
            replaced then.
        """
        state = to_state(self)
        if not save_anndata:
            write_state(type(self), dir_path, state, overwrite=overwrite)
            return
        if self.adata is None or self.adata.isbacked:
            where = "without data" if self.adata is None else "with data that are already on disk"
            raise ValueError(
                f"save_anndata=True, but this model was made {where}; "
                "use save_anndata=False and pass the data to load(adata=...)."
            )
        folder = as_path(dir_path)
        if not overwrite and folder.is_dir() and not is_free(folder):
            raise FileExistsError(
                f"{folder} already exists and is not empty; choose another folder or pass overwrite=True."
            )
        path = folder / f"adata-{uuid4().hex}.h5ad"
        try:
            with atomic_write(path) as part:
                self.adata.write_h5ad(part)
            state.document["data"] = path.name
            write_state(type(self), dir_path, state, overwrite=overwrite)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @classmethod
    @understands_scvi
    def load(  # type: ignore[override]
        cls,
        dir_path: str | Path,
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        """Load a saved model without unpickling anything.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data to attach, which must have the genes of the model. None attaches the data that were saved
            with the model, if any. False attaches no data.
        accelerator, device
            Device of the model.

        Returns
        -------
        The model, ready to embed.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        ValueError
            If the folder is damaged or not an scr2mae model, or the genes of ``adata`` are not the model's.
        TypeError
            If ``adata`` is not an AnnData, or is passed as the first argument.
        """
        if isinstance(dir_path, AnnData):
            raise TypeError("load takes the folder first: load(dir_path, adata).")
        place = torch_device(accelerator, device)
        tensors, document, _ = read_folder(dir_path, FORMAT)
        if adata is None and document.get("data") is not None:
            adata = _saved_data(as_path(dir_path), document["data"])
        attached = None if adata is False else adata
        model = from_state(cls, ModelState(tensors, document), adata=attached, place=dir_path)
        model.to_device(place)
        return model

    @staticmethod
    def load_registry(dir_path: str | Path) -> dict[str, Any]:  # type: ignore[override]
        """Read the setup of the data of a saved model without unpickling anything.

        Parameters
        ----------
        dir_path
            Folder of the model.

        Returns
        -------
        The registry, as in ``model.registry``.

        Raises
        ------
        FileNotFoundError
            If there is no model in the folder.
        ValueError
            If the folder is damaged or not an scr2mae model.
        """
        return read_index(dir_path, FORMAT)["registry"]

    @staticmethod
    def view_setup_args(dir_path: str | Path) -> None:  # type: ignore[override]
        """Print the arguments of :meth:`setup_anndata` that a saved model was set up with.

        Parameters
        ----------
        dir_path
            Folder of the model.
        """
        AnnDataManager.view_setup_method_args(read_index(dir_path, FORMAT)["registry"])

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """Raise an error, since this class was never saved in scvi-tools' old layout, which is a pickle.

        Parameters
        ----------
        args, kwargs
            Ignored.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            f"{cls.__name__} was never saved in scvi-tools' old layout, and reading that would unpickle it; "
            "use load(), which reads model folders of every version."
        )


def _saved_data(folder: Path, name: Any) -> AnnData:
    """Read the data that were saved with a model."""
    if not isinstance(name, str) or not DATA_FILE.fullmatch(name) or not (folder / name).is_file():
        raise ValueError(f"{folder} lacks its data, {name!r}; restore the folder or call load(adata=False).")
    return read_file(folder / name)


def to_state(model: CellModel) -> ModelState:
    """Return the state of a model, and warn if its masking schedule cannot be saved."""
    tensors = {f"module.{name}": value for name, value in model.module.state_dict().items()}
    mask_ratio = schedule_to_state(model.mask_ratio)
    if mask_ratio is None:
        warnings.warn(
            f"mask_ratio={model.mask_ratio!r} is not a schedule of scr2mae.masking and is not saved; "
            "to continue training after loading, set model.mask_ratio.",
            stacklevel=3,
        )
    if model.alignment_ is not None:
        tensors |= {f"alignment.{name}": values for name, values in model.alignment_.to_state().items()}
    split, about_split = model.split_, None
    if split is not None:
        about_split = {"key": split.key, "groups": split.groups, "seed": split.seed, "sha256": split.sha256}
        tensors |= {f"split.{side}": torch.from_numpy(getattr(split, side)) for side in SIDES}
    document = {
        "model": type(model).__name__,
        "init_params": model.init_params_,
        "mask_ratio": mask_ratio,
        "curriculum": None if model.curriculum is None else asdict(model.curriculum),
        "n_new_categories": model.n_new_categories_,
        "is_trained": model.is_trained_,
        "split": about_split,
        "history": history_to_state(model.history_),
        "runs": model.runs_,
        "registry": own_entries(model.registry),
    }
    return ModelState(tensors, document)


def write_state(
    cls: type[CellModel], dir_path: str | Path, state: ModelState, *, overwrite: bool = False
) -> None:
    """Write a state as a model folder, after checking that :func:`from_state` will accept it."""
    write_folder(
        dir_path,
        FORMAT,
        state.tensors,
        state.document,
        runs=state.document["runs"],
        overwrite=overwrite,
        data=state.document.get("data"),
        check=lambda folder: _checked(cls, ModelState(folder.tensors, folder.document), dir_path),
    )


def _checked(cls: type[CellModel], state: ModelState, place: str | Path) -> CheckedState:
    setup_arguments = set(signature(cls.setup_anndata).parameters) - {"adata", "kwargs"}
    return check_state(state, setup_arguments=setup_arguments, build=cls.module_for, place=place)


def from_state(cls: type[Model], state: ModelState, *, adata: AnnData | None, place: str | Path) -> Model:
    """Check a state and build a model, with or without data; ``place`` names its origin in messages."""
    document = state.document
    if document["model"] != cls.__name__:
        raise ValueError(f"{place} contains a {document['model']}, not a {cls.__name__}.")
    checked = _checked(cls, state, place)
    registry = own_entries(document["registry"])
    if adata is not None:
        _attach(cls, adata, registry)
    model = cls(adata, registry=None if adata is not None else registry, **document["init_params"])
    model.mask_ratio, model.curriculum = checked.mask_ratio, checked.curriculum
    model.n_new_categories_ = document["n_new_categories"]
    model.module = model.build_module()
    model.module.load_state_dict(checked.weights)
    if checked.alignment is not None and len(checked.alignment.covariance) != model.module.n_latent:
        raise ValueError(
            f"The alignment of batches in {place} was fit to embeddings of "
            f"{len(checked.alignment.covariance)} latent dimensions, the network has {model.module.n_latent}"
            "; restore the folder."
        )
    model.alignment_ = checked.alignment
    model.is_trained_, model.history_, model.runs_ = document["is_trained"], checked.history, checked.runs
    n_trained = n_obs(document)
    if checked.split is not None and adata is not None and adata.n_obs != n_trained:
        logger.info("The data are not the %d training cells, so the split is not attached.", n_trained)
    elif checked.split is not None:
        model.keep_split(checked.split)
    return model


def _attach(cls: type[CellModel], adata: AnnData, registry: dict[str, Any]) -> None:
    """Register data with the setup of a saved model; the genes must be the same, in the same order."""
    check_anndata(adata)
    make_actual(adata)
    spec = CellSpec.from_registry(registry)
    names = adata.var_names.to_numpy().astype(str)
    if not np.array_equal(names, spec.var_names):
        n_shared = len(set(names) & set(spec.var_names))
        raise ValueError(
            f"The genes of adata are not the model's: {n_shared} of the model's {len(spec.var_names)} are "
            f"there, or the order differs. Call {cls.__name__}.prepare_query_anndata(adata, dir_path) first, "
            "or load the model without adata."
        )
    read_cells(adata, spec)
    cls.setup_anndata(adata, **registry["setup_args"], source_registry=registry)
