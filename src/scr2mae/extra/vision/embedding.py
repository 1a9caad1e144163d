"""Embeddings and predictions of whole images, mini-batch by mini-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scr2mae.extra.vision.loaders import ImageLoader

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import Images

__all__ = ["embed", "predict_proba"]


def embed(
    network: nn.Module,
    images: Images,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    n_workers: int = 0,
) -> np.ndarray:
    """Embed whole images: nothing is hidden, the network is in evaluation mode.

    Parameters
    ----------
    network
        A network with ``embed``.
    images
        What to embed.
    batch_size
        Images at a time; the embedding of an image does not depend on it.
    device
        Where to compute; None leaves the network where it is.
    n_workers
        Threads that decode images ahead.

    Returns
    -------
    float32, shape (n_obs, n_latent).
    """
    module: Any = network
    return _over_batches(network, images, module.embed, batch_size, device, n_workers)


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
        A fine-tuned classifier.
    images
        What to classify.
    batch_size, device, n_workers
        As in :func:`embed`.
    """
    return _over_batches(
        classifier, images, lambda x: classifier(x).softmax(dim=1), batch_size, device, n_workers
    )


@torch.no_grad()
def _over_batches(
    network: nn.Module,
    images: Images,
    function: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int,
    device: str | torch.device | None,
    n_workers: int,
) -> np.ndarray:
    if not len(images):
        raise ValueError("There is no image; expected at least one.")
    if device is not None:
        network.to(device)
    where = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        loader = ImageLoader(images.batch, np.arange(len(images)), batch_size=batch_size, n_workers=n_workers)
        parts = [function(batch["image"].to(where)).float().cpu().numpy() for batch in loader]
    finally:
        network.train(was_training)
    return np.concatenate(parts)
