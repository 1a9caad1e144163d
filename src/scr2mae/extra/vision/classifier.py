"""A pretrained ViT with a classifier on top, for fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scr2mae._utils.optional import require
from scr2mae.extra.training import BatchLoss, repeatable_dropout
from scr2mae.extra.vision.common import check_images
from scr2mae.extra.vision.heads import check_classes
from scr2mae.extra.vision.vit import keep_order, normalize, visible_patches
from scr2mae.extra.vision.vit_sizes import check_config, sides

if TYPE_CHECKING:
    from transformers import ViTMAEConfig

    from scr2mae.extra.vision.vit import R2ViTMAE

__all__ = ["StochasticDepth", "ViTMAEClassifier"]


class StochasticDepth(nn.Module):
    """Drop the branch of a residual block for some observations in training.

    Parameters
    ----------
    rate
        Chance of dropping; what is kept is divided by its complement.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch, shape (n_obs, ...), zero for the observations that drop it."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class ViTMAEClassifier(nn.Module):
    """Encoder of a ViT-MAE without masking, mean over patches, normalization, linear classifier.

    Parameters
    ----------
    config
        Of the pretrained network.
    n_classes
        Number of classes, >= 2.
    drop_path
        Stochastic depth of the last layer, rising linearly from zero at the first.
    layer_decay
        What the learning rate is multiplied by from each layer to the one before; the classifier has the full rate.
    label_smoothing
        Of the cross-entropy where labels are classes; augmentation that mixes images smooths by itself.

    Raises
    ------
    ValueError
        If ``n_classes < 2``, or ``drop_path`` or ``layer_decay`` is out of range.

    Notes
    -----
    The fine-tuning of He et al. (2022), which Dong et al. (2025) follow.
    """

    def __init__(
        self,
        config: ViTMAEConfig,
        n_classes: int,
        *,
        drop_path: float = 0.1,
        layer_decay: float = 0.65,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        check_config(config)
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        if not 0 <= drop_path < 1 or not 0 < layer_decay <= 1:
            raise ValueError(
                f"drop_path must lie in [0, 1) and layer_decay in (0, 1], got {drop_path} and {layer_decay}."
            )
        self.init_params = {
            "n_classes": n_classes,
            "drop_path": drop_path,
            "layer_decay": layer_decay,
            "label_smoothing": label_smoothing,
        }
        self.config, self.n_classes = config, n_classes
        self.layer_decay, self.label_smoothing = layer_decay, label_smoothing
        self.image_size, patch_size = sides(config)
        self.n_patches = (self.image_size // patch_size) ** 2
        self.encoder = require("transformers", extra="vision").ViTMAEModel(config)
        # Pooled first, normalized after: the encoder's own normalization is left out.
        self.encoder.layernorm = nn.Identity()
        n_layers = len(self.encoder.layers)
        for i, layer in enumerate(self.encoder.layers):
            # transformers has its dropout just where a branch joins the residual stream.
            layer.dropout = StochasticDepth(drop_path * i / max(n_layers - 1, 1))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, n_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(cls, network: R2ViTMAE, n_classes: int, **kwargs: Any) -> ViTMAEClassifier:
        """Take the encoder of a pretrained network, whose weights are copied.

        Parameters
        ----------
        network
            The pretrained network.
        n_classes
            Number of classes.
        kwargs
            Further arguments of the class.

        Returns
        -------
        A classifier whose head is new.
        """
        classifier = cls(network.config, n_classes, **kwargs)
        weights = network.mae.vit.state_dict()
        kept = {name: value for name, value in weights.items() if not name.startswith("layernorm.")}
        classifier.encoder.load_state_dict(kept)
        return classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_classes), of images in [0, 1], shape (n_obs, n_channels, height, width).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        check_images(images, n_channels=self.config.num_channels, size=self.image_size)
        noise = keep_order(self.n_patches, images.device).expand(len(images), -1)
        with visible_patches(self.config, self.n_patches, self.n_patches):
            states = self.encoder(normalize(images), noise=noise).last_hidden_state
        return self.head(self.norm(states[:, 1:].mean(dim=1)))

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the cross-entropy of a mini-batch; nothing is hidden.

        Parameters
        ----------
        tensors
            Images ``"image"`` in [0, 1], and ``"label"``: classes, shape (n_obs,), or the mixed classes of an
            augmentation, shape (n_obs, n_classes).
        ratio
            Not used; the training plan passes it.
        seed, step
            What stochastic depth depends on.
        """
        images, labels = tensors["image"], tensors["label"]
        with repeatable_dropout(self, images.device, seed=seed, step=step):
            logits = self(images).float()
        smoothing = self.label_smoothing if self.training and labels.dim() == 1 else 0.0
        return BatchLoss(F.cross_entropy(logits, labels, label_smoothing=smoothing), len(images))

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that are no classes of this classifier.

        Parameters
        ----------
        labels
            Shape (n_obs,).
        """
        check_classes(labels, self.n_classes)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group parameters by layer, each with its share of the learning rate; biases and norms are not decayed.

        Parameters
        ----------
        weight_decay
            Decay of the matrices.

        Returns
        -------
        Groups for an optimizer, with a factor of the learning rate each.
        """
        n_layers = len(self.encoder.layers)
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            depth = _depth(name, n_layers)
            decayed = parameter.dim() > 1
            group = groups.setdefault(
                (depth, decayed),
                {
                    "params": [],
                    "lr_scale": self.layer_decay ** (n_layers + 1 - depth),
                    "weight_decay": weight_decay if decayed else 0.0,
                },
            )
            if parameter.requires_grad:
                group["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]


def _depth(name: str, n_layers: int) -> int:
    """Layer that a parameter belongs to: 0 for what makes patches into tokens, n_layers + 1 for the classifier."""
    if name.startswith("encoder.embeddings."):
        return 0
    if name.startswith("encoder.layers."):
        return int(name.split(".")[2]) + 1
    return n_layers + 1
