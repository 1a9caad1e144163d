"""Transformer layers with rotary positions, normalized after each residual."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from scr2mae.extra.dna.config import GPNMSAConfig

__all__ = ["EncoderLayer", "rotary_tables", "rotate"]


def rotary_tables(n_positions: int, n_head_channels: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles, each float32 of shape (n_positions, n_head_channels / 2).

    Pair i at position t is rotated by ``t / 10000 ** (2 i / n_head_channels)`` (Su et al. 2021, RoFormer).
    """
    i = torch.arange(n_head_channels // 2, dtype=torch.float64)
    t = torch.arange(n_positions, dtype=torch.float64)
    angles = t[:, None] * 10_000.0 ** (-2 * i / n_head_channels)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of neighboring channels of ``x`` (..., n_positions, n_head_channels)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (..., n_positions, n_head_channels / 2)
    rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, each with residual, dropout and then layer normalization."""

    def __init__(self, config: GPNMSAConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.n_heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.expand = nn.Linear(width, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _heads(self, x: Tensor) -> Tensor:
        """Return shape (n_obs, n_heads, n_positions, n_head_channels)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, attended: Tensor | None = None) -> Tensor:
        """Map hidden states (n_obs, n_positions, width) to hidden states.

        ``attended`` broadcasts to (n_obs, n_heads, n_positions, n_positions); False excludes a key, such as padding.
        """
        mixed = F.scaled_dot_product_attention(
            rotate(self._heads(self.query(h)), cos, sin),
            rotate(self._heads(self.key(h)), cos, sin),
            self._heads(self.value(h)),
            attn_mask=attended,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        mixed = mixed.transpose(1, 2).flatten(-2)  # (n_obs, n_positions, width)
        h = self.attention_norm(h + self.dropout(self.attention_output(mixed)))
        return self.output_norm(h + self.dropout(self.contract(F.gelu(self.expand(h)))))
