"""GPN-MSA: a masked language model of the human bases of an alignment, its loss and curriculum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scr2mae._utils.model_folder import write_folder
from scr2mae.extra.dna import pretrained
from scr2mae.extra.dna.alphabet import VOCABULARY
from scr2mae.extra.dna.config import check_length
from scr2mae.extra.dna.corruption import IGNORED, corrupt, draw_base_mask, flip_labels
from scr2mae.extra.dna.layers import EncoderLayer, rotary_tables
from scr2mae.extra.networks import (
    BatchLoss,
    DecayingNetwork,
    load_weights,
    make_curriculum,
    repeatable_dropout,
)
from scr2mae.nn.curriculum import Curriculum, scale_gradient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scr2mae.extra.dna.config import GPNMSAConfig
    from scr2mae.train.provenance import History

__all__ = ["GPNMSAForMaskedLM", "MaskedLMOutput"]


@dataclass(frozen=True)
class MaskedLMOutput:
    """Output of a forward pass.

    Attributes
    ----------
    logits
        Logits of the symbols of ``VOCABULARY``, shape (n_obs, n_positions, 6).
    hidden
        Last hidden states, shape (n_obs, n_positions, hidden_size).
    element_loss
        Unweighted cross-entropy in nats, shape (n_obs, n_positions), 0 where the label is -100; None without labels.
    loss
        Its weighted mean; None without labels.
    """

    logits: Tensor
    hidden: Tensor
    element_loss: Tensor | None = None
    loss: Tensor | None = None


def _weighted_mean(loss: Tensor, loss_weight: Tensor | None, curriculum_weight: Tensor | None) -> Tensor:
    """Average scored elements; loss weights are normalized here, the curriculum's already have mean one."""
    weighted = loss if curriculum_weight is None else loss * curriculum_weight
    if loss_weight is None:
        return weighted.mean()
    return (weighted * loss_weight).sum() / loss_weight.sum().clamp(min=1e-12)


def _check_tokens(tokens: Tensor, n_symbols: int, name: str) -> None:
    """Raise unless tokens index the one-hot channels of their own column."""
    if tokens.is_floating_point():
        raise TypeError(f"{name} must hold integers, tokens as encode() returns; got {tokens.dtype}.")
    if tokens.is_meta or not tokens.numel():
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= n_symbols:
        raise ValueError(
            f"{name} must hold tokens from 0 to {n_symbols - 1} (of {VOCABULARY[:n_symbols]!r}), got {low} to {high}; make them with "
            "GenomeMSA.tokens or encode."
        )


