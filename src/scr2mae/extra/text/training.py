"""Pretrain on packed text, and finetune on labeled text."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from scr2mae.extra.batches import BatchDataModule
from scr2mae.extra.text.classifier import RobertaClassifier, check_classes
from scr2mae.extra.text.inference import check_blocks, predict_proba
from scr2mae.extra.text.sentences import Sentences
from scr2mae.extra.training import train_network
from scr2mae.masking import FixedRatio
from scr2mae.train import LearningRateSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scr2mae.extra.text.network import RobertaR2MAE
    from scr2mae.extra.text.packing import TokenBlocks
    from scr2mae.extra.text.sentences import LabeledText

__all__ = ["LEARNING_RATES", "VALIDATION_RATIOS", "finetune", "finetune_scores", "pretrain"]

VALIDATION_RATIOS = (0.15, 0.275, 0.40)
"""Masking ratios for validation with every scheme: both ends and the middle of R²MAE's range."""

LEARNING_RATES: Mapping[str, float] = MappingProxyType({"tiny": 1e-3, "medium": 7e-4, "base": 3e-4})
"""Peak learning rate for each size; those for ``medium`` and ``base`` are from the paper."""

_WARMUP_AND_DECAY, _DECAY = LearningRateSchedule("linear", warmup=0.03), LearningRateSchedule("linear")


def pretrain(
    network: RobertaR2MAE,
    blocks: TokenBlocks,
    *,
    validation: TokenBlocks | None = None,
    max_epochs: int = 1,
    batch_size: int = 256,
    accumulate_grad_batches: int = 8,
    lr: float | None = None,
    weight_decay: float = 0.01,
    learning_rate: LearningRateSchedule | None = _WARMUP_AND_DECAY,
    gradient_clip_val: float | None = 1.0,
    validation_ratios: Sequence[float] = VALIDATION_RATIOS,
    seed: int | None = None,
    **trainer_kwargs: Any,
) -> RobertaR2MAE:
    """Train a network to predict masked tokens.

    Parameters
    ----------
    network
        Network to train in place, with its own masking scheme.
    blocks
        Training text, packed with the network's tokenizer.
    validation
        Held-out text, scored after each epoch; None for no validation.
    max_epochs
        Total number of passes over the text, including those made before ``resume``.
    batch_size
        Number of blocks per micro-batch and device. Each micro-batch has its own ratio and mask.
    accumulate_grad_batches
        Number of micro-batches per optimizer step. Their gradients have equal weights, whatever their ratios.
    lr
        Peak learning rate; None uses the one in :data:`LEARNING_RATES`.
    weight_decay
        Weight decay of AdamW, applied to matrices only.
    learning_rate
        Learning rate schedule; by default 3 % warm-up and linear decay, as in the paper. None for a
        constant rate.
    gradient_clip_val
        Maximum norm of the gradient; None for no limit. The default is the usual value (inferred).
    validation_ratios
        Masking ratios for validation.
    seed
        Seed for the order, masks and dropout; None uses the seed of the network.
    trainer_kwargs
        Additional arguments of :func:`scr2mae.train.fit` and :class:`lightning.pytorch.Trainer`:
        ``checkpoint_dir``, ``resume``, ``accelerator``, ``devices``, ``precision`` (``"bf16-mixed"`` on
        recent GPUs).

    Returns
    -------
    The network, in evaluation mode. Its ``history_`` contains one data frame per curve, indexed by step or
    epoch, and its ``runs_`` contains the records of its runs.

    Raises
    ------
    ValueError
        If an argument is out of range, or if the text was packed with another tokenizer or is too long.
    FileNotFoundError
        If there is no checkpoint to resume from.

    Notes
    -----
    The defaults follow the recipe of Dong et al. (2025), appendix C.6: an effective batch of 2048 blocks of
    128 tokens, here 8 micro-batches of 256. Drawing one ratio per micro-batch rather than per optimizer step
    is a choice of this package.
    """
    check_blocks(network, blocks, "blocks")
    if validation is not None:
        check_blocks(network, validation, "validation")
    if max_epochs < 1:
        raise ValueError(f"max_epochs must be at least 1, got {max_epochs}.")
    seed = network.seed if seed is None else seed
    settings = network.curriculum_settings
    plan = {
        "ratio_schedule": network.ratio_schedule(seed),
        "lr": LEARNING_RATES[network.size] if lr is None else lr,
        "weight_decay": weight_decay,
        "optimizer": "AdamW",
        "learning_rate": learning_rate,
        "validation_ratios": validation_ratios,
        "gradient_schedule": None if settings is None else settings.schedule,
    }
    return train_network(
        network,
        BatchDataModule(blocks, validation, batch_size=batch_size, seed=seed),
        plan=plan,
        seed=seed,
        max_epochs=max_epochs,
        unit="blocks",
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=gradient_clip_val,
        **trainer_kwargs,
    )


