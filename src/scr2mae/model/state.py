"""What of a model is saved, and how a model is made of it again."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.data import AnnDataManager

from scr2mae._utils.model_folder import FolderFormat
from scr2mae.data import CellSpec, Split, read_cells, split_cells
from scr2mae.data.setup import make_actual
from scr2mae.masking import as_ratio_schedule, schedule_from_state, schedule_to_state
from scr2mae.nn.curriculum import Curriculum
from scr2mae.train import provenance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from torch import Tensor

    from scr2mae.model import R2MAEModel

__all__ = ["FORMAT", "from_state", "to_state"]

logger = logging.getLogger(__name__)

FORMAT = FolderFormat(
    "scr2mae.model",
    "scr2mae model",
    index="model.json",
    required=frozenset(
        {
            *(
                "curriculum",
                "history",
                "init_params",
                "is_trained",
                "mask_ratio",
                "model",
                "n_new_categories",
            ),
            *("registry", "split", "weights"),
        }
    ),
)
"""Model folders of cells: ``model.json``, ``weights-<sha256>.safetensors`` and ``run.json``."""

_SIDES = ("train", "validation", "test")
_SIZES = ("n_hidden", "n_latent", "n_layers", "n_layers_decoder", "seed")


def to_state(model: R2MAEModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a model (weights, split) and everything else about it."""
    tensors = {f"module.{name}": value for name, value in model.module.state_dict().items()}
    split = model.split_
    for side in _SIDES if split is not None else ():
        tensors[f"split.{side}"] = torch.from_numpy(getattr(split, side))
    mask_ratio = schedule_to_state(model.mask_ratio)
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
        "history": provenance.history_to_state(model.history_),
        "runs": model.runs_,
        "registry": model.registry,
    }


