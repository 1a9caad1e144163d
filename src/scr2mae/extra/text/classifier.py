"""RoBERTa with a head that tells classes of sentences, and its fine-tuning by the one training plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from scr2mae._utils.batches import BatchLoader
from scr2mae._utils.optional import require
from scr2mae.extra.text.model import MaskedLoss
from scr2mae.extra.training import decay_groups, repeatable_dropout
from scr2mae.masking import FixedRatio
from scr2mae.train import LearningRateSchedule, MaskedTrainingPlan, fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scr2mae.extra.text.glue import LabeledText
    from scr2mae.extra.text.model import RobertaR2MAE

__all__ = ["RobertaClassifier", "fine_tune"]

_COURSE = LearningRateSchedule("linear")


class RobertaClassifier(nn.Module):
    """A pretrained RoBERTa with a head of classes on its first token.

    ``network`` is a ``transformers.RobertaForSequenceClassification``.

    Parameters
    ----------
    pretrained
        Whose encoder it starts from; copied, so that the pretrained model stays as it is.
    n_classes
        Classes, >= 2.
    seed
        Seed of the head's initial weights.

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """

    def __init__(self, pretrained: RobertaR2MAE, n_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        self.tokenizer, self.n_classes, self.max_length = (
            pretrained.tokenizer,
            n_classes,
            pretrained.max_length,
        )
        library = require("transformers", extra="text")
        config = library.RobertaConfig(**{**pretrained.network.config.to_dict(), "num_labels": n_classes})
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network: Any = library.RobertaForSequenceClassification(config)
        self.network.roberta.load_state_dict(pretrained.network.roberta.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of classes, shape ``(n_obs, n_classes)``.

        Parameters
        ----------
        tokens
            Numbers of tokens, shape ``(n_obs, length)``, padded.
        """
        attention_mask = (tokens != self.tokenizer.pad_id).long()
        return self.network(tokens, attention_mask=attention_mask).logits

    def training_loss(self, tensors: dict[str, Tensor], *, ratio: float, seed: int, step: int) -> MaskedLoss:
        """Score the classes of a mini-batch, with nothing hidden.

        What the training plan calls: here the label alone is hidden, always.

        Parameters
        ----------
        tensors
            ``tokens``, int64 of shape ``(n_obs, length)``, and ``labels``, int64 of shape ``(n_obs,)``.
        ratio
            Must be 0.
        seed, step
            What dropout depends on.

        Returns
        -------
        Mean negative log-likelihood of the labels, nats.

        Raises
        ------
        ValueError
            If the ratio is not 0.
        """
        if ratio != 0:
            raise ValueError(f"Fine-tuning hides no token, so the ratio must be 0, got {ratio!r}.")
        tokens, labels = tensors["tokens"], tensors["labels"]
        with repeatable_dropout(self, tokens.device, seed=seed, step=step):
            logits = self(tokens).float()
        n_correct = (logits.detach().argmax(dim=1) == labels).sum()
        return MaskedLoss(nn.functional.cross_entropy(logits, labels), len(tokens), n_correct, len(tokens))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups: matrices decay, biases and normalization do not.

        Parameters
        ----------
        weight_decay
            Decay of the matrices.
        """
        return decay_groups(self, weight_decay)

    @torch.no_grad()
    def predict(self, data: LabeledText, *, length: int = 128, batch_size: int = 128) -> np.ndarray:
        """Predict the class of each sentence or pair.

        Parameters
        ----------
        data
            Sentences; their labels are not looked at.
        length
            Tokens at most.
        batch_size
            Sentences at a time.

        Returns
        -------
        Numbers of classes, shape ``(n_obs,)``.
        """
        self.eval()
        sentences = _Sentences(self, data, length)
        device = self.network.device
        batches = BatchLoader(sentences.collate, np.arange(len(data)), batch_size=batch_size)
        found = [self(batch["tokens"].to(device)).argmax(dim=1).cpu() for batch in batches]
        return torch.cat(found).numpy()


class _Sentences(pl.LightningDataModule):
    """Mini-batches of labeled sentences, padded to the longest among them."""

    def __init__(
        self,
        model: RobertaClassifier,
        data: LabeledText,
        length: int,
        *,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(data.classes) != model.n_classes:
            raise ValueError(
                f"The text has {len(data.classes)} classes, {list(data.classes)}, and the classifier {model.n_classes}."
            )
        if not 5 <= length <= model.max_length:
            raise ValueError(
                f"length must lie between 5 and {model.max_length}, the positions that the network has, got {length}."
            )
        self.tokenizer, self.labels = model.tokenizer, data.labels
        self.batch_size, self.seed = batch_size, seed
        first = self.tokenizer.encode(data.first)
        second = None if data.second is None else self.tokenizer.encode(data.second)
        self.tokens = [
            self._sentence(first[i], None if second is None else second[i], length) for i in range(len(data))
        ]

    def _sentence(self, first: list[int], second: list[int] | None, length: int) -> np.ndarray:
        """Join ``<s> a </s>`` or ``<s> a </s></s> b </s>``; the longer of the two is cut first."""
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        if second is None:
            return np.array([start, *first[: length - 2], end], dtype=np.int64)
        room = length - 4
        n_first = max(min(len(first), room - min(len(second), room // 2)), 0)
        n_second = min(len(second), room - n_first)
        return np.array([start, *first[:n_first], end, end, *second[:n_second], end], dtype=np.int64)

    def collate(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return the mini-batch of the sentences at ``indices``."""
        chosen = [self.tokens[i] for i in indices]
        tokens = np.full((len(chosen), max(map(len, chosen))), self.tokenizer.pad_id, dtype=np.int64)
        for row, sentence in zip(tokens, chosen, strict=True):
            row[: len(sentence)] = sentence
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(self.labels[indices])}

    def val_dataloader(self) -> list[BatchLoader]:
        """Return nothing: the score is taken once, at the end."""
        return []

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled mini-batches."""
        trainer = self.trainer
        return BatchLoader(
            self.collate,
            np.arange(len(self.tokens)),
            batch_size=self.batch_size,
            shuffle=True,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )


def fine_tune(
    pretrained: RobertaR2MAE,
    train: LabeledText,
    test: LabeledText,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    max_epochs: int = 5,
    batch_size: int = 32,
    lr: float = 2e-5,
    weight_decay: float = 0.01,
    learning_rate: LearningRateSchedule | None = _COURSE,
    length: int = 128,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    precision: Any = "32-true",
    **trainer_kwargs: Any,
) -> pd.DataFrame:
    """Fine-tune a pretrained model on a task, once a seed, and score it on held-out text.

    Parameters
    ----------
    pretrained
        Where every run starts from; it stays as it is.
    train, test
        Labeled text of the same classes. The score is taken once, after the last epoch; no epoch is chosen by it.
    seeds
        Seeds of the head, the order and dropout.
    max_epochs, batch_size, lr, weight_decay
        Of each run; the paper's 5 epochs, 32 sentences and 2e-5 (the decay is its pretraining's, inferred).
    learning_rate
        Course of the learning rate: linear decay; None keeps it constant.
    length
        Tokens of a sentence or pair at most; of a pair the longer sentence is cut first.
    accelerator, devices, precision
        As in :class:`lightning.pytorch.Trainer`.
    trainer_kwargs
        Further arguments of :class:`lightning.pytorch.Trainer`.

    Returns
    -------
    One row a seed: ``seed``, ``accuracy`` on ``test`` and ``train_loss`` of the last epoch.

    Raises
    ------
    ValueError
        If the classes of the two differ, there is no seed, or ``length`` is out of range.

    Notes
    -----
    Dong et al. (2025), appendix C.6: the accuracy of a task is the mean over three seeds.
    """
    if train.classes != test.classes:
        raise ValueError(f"train has classes {list(train.classes)}, test {list(test.classes)}: not one task.")
    if not len(seeds):
        raise ValueError("seeds is empty; give at least one.")
    rows = []
    for seed in seeds:
        model = RobertaClassifier(pretrained, len(train.classes), seed=seed)
        plan = MaskedTrainingPlan(
            model,
            ratio_schedule=FixedRatio(0.0),
            seed=seed,
            lr=lr,
            weight_decay=weight_decay,
            optimizer="AdamW",
            learning_rate=learning_rate,
        )
        fit(
            plan,
            _Sentences(model, train, length, batch_size=batch_size, seed=seed),
            max_epochs=max_epochs,
            n_obs_epoch=len(train),
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            **{"limit_val_batches": 0, "gradient_clip_val": 1.0, **trainer_kwargs},
        )
        accuracy = float((model.predict(test, length=length) == test.labels).mean())
        rows.append((seed, accuracy, float(plan.history["train_loss"]["train_loss"].iloc[-1])))
    return pd.DataFrame(rows, columns=["seed", "accuracy", "train_loss"])
