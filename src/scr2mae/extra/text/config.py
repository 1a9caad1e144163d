"""Sizes of RoBERTa, as in the paper."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from scr2mae._utils.optional import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import RobertaConfig

__all__ = ["SIZES", "n_parameters", "roberta_config"]

SIZES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "tiny": {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            # RoBERTa's 0.02 suits widths near 768; here attention would stay almost uniform for thousands of steps.
            "initializer_range": 0.1,
        },
        "medium": {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
        },
        "base": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    }
)
"""Widths and depths by name: ``medium`` and ``base`` are the paper's, ``tiny`` trains on a CPU in minutes."""


def roberta_config(size: str = "medium", *, vocab_size: int = 50_265, **options: Any) -> RobertaConfig:
    """Create the configuration of a RoBERTa of a named size.

    Parameters
    ----------
    size
        One of :data:`SIZES`.
    vocab_size
        Size of the tokenizer's vocabulary.
    options
        Additional arguments of ``transformers.RobertaConfig``, which take precedence.

    Returns
    -------
    The configuration.

    Raises
    ------
    ValueError
        If the size or an option is unknown.

    Notes
    -----
    514 positions, two of which are never used, as in Dong et al. (2025), appendix C.6. One type of segment and an
    epsilon of 1e-5, as in RoBERTa's released checkpoints (inferred); they change the number of parameters by a thousand.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {list(SIZES)}, got {size!r}.")
    config_class = require("transformers", extra="text").RobertaConfig
    settings: dict[str, Any] = {
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        **SIZES[size],
        "vocab_size": vocab_size,
    }
    if unknown := set(options) - set(config_class().to_dict()):
        raise ValueError(f"RobertaConfig has no {sorted(unknown)}; see its documentation in transformers.")
    return config_class(**{**settings, **options})


def n_parameters(config: RobertaConfig) -> int:
    """Count the parameters of the masked language model of a configuration, without allocating them.

    Parameters
    ----------
    config
        A configuration of ``transformers``.

    Returns
    -------
    Number of parameters; shared ones are counted once.
    """
    network_class = require("transformers", extra="text").RobertaForMaskedLM
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network_class(config).parameters())
