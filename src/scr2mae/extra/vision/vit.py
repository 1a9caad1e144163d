"""ViT-MAE of transformers with the masking ratio as an argument of the call."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scr2mae._utils.files import as_path
from scr2mae._utils.model_folder import FolderFormat, write_folder
from scr2mae._utils.optional import require
from scr2mae._utils.untrusted import load_tensors
from scr2mae.extra.networks import BatchLoss, DecayingNetwork
from scr2mae.extra.vision.pixels import check_images
from scr2mae.extra.vision.vit_sizes import check_config, sides
from scr2mae.masking import draw_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import ViTMAEConfig

__all__ = ["R2ViTMAE", "normalize", "pooled_patches", "position_table"]

# Mean and standard deviation of ImageNet's pixels, as in MAE and in the checkpoints of transformers.
_RGB_MEAN, _RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FORMAT = FolderFormat(
    name="scr2mae.vit_mae",
    noun="ViT-MAE",
    index="scr2mae.json",
    weights="model.safetensors",
    files=("config.json", "preprocessor_config.json"),
)


def position_table(width: int, grid: int) -> Tensor:
    """Return sines and cosines of a grid's columns, then rows; zero for the class token: (1, grid ** 2 + 1, width)."""
    frequencies = 1e4 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    columns = line[None, :, :].expand(grid, grid, -1)
    rows = line[:, None, :].expand(grid, grid, -1)
    table = torch.cat([columns, rows], dim=2).flatten(0, 1)  # (grid ** 2, width)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()[None]


@torch.no_grad()
def _initialize(mae: Any) -> None:
    """Draw weights as He et al. (2022), appendix A.1: Xavier-uniform, tokens normal, fixed positions."""
    for layer in mae.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    embeddings, decoder = mae.vit.embeddings, mae.decoder
    nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))
    nn.init.zeros_(embeddings.patch_embeddings.projection.bias)
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=mae.config.initializer_range)
    image_size, patch_size = sides(mae.config)
    grid = image_size // patch_size
    embeddings.position_embeddings.copy_(position_table(mae.config.hidden_size, grid))
    decoder.decoder_pos_embed.copy_(position_table(mae.config.decoder_hidden_size, grid))


def normalize(images: Tensor) -> Tensor:
    """Standardize pixels in [0, 1] as checkpoints of transformers expect: RGB by ImageNet's values, else by 0.5."""
    if images.shape[1] != 3:
        return (images - 0.5) / 0.5
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_RGB_MEAN, _RGB_STD))
    return (images - mean) / std


@contextmanager
def _visible_patches(config: Any, n_patches: int, n_visible: int) -> Iterator[None]:
    """Let transformers keep ``n_visible`` patches within the block; restore the configuration afterwards."""
    before = config.mask_ratio
    # transformers keeps int(n_patches * (1 - mask_ratio)); half a patch more is safe from rounding.
    config.mask_ratio = 1.0 - (n_visible + 0.5) / n_patches
    try:
        yield
    finally:
        config.mask_ratio = before


def _ordered_noise(n_patches: int, device: torch.device) -> Tensor:
    """Noise that leaves patches in their order, shape (1, n_patches)."""
    return torch.arange(n_patches, dtype=torch.float32, device=device)[None]


