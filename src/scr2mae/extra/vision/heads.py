"""Classifiers on frozen embeddings: the linear probe, and the paper's forty attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scr2mae.extra.training import BatchLoss, repeatable_dropout

__all__ = ["AttributeHead", "LinearHead"]


class LinearHead(nn.Module):
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
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        self.n_in, self.n_classes = n_in, n_classes
        self.norm = nn.BatchNorm1d(n_in, affine=False) if normalize else nn.Identity()
        self.linear = nn.Linear(n_in, n_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_classes), of embeddings, shape (n_obs, n_in).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self.linear(self.norm(features))

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the cross-entropy of a mini-batch; nothing is hidden.

        Parameters
        ----------
        tensors
            Embeddings ``"features"``, shape (n_obs, n_in), and classes ``"label"``, shape (n_obs,).
        ratio, seed, step
            Not used; the training plan passes them.
        """
        logits = self(tensors["features"])
        return BatchLoss(F.cross_entropy(logits, tensors["label"]), len(logits))

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that are no classes of this head.

        Parameters
        ----------
        labels
            Shape (n_obs,).
        """
        check_classes(labels, self.n_classes)

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return the likeliest class of each observation, shape (n_obs,).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self(features).argmax(dim=1)


class AttributeHead(nn.Module):
    """A shared hidden layer and one binary output an attribute, on embeddings.

    Parameters
    ----------
    n_in
        Width of the embedding.
    n_attributes
        Number of attributes; 40 in CelebA.
    n_hidden
        Width of the shared layer.
    dropout
        Share of its units dropped in training (0.5: inferred, the paper names no value).

    Notes
    -----
    Dong et al. (2025), appendix C.4: global average pooling (in :meth:`MaskedUNet.embed`), 512 units with dropout, 40
    linear outputs, binary cross-entropy.
    """

    def __init__(
        self, n_in: int, n_attributes: int = 40, *, n_hidden: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if n_attributes < 1:
            raise ValueError(f"n_attributes must be at least 1, got {n_attributes}.")
        self.n_in, self.n_attributes = n_in, n_attributes
        self.shared = nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.outputs = nn.Linear(n_hidden, n_attributes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_attributes), of embeddings, shape (n_obs, n_in).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return self.outputs(self.shared(features))

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the binary cross-entropy of a mini-batch; nothing is hidden.

        Parameters
        ----------
        tensors
            Embeddings ``"features"``, shape (n_obs, n_in), and attributes ``"label"`` in {0, 1}, shape
            (n_obs, n_attributes).
        ratio
            Not used; the training plan passes it.
        seed, step
            What dropout depends on.
        """
        features = tensors["features"]
        with repeatable_dropout(self, features.device, seed=seed, step=step):
            logits = self(features)
        loss = F.binary_cross_entropy_with_logits(logits, tensors["label"].to(logits.dtype))
        return BatchLoss(loss, len(logits))

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that are no attributes of this head.

        Parameters
        ----------
        labels
            Shape (n_obs, n_attributes).

        Raises
        ------
        ValueError
            If the shape does not fit or a value is neither 0 nor 1.
        """
        if labels.dim() != 2 or labels.shape[1] != self.n_attributes:
            raise ValueError(
                f"Attributes must have shape (n_obs, {self.n_attributes}), got {tuple(labels.shape)}."
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("Attributes must be 0 or 1; CelebA's -1 is 0 here.")

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return the likelier value of each attribute, 0 or 1, shape (n_obs, n_attributes).

        Parameters
        ----------
        features
            Embeddings, shape (n_obs, n_in).
        """
        return (self(features) > 0).long()


def check_classes(labels: Tensor, n_classes: int) -> None:
    """Refuse labels that are no classes.

    Raises
    ------
    ValueError
        If labels are not whole numbers in ``[0, n_classes)``, one an observation.
    """
    if labels.dim() != 1 or labels.dtype.is_floating_point:
        raise ValueError(
            f"Labels must be whole numbers of shape (n_obs,), got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(
            f"Labels must lie in 0 to {n_classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
            "build the classifier with n_classes= of the data."
        )