def finetune(
    classifier: RobertaClassifier,
    text: LabeledText,
    *,
    validation: LabeledText | None = None,
    max_epochs: int = 5,
    batch_size: int = 32,
    lr: float = 2e-5,
    weight_decay: float = 0.01,
    learning_rate: LearningRateSchedule | None = _DECAY,
    gradient_clip_val: float | None = 1.0,
    length: int = 128,
    seed: int = 0,
    **trainer_kwargs: Any,
) -> RobertaClassifier:
    """Train all weights of a classifier, without masking.

    Parameters
    ----------
    classifier
        Classifier to train in place.
    text
        Training sentences or sentence pairs, with their classes.
    validation
        Labeled text to score after each epoch; its cross-entropy is the curve ``validation_loss``.
    max_epochs, batch_size, lr, weight_decay
        Settings of the run. The defaults are from the paper, except the weight decay, which is that of
        pretraining (inferred).
    learning_rate
        Learning rate schedule; by default linear decay. None for a constant rate.
    gradient_clip_val
        Maximum norm of the gradient; None for no limit.
    length
        Maximum number of tokens in a sentence or pair; the longer sentence of a pair is truncated first.
    seed
        Seed for the order and dropout.
    trainer_kwargs
        Additional arguments, as in :func:`pretrain`.

    Returns
    -------
    The classifier, in evaluation mode, with ``history_`` and ``runs_`` as in :func:`pretrain`.

    Raises
    ------
    ValueError
        If the text and the classifier have different numbers of classes, or ``length`` is out of range.
    """

    def tokens_of(each: LabeledText) -> Sentences:
        check_classes(classifier, each)
        return Sentences(each, classifier, length=length)

    held_out = None if validation is None else tokens_of(validation)
    plan = {
        "ratio_schedule": FixedRatio(0.0),
        "lr": lr,
        "weight_decay": weight_decay,
        "optimizer": "AdamW",
        "learning_rate": learning_rate,
        "validation_ratios": (0.0,),
    }
    return train_network(
        classifier,
        BatchDataModule(tokens_of(text), held_out, batch_size=batch_size, seed=seed),
        plan=plan,
        seed=seed,
        max_epochs=max_epochs,
        unit="sentences",
        gradient_clip_val=gradient_clip_val,
        **trainer_kwargs,
    )


def finetune_scores(
    network: RobertaR2MAE,
    train: LabeledText,
    test: LabeledText,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    length: int = 128,
    **options: Any,
) -> pd.DataFrame:
    """Finetune a copy of a network on a task for each seed, and score it on held-out text.

    Parameters
    ----------
    network
        Pretrained network; it is not changed.
    train, test
        Labeled text; both must have the same classes. The score is computed only once, after the last epoch,
        so it does not select an epoch.
    seeds
        Seeds for the head, the order and dropout.
    length, options
        Arguments of :func:`finetune`.

    Returns
    -------
    One row per seed: ``seed``, ``accuracy`` on ``test`` and ``train_loss`` of the last epoch.

    Raises
    ------
    ValueError
        If ``train`` and ``test`` have different classes, ``seeds`` is empty, or ``length`` is out of range.

    Notes
    -----
    The paper reports the mean accuracy over three seeds (Dong et al. 2025, appendix C.6).
    """
    if train.classes != test.classes:
        raise ValueError(
            f"train and test must have the same classes, got {list(train.classes)} and {list(test.classes)}."
        )
    if not len(seeds):
        raise ValueError("seeds is empty; pass at least one seed.")
    rows = []
    for seed in seeds:
        classifier = RobertaClassifier.from_network(network, len(train.classes), seed=seed)
        finetune(classifier, train, length=length, seed=seed, **options)
        predicted = predict_proba(classifier, test, length=length).argmax(axis=1)
        loss = float(classifier.history_["train_loss"]["train_loss"].iloc[-1])
        rows.append((seed, float((predicted == test.labels).mean()), loss))
    return pd.DataFrame(rows, columns=["seed", "accuracy", "train_loss"])
