"""Pretraining, fine-tuning and heads: each builds a plan and hands it to :func:`scr2mae.train.fit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scr2mae.extra.vision.loaders import FeatureArray, ImageDataModule
from scr2mae.extra.vision.recipes import RECIPES, PerEpoch
from scr2mae.masking import DecayRatio, FixedRatio, as_ratio_schedule
from scr2mae.train import MaskedTrainingPlan, fit
from scr2mae.train.distributed import count_processes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from torch import nn

    from scr2mae.extra.vision.classifier import ViTMAEClassifier
    from scr2mae.extra.vision.datasets import Images
    from scr2mae.extra.vision.heads import AttributeHead, LinearHead
    from scr2mae.extra.vision.loaders import Augment
    from scr2mae.extra.vision.recipes import Recipe
    from scr2mae.masking import RatioSchedule

__all__ = ["VALIDATION_RATIOS", "finetune", "fit_head", "pretrain"]

VALIDATION_RATIOS = (0.5, 0.75, 0.9)
"""Validation hides these shares of an image whatever the scheme."""


def pretrain(
    network: nn.Module,
    images: Images,
    *,
    mask_ratio: float | Sequence[float] | RatioSchedule = (0.6, 0.9),
    recipe: Recipe | None = None,
    validation: Images | None = None,
    augment: Augment | None = None,
    validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    seed: int = 0,
    n_workers: int = 0,
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    """Train a network to predict what is hidden of images.

    Parameters
    ----------
    network
        :class:`MaskedMLP`, :class:`MaskedUNet`, :class:`R2ViTMAE`, or another with ``training_loss``. Trained in place.
    images
        What to train on.
    mask_ratio
        A float (fixed), a pair (R²MAE) or a schedule, such as ``scr2mae.schemes("vision")["mdlm"].mask_ratio``. One ratio
        is drawn for each mini-batch, of several that are accumulated for one step too. Dynamic masking
        (:class:`~scr2mae.masking.DecayRatio`) moves once an epoch, as in the paper.
    recipe
        Settings of the run; None takes the network's own of :data:`RECIPES`.
    validation
        Images that are scored after each epoch, under the same masks for every scheme.
    augment
        What is done to each mini-batch on the device, such as :class:`PretrainAugment`; None leaves images as they are.
    validation_ratios
        Shares hidden in validation.
    seed
        Of masks, order and augmentation. The network's weights are drawn when it is built.
    n_workers
        Threads that decode images ahead of training; 0 decodes when a mini-batch is asked for.
    resume, checkpoint_dir
        As in :func:`scr2mae.train.fit`.
    trainer_kwargs
        Further arguments of :func:`scr2mae.train.fit` and :class:`lightning.pytorch.Trainer`: ``accelerator``, ``devices``,
        ``precision``, ``accumulate_grad_batches``.

    Returns
    -------
    Curves: a frame each, indexed by step or epoch.

    Raises
    ------
    ValueError
        If there are fewer than two images, or they do not fit the network.
    """
    recipe = _recipe_of(network) if recipe is None else recipe
    schedule = as_ratio_schedule(mask_ratio, seed=seed)
    if isinstance(schedule, DecayRatio):
        schedule = PerEpoch(schedule, recipe.max_epochs)
    return _run(
        network,
        ImageDataModule(
            images,
            validation,
            batch_size=recipe.batch_size,
            seed=seed,
            augment=augment,
            n_workers=n_workers,
        ),
        schedule=schedule,
        recipe=recipe,
        validation_ratios=validation_ratios,
        seed=seed,
        resume=resume,
        checkpoint_dir=checkpoint_dir,
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
    resume: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    """Train all weights of a classifier, nothing hidden.

    Parameters
    ----------
    classifier
        Trained in place.
    images
        Images with classes.
    recipe
        Settings of the run.
    validation
        Images with classes that are scored after each epoch: the cross-entropy is the curve ``validation_loss``.
    augment
        What is done to each mini-batch on the device, such as :class:`FinetuneAugment`.
    seed
        Of order, augmentation and stochastic depth.
    n_workers, resume, checkpoint_dir, trainer_kwargs
        As in :func:`pretrain`.

    Returns
    -------
    Curves: a frame each, indexed by step or epoch.

    Raises
    ------
    ValueError
        If images have no labels, or labels that are no classes of the classifier.
    """
    for each in (images, validation):
        if each is not None:
            _check_labels(classifier, each.labels)
    return _run(
        classifier,
        ImageDataModule(
            images,
            validation,
            batch_size=recipe.batch_size,
            seed=seed,
            augment=augment,
            n_workers=n_workers,
        ),
        schedule=FixedRatio(0.0),
        recipe=recipe,
        validation_ratios=(0.0,),
        seed=seed,
        resume=resume,
        checkpoint_dir=checkpoint_dir,
        **trainer_kwargs,
    )


def fit_head(
    head: LinearHead | AttributeHead,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    recipe: Recipe = RECIPES["linear"],
    seed: int = 0,
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    """Train a head on frozen embeddings.

    Parameters
    ----------
    head
        Trained in place.
    features
        Embeddings, shape (n_obs, n_in), as :func:`embed` returns them.
    labels
        Classes, shape (n_obs,), or attributes, shape (n_obs, n_attributes).
    recipe
        Settings of the run; ``RECIPES["attributes"]`` for :class:`AttributeHead`.
    seed
        Of order and dropout. The head's weights are drawn when it is built.
    trainer_kwargs
        As in :func:`pretrain`.

    Returns
    -------
    Curves: a frame each, indexed by step or epoch.

    Raises
    ------
    ValueError
        If features or labels do not fit the head.
    """
    data = FeatureArray(features, labels)
    if data.features.shape[1] != head.n_in:
        raise ValueError(f"The head takes embeddings of width {head.n_in}, got {data.features.shape[1]}.")
    _check_labels(head, data.labels)
    return _run(
        head,
        ImageDataModule(data, None, batch_size=recipe.batch_size, seed=seed),
        schedule=FixedRatio(0.0),
        recipe=recipe,
        validation_ratios=(0.0,),
        seed=seed,
        **trainer_kwargs,
    )


def _recipe_of(network: nn.Module) -> Recipe:
    name = {"MaskedMLP": "mlp", "MaskedUNet": "unet", "R2ViTMAE": "vit"}.get(type(network).__name__)
    if name is None:
        raise ValueError(f"There is no recipe for {type(network).__name__}; pass recipe=Recipe(...).")
    return RECIPES[name]


def _check_labels(classifier: Any, labels: torch.Tensor | None) -> None:
    if labels is None:
        raise ValueError(
            "Images without labels cannot train a classifier; put each class in a subfolder, or give labels=."
        )
    classifier.check_labels(labels)


def _run(
    network: nn.Module,
    datamodule: ImageDataModule,
    *,
    schedule: RatioSchedule,
    recipe: Recipe,
    validation_ratios: Sequence[float],
    seed: int,
    **trainer_kwargs: Any,
) -> dict[str, pd.DataFrame]:
    n_obs = len(datamodule.images)
    if n_obs < 2:
        raise ValueError(f"Training needs at least two images, got {n_obs}.")
    n_processes = count_processes(trainer_kwargs)
    accumulated = trainer_kwargs.get("accumulate_grad_batches", 1)
    plan = MaskedTrainingPlan(
        network,
        ratio_schedule=schedule,
        seed=seed,
        validation_ratios=validation_ratios,
        **recipe.plan_kwargs(recipe.batch_size * n_processes * accumulated),
    )
    if datamodule.validation is None:
        trainer_kwargs.setdefault("limit_val_batches", 0)
    fit(plan, datamodule, max_epochs=recipe.max_epochs, n_obs_epoch=n_obs, unit="images", **trainer_kwargs)
    network.eval()
    return plan.history
