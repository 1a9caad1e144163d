"""Convert names of genes and batches to indices and codes, and divide genes into folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scr2mae.masking import draw_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scr2mae.data import CellSpec

__all__ = ["batch_codes", "gene_folds", "gene_indices"]


def gene_indices(spec: CellSpec, gene_list: str | Sequence[str] | None) -> np.ndarray:
    """Return the indices of genes; None means all."""
    names = pd.Index(spec.var_names)
    if gene_list is None:
        return np.arange(len(names))
    given: Any = gene_list
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    gene_list = list(given) if is_list else [given]
    if wrong := [gene for gene in gene_list if not isinstance(gene, str)]:
        raise TypeError(
            f"gene_list takes names of genes, got {wrong[0]!r}; choose them: model.spec.var_names[...]."
        )
    found = names.get_indexer(pd.Index(list(gene_list)))
    if (found < 0).any():
        absent = [gene for gene, at in zip(gene_list, found, strict=True) if at < 0]
        raise KeyError(
            f"The model does not know the genes {absent[:5]}; its {len(names)} are in model.spec.var_names."
        )
    return found


def gene_folds(measured: np.ndarray, n_folds: int, seed: int) -> Iterator[np.ndarray]:
    """Divide the measured genes into random parts of equal size, each boolean, (n_vars,)."""
    left = np.flatnonzero(measured)
    for k in range(min(n_folds, len(left))):
        is_last = k == n_folds - 1 or len(left) < 2
        chosen = left if is_last else left[draw_mask(len(left), 1 / (n_folds - k), seed=seed, step=k).numpy()]
        part = np.zeros(len(measured), dtype=bool)
        part[chosen] = True
        left = np.setdiff1d(left, chosen)
        if part.any():
            yield part


def batch_codes(spec: CellSpec, transform_batch: Any) -> list[int | None]:
    """Return the codes of batches; None stands for a cell's own."""
    if transform_batch is None:
        return [None]
    known = spec.categorical[0][1].tolist()
    wanted = transform_batch if isinstance(transform_batch, (list, tuple, np.ndarray)) else [transform_batch]
    if unknown := [batch for batch in wanted if batch not in known]:
        raise KeyError(f"No batch {unknown[:5]}; the model knows {known[:20]}.")
    return [known.index(batch) for batch in wanted]