def from_state(
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
        As :func:`scr2mae._utils.model_folder.read_folder` returns them.
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
    with _damage_has_a_place(place):
        decoded = _decode(cls, tensors, document, place)
    registry = document["registry"]
    if adata is not None:
        _attach(cls, adata, registry)
    model = cls(adata, registry=None if adata is not None else registry, **document["init_params"])
    model.mask_ratio, model.curriculum = decoded.mask_ratio, decoded.curriculum
    model.n_new_categories_ = document["n_new_categories"]
    model.module = model.build_module()
    model.module.load_state_dict(decoded.weights)
    model.is_trained_, model.history_ = document["is_trained"], decoded.history
    model.runs_ = decoded.runs
    split = decoded.split
    if split is not None and adata is not None and adata.n_obs != _n_obs(registry):
        logger.info(
            "The data differ from those of training (%d cells), so its split is left out.", _n_obs(registry)
        )
        split = None
    if split is not None:
        model.keep_split(split)
    return model


@dataclass(frozen=True)
class _Decoded:
    """Parts of a saved model that have been checked against one another."""

    weights: dict[str, Tensor]
    mask_ratio: Any
    curriculum: Curriculum | None
    split: Split | None
    history: provenance.History
    runs: list[dict[str, Any]]


@contextmanager
def _damage_has_a_place(place: str | Path) -> Iterator[None]:
    """Name the folder where metadata are of another kind than a model's."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"The metadata in {place} are damaged: {error!r}. Restore the folder from a copy."
        ) from error


def _decode(
    cls: type[R2MAEModel], tensors: dict[str, Tensor], document: dict[str, Any], place: str | Path
) -> _Decoded:
    """Check all that a folder says before anything of the size that it states is made."""
    registry, sizes, n_new = document["registry"], document["init_params"], document["n_new_categories"]
    if set(sizes) != set(_SIZES) or any(type(size) is not int for size in sizes.values()):
        raise ValueError(f"The widths of the network in {place} are damaged: got {sizes}.")
    spec = CellSpec.from_registry(registry)
    AnnDataManager._get_summary_stats_from_registry(registry)
    if unknown := set(registry["setup_args"]) - _setup_arguments(cls):
        raise ValueError(f"{place} was set up with {sorted(unknown)}, which this version does not know.")
    n_known = [len(categories) for _, categories in spec.categorical]
    if n_new is not None and not all(0 <= n < of for n, of in zip(n_new, n_known, strict=False)):
        raise ValueError(f"{place} says that {n_new} of {n_known} categories are new; that cannot be.")
    if type(document["is_trained"]) is not bool:
        raise ValueError(f"{place} does not say whether the model was trained.")
    curriculum = Curriculum.from_dict(document["curriculum"])
    weights = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    wanted = _state_wanted(cls, spec, sizes, curriculum, n_new, n_tensors=len(tensors))
    _check_state(weights, wanted, place)
    mask_ratio = schedule_from_state(document["mask_ratio"])
    if mask_ratio is not None:
        (as_ratio_schedule if curriculum is None else curriculum.ratio_schedule)(mask_ratio)
    if any(len(curve["at"]) != len(curve["values"]) for curve in document["history"].values()):
        raise ValueError(f"The curves of the training in {place} are damaged: points without a value.")
    split = None if document["split"] is None else _decode_split(tensors, document, place)
    runs = document.get("runs", [])  # folders of the first versions have none
    if not isinstance(runs, list) or any(not isinstance(run, dict) for run in runs):
        raise ValueError(f"The record of runs in {place} is damaged: it is no list of runs.")
    return _Decoded(
        weights, mask_ratio, curriculum, split, provenance.history_from_state(document["history"]), runs
    )


def _setup_arguments(cls: type[R2MAEModel]) -> set[str]:
    return set(signature(cls.setup_anndata).parameters) - {"adata", "kwargs"}


def _state_wanted(
    cls: type[R2MAEModel],
    spec: CellSpec,
    sizes: dict[str, int],
    curriculum: Curriculum | None,
    n_new_categories: list[int] | None,
    *,
    n_tensors: int,
) -> dict[str, Tensor]:
    """Weights of the network that metadata describe, without memory; none if it cannot be."""
    n_layers = sizes["n_layers"] + sizes["n_layers_decoder"]
    if min(size for name, size in sizes.items() if name != "seed") < 1 or n_layers > n_tensors:
        return {}
    try:
        with torch.device("meta"):
            module = cls.module_for(spec, sizes, curriculum=curriculum, n_new_categories=n_new_categories)
    except (RuntimeError, ValueError):  # sizes beyond any address
        return {}
    return module.state_dict()


def _check_state(weights: dict[str, Tensor], wanted: dict[str, Tensor], place: str | Path) -> None:
    def described(tensors: dict[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "nothing"
        return f"{str(tensors[name].dtype).removeprefix('torch.')} {tuple(tensors[name].shape)}"

    names = sorted({*weights, *wanted})
    wrong = [name for name in names if described(weights, name) != described(wanted, name)]
    if wrong or not wanted:
        shown = "; ".join(
            f"{name} is {described(weights, name)}, expected {described(wanted, name)}" for name in wrong[:3]
        )
        raise ValueError(f"The weights in {place} do not fit its metadata, {len(wrong)} in all: {shown}.")


def _decode_split(tensors: dict[str, Tensor], document: dict[str, Any], place: str | Path) -> Split:
    about, n_obs = document["split"], _n_obs(document["registry"])
    sides = [tensors[f"split.{side}"] for side in _SIDES]
    if any(side.dtype != torch.int64 or side.dim() != 1 for side in sides):
        raise ValueError(f"The split in {place} is damaged: positions of cells are whole numbers in a row.")
    train, validation, test = (side.numpy() for side in sides)
    try:
        split_cells(n_obs, external_indexing=[train, validation, test])
    except ValueError as error:
        raise ValueError(f"The split in {place} is damaged: {error}") from error
    return Split(train, validation, test, key=about["key"], groups=about["groups"], seed=about["seed"])


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
