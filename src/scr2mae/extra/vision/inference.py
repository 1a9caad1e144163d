"""Embeddings, predictions and losses of images, mini-batch by mini-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scr2mae.extra.batches import map_batches, masked_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from torch import nn

    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import Images

__all__ = ["VALIDATION_RATIOS", "embed", "predict_proba", "score"]

VALIDATION_RATIOS = (0.5, 0.75, 0.9)
"""Fractions of an image masked in validation, for every scheme."""

_SCORE_SEED = 20_250_922


def embed(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> np.ndarray:
    """Embed whole images without masking, in evaluation mode.

    Parameters
    ----------
    network
        A network with a method ``embed``.
    images
        Images to embed.
    batch_size
        Number of images per batch; the embedding of an image does not depend on it.
    device
        Device to compute on; None leaves the network where it is.
    n_workers
        Number of threads that prefetch decoded images.

    Returns
    -------
    float32, shape (n_obs, n_latent).
    """
    module: Any = network
    return map_batches(
        network,
        images,
        lambda batch: module.embed(batch["image"]),
        batch_size=batch_size,
        device=device,
        n_workers=n_workers,
    )


def predict_proba(
    classifier: ViTMAEClassifier,
    images: Images,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> np.ndarray:
    """Return the probability of each class, float32, shape (n_obs, n_classes).

    Parameters
    ----------
    classifier
        A finetuned classifier.
    images
        Images to classify.
    batch_size, device, n_workers
        As in :func:`embed`.
    """
    return map_batches(
        classifier,
        images,
        lambda batch: classifier(batch["image"]).softmax(dim=1),
        batch_size=batch_size,
        device=device,
        n_workers=n_workers,
    )


def score(
    network: nn.Module,
    images: Images,
    *,
    ratios: Sequence[float] = VALIDATION_RATIOS,
    batch_size: int = 256,
    seed: int = _SCORE_SEED,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> pd.DataFrame:
    """Score how well masked pixels or patches are predicted, at several masking ratios.

    Parameters
    ----------
    network
        A pretrained network.
    images
        Held-out images.
    ratios
        Shares to mask, in [0, 1].
    batch_size, device, n_workers
        As in :func:`embed`.
    seed
        Seed of the masks: the same masks for every network, given the same images, seed and batch size.

    Returns
    -------
    One row per ratio: ``ratio``, ``loss`` (mean over images of the pretraining loss) and ``n_images``.
    """
    options: Any = {"batch_size": batch_size, "seed": seed, "device": device, "n_workers": n_workers}
    rows = []
    for ratio in ratios:
        losses = masked_losses(network, images, ratio, **options)
        total = sum(float(each.loss) * each.n_obs_minibatch for each in losses)
        rows.append((ratio, total / len(images), len(images)))
    return pd.DataFrame(rows, columns=["ratio", "loss", "n_images"])
