"""RoBERTa with a classifier of sentences on its first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae._utils.optional import require
from scr2mae.extra.networks import BatchLoss, repeatable_dropout
from scr2mae.extra.text.saving import TextNetwork, attention_mask

if TYPE_CHECKING:
    from transformers import RobertaConfig

    from scr2mae.extra.text.network import RobertaR2MAE
    from scr2mae.extra.text.sentences import LabeledText
    from scr2mae.extra.text.tokenizer import BytePairTokenizer

__all__ = ["RobertaClassifier", "check_classes"]


class RobertaClassifier(TextNetwork):
    """RoBERTa with a classifier on its first token; ``network`` is a ``transformers.RobertaForSequenceClassification``.

    Parameters
    ----------
    tokenizer
        Tokenizer of the network.
    config
        A configuration of ``transformers``, such as that of a pretrained network.
    n_classes
        Number of classes, >= 2.
    seed
        Seed of the initial weights.

    Raises
    ------
    ValueError
        If there are fewer than two classes.
    """

    def __init__(
        self, tokenizer: BytePairTokenizer, config: RobertaConfig, n_classes: int, *, seed: int = 0
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        self.tokenizer, self.n_classes, self.seed = tokenizer, n_classes, seed
        library = require("transformers", extra="text")
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.network = library.RobertaForSequenceClassification(
                library.RobertaConfig(**{**config.to_dict(), "num_labels": n_classes})
            )

    @classmethod
    def from_network(cls, network: RobertaR2MAE, n_classes: int, *, seed: int = 0) -> RobertaClassifier:
        """Copy the encoder of a pretrained network and add a new head.

        Parameters
        ----------
        network
            The pretrained network; it is not changed.
        n_classes
            Number of classes, >= 2.
        seed
            Seed of the head's initial weights.

        Returns
        -------
        The classifier.
        """
        classifier = cls(network.tokenizer, network.network.config, n_classes, seed=seed)
        classifier.network.roberta.load_state_dict(network.network.roberta.state_dict())
        return classifier

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape ``(n_obs, n_classes)``.

        Parameters
        ----------
        tokens
            Token ids, shape ``(n_obs, length)``, padded.
        """
        return self.network(tokens, attention_mask=attention_mask(self, tokens)).logits

    def training_loss(self, tensors: dict[str, Tensor], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the cross-entropy of a mini-batch in nats; nothing is masked.

        Parameters
        ----------
        tensors
            ``"tokens"``, int64 of shape ``(n_obs, length)``, and ``"labels"``, int64 of shape ``(n_obs,)``.
        ratio
            Must be 0.
        seed, step
            Seed and step that determine dropout.

        Raises
        ------
        ValueError
            If the ratio is not 0.
        """
        if ratio != 0:
            raise ValueError(f"Finetuning masks no token, so the ratio must be 0, got {ratio!r}.")
        tokens, labels = tensors["tokens"], tensors["labels"]
        with repeatable_dropout(self, tokens.device, seed=seed, step=step):
            logits = self(tokens).float()
        return BatchLoss(nn.functional.cross_entropy(logits, labels), len(tokens))

    def _to_state(self) -> dict[str, Any]:
        return {"n_classes": self.n_classes, "seed": self.seed}

    @classmethod
    def _from_state(
        cls, tokenizer: BytePairTokenizer, config: dict[str, Any], state: dict[str, Any]
    ) -> RobertaClassifier:
        library = require("transformers", extra="text")
        return cls(tokenizer, library.RobertaConfig.from_dict(config), state["n_classes"], seed=state["seed"])


def check_classes(classifier: RobertaClassifier, text: LabeledText) -> None:
    """Raise ValueError unless the text has as many classes as the classifier."""
    if len(text.classes) != classifier.n_classes:
        raise ValueError(
            f"The text has {len(text.classes)} classes, {list(text.classes)}, and the classifier {classifier.n_classes}."
        )
