"""What a trained network says of cells, streamed in mini-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS

from scr2mae._utils.compat import autocast
from scr2mae._utils.memory import check_array
from scr2mae._utils.progress import progress
from scr2mae.data import CellLoader
from scr2mae.data.loaders import collate_dense, collate_sparse
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson
from scr2mae.nn.layers import SparseRows
from scr2mae.nn.likelihood import log_mean_of_counts
from scr2mae.nn.module import MEASURED_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from scr2mae.data import Cells, CellSpec
    from scr2mae.nn.module import R2MAEModule

__all__ = [
    "batch_codes",
    "curriculum_weights",
    "gene_positions",
    "latent",
    "masked_reconstruction",
    "normalized_expression",
    "positions",
    "reconstruction_error",
]

BATCH_SIZE = 2048
"""Cells a mini-batch where nothing is learned: large enough to keep matrix products busy."""

_SPARSE = 0.15  # share of non-zeros up to which multiplying them alone is faster than a dense product


def positions(indices: Any, n_obs: int) -> np.ndarray | None:
    """Turn ``indices=`` (positions, negative ones from the end, or a boolean mask) into positions; None for all.

    Raises
    ------
    IndexError
        If a position lies outside.
    TypeError
        If they are neither whole numbers nor booleans.
    ValueError
        If a boolean mask has another length.
    """
    if indices is None:
        return None
    where = np.asarray(indices)
    if where.dtype == bool:
        if where.shape != (n_obs,):
            raise ValueError(
                f"A boolean indices= must have one entry a cell ({n_obs}), got shape {where.shape}."
            )
        return np.flatnonzero(where)
    if where.ndim != 1 or (len(where) and where.dtype.kind not in "iu"):
        raise TypeError(
            f"indices must be whole numbers in a row or a boolean mask, got {where.dtype} of shape {where.shape}."
        )
    if len(where) and (where.min() < -n_obs or where.max() >= n_obs):
        raise IndexError(f"indices must lie within the {n_obs} cells, got {where.min()} to {where.max()}.")
    return where.astype(np.int64) % max(n_obs, 1)


def gene_positions(spec: CellSpec, gene_list: Sequence[str] | None) -> np.ndarray:
    """Turn gene names into positions; None means all.

    Raises
    ------
    KeyError
        If the model does not know a gene.
    """
    names = pd.Index(spec.var_names)
    if gene_list is None:
        return np.arange(len(names))
    found = names.get_indexer(pd.Index(list(gene_list)))
    if (found < 0).any():
        absent = [gene for gene, at in zip(gene_list, found, strict=True) if at < 0]
        raise KeyError(
            f"The model does not know the genes {absent[:5]}; its {len(names)} are in model.spec.var_names."
        )
    return found


def batch_codes(spec: CellSpec, transform_batch: Any) -> list[int | None]:
    """Turn ``transform_batch=`` (None, a batch or several) into codes, None standing for a cell's own.

    Raises
    ------
    KeyError
        If the model does not know a batch.
    """
    if transform_batch is None:
        return [None]
    known = spec.categorical[0][1].tolist()
    wanted = transform_batch if isinstance(transform_batch, (list, tuple, np.ndarray)) else [transform_batch]
    unknown = [batch for batch in wanted if batch not in known]
    if unknown:
        raise KeyError(f"No batch {unknown[:5]}; the model knows {known[:20]}.")
    return [known.index(batch) for batch in wanted]


def _batches(
    module: R2MAEModule,
    cells: Cells,
    indices: np.ndarray | None,
    batch_size: int | None,
    collate: Any = collate_dense,
    *,
    desc: str,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Mini-batches on the module's device, with the rows of the result that they fill."""
    start = 0
    with progress(total=_n_rows(cells, indices), desc=desc, unit="cells", unit_scale=True) as bar:
        for tensors in CellLoader(cells, indices, batch_size=batch_size or BATCH_SIZE, collate=collate):
            stop = start + len(tensors[REGISTRY_KEYS.BATCH_KEY])
            yield slice(start, stop), {key: value.to(module.device) for key, value in tensors.items()}
            bar.update(stop - start)
            start = stop


def _n_rows(cells: Cells, indices: np.ndarray | None) -> int:
    return cells.n_obs if indices is None else len(indices)


