"""scVI and its kin, trained, embedding and reconstructing on the terms of the masked autoencoders."""

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader

from scr2mae.benchmark.design import BATCH, Pretraining, Rows
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson
from scr2mae.model.embed import BATCH_SIZE

_TRAIN_BATCH_SIZE = 128
_TALKATIVE = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "scvi")


def fit_scvi(
    cells: Pretraining,
    seed: int,
    *,
    model_class: Any,
    model_kwargs: Mapping[str, Any],
    train_kwargs: Mapping[str, Any],
    ratios: Sequence[float],
    mask_seed: int,
) -> tuple[np.ndarray, dict[float, float]]:
    """Train on the training cells; embed all cells and reconstruct the scored ones at every ratio.

    Parameters
    ----------
    cells
        What may be learned from.
    seed
        Of weights and order. The global generators are left as they were.
    model_class
        :class:`scvi.model.SCVI` or a class of its interface.
    model_kwargs, train_kwargs
        Further arguments of the class and of its ``train``.
    ratios, mask_seed
        Shares of the genes to hide, and which: the masks are those of the masked autoencoders.

    Returns
    -------
    Posterior means, float32, shape ``(n_obs, n_latent)``, and Pearson's correlation by ratio.
    """
    seen = cells.subset(cells.seen)
    batch_size = train_kwargs.get("batch_size", _TRAIN_BATCH_SIZE)
    splitter = {
        "external_indexing": cells.external_indexing,
        # Batch normalization cannot be trained on one cell.
        "drop_last": len(cells.train) % batch_size == 1,
    }
    with isolate_rng(), _quiet(), _interruptible():
        torch.manual_seed(seed)
        model_class.setup_anndata(seen, batch_key=BATCH if cells.has_batch else None)
        model = model_class(seen, **model_kwargs)
        model.train(
            **{"batch_size": batch_size, "enable_progress_bar": False, "datasplitter_kwargs": splitter}
            | dict(train_kwargs)
        )
        everything = cells.subset()
        manager = model.adata_manager.transfer_fields(everything)
        values = model.get_latent_representation(everything, batch_size=BATCH_SIZE)
        pearson = {
            ratio: _reconstruct(
                model, manager, cells.scored, draw_mask(seen.n_vars, ratio, seed=mask_seed, step=0)
            )
            for ratio in ratios
        }
    return np.asarray(values, dtype=np.float32), pearson


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Lightning and scvi-tools say of every training: it is for whoever chose those settings."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be what it is elsewhere: Lightning makes it an exit, and is deaf to a second one."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt("Training was interrupted.") from error
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, on_interrupt)


@torch.inference_mode()
def _reconstruct(model: Any, manager: AnnDataManager, rows: Rows, mask: torch.Tensor) -> float:
    """Mean over cells of the correlation over hidden genes: they are zeroed, and the library is that of the whole cell.

    The latent vector is the mean of its posterior, which serves scVI better than a draw.
    """
    module, scores = model.module, []
    for tensors in AnnDataLoader(manager, indices=rows, batch_size=BATCH_SIZE, shuffle=False):
        counts = tensors[REGISTRY_KEYS.X_KEY]
        library = counts.sum(dim=1, keepdim=True)
        hidden = {**tensors, REGISTRY_KEYS.X_KEY: counts.masked_fill(mask, 0.0)}
        inferred = module.inference(**module._get_inference_input(hidden))
        inferred |= {"z": inferred["qz"].loc, "library": library.log().to(module.device)}
        decoded = module.generative(**module._get_generative_input(hidden, inferred))
        share = decoded["px"].scale.cpu().numpy()
        scores.append(masked_pearson(share, counts.numpy(), mask.numpy(), library=library.squeeze(1).numpy()))
    return float(np.nanmean(np.concatenate(scores)))
