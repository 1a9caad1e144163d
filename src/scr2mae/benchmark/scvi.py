"""Training, embedding and reconstruction with scVI on the cells and masks of the masked autoencoders."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.dataloaders import AnnDataLoader

from scr2mae._utils.progress import log_level
from scr2mae.benchmark.pretraining import BATCH, Embedding, Options, Pretraining
from scr2mae.masking import draw_mask
from scr2mae.metrics import masked_pearson
from scr2mae.model.streaming import BATCH_SIZE
from scr2mae.probe.inputs import Rows
from scr2mae.train.loop import interruptible

_TRAIN_BATCH_SIZE = 128
_VERBOSE = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "scvi")


def fit_scvi(cells: Pretraining, seed: int, *, model_class: Any, options: Options) -> Embedding:
    """Train a class with the interface of :class:`scvi.model.SCVI`; the global random state is left unchanged."""
    seen = cells.subset(cells.seen)
    batch_size = options.scvi_train_kwargs.get("batch_size", _TRAIN_BATCH_SIZE)
    train_kwargs = {
        "accelerator": options.accelerator,
        "batch_size": batch_size,
        "enable_progress_bar": False,
        "datasplitter_kwargs": {
            "external_indexing": cells.external_indexing,
            # Batch normalization cannot be trained on one cell.
            "drop_last": len(cells.train) % batch_size == 1,
        },
    }
    with isolate_rng(), quiet(), interruptible():
        torch.manual_seed(seed)
        model_class.setup_anndata(seen, batch_key=BATCH if cells.has_batch else None)
        model = model_class(seen, **options.scvi_model_kwargs)
        model.train(**train_kwargs | dict(options.scvi_train_kwargs))
        everything = cells.subset()
        manager = model.adata_manager.transfer_fields(everything)
        values = model.get_latent_representation(everything, batch_size=BATCH_SIZE)
        pearson = {
            ratio: _reconstruct(
                model, manager, cells.scored, draw_mask(seen.n_vars, ratio, seed=options.mask_seed, step=0)
            )
            for ratio in options.ratios
        }
    epochs = int(model.trainer.current_epoch)
    return Embedding(np.asarray(values, dtype=np.float32), pearson, epochs)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages of Lightning and scvi-tools about settings that the user did not choose."""
    with log_level(logging.WARNING, *_VERBOSE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


@torch.inference_mode()
def _reconstruct(model: Any, manager: AnnDataManager, rows: Rows, mask: torch.Tensor) -> float:
    """Return the mean correlation over masked genes, which are set to zero; the library is that of the whole cell.

    The latent vector is the mean of the posterior, which gives scVI a better score than a sample.
    """
    module, scores = model.module, []
    for tensors in AnnDataLoader(manager, indices=rows, batch_size=BATCH_SIZE, shuffle=False):
        counts = tensors[REGISTRY_KEYS.X_KEY]
        library = counts.sum(dim=1, keepdim=True)
        masked = {**tensors, REGISTRY_KEYS.X_KEY: counts.masked_fill(mask, 0.0)}
        inferred = module.inference(**module._get_inference_input(masked))
        inferred |= {"z": inferred["qz"].loc, "library": library.log().to(module.device)}
        decoded = module.generative(**module._get_generative_input(masked, inferred))
        share = decoded["px"].scale.cpu().numpy()
        scores.append(masked_pearson(share, counts.numpy(), mask.numpy(), library=library.squeeze(1).numpy()))
    return float(np.nanmean(np.concatenate(scores)))
