"""Pretraining, finetuning and heads of networks for images, each with its recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from scr2mae.extra.batches import BatchDataModule
from scr2mae.extra.training import train_network
from scr2mae.extra.vision.heads import AttributeHead, check_attributes, check_classes
from scr2mae.extra.vision.inference import VALIDATION_RATIOS
from scr2mae.extra.vision.recipes import RECIPES, PerEpoch
from scr2mae.masking import DecayRatio, FixedRatio, as_ratio_schedule
from scr2mae.train.distributed import count_processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from scr2mae.extra.vision.augment import Augment
    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import Images
    from scr2mae.extra.vision.heads import Head
    from scr2mae.extra.vision.recipes import Recipe
    from scr2mae.masking import RatioSchedule

__all__ = ["finetune", "fit_head", "pretrain"]

_Network = TypeVar("_Network", bound="nn.Module")
_Head = TypeVar("_Head", bound="Head")
_NOTHING_MASKED = FixedRatio(0.0)
_DEFAULT_RECIPES = {"MaskedMLP": "mlp", "MaskedUNet": "unet", "R2ViTMAE": "vit"}


def pretrain(
    network: _Network,
    images: Images,
    *,
    mask_ratio: float | Sequence[float] | RatioSchedule = (0.6, 0.9),
    recipe: Recipe | None = None,
    validation: Images | None = None,
    augment: Augment | None = None,
    validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    seed: int = 0,
    n_workers: int = 0,
    **trainer_kwargs: Any,
) -> _Network:
    """Train a network to predict the masked parts of images.

    Parameters
    ----------
    network
        :class:`MaskedMLP`, :class:`MaskedUNet`, :class:`R2ViTMAE`, or another with ``training_loss``. Trained in place.
    images
        Training images.
    mask_ratio
        A float (fixed), a pair (R²MAE) or a schedule, such as ``scr2mae.schemes("vision")["mdlm"].mask_ratio``. One ratio
        is drawn for each mini-batch, even if several are accumulated for one step. Dynamic masking
        (:class:`~scr2mae.masking.DecayRatio`) changes once per epoch, as in the paper.
    recipe
        Settings of the run; None selects the network's own from :data:`RECIPES`.
    validation
        Images that are scored after each epoch, under the same masks for every scheme.
    augment
        Augmentation of each mini-batch on the device, such as :class:`PretrainAugment`; None leaves images as they are.
    validation_ratios
        Shares masked in validation.
    seed
        Seed of masks, order and augmentation. The network's weights are drawn when it is built.
    n_workers
        Number of threads that prefetch decoded images; 0 decodes when a mini-batch is needed.
    trainer_kwargs
        Additional arguments of :func:`scr2mae.train.fit` and :class:`lightning.pytorch.Trainer`: ``checkpoint_dir``, ``resume``,
        ``accelerator``, ``devices``, ``precision``, ``accumulate_grad_batches``.

    Returns
    -------
    The network, in evaluation mode. Its ``history_`` contains the curves, one frame each, indexed by step or epoch, and
    ``runs_`` the records of its runs.

    Raises
    ------
    ValueError
        If there are fewer than two images, or they do not fit the network.
    """
    if recipe is None:
        name = type(network).__name__
        if name not in _DEFAULT_RECIPES:
            raise ValueError(f"There is no recipe for {name}; pass recipe=Recipe(...).")
        recipe = RECIPES[_DEFAULT_RECIPES[name]]
    schedule = as_ratio_schedule(mask_ratio, seed=seed)
    if isinstance(schedule, DecayRatio):
        schedule = PerEpoch(schedule, recipe.max_epochs)
    return _train(
        network,
        images,
        validation,
        recipe=recipe,
        augment=augment,
        n_workers=n_workers,
        schedule=schedule,
        validation_ratios=validation_ratios,
        seed=seed,
        **trainer_kwargs,
    )


def finetune(
    classifier: ViTMAEClassifier,
    images: Images,
    *,
    recipe: Recipe = RECIPES["finetune"],
    validation: Images | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    n_workers: int = 0,
    **trainer_kwargs: Any,
) -> ViTMAEClassifier:
    """Train all weights of a classifier, without masking.

    Parameters
    ----------
    classifier
        Trained in place.
    images
        Training images with classes.
    recipe
        Settings of the run.
    validation
        Images with classes that are scored after each epoch: the cross-entropy is the curve ``validation_loss``.
    augment
        Augmentation of each mini-batch on the device, such as :class:`FinetuneAugment`.
    seed
        Seed of order, augmentation and stochastic depth.
    n_workers, trainer_kwargs
        As in :func:`pretrain`.

    Returns
    -------
    The classifier, as :func:`pretrain` returns a network.

    Raises
    ------
    ValueError
        If images have no labels, or labels are not classes of the classifier.
    """
    for each in (images, validation):
        if each is not None:
            _check_labels(classifier, each.labels)
    return _train(
        classifier,
        images,
        validation,
        recipe=recipe,
        augment=augment,
        n_workers=n_workers,
        seed=seed,
        **trainer_kwargs,
    )


def fit_head(
    head: _Head,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    recipe: Recipe = RECIPES["linear"],
    seed: int = 0,
    **trainer_kwargs: Any,
) -> _Head:
    """Train a head on frozen embeddings; :func:`finetune` trains the network, too.

    Parameters
    ----------
    head
        :class:`LinearHead` or :class:`AttributeHead`. Trained in place.
    features
        Embeddings, shape (n_obs, n_in), as :func:`embed` returns them.
    labels
        Classes, shape (n_obs,), or attributes, shape (n_obs, n_attributes).
    recipe
        Settings of the run; ``RECIPES["attributes"]`` for :class:`AttributeHead`.
    seed
        Seed of order and dropout. The head's weights are drawn when it is built.
    trainer_kwargs
        As in :func:`pretrain`.

    Returns
    -------
    The head, as :func:`pretrain` returns a network.

    Raises
    ------
    ValueError
        If features or labels do not fit the head.
    """
    data = _Features(features, labels)
    if data.features.shape[1] != head.n_in:
        raise ValueError(f"The head takes embeddings of width {head.n_in}, got {data.features.shape[1]}.")
    _check_labels(head, data.labels)
    return _train(head, data, None, recipe=recipe, seed=seed, **trainer_kwargs)


class _Features:
    """Embeddings with labels as a data set."""

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2 or len(features) != len(labels):
            raise ValueError(
                f"Embeddings must have shape (n_obs, n_in) and as many labels, got {features.shape} and {len(labels)}."
            )
        if not np.isfinite(features).all():
            raise ValueError("An embedding is not finite; did training diverge?")
        self.features = torch.from_numpy(features)
        self.labels = torch.from_numpy(np.asarray(labels).astype(np.int64))

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the embeddings at ``indices`` and their labels."""
        rows = torch.from_numpy(np.asarray(indices))
        return {"features": self.features[rows], "label": self.labels[rows]}


