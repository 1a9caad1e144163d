"""What of a model is saved, and how a model is made of it again."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scr2mae import io
from scr2mae.curriculum import Curriculum
from scr2mae.data import CellSpec, Split, read_cells
from scr2mae.data.setup import make_actual
from scr2mae.train import history, record

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from torch import Tensor

    from scr2mae.model import R2MAEModel

__all__ = ["describe", "describe_run", "restore"]

logger = logging.getLogger(__name__)

_SIDES = ("train", "validation", "test")


def describe(model: R2MAEModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a model (weights, split) and everything else about it."""
    tensors = {f"module.{name}": value for name, value in model.module.state_dict().items()}
    split = model.split_
    for side in _SIDES if split is not None else ():
        tensors[f"split.{side}"] = torch.from_numpy(getattr(split, side))
    mask_ratio = io.encode_schedule(model.mask_ratio)
    if mask_ratio is None:
        warnings.warn(
            f"mask_ratio={model.mask_ratio!r} is no schedule of scr2mae.masking and is not saved; "
            "set model.mask_ratio after loading to train on.",
            UserWarning,
            stacklevel=3,
        )
    about_split = None
    if split is not None:
        about_split = {"key": split.key, "groups": split.groups, "seed": split.seed, "sha256": split.sha256}
    return tensors, {
        "model": type(model).__name__,
        "init_params": model.init_params_,
        "mask_ratio": mask_ratio,
        "curriculum": None if model.curriculum is None else asdict(model.curriculum),
        "n_new_categories": model.n_new_categories_,
        "is_trained": model.is_trained_,
        "split": about_split,
        "history": history.encode(model.history_),
        "runs": model.runs_,
        "registry": model.registry,
    }


def describe_run(
    model: R2MAEModel, datamodule: Any, *, seed: int, resumed: bool, train: dict[str, Any]
) -> dict[str, Any]:
    """Say what a run is made of; nothing here names a file, a donor or a cell.

    Parameters
    ----------
    model
        What is trained.
    datamodule
        Its data.
    seed
        Of split, order and masks.
    resumed
        Whether it goes on from a checkpoint.
    train
        Arguments of ``train`` that change the result.

    Returns
    -------
    Seed, data, arguments and split, which :func:`scr2mae.train.record.seal` takes a hash of.
    """
    cells, split = (getattr(datamodule, name, None) for name in ("cells", "split"))
    data = {"datamodule": type(datamodule).__qualname__}
    arguments = {
        "model": {**model.init_params_, "mask_ratio": model.mask_ratio, "curriculum": model.curriculum},
        "setup": model.registry["setup_args"],
        "train": train,
    }
    return {
        "seed": seed,
        "data": data if cells is None else record.describe_data(cells, model.spec),
        "arguments": record.plain(arguments),
        "split": None if split is None else record.describe_split(split),
        "resumed": resumed,
    }


def restore(
    cls: type[R2MAEModel],
    tensors: dict[str, Tensor],
    document: dict[str, Any],
    *,
    adata: AnnData | None,
    place: str | Path,
) -> R2MAEModel:
    """Make a model of what :func:`describe` said of it.

    Parameters
    ----------
    cls
        Its class.
    tensors, document
        As :func:`scr2mae.io.read_model` returns them.
    adata
        Data to attach, or None.
    place
        Where they come from, for messages.

    Raises
    ------
    ValueError
        If class, genes or weights do not fit.
    """
    if document["model"] != cls.__name__:
        raise ValueError(f"{place} holds a {document['model']}, not a {cls.__name__}.")
    registry = document["registry"]
    if adata is not None:
        _attach(cls, adata, registry)
    model = cls(adata, registry=None if adata is not None else registry, **document["init_params"])
    model.mask_ratio = io.decode_schedule(document["mask_ratio"])
    model.curriculum = Curriculum.from_dict(document["curriculum"])
    model.n_new_categories_ = document["n_new_categories"]
    model.module = model.build_module()
    weights = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    try:
        model.module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights in {place} do not fit its metadata: {error}") from error
    model.is_trained_ = document["is_trained"]
    model.history_ = history.decode(document["history"])
    model.runs_ = list(document.get("runs", []))  # folders of the first versions have none
    about = document["split"]
    if about is not None and adata is not None and adata.n_obs != _n_obs(registry):
        logger.info(
            "The data differ from those of training (%d cells), so its split is left out.", _n_obs(registry)
        )
        about = None
    if about is not None:
        train, validation, test = (tensors[f"split.{side}"].numpy() for side in _SIDES)
        model.keep_split(
            Split(train, validation, test, key=about["key"], groups=about["groups"], seed=about["seed"])
        )
    return model


def _n_obs(registry: dict[str, Any]) -> int:
    return int(registry["field_registries"]["X"]["state_registry"]["n_obs"])


def _attach(cls: type[R2MAEModel], adata: AnnData, registry: dict[str, Any]) -> None:
    """Register data with the setup of a saved model; genes must be the same, in the same order."""
    make_actual(adata)
    spec = CellSpec.from_registry(registry)
    names = adata.var_names.to_numpy().astype(str)
    if not np.array_equal(names, spec.var_names):
        n_shared = len(set(names) & set(spec.var_names))
        raise ValueError(
            f"The genes of adata are not the model's: {n_shared} of the model's {len(spec.var_names)} are there, or the "
            f"order differs. Call {cls.__name__}.prepare_query_anndata(adata, dir_path) first, or load without adata."
        )
    read_cells(adata, spec)
    cls.setup_anndata(adata, **registry["setup_args"], source_registry=registry)
