"""A pretrained ViT with a classifier on top, for finetuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scr2mae._utils.optional import require
from scr2mae.extra.networks import BatchLoss, repeatable_dropout
from scr2mae.extra.vision.saving import SavedNetwork
from scr2mae.extra.vision.vit import pooled_patches
from scr2mae.extra.vision.vit_sizes import check_config

if TYPE_CHECKING:
    from transformers import ViTMAEConfig

    from scr2mae.extra.vision.vit import R2ViTMAE

__all__ = ["StochasticDepth", "ViTMAEClassifier"]


class StochasticDepth(nn.Module):
    """Drop the branch of a residual block for some observations in training; scale the kept ones by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch, shape (n_obs, ...), zero for the observations that drop it."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class ViTMAEClassifier(SavedNetwork):
    """Encoder of a ViT-MAE without masking, mean over patches, normalization, linear classifier.

    Parameters
    ----------
    config
        Configuration of the pretrained network.
    n_classes
        Number of classes, >= 2.
    drop_path
        Stochastic depth of the last layer, rising linearly from zero at the first.
    layer_decay
        Factor of the learning rate from each layer to the one before; the classifier has the full rate.
    label_smoothing
        Label smoothing where labels are classes; augmentation that mixes images has its own.

    Raises
    ------
    ValueError
        If ``n_classes < 2``, or ``drop_path`` or ``layer_decay`` is out of range.

    Notes
    -----
    The finetuning of He et al. (2022), which Dong et al. (2025) follow.
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
        super().__init__(
            n_classes=n_classes,
            drop_path=drop_path,
            layer_decay=layer_decay,
            label_smoothing=label_smoothing,
        )
        check_config(config)
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        if not 0 <= drop_path < 1 or not 0 < layer_decay <= 1:
            raise ValueError(
                f"drop_path must lie in [0, 1) and layer_decay in (0, 1], got {drop_path} and {layer_decay}."
            )
        self.config, self.n_classes, self.image_size = config, n_classes, config.image_size
        self.layer_decay, self.label_smoothing = layer_decay, label_smoothing
        self.encoder = require("transformers", extra="vision").ViTMAEModel(config)
        # States are pooled first and normalized after, so the encoder's own normalization is left out.
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
    def from_network(cls, network: R2ViTMAE, n_classes: int, **kwargs: Any) -> ViTMAEClassifier:
        """Copy the encoder of a pretrained network and add a new head.

        Parameters
        ----------
        network
            The pretrained network; it is not changed.
        n_classes
            Number of classes.
        kwargs
            Additional arguments of the class.

        Returns
        -------
        The classifier.
        """
        classifier = cls(network.config, n_classes, **kwargs)
        weights = network.mae.vit.state_dict()
        kept = {name: value for name, value in weights.items() if not name.startswith("layernorm.")}
        classifier.encoder.load_state_dict(kept)
        return classifier

    def embed(self, images: Tensor) -> Tensor:
        """Return the normalized mean over patches, shape (n_obs, hidden_size).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        return self.norm(pooled_patches(self.encoder, images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (n_obs, n_classes).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        return self.head(self.embed(images))

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the cross-entropy of a mini-batch; nothing is masked.

        Parameters
        ----------
        tensors
            Images ``"image"`` in [0, 1], and ``"label"``: classes, shape (n_obs,), or the mixed classes of an
            augmentation, shape (n_obs, n_classes).
        ratio
            Not used; the training plan passes it.
        seed, step
            Seed and step that determine stochastic depth.
        """
        images, labels = tensors["image"], tensors["label"]
        with repeatable_dropout(self, images.device, seed=seed, step=step):
            logits = self(images).float()
        smoothing = self.label_smoothing if self.training and labels.dim() == 1 else 0.0
        return BatchLoss(F.cross_entropy(logits, labels, label_smoothing=smoothing), len(images))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups for an optimizer: one learning rate per layer; biases and normalization do not decay.

        Parameters
        ----------
        weight_decay
            Weight decay of the matrices.
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

    def _extra_config(self) -> dict[str, Any]:
        return {"vit": self.config.to_dict()}

    @classmethod
    def _from_config(cls, document: dict[str, Any]) -> ViTMAEClassifier:
        config = require("transformers", extra="vision").ViTMAEConfig.from_dict(document["vit"])
        return cls(config, **document["init_params"])


def _depth(name: str, n_layers: int) -> int:
    """Return the layer of a parameter: 0 for the patch embedding, n_layers + 1 for the classifier."""
    if name.startswith("encoder.embeddings."):
        return 0
    if name.startswith("encoder.layers."):
        return int(name.split(".")[2]) + 1
    return n_layers + 1