def _check_labels(classifier: Any, labels: Tensor | None) -> None:
    if labels is None:
        raise ValueError(
            "Images without labels cannot train a classifier; put each class in a subfolder, or give labels=."
        )
    if isinstance(classifier, AttributeHead):
        check_attributes(labels, classifier.n_attributes)
    else:
        check_classes(labels, classifier.n_classes)


def _train(
    network: _Network,
    images: Images | _Features,
    validation: Images | None,
    *,
    recipe: Recipe,
    seed: int,
    schedule: RatioSchedule = _NOTHING_MASKED,
    validation_ratios: Sequence[float] = (0.0,),
    augment: Augment | None = None,
    n_workers: int = 0,
    **trainer_kwargs: Any,
) -> _Network:
    """Train a network on images or features of images."""
    if len(images) < 2:
        raise ValueError(f"Training needs at least two images, got {len(images)}.")
    n_accumulated = trainer_kwargs.get("accumulate_grad_batches", 1)
    n_images_step = recipe.batch_size * count_processes(trainer_kwargs) * n_accumulated
    data = BatchDataModule(
        images,
        validation,
        batch_size=recipe.batch_size,
        seed=seed,
        augment=augment,
        n_workers=n_workers,
        drop_single=True,
    )
    plan = {"ratio_schedule": schedule, "validation_ratios": validation_ratios}
    return train_network(
        network,
        data,
        plan={**plan, **recipe.plan_kwargs(n_images_step)},
        seed=seed,
        max_epochs=recipe.max_epochs,
        unit="images",
        **trainer_kwargs,
    )