class GPNMSAForMaskedLM(DecayingNetwork):
    """Masked language model of a genome, given its alignment to other species.

    The human base of each position and the bases of the other species, one-hot side by side and padded with zeros to the
    width of the network, pass through transformer layers with rotary positions. Only the human column is masked.

    Parameters
    ----------
    config
        Sizes, and settings of the curriculum.
    seed
        Seed of the initial weights.

    Attributes
    ----------
    species_
        Names of the other species in training, in the order of their columns; None before training, or if the alignment had
        no names. Saved with the weights.
    history_
        Curves of the last training run; None before training, and not saved.
    runs_
        Records of its training runs, saved as ``run.json``.

    Notes
    -----
    The network of GPN-MSA (Benegas et al. 2025), trained as in Dong et al. (2025), appendix C.7.
    """

    def __init__(self, config: GPNMSAConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.species_: tuple[str, ...] | None = None
        self.history_: History | None = None
        self.runs_: list[dict[str, Any]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = config.hidden_size
            self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
            self.head_dense = nn.Linear(width, width)
            self.head_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            self.head_decoder = nn.Linear(width, len(VOCABULARY))
            self.apply(self._initialize)
            self.curriculum = make_curriculum(Curriculum.named(config.curriculum), width)
        cos, sin = rotary_tables(config.max_position_embeddings, width // config.num_attention_heads)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def _check_inputs(self, input_ids: Tensor, aux_features: Tensor | None) -> Tensor:
        n_species = 0 if aux_features is None else aux_features.shape[-1]
        if n_species != self.config.n_species:
            raise ValueError(
                f"This network takes {self.config.n_species} species besides the human column, aux_features has {n_species}; "
                "choose the alignment, or the columns of it, that the network was made for."
            )
        if aux_features is not None and aux_features.shape[:2] != input_ids.shape:
            raise ValueError(
                "input_ids must have shape (n_obs, n_positions) and aux_features (n_obs, n_positions, n_species); got "
                f"{tuple(input_ids.shape)} and {tuple(aux_features.shape)}."
            )
        check_length(self.config, input_ids.shape[1])
        return input_ids.new_empty(*input_ids.shape, 0) if aux_features is None else aux_features

    def embed_tokens(self, input_ids: Tensor, aux_features: Tensor | None) -> Tensor:
        """Return the one-hot input, shape (n_obs, n_positions, hidden_size), padded with zeros to the width.

        Parameters
        ----------
        input_ids, aux_features
            As in :meth:`forward`.
        """
        aux_features = self._check_inputs(input_ids, aux_features)
        n_symbols = len(VOCABULARY)
        offsets = n_symbols + (n_symbols - 1) * torch.arange(aux_features.shape[-1], device=input_ids.device)
        channels = torch.cat([input_ids.long()[..., None], aux_features.long() + offsets], dim=-1)
        x = torch.zeros(*input_ids.shape, self.config.hidden_size, device=input_ids.device)
        return x.scatter_(-1, channels, 1.0)

    def encode(
        self, input_ids: Tensor, aux_features: Tensor | None = None, *, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states, shape (n_obs, n_positions, hidden_size).

        Parameters
        ----------
        input_ids, aux_features, attention_mask
            As in :meth:`forward`.
        """
        h = self.embed_tokens(input_ids, aux_features)
        n_positions = input_ids.shape[1]
        attended = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            h = layer(h, self.cos[:n_positions], self.sin[:n_positions], attended)
        return h

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the logits of the symbols of ``VOCABULARY``, shape (..., 6).

        Parameters
        ----------
        hidden
            Hidden states, shape (..., hidden_size).
        """
        return self.head_decoder(self.head_norm(F.gelu(self.head_dense(hidden))))

    def forward(
        self,
        input_ids: Tensor,
        aux_features: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weight: Tensor | None = None,
        curriculum_weight: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict the human base of each position; nothing is masked here.

        Parameters
        ----------
        input_ids
            Tokens of the human column, shape (n_obs, n_positions).
        aux_features
            Tokens of the other species, shape (n_obs, n_positions, n_species); None for a network without.
        attention_mask
            Shape (n_obs, n_positions), False at padding.
        labels
            Tokens to predict, shape (n_obs, n_positions), -100 where nothing is scored.
        loss_weight, curriculum_weight
            Weights of the elements, of the same shape. Loss weights are divided by their sum over scored elements.

        Returns
        -------
        Logits and hidden states, and with labels the loss.
        """
        _check_tokens(input_ids, len(VOCABULARY), "input_ids")
        if aux_features is not None:
            _check_tokens(aux_features, len(VOCABULARY) - 1, "aux_features")
        hidden = self.encode(input_ids, aux_features, attention_mask=attention_mask)
        logits = self.predict(hidden)
        if labels is None:
            return MaskedLMOutput(logits, hidden)
        element_loss = F.cross_entropy(
            logits.float().transpose(1, 2), labels.long(), ignore_index=IGNORED, reduction="none"
        )
        scored = labels != IGNORED
        loss = _weighted_mean(
            element_loss[scored],
            None if loss_weight is None else loss_weight[scored],
            None if curriculum_weight is None else curriculum_weight[scored],
        )
        return MaskedLMOutput(logits, hidden, element_loss, loss)

    def training_loss(
        self,
        batch: Mapping[str, Any],
        *,
        ratio: float,
        seed: int,
        step: int,
        ratio_index: int | None = None,
        grad_scale: float = 1.0,
    ) -> BatchLoss:
        """Return the loss of predicting a masked share of the human bases of a mini-batch.

        Parameters
        ----------
        batch
            Mini-batch of a :class:`MSAWindowDataset`.
        ratio, seed, step
            As in :func:`scr2mae.masking.draw_mask`; one draw for the whole mini-batch.
        ratio_index
            Index of the ratio in the curriculum's weights; None for a loss without them.
        grad_scale
            Factor of the gradient that reaches the curriculum's network.
        """
        tokens, draw = batch["input_ids"].long(), {"seed": seed, "step": step}
        attention_mask = batch.get("attention_mask")
        mask = draw_base_mask(tokens, ratio, attention_mask=attention_mask, **draw)
        labels = tokens[mask]
        if (flip := batch.get("flip_probability")) is not None:
            labels = flip_labels(labels, flip[mask], **draw)
        with repeatable_dropout(self, tokens.device, seed=seed, step=step):
            hidden = self.encode(
                corrupt(tokens, mask, **draw), batch.get("aux_features"), attention_mask=attention_mask
            )[mask]  # (n_masked, hidden_size)
        loss = F.cross_entropy(self.predict(hidden).float(), labels, reduction="none")
        weight = batch.get("loss_weight")
        curriculum_weight = None
        if ratio_index is not None:
            curriculum_weight = scale_gradient(self.curriculum_weights(hidden), grad_scale)[:, ratio_index]
        mean = _weighted_mean(loss, None if weight is None else weight[mask], curriculum_weight)
        return BatchLoss(mean, tokens.shape[0])

    def curriculum_weights(self, hidden: Tensor) -> Tensor:
        """Return the weights of masked tokens, shape (n_tokens, n_ratios), mean one.

        The states are detached, so that the reversed gradient does not reach the backbone (inferred).

        Parameters
        ----------
        hidden
            Hidden states of masked tokens, shape (n_tokens, hidden_size).

        Raises
        ------
        ValueError
            If the network has no curriculum.
        """
        if self.curriculum is None:
            raise ValueError("This network has no curriculum; give its GPNMSAConfig curriculum=Curriculum().")
        return self.curriculum(hidden.detach().float())

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``config.json`` and ``model.safetensors``, and after training ``run.json``.

        Parameters
        ----------
        folder
            Folder of the model, created if needed.
        overwrite
            Whether to replace an existing model.

        Raises
        ------
        FileExistsError
            If the folder is not empty and ``overwrite`` is False.
        """
        document = {"config": self.config.to_dict(), "species": self.species_}
        write_folder(
            folder,
            pretrained.FORMAT,
            self.state_dict(),
            document,
            runs=self.runs_ or None,
            overwrite=overwrite,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GPNMSAForMaskedLM:
        """Return a saved network in evaluation mode; nothing is unpickled.

        Parameters
        ----------
        folder
            Folder of the model.

        Raises
        ------
        ValueError
            If a file is damaged, or weights and configuration do not match.
        """
        weights, config, species = pretrained.read_network(folder)
        network = cls(config)
        load_weights(network, weights, place=folder)
        network.species_ = species
        return network.eval()

    @classmethod
    def from_songlab_state_dict(
        cls, state_dict: Mapping[str, Tensor], config: GPNMSAConfig
    ) -> GPNMSAForMaskedLM:
        """Return a network with the weights of a published GPN-MSA model, in evaluation mode.

        Parameters
        ----------
        state_dict
            Weights under the names of transformers' RoFormer.
        config
            Sizes, such as :meth:`GPNMSAConfig.from_songlab_config` returns; weights do not determine the number of species.

        Raises
        ------
        ValueError
            If names or shapes are not those of such a model.
        """
        network = cls(config)
        weights = pretrained.rename_songlab(state_dict, config.num_hidden_layers)
        load_weights(network, weights, place="the state dict")
        return network.eval()
