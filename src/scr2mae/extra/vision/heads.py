"""Classifiers of frozen embeddings: the linear probe, and the paper's forty attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scr2mae.extra.networks import BatchLoss, repeatable_dropout
from scr2mae.extra.vision.saving import SavedNetwork

__all__ = ["AttributeHead", "Head", "LinearHead", "check_attributes", "check_classes"]


class Head(SavedNetwork):
    """Base class of the two heads: a loss and predictions from embeddings of width ``n_in``."""

    n_in: int

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the cross-entropy of a mini-batch; nothing is masked.

        Parameters
        ----------
        tensors
            Embeddings ``"features"``, shape (n_obs, n_in), and ``"label"``.
        ratio
            Not used; the training plan passes it.
        seed, step
            Seed and step that determine dropout.
        """
        features = tensors["features"]
        with repeatable_dropout(self, features.device, seed=seed, step=step):
            logits = self(features)
        return BatchLoss(self._loss(logits, tensors["label"]), len(logits))

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return the most likely class, shape (n_obs,), or value of each attribute, shape (n_obs, n_attributes).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self._decide(self(features))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def _decide(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


class LinearHead(Head):
    """Linear classifier of embeddings.

    Parameters
    ----------
    n_in
        Width of the embedding.
    n_classes
        Number of classes, >= 2.
    normalize
        Whether batch normalization without learned scale comes first, as in the linear probes of MAE.

    Notes
    -----
    For MNIST (Dong et al. 2025, appendix C.3) without normalization, by cross-entropy.
    """

    def __init__(self, n_in: int, n_classes: int, *, normalize: bool = False) -> None:
        super().__init__(n_in=n_in, n_classes=n_classes, normalize=normalize)
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        self.n_in, self.n_classes = n_in, n_classes
        self.norm = nn.BatchNorm1d(n_in, affine=False) if normalize else nn.Identity()
        self.linear = nn.Linear(n_in, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_classes).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self.linear(self.norm(features))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def _decide(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)


class AttributeHead(Head):
    """A shared hidden layer and one binary output per attribute, on embeddings.

    Parameters
    ----------
    n_in
        Width of the embedding.
    n_attributes
        Number of attributes; 40 in CelebA.
    n_hidden
        Width of the shared layer.
    dropout
        Dropout rate of the shared layer (0.5: inferred; the value is not in our copy of the paper).

    Notes
    -----
    Dong et al. (2025), appendix C.4: global average pooling (in :meth:`MaskedUNet.embed`), 512 units with dropout, 40
    linear outputs, binary cross-entropy.
    """

    def __init__(
        self, n_in: int, n_attributes: int = 40, *, n_hidden: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__(n_in=n_in, n_attributes=n_attributes, n_hidden=n_hidden, dropout=dropout)
        if n_attributes < 1:
            raise ValueError(f"n_attributes must be at least 1, got {n_attributes}.")
        self.n_in, self.n_attributes = n_in, n_attributes
        self.shared = nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.outputs = nn.Linear(n_hidden, n_attributes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_attributes).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self.outputs(self.shared(features))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def _decide(self, logits: Tensor) -> Tensor:
        return (logits > 0).long()


def check_attributes(labels: Tensor, n_attributes: int) -> None:
    """Raise ValueError unless labels are 0 or 1, shape (n_obs, n_attributes)."""
    if labels.dim() != 2 or labels.shape[1] != n_attributes:
        raise ValueError(f"Attributes must have shape (n_obs, {n_attributes}), got {tuple(labels.shape)}.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("Attributes must be 0 or 1; CelebA's -1 is 0 here.")


def check_classes(labels: Tensor, n_classes: int) -> None:
    """Raise ValueError unless labels are integers in ``[0, n_classes)``, shape (n_obs,)."""
    if labels.dim() != 1 or labels.dtype.is_floating_point:
        raise ValueError(
            f"Labels must be integers of shape (n_obs,), got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(
            f"Labels must lie in 0 to {n_classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
            "build the classifier with n_classes= of the data."
        )