def pooled_patches(encoder: Any, images: Tensor) -> Tensor:
    """Return the mean of an encoder's last states over all patches, shape (n_obs, hidden_size); nothing is masked."""
    config = encoder.config
    image_size, patch_size = sides(config)
    check_images(images, n_channels=config.num_channels, size=image_size)
    n_patches = (image_size // patch_size) ** 2
    noise = _ordered_noise(n_patches, images.device).expand(len(images), -1)
    with _visible_patches(config, n_patches, n_patches):
        states = encoder(normalize(images), noise=noise).last_hidden_state
    return states[:, 1:].mean(dim=1)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from showing progress bars."""
    logging = require("transformers.utils.logging", extra="vision")
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


class R2ViTMAE(DecayingNetwork):
    """ViT-MAE with the masking ratio as an argument of ``forward``.

    Parameters
    ----------
    config
        From :func:`vit_config`, or any other ViT-MAE configuration; its ``mask_ratio`` is neither used nor changed.

    Attributes
    ----------
    mae
        The ``ViTMAEForPreTraining`` of transformers.
    n_patches, n_latent
        Number of patches per image, and width of the embedding.

    Raises
    ------
    ValueError
        If sizes in the configuration do not fit one another.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        check_config(config)
        self.mae = require("transformers", extra="vision").ViTMAEForPreTraining(config)
        _initialize(self.mae)
        self.config = config
        self.image_size, patch_size = sides(config)
        self.n_patches = (self.image_size // patch_size) ** 2
        self.n_latent = config.hidden_size

    def forward(self, images: Tensor, *, ratio: float, seed: int, step: int) -> Any:
        """Mask patches of each image and predict their pixels.

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`; each image has its own mask.

        Returns
        -------
        Output of transformers: ``loss``, ``logits`` (n_obs, n_patches, pixels per patch), ``mask`` (1 where masked).
        """
        check_images(images, n_channels=self.config.num_channels, size=self.image_size)
        masked = draw_mask(
            self.n_patches, ratio, seed=seed, step=step, n_obs=len(images), device=images.device
        )
        n_visible = self.n_patches - min(max(round(ratio * self.n_patches), 1), self.n_patches - 1)
        # transformers keeps the patches with the smallest noise, in order of noise.
        noise = masked * float(self.n_patches) + _ordered_noise(self.n_patches, images.device)
        with _visible_patches(self.config, self.n_patches, n_visible):
            return self.mae(normalize(images), noise=noise)

    def training_loss(self, tensors: dict[str, Any], *, ratio: float, seed: int, step: int) -> BatchLoss:
        """Return the mean squared error over the masked patches of a mini-batch.

        Parameters
        ----------
        tensors
            A mini-batch; ``tensors["image"]`` in [0, 1], shape (n_obs, n_channels, height, width).
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`.
        """
        images = tensors["image"]
        return BatchLoss(self(images, ratio=ratio, seed=seed, step=step).loss, len(images))

    def embed(self, images: Tensor) -> Tensor:
        """Return the mean over the patches of whole images, shape (n_obs, n_latent).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        """
        return pooled_patches(self.mae.vit, images)

    def reconstruct(self, images: Tensor, *, ratio: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return images with masked patches as predicted, and the mask over pixels (n_obs, 1, height, width).

        Parameters
        ----------
        images
            In [0, 1], shape (n_obs, n_channels, height, width).
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`.

        Notes
        -----
        A network trained on normalized pixels predicts each patch up to its mean and spread. For display, as is usual,
        these are taken from the image.
        """
        out = self(images, ratio=ratio, seed=seed, step=step)
        target = self.mae.patchify(images)
        predicted = out.logits
        if self.config.norm_pix_loss:
            spread = (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            predicted = predicted * spread + target.mean(dim=-1, keepdim=True)
        masked = out.mask[..., None].bool().expand_as(target)
        mask = self.mae.unpatchify(masked.float())[:, :1].bool()
        return self.mae.unpatchify(torch.where(masked, predicted, target)).clamp(0, 1), mask

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the network as ``ViTMAEForPreTraining`` of transformers does, with the preprocessing of its images.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a network in the folder may be replaced.
        """
        rgb = self.config.num_channels == 3
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(_RGB_MEAN) if rgb else [0.5] * self.config.num_channels,
            "image_std": list(_RGB_STD) if rgb else [0.5] * self.config.num_channels,
        }
        with TemporaryDirectory() as place, _no_progress_bars():
            # transformers names weights differently in files and in memory.
            self.mae.save_pretrained(place, max_shard_size="1TB")
            tensors = load_tensors(Path(place) / "model.safetensors")
            config = (Path(place) / "config.json").read_bytes()
        files = {"config.json": config, "preprocessor_config.json": json.dumps(processor, indent=1).encode()}
        runs = getattr(self, "runs_", None) or None
        write_folder(folder, _FORMAT, tensors, {}, files=files, runs=runs, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> R2ViTMAE:
        """Load any ViT-MAE from a folder, or from the Hugging Face Hub by name. Nothing is unpickled.

        Parameters
        ----------
        folder
            A folder, or a name on the Hub.

        Returns
        -------
        The network, in evaluation mode.

        Raises
        ------
        OSError
            If there is no checkpoint in safetensors.
        """
        transformers = require("transformers", extra="vision")
        place = as_path(folder)
        with _no_progress_bars():
            # Without safetensors transformers would load a pickle; no code other than ViT-MAE's is run.
            mae = transformers.ViTMAEForPreTraining.from_pretrained(
                place if place.is_dir() else folder,
                use_safetensors=True,
                local_files_only=place.is_dir(),
                trust_remote_code=False,
            )
        network = cls(mae.config)
        network.mae.load_state_dict(mae.state_dict())
        return network.eval()
