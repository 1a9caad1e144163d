"""State of a model as saved in a folder, and validation of a state read from a file."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scvi.data import AnnDataManager

from scr2mae._utils.model_folder import FolderFormat
from scr2mae.data import CellSpec, Split, split_cells
from scr2mae.data.splits import SIDES
from scr2mae.masking import as_ratio_schedule, schedule_from_state
from scr2mae.model.alignment import Alignment
from scr2mae.nn.curriculum import Curriculum
from scr2mae.train.provenance import History, history_from_state

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = ["FORMAT", "CheckedState", "ModelState", "check_state", "n_obs", "own_entries"]

_ENTRIES = (
    *("curriculum", "history", "init_params", "is_trained", "mask_ratio", "model", "n_new_categories"),
    *("registry", "split", "weights"),
)
FORMAT = FolderFormat("scr2mae.model", "scr2mae model", index="model.json", required=frozenset(_ENTRIES))
"""Model folders of cells: ``model.json``, ``weights-<sha256>.safetensors`` and ``run.json``."""

_REGISTRY_ENTRIES = ("scvi_version", "model_name", "setup_args", "setup_method_name", "_scvi_uuid")
_FIELD_ENTRIES = ("data_registry", "state_registry", "summary_stats")
_SIZES = ("n_hidden", "n_latent", "n_layers", "n_layers_decoder", "seed")


@dataclass(frozen=True)
class ModelState:
    """Tensors of a model (weights, indices of the split) and all else about it as JSON-able values and arrays."""

    tensors: dict[str, Tensor]
    document: dict[str, Any]


def own_entries(registry: dict[str, Any]) -> dict[str, Any]:
    """Return a registry without the entries of other programs.

    Asking scvi-tools for a field that was not registered, as its SOLO does, leaves an empty entry.
    """
    fields = {
        key: entry for key, entry in registry["field_registries"].items() if set(_FIELD_ENTRIES) <= set(entry)
    }
    known = {key: value for key, value in registry.items() if key in _REGISTRY_ENTRIES}
    return {**known, "field_registries": fields}


@dataclass(frozen=True)
class CheckedState:
    """Parts of a saved model that have been checked against one another."""

    weights: dict[str, Tensor]
    mask_ratio: Any
    curriculum: Curriculum | None
    split: Split | None
    history: History
    runs: list[dict[str, Any]]
    alignment: Alignment | None


def check_state(
    state: ModelState,
    *,
    setup_arguments: Collection[str],
    build: Callable[..., torch.nn.Module],
    place: str | Path,
) -> CheckedState:
    """Check a state before allocating anything of the size that it declares.

    ``build(spec, init_params, curriculum=, n_new_categories=)`` makes the network; ``place`` names the origin
    in messages.
    """
    with _name_place(place):
        return _checked(state.tensors, state.document, setup_arguments, build, place)


@contextmanager
def _name_place(place: str | Path) -> Iterator[None]:
    """Turn errors from values of the wrong kind into one that names the folder."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"The metadata in {place} are damaged: {error!r}. Restore the folder from a copy."
        ) from error