@torch.inference_mode()
def latent(
    module: R2MAEModule,
    cells: Cells,
    *,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
    precision: str | int | None = "32-true",
    out: Any = None,
) -> Any:
    """Embed cells; float32, shape (n_obs, n_latent).

    On a CPU the first layer multiplies the non-zero counts alone where they are few.

    Parameters
    ----------
    module
        The network.
    cells
        Cells to read.
    indices, batch_size
        Which cells, and how many at a time.
    precision
        Of the layers before the last, which is always float32: the embedding's digits are those of its spread, not of
        its mean.
    out
        What receives the rows, by slices: an array in memory or on disk; None for a new one.

    Returns
    -------
    ``out``.
    """
    module.eval()
    wanted = (_n_rows(cells, indices), module.to_latent.out_features)
    if out is None:
        advice = (
            "pass out=, an array of zarr or HDF5 on disk, or embed some of the cells at a time by indices="
        )
        check_array(wanted, np.float32, "The embedding", advice=advice)
        out = np.empty(wanted, dtype=np.float32)
    elif tuple(out.shape) != wanted:
        raise ValueError(f"out must have shape {wanted}, cells by latent dimensions; got {tuple(out.shape)}.")
    embed = _embed_non_zeros if _is_sparse(module, cells) else _embed_dense
    for rows, z in embed(module, cells, indices, batch_size, precision):
        out[rows] = z.cpu().numpy()
    return out


def _is_sparse(module: R2MAEModule, cells: Cells) -> bool:
    n_obs, n_vars = cells.counts.shape
    return module.device.type == "cpu" and cells.counts.nnz <= _SPARSE * n_obs * n_vars


def _embed_dense(
    module: R2MAEModule, cells: Cells, indices: np.ndarray | None, batch_size: int | None, precision: Any
) -> Iterator[tuple[slice, Tensor]]:
    for rows, tensors in _batches(module, cells, indices, batch_size, desc="Embedding"):
        inputs = module._get_inference_input(tensors)
        counts = inputs.pop("counts")
        with autocast(precision, module.device):
            h = module.encoder(counts.float().log1p(), **inputs)
        yield rows, module.to_latent(h.float())


def _embed_non_zeros(
    module: R2MAEModule, cells: Cells, indices: np.ndarray | None, batch_size: int | None, precision: Any
) -> Iterator[tuple[slice, Tensor]]:
    with autocast(precision, module.device):
        is_reduced = torch.is_autocast_enabled(module.device.type)
        dtype = torch.get_autocast_dtype(module.device.type) if is_reduced else torch.float32
    table = module.encoder.table(dtype)
    for rows, tensors in _batches(module, cells, indices, batch_size, collate_sparse, desc="Embedding"):
        logged = SparseRows(tensors["columns"], tensors["starts"], tensors["values"].log1p())
        with autocast(precision, module.device):
            h = module.encoder.forward_sparse(logged, table, **module._covariates(tensors))
        yield rows, module.to_latent(h.float())


