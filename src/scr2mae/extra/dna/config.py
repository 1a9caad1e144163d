"""Sizes of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from scr2mae.extra.dna.alphabet import MASK_ID, VOCABULARY
from scr2mae.nn.curriculum import Curriculum

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GPNMSAConfig"]

_SYMBOLS_OF_SPECIES = MASK_ID  # bases of other species are never hidden
_SONGLAB_FIXED: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "aux_features_vocab_size": _SYMBOLS_OF_SPECIES,
    "hidden_act": "gelu",
    "rotary_value": False,
    "group_tokens": 1,
}


@dataclass(frozen=True)
class GPNMSAConfig:
    """Sizes of :class:`GPNMSAForMaskedLM`; the defaults are those of the published GPN-MSA, 85.7 M parameters.

    Parameters
    ----------
    n_species
        Species beside the human column, >= 0: 89 in the published model.
    hidden_size
        Width, a multiple of twice ``num_attention_heads``. The one-hot symbols of one position, ``6 + 5 * n_species``, must fit in.
    num_hidden_layers, num_attention_heads
        Depth, and heads a layer.
    intermediate_size
        Width inside the feed-forward blocks.
    hidden_dropout_prob, attention_probs_dropout_prob
        Dropout in training.
    layer_norm_eps
        Of the layer normalizations.
    initializer_range
        Standard deviation of the first weights.
    max_position_embeddings
        Longest window.
    curriculum
        Settings of learned loss weights, ``"cl"``, ``"cl_k0"``, or None; ``rank`` and ``per_cell`` mean nothing here.
        Kept as settings.

    Raises
    ------
    ValueError
        If sizes do not fit together.
    """

    n_species: int = 89
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    max_position_embeddings: int = 1536
    curriculum: Curriculum | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "curriculum", Curriculum.named(self.curriculum))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_species < 0:
            raise ValueError(f"n_species must be >= 0, got {self.n_species}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_attention_heads = {2 * self.num_attention_heads}, so that each "
                f"head turns pairs of channels; got {self.hidden_size}."
            )
        if self.n_channels > self.hidden_size:
            raise ValueError(
                f"{self.n_species} species need {self.n_channels} channels (6 + 5 a species), more than hidden_size={self.hidden_size}; "
                "choose a wider network or fewer species."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}.")

    @property
    def n_channels(self) -> int:
        """One-hot channels of a position: the human column's six symbols, then five a species."""
        return len(VOCABULARY) + _SYMBOLS_OF_SPECIES * self.n_species

    def to_dict(self) -> dict[str, Any]:
        """Describe in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> GPNMSAConfig:
        """Undo :meth:`to_dict`.

        Parameters
        ----------
        described
            Settings by name.

        Returns
        -------
        The configuration.

        Raises
        ------
        ValueError
            If a key is unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(described) - known:
            raise ValueError(
                f"Unknown keys in a GPNMSAConfig: {sorted(unknown)}; was it made by a newer version? "
                "For the config.json of a published model use from_songlab_config."
            )
        return cls(**{**described, "curriculum": Curriculum.from_dict(described.get("curriculum"))})

    @classmethod
    def from_songlab_config(cls, described: Mapping[str, Any]) -> GPNMSAConfig:
        """Read the ``config.json`` of a published GPN-MSA model.

        Parameters
        ----------
        described
            Its content. ``n_aux_features`` is five a species; keys that do not touch the network are left out.

        Returns
        -------
        The configuration of the same network.

        Raises
        ------
        ValueError
            If the network is of another kind.
        """
        for name, wanted in _SONGLAB_FIXED.items():
            if described.get(name, wanted) != wanted:
                raise ValueError(f"This reads networks with {name}={wanted!r}, got {described[name]!r}.")
        width = described.get("hidden_size", cls.hidden_size)
        if described.get("embedding_size", width) not in (None, width):
            raise ValueError(
                f"embedding_size must equal hidden_size, got {described['embedding_size']} and {width}."
            )
        n_channels = int(described.get("n_aux_features", 0))
        if n_channels % _SYMBOLS_OF_SPECIES:
            raise ValueError(f"n_aux_features must be a multiple of {_SYMBOLS_OF_SPECIES}, got {n_channels}.")
        shared = {field.name for field in fields(cls)} - {"n_species", "curriculum"}
        return cls(
            n_species=n_channels // _SYMBOLS_OF_SPECIES,
            **{name: described[name] for name in shared & set(described)},
        )
