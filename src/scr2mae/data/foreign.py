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
        Its ``n_vars``, ``n_batch`` and ``batch_labels`` are read, which those of ``scvi.dataloaders`` have.
    spec
        What the model reads of an AnnData.

    Raises
    ------
    ValueError
        If the number of genes, the number of batches or their order is another.
    """
    n_vars = getattr(datamodule, "n_vars", None)
    if n_vars is not None and int(n_vars) != len(spec.var_names):
        raise ValueError(
            f"The data module yields {int(n_vars)} genes, but the model has {len(spec.var_names)}; "
            "give it the model's genes, in the model's order."
        )
    batch_key, known = spec.categorical[0]
    n_batch, labels = (getattr(datamodule, name, None) for name in ("n_batch", "batch_labels"))
    if n_batch is not None and int(n_batch) != len(known):
        raise ValueError(
            f"The data module knows {int(n_batch)} batch(es), the model {len(known)} "
            f"(column {batch_key!r} of obs); name the same column to both."
        )
    # A single batch is number 0 whatever its name.
    if (
        labels is not None
        and len(known) > 1
        and not np.array_equal(np.asarray(labels, dtype=str), known.astype(str))
    ):
        raise ValueError(
            f"The data module numbers the batches {np.asarray(labels).tolist()}, the model {known.tolist()}; "
            "they must be the same, in the same order."
        )