@torch.inference_mode()
def normalized_expression(
    module: R2MAEModule,
    cells: Cells,
    *,
    genes: np.ndarray,
    batches: Sequence[int | None] = (None,),
    library_size: float | None = 1.0,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """Decode cells to expression, averaged over the batches that they are decoded as.

    Parameters
    ----------
    module
        The network.
    cells
        Cells to read.
    genes
        Positions of the genes to return, shape (k,).
    batches
        Batch codes to decode as; None for the cell's own.
    library_size
        What all genes of a cell add up to; None for the cell's own depth, ``library / sum of rho over the
        measured genes``, so that genes its panel lacks come on top.
    indices, batch_size
        Which cells, and how many at a time.

    Returns
    -------
    float32, shape (n_obs, k).
    """
    module.eval()
    shape = _n_rows(cells, indices), len(genes)
    advice = "name some of the genes by gene_list=, or decode some of the cells at a time by indices="
    check_array(shape, np.float32, "The decoded expression", advice=advice)
    out = np.empty(shape, dtype=np.float32)
    where = torch.as_tensor(genes, device=module.device)
    for rows, tensors in _batches(module, cells, indices, batch_size, desc="Decoding"):
        z = module.inference(**module._get_inference_input(tensors))["z"]
        total: Tensor | float = 0.0
        for code in batches:
            decoded_as = dict(tensors)
            if code is not None:
                own = tensors[REGISTRY_KEYS.BATCH_KEY]
                decoded_as[REGISTRY_KEYS.BATCH_KEY] = torch.full_like(own, code)
            logits = module.generative(**module._get_generative_input(decoded_as, {"z": z}))["logits"]
            rho = logits.float().softmax(dim=-1)
            scale: Tensor | float = 1.0 if library_size is None else library_size
            if library_size is None:
                measured = tensors.get(MEASURED_KEY)
                seen = rho if measured is None else rho[:, measured]
                scale = module.log_library(tensors).exp() / seen.sum(dim=1, keepdim=True)
            total = total + rho[:, where] * scale
        out[rows] = (total / len(batches)).cpu().numpy()  # type: ignore[union-attr]
    return out


@torch.inference_mode()
def reconstruction_error(
    module: R2MAEModule, cells: Cells, *, indices: np.ndarray | None = None, batch_size: int | None = None
) -> np.ndarray:
    """Negative log-likelihood of each cell's measured counts, nothing masked; nats, shape (n_obs,)."""
    module.eval()
    out = np.empty(_n_rows(cells, indices))
    for rows, tensors in _batches(module, cells, indices, batch_size, desc="Scoring"):
        _, generated = module(tensors, compute_loss=False)
        nll = module.element_nll(tensors, generated["logits"])
        measured = tensors.get(MEASURED_KEY)
        nll = nll if measured is None else nll[:, measured]
        out[rows] = nll.double().sum(dim=1).cpu().numpy()
    return out


@torch.inference_mode()
def masked_reconstruction(
    module: R2MAEModule,
    cells: Cells,
    *,
    ratio: float,
    seed: int = 0,
    indices: np.ndarray | None = None,
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide genes, the same for all cells, and compare what the network says of them with their counts.

    Parameters
    ----------
    module
        The network.
    cells
        Cells to read.
    ratio
        Share of the measured genes to hide.
    seed
        Which genes: a pure function of it and the ratio.
    indices, batch_size
        Which cells, and how many at a time.

    Returns
    -------
    Per cell, shape (n_obs,): the Pearson correlation over hidden genes between ``log1p(1e4 rho)`` and
    ``log1p(1e4 x / library)`` (NaN where the counts do not vary), and the mean negative log-likelihood in nats.
    """
    module.eval()
    measured = np.ones(module.n_vars, dtype=bool) if cells.measured is None else cells.measured
    mask = np.zeros(module.n_vars, dtype=bool)
    mask[measured] = draw_mask(int(measured.sum()), ratio, seed=seed, step=0).numpy()
    hidden = torch.as_tensor(mask, device=module.device)
    where = hidden.nonzero().squeeze(1)
    n_rows = _n_rows(cells, indices)
    pearson, nll = np.empty(n_rows), np.empty(n_rows)
    for rows, tensors in _batches(module, cells, indices, batch_size, desc=f"Hiding {ratio:.0%}"):
        _, generated = module(tensors, inference_kwargs={"mask": hidden}, compute_loss=False)
        nll[rows] = module.element_nll(tensors, generated["logits"], genes=where).mean(dim=1).cpu().numpy()
        library = module.log_library(tensors).exp()
        log_rho = log_mean_of_counts(
            generated["logits"], torch.zeros_like(library), measured=tensors.get(MEASURED_KEY)
        )
        pearson[rows] = masked_pearson(
            log_rho.exp().cpu().numpy(),
            tensors[REGISTRY_KEYS.X_KEY].cpu().numpy(),
            mask,
            library=library.squeeze(1).cpu().numpy(),
        )
    return pearson, nll


@torch.inference_mode()
def curriculum_weights(
    module: R2MAEModule, cells: Cells, *, indices: np.ndarray | None = None, batch_size: int | None = None
) -> np.ndarray:
    """Loss weights that the curriculum gives, averaged over cells; float32, shape (n_vars, n_ratios).

    A mean of balanced matrices is balanced.
    """
    module.eval()
    total: Tensor | float = 0.0
    for rows, tensors in _batches(module, cells, indices, batch_size, desc="Weighing"):
        weights = module.curriculum_weights(tensors)
        mean = weights if weights.dim() == 2 else weights.mean(dim=0)
        total = total + mean * (rows.stop - rows.start)
    return (total / _n_rows(cells, indices)).cpu().numpy()  # type: ignore[union-attr]