def _checked(
    tensors: dict[str, Tensor],
    document: dict[str, Any],
    setup_arguments: Collection[str],
    build: Callable[..., torch.nn.Module],
    place: str | Path,
) -> CheckedState:
    """Check a state and return what a model is built from."""
    registry, n_new = own_entries(document["registry"]), document["n_new_categories"]
    init_params = document["init_params"]
    is_named = set(init_params) - {"encoder"} == set(_SIZES)
    if not is_named or any(type(init_params[name]) is not int for name in _SIZES):
        raise ValueError(f"The widths of the network in {place} are damaged: got {init_params}.")
    init_params.setdefault("encoder", "mlp")  # folders of the first versions have no other
    spec = CellSpec.from_registry(registry)
    AnnDataManager._get_summary_stats_from_registry(registry)
    if unknown := set(registry["setup_args"]) - set(setup_arguments):
        raise ValueError(f"{place} was set up with {sorted(unknown)}, which this version does not know.")
    n_known = [len(categories) for _, categories in spec.categorical]
    if n_new is not None and not all(0 <= n < of for n, of in zip(n_new, n_known, strict=False)):
        raise ValueError(f"{place} says that {n_new} of {n_known} categories are new; that cannot be.")
    if type(document["is_trained"]) is not bool:
        raise ValueError(f"{place} does not say whether the model was trained.")
    curriculum = Curriculum.from_dict(document["curriculum"])
    weights = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    sizes = {name: init_params[name] for name in _SIZES}
    n_layers = sizes["n_layers"] + sizes["n_layers_decoder"]
    smallest = min(size for name, size in sizes.items() if name not in ("seed", "n_layers_decoder"))
    can_be = smallest >= 1 and sizes["n_layers_decoder"] >= 0 and n_layers <= len(tensors)
    expected: dict[str, Tensor] = {}
    if can_be:
        try:
            with torch.device("meta"):  # takes no memory
                network = build(spec, init_params, curriculum=curriculum, n_new_categories=n_new)
            expected = network.state_dict()
        except (RuntimeError, ValueError):  # sizes beyond any address
            pass
    for name, value in (("standardize.mean", 0.0), ("standardize.factor", 1.0)):
        if name in expected and name not in weights:  # folders of models that did not standardize
            weights[name] = torch.full(tuple(expected[name].shape), value)
    _check_weights(weights, expected, place)
    mask_ratio = schedule_from_state(document["mask_ratio"])
    if mask_ratio is not None:
        (as_ratio_schedule if curriculum is None else curriculum.ratio_schedule)(mask_ratio)
    if any(len(curve["at"]) != len(curve["values"]) for curve in document["history"].values()):
        raise ValueError(f"The curves of the training in {place} are damaged: points without a value.")
    split = None if document["split"] is None else _split(tensors, document, place)
    runs = document.get("runs", [])  # folders of the first versions have none
    if not isinstance(runs, list) or any(not isinstance(run, dict) for run in runs):
        raise ValueError(f"The record of runs in {place} is damaged: it is not a list of runs.")
    history = history_from_state(document["history"])
    aligned = {
        name.removeprefix("alignment."): t for name, t in tensors.items() if name.startswith("alignment.")
    }
    alignment = None  # folders of the first versions, and models without batches
    if aligned:
        alignment = Alignment.from_state(aligned, n_covariates=len(n_known))
    return CheckedState(weights, mask_ratio, curriculum, split, history, runs, alignment)


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor], place: str | Path) -> None:
    """Raise unless names, types and shapes of the weights are those of the network."""

    def kind(tensors: dict[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "nothing"
        return f"{str(tensors[name].dtype).removeprefix('torch.')} {tuple(tensors[name].shape)}"

    names = sorted({*weights, *expected})
    wrong = [name for name in names if kind(weights, name) != kind(expected, name)]
    if wrong or not expected:
        shown = "; ".join(
            f"{name} is {kind(weights, name)}, expected {kind(expected, name)}" for name in wrong[:3]
        )
        raise ValueError(f"The weights in {place} do not fit its metadata, {len(wrong)} in all: {shown}.")


def _split(tensors: dict[str, Tensor], document: dict[str, Any], place: str | Path) -> Split:
    """Check the saved split and return it."""
    about = document["split"]
    sides = [tensors[f"split.{side}"] for side in SIDES]
    if any(side.dtype != torch.int64 or side.dim() != 1 for side in sides):
        raise ValueError(f"The split in {place} is damaged: indices of cells are lists of integers.")
    train, validation, test = (side.numpy() for side in sides)
    try:
        split_cells(n_obs(document), external_indexing=[train, validation, test])
    except ValueError as error:
        raise ValueError(f"The split in {place} is damaged: {error}") from error
    return Split(train, validation, test, key=about["key"], groups=about["groups"], seed=about["seed"])


def n_obs(document: dict[str, Any]) -> int:
    """Return the number of cells that a model was set up with."""
    return int(document["registry"]["field_registries"]["X"]["state_registry"]["n_obs"])
