"""Data modules that are not ours: whether their genes and batches fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scr2mae.data.cells import CellSpec

__all__ = ["check_data_module"]


def check_data_module(datamodule: Any, spec: CellSpec) -> None:
    """Refuse a data module whose mini-batches a model would misread; what it does not say is not checked.

    Parameters
    ----------
    datamodule
        Its ``n_vars``, ``n_batch``, ``batch_encoder`` or ``batch_labels``, and ``extra_categorical_covs`` and
        ``extra_continuous_covs`` are read, which those of ``scvi.dataloaders`` have.
    spec
        What the model reads of an AnnData.

    Raises
    ------
    ValueError
        If the number of genes, the batches, the further covariates or the order of their categories is another.
    """
    n_vars = getattr(datamodule, "n_vars", None)
    if n_vars is not None and int(n_vars) != len(spec.var_names):
        raise ValueError(
            f"The data module yields {int(n_vars)} genes, but the model has {len(spec.var_names)}; "
            "give it the model's genes, in the model's order."
        )
    batch_key, known = spec.categorical[0]
    n_batch, labels = getattr(datamodule, "n_batch", None), _batch_labels(datamodule)
    if n_batch is not None and int(n_batch) != len(known):
        raise ValueError(
            f"The data module knows {int(n_batch)} batch(es), the model {len(known)} "
            f"(column {batch_key!r} of obs); name the same column to both."
        )
    # A single batch is number 0 whatever its name.
    if labels is not None and len(known) > 1:
        _check_names("the batches", labels, known)
    _check_covariates(datamodule, spec)


def _batch_labels(datamodule: Any) -> np.ndarray | None:
    """Names of the batches in the order in which a data module numbers them."""
    # What TileDB-SOMA's calls batch_labels is in the order of the cells; its encoder sorts them.
    encoder = getattr(datamodule, "batch_encoder", None)
    labels = getattr(encoder, "classes_", getattr(datamodule, "batch_labels", None))
    if isinstance(labels, dict):  # Lamin's: the number of each name
        labels = sorted(labels, key=labels.__getitem__)
    return None if labels is None else np.asarray(labels)


def _check_covariates(datamodule: Any, spec: CellSpec) -> None:
    """Refuse further covariates that are not the model's, as far as ``scvi.dataloaders`` tells."""
    further = spec.categorical[1:]
    said = getattr(datamodule, "extra_categorical_covs", {}).get("state_registry")
    if said is not None:
        names = list(said.get("mapping", {}).values())
        sizes, wanted = [len(each) for each in names], [len(known) for _, known in further]
        if sizes != wanted:
            raise ValueError(
                f"The data module yields categorical covariates of {sizes} categories, the model has {wanted} "
                f"({[key for key, _ in further]}). TileDB-SOMA's joins several columns into one: register them joined."
            )
        for each, (key, known) in zip(names, further, strict=True):
            if np.asarray(each).dtype.kind not in "iu":  # Lamin's names no categories
                _check_names(f"the categories of {key!r}", np.asarray(each), known)
    said = getattr(datamodule, "extra_continuous_covs", {}).get("state_registry")
    if said is not None and list(said.get("columns", [])) != list(spec.continuous):
        raise ValueError(
            f"The data module yields the continuous covariates {list(said.get('columns', []))}, the model has "
            f"{list(spec.continuous)}; name the same columns to both, in the same order."
        )


def _check_names(what: str, theirs: np.ndarray, known: np.ndarray) -> None:
    if not np.array_equal(theirs.astype(str), known.astype(str)):
        raise ValueError(
            f"The data module numbers {what} {theirs.tolist()}, the model {known.tolist()}; "
            "they must be the same, in the same order."
        )
