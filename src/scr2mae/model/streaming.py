"""Mini-batches of cells through a trained network, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.compat import autocast
from scr2mae._utils.progress import progress
from scr2mae.data import CellLoader
from scr2mae.data.loaders import check_data_module, collate_dense, collate_sparse
from scr2mae.nn.layers import SparseRows
from scr2mae.nn.linear_mlp import LinearMLPModule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from scr2mae.data import Cells, CellSpec
    from scr2mae.nn.module import R2MAEModule

__all__ = ["BATCH_SIZE", "cell_indices", "embed", "gathered", "loader_batches", "n_rows", "stream"]

BATCH_SIZE = 2048
"""Cells per mini-batch during inference, enough to keep matrix products busy."""

_SPARSE = 0.15  # share of non-zeros up to which multiplying only them is faster than a dense product


def cell_indices(indices: Any, n_obs: int) -> np.ndarray | None:
    """Turn ``indices=`` (integers, negative ones from the end, or a boolean mask) into integers >= 0; None for all."""
    if indices is None:
        return None
    indices = np.asarray(indices)
    if indices.dtype == bool:
        if indices.shape != (n_obs,):
            raise ValueError(
                f"A boolean indices= must have one entry per cell ({n_obs}), got shape {indices.shape}."
            )
        return np.flatnonzero(indices)
    if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
        raise TypeError(
            f"indices must be a list of integers or a boolean mask, got {indices.dtype} of shape {indices.shape}."
        )
    if len(indices) and (indices.min() < -n_obs or indices.max() >= n_obs):
        raise IndexError(
            f"indices must lie within the {n_obs} cells, got {indices.min()} to {indices.max()}."
        )
    return indices.astype(np.int64) % max(n_obs, 1)


def n_rows(cells: Cells, indices: np.ndarray | None) -> int:
    """Return the number of cells selected by ``indices``."""
    return cells.n_obs if indices is None else len(indices)


def stream(
    module: R2MAEModule,
    cells: Cells,
    indices: np.ndarray | None,
    batch_size: int | None,
    collate: Any = collate_dense,
    *,
    desc: str,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield mini-batches on the module's device, with the rows of the result that they fill."""
    start = 0
    with progress(total=n_rows(cells, indices), desc=desc, unit="cells", unit_scale=True) as bar:
        for tensors in CellLoader(
            cells, indices, batch_size=BATCH_SIZE if batch_size is None else batch_size, collate=collate
        ):
            stop = start + len(tensors[REGISTRY_KEYS.BATCH_KEY])
            yield slice(start, stop), {key: value.to(module.device) for key, value in tensors.items()}
            bar.update(stop - start)
            start = stop


def loader_batches(module: R2MAEModule, dataloader: Any, spec: CellSpec) -> Iterator[dict[str, Tensor]]:
    """Yield the mini-batches of a caller on the module's device; raise for those that do not fit the model."""
    check_data_module(dataloader, spec)
    n_batches = len(spec.categorical[0][1])
    is_empty = True
    for tensors in dataloader:
        is_empty = False
        if not isinstance(tensors, Mapping) or REGISTRY_KEYS.X_KEY not in tensors:
            found = list(tensors) if isinstance(tensors, Mapping) else type(tensors).__name__
            raise ValueError(
                f"dataloader= must yield dicts with scvi-tools' keys, {REGISTRY_KEYS.X_KEY!r} and more; got {found}."
            )
        n_vars = tensors[REGISTRY_KEYS.X_KEY].shape[-1]
        if n_vars != module.n_vars:
            raise ValueError(
                f"The dataloader yields {n_vars} genes, but the model has {module.n_vars}; give it the model's genes, in the "
                "model's order."
            )
        batch = tensors.get(REGISTRY_KEYS.BATCH_KEY)
        if batch is not None and (batch.min() < 0 or batch.max() >= n_batches):
            raise ValueError(
                f"The dataloader yields batch codes from {int(batch.min())} to {int(batch.max())}, the model has {n_batches}."
            )
        wanted = {
            REGISTRY_KEYS.CAT_COVS_KEY: len(spec.categorical) > 1,
            REGISTRY_KEYS.CONT_COVS_KEY: bool(spec.continuous),
        }
        if missing := [key for key, needed in wanted.items() if needed and tensors.get(key) is None]:
            raise ValueError(f"The dataloader lacks {missing}, which the model was set up with.")
        moved = {
            key: value.to_dense().to(module.device)
            if value.layout != torch.strided
            else value.to(module.device)
            for key, value in tensors.items()
            if isinstance(value, torch.Tensor)
        }
        everything: dict[str, Any] = {REGISTRY_KEYS.BATCH_KEY: None, **moved}
        yield everything
    if is_empty:
        raise ValueError("dataloader= yields no mini-batch; an iterator can be used only once.")


