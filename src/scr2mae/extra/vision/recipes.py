"""Settings of the paper's training runs: epochs, batch sizes, optimizers and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from scr2mae.train import LearningRateSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scr2mae.masking import RatioSchedule

__all__ = ["RECIPES", "PerEpoch", "Recipe"]


@dataclass(frozen=True)
class PerEpoch:
    """A masking schedule of (epoch, n_epochs) that changes once per epoch, as Dynamic masking does for images."""

    schedule: RatioSchedule
    n_epochs: int

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the ratio of the epoch of ``step``."""
        epoch = min(step * self.n_epochs // max(total_steps, 1), self.n_epochs - 1)
        return self.schedule(epoch, self.n_epochs)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Parameters
    ----------
    max_epochs, batch_size
        Number of epochs, and of images per mini-batch and device.
    lr
        Learning rate for ``lr_batch_size`` images per step, and in proportion for more or fewer.
    lr_batch_size
        Number of images per step that ``lr`` refers to; None uses ``lr`` for any number.
    optimizer, betas, weight_decay
        Name and settings of the optimizer.
    warmup_epochs
        Number of epochs over which the learning rate rises.
    decay
        Learning rate schedule after warm-up: ``"constant"``, ``"linear"`` or ``"cosine"``.
    """

    max_epochs: int
    batch_size: int
    lr: float
    lr_batch_size: int | None = None
    optimizer: str = "Adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    decay: str = "constant"

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"max_epochs must be at least 1 and batch_size at least 2, got {self.max_epochs} and {self.batch_size}."
            )

    def plan_kwargs(self, n_images_step: int) -> dict[str, Any]:
        """Return the arguments of :class:`scr2mae.train.MaskedTrainingPlan`.

        Parameters
        ----------
        n_images_step
            Number of images per optimizer step: batch size, times devices, times accumulated mini-batches.
        """
        scale = 1.0 if self.lr_batch_size is None else n_images_step / self.lr_batch_size
        share = min(self.warmup_epochs / self.max_epochs, 1.0)
        return {
            "lr": self.lr * scale,
            "optimizer": self.optimizer,
            "betas": self.betas,
            "weight_decay": self.weight_decay,
            "learning_rate": LearningRateSchedule(self.decay, warmup=share),
        }


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "mlp": Recipe(max_epochs=15, batch_size=128, lr=3e-3),
        "unet": Recipe(max_epochs=10, batch_size=256, lr=1e-3),
        "vit": Recipe(
            max_epochs=150,
            batch_size=256,
            lr=1.5e-4,
            lr_batch_size=256,
            optimizer="AdamW",
            betas=(0.9, 0.95),
            weight_decay=0.05,
            warmup_epochs=10,
            decay="cosine",
        ),
        "finetune": Recipe(
            max_epochs=100,
            batch_size=256,
            lr=5e-4,
            lr_batch_size=256,
            optimizer="AdamW",
            weight_decay=0.05,
            warmup_epochs=5,
            decay="cosine",
        ),
        "linear": Recipe(max_epochs=15, batch_size=128, lr=3e-3),
        "attributes": Recipe(max_epochs=10, batch_size=256, lr=1e-3),
    }
)
"""The paper's settings by name: ``"mlp"``, ``"unet"`` and ``"vit"`` for pretraining, ``"finetune"`` for a ViT, and
``"linear"`` and ``"attributes"`` for heads. Batch sizes of the ViT are inferred; its learning rates refer to 256 images."""
