"""Configuration of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from scr2mae.extra.dna.alphabet import MASK_ID, VOCABULARY
from scr2mae.nn.curriculum import Curriculum

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GPNMSAConfig", "check_length"]

_N_SPECIES_SYMBOLS = MASK_ID  # bases of other species are never masked
_SONGLAB_FIXED: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "aux_features_vocab_size": _N_SPECIES_SYMBOLS,
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
        Species besides the human column, >= 0: 89 in the published model.
    hidden_size
        Width, a multiple of twice ``num_attention_heads`` and at least ``6 + 5 * n_species``, the one-hot symbols of a position.
    num_hidden_layers, num_attention_heads
        Number of layers, and of attention heads per layer.
    intermediate_size
        Width inside the feed-forward blocks.
    hidden_dropout_prob, attention_probs_dropout_prob
        Dropout in training.
    layer_norm_eps
        Epsilon of the layer normalizations.
    initializer_range
        Standard deviation of the initial weights.
    max_position_embeddings
        Longest window.
    curriculum
        Settings of learned loss weights, ``"cl"``, ``"cl_k0"``, or None. A name is replaced by the paper's settings for DNA;
        ``rank`` and ``per_cell`` are ignored.

    Raises
    ------
    ValueError
        If the sizes are inconsistent.
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
        object.__setattr__(self, "curriculum", Curriculum.named(self.curriculum, domain="dna"))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.n_species < 0:
            raise ValueError(f"n_species must be >= 0, got {self.n_species}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_attention_heads = {2 * self.num_attention_heads}, so that each "
                f"head rotates pairs of channels; got {self.hidden_size}."
            )
        if self.n_channels > self.hidden_size:
            raise ValueError(
                f"{self.n_species} species need {self.n_channels} channels (6 + 5 per species), more than hidden_size={self.hidden_size}; "
                "choose a wider network or fewer species."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}.")

    @property
    def n_channels(self) -> int:
        """One-hot channels per position: six symbols of the human column, then five per species."""
        return len(VOCABULARY) + _N_SPECIES_SYMBOLS * self.n_species

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> GPNMSAConfig:
        """Return the configuration of the settings that :meth:`to_dict` returned.

        Parameters
        ----------
        settings
            Values by name.

        Raises
        ------
        ValueError
            If a name is unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(settings) - known:
            raise ValueError(
                f"Unknown keys in a GPNMSAConfig: {sorted(unknown)}; was it made by a newer version? "
                "For the config.json of a published model, use from_songlab_config."
            )
        return cls(**{**settings, "curriculum": Curriculum.from_dict(settings.get("curriculum"))})

    @classmethod
    def from_songlab_config(cls, settings: Mapping[str, Any]) -> GPNMSAConfig:
        """Return the configuration of a published GPN-MSA model.

        Parameters
        ----------
        settings
            Content of its ``config.json``. ``n_aux_features`` is five per species; keys that do not affect the network are
            ignored.

        Raises
        ------
        ValueError
            If the architecture is not supported.
        """
        for name, wanted in _SONGLAB_FIXED.items():
            if settings.get(name, wanted) != wanted:
                raise ValueError(
                    f"Only networks with {name}={wanted!r} are supported, got {settings[name]!r}."
                )
        width = settings.get("hidden_size", cls.hidden_size)
        if settings.get("embedding_size", width) not in (None, width):
            raise ValueError(
                f"embedding_size must equal hidden_size, got {settings['embedding_size']} and {width}."
            )
        n_channels = int(settings.get("n_aux_features", 0))
        if n_channels % _N_SPECIES_SYMBOLS:
            raise ValueError(f"n_aux_features must be a multiple of {_N_SPECIES_SYMBOLS}, got {n_channels}.")
        shared = {field.name for field in fields(cls)} - {"n_species", "curriculum"}
        return cls(
            n_species=n_channels // _N_SPECIES_SYMBOLS,
            **{name: settings[name] for name in shared & set(settings)},
        )


def check_length(config: GPNMSAConfig, n_positions: int) -> None:
    """Raise a ValueError if windows are longer than the network allows."""
    longest = config.max_position_embeddings
    if n_positions > longest:
        raise ValueError(
            f"Windows of {n_positions} positions are longer than max_position_embeddings={longest}; cut shorter ones, or make the "
            "network with a larger GPNMSAConfig(max_position_embeddings=)."
        )