def embed(
    module: R2MAEModule,
    cells: Cells,
    indices: np.ndarray | None,
    batch_size: int | None,
    precision: str | int | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield embeddings (float32) with their rows; on a CPU the first layer skips zero counts if there are many.

    ``precision`` is that of the layers before the last. The last is always float32, so that rounding errors are small
    relative to the spread of the embedding, not to its mean.
    """
    autocast(precision, module.device)  # raises for a precision that no network computes in
    n_obs, n_vars = cells.counts.shape
    is_sparse = module.device.type == "cpu" and cells.counts.nnz <= _SPARSE * n_obs * n_vars
    encode = _encode_sparse if is_sparse else _encode_dense
    for rows, z in encode(module, cells, indices, batch_size, precision):
        yield rows, module.embedding(z)


def gathered(embedded: Iterable[tuple[slice, Tensor]], n: int) -> Iterator[tuple[slice, Tensor]]:
    """Join successive mini-batches until they have ``n`` cells."""
    waiting: list[tuple[slice, Tensor]] = []
    for each in embedded:
        waiting.append(each)
        if each[0].stop - waiting[0][0].start >= n:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(waiting: list[tuple[slice, Tensor]]) -> tuple[slice, Tensor]:
    return slice(waiting[0][0].start, waiting[-1][0].stop), torch.cat([z for _, z in waiting])


def _encode_dense(
    module: R2MAEModule, cells: Cells, indices: np.ndarray | None, batch_size: int | None, precision: Any
) -> Iterator[tuple[slice, Tensor]]:
    """Yield positions and latent vectors of mini-batches, from dense counts."""
    for rows, tensors in stream(module, cells, indices, batch_size, desc="Embedding"):
        inputs = module._get_inference_input(tensors)
        if isinstance(module, LinearMLPModule):  # products with few columns, in float32
            yield rows, module.inference(**inputs)["z"]
            continue
        counts = inputs.pop("counts")
        with autocast(precision, module.device):
            h = module.encoder(counts.float().log1p(), **inputs)
        yield rows, module.to_latent(h.float())


def _encode_sparse(
    module: R2MAEModule, cells: Cells, indices: np.ndarray | None, batch_size: int | None, precision: Any
) -> Iterator[tuple[slice, Tensor]]:
    """Yield positions and latent vectors of mini-batches, from the non-zero counts alone."""
    if isinstance(module, LinearMLPModule):
        encode = module.embed_sparse
    else:
        encode = partial(_embed_logged, module, _reduced_table(module, precision), precision)
    for rows, tensors in stream(module, cells, indices, batch_size, collate_sparse, desc="Embedding"):
        counts = SparseRows(tensors["columns"], tensors["starts"], tensors["values"])
        yield rows, encode(counts, tensors)


def _reduced_table(module: R2MAEModule, precision: Any) -> Tensor:
    """Return the first layer's weights, rounded as autocast would."""
    with autocast(precision, module.device):
        is_reduced = torch.is_autocast_enabled(module.device.type)
        dtype = torch.get_autocast_dtype(module.device.type) if is_reduced else torch.float32
    return module.encoder.table(dtype)


def _embed_logged(
    module: R2MAEModule, table: Tensor, precision: Any, counts: SparseRows, tensors: dict[str, Tensor]
) -> Tensor:
    logged = counts._replace(values=counts.values.log1p())
    with autocast(precision, module.device):
        h = module.encoder.forward_sparse(logged, table, **module._covariates(tensors))
    return module.to_latent(h.float())
