"""The eleven masking schemes of the paper, and their settings per domain.

Importing this module does not load PyTorch, so the command line can list the names quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from scr2mae.masking import RatioSchedule

__all__ = ["DOMAINS", "SCHEME_NAMES", "Domain", "Scheme", "scheme_names", "schemes"]

SCHEME_NAMES = (
    "mae",
    "mae_low",
    "mae_high",
    "mdlm",
    "dynamic",
    "r2mae",
    "r2mae_dynamic",
    "cl",
    "cl_k0",
    "r2mae_cl",
    "r2mae_cl_k0",
)
_COMBINATIONS = ("r2mae_dynamic", "cl", "cl_k0", "r2mae_cl", "r2mae_cl_k0")


@dataclass(frozen=True)
class Domain:
    """Masking ratios of the schemes in one domain."""

    low: float  # range of R²MAE
    high: float
    default: float
    fixed_low: float | None  # None if the paper has no such row
    fixed_high: float
    combinations: bool  # whether R²MAE + Dynamic and the curricula exist


DOMAINS = {
    "single_cell": Domain(0.1, 0.5, 0.25, 0.10, 0.50, True),
    "dna": Domain(0.05, 0.30, 0.15, 0.05, 0.30, True),
    "vision": Domain(0.6, 0.9, 0.75, 0.5, 0.9, False),
    "text": Domain(0.15, 0.40, 0.15, None, 0.40, True),
}


def scheme_names(domain: str) -> tuple[str, ...]:
    """Return the names of a domain's schemes, in the order of ``SCHEME_NAMES``."""
    d = DOMAINS[domain]
    absent = (() if d.combinations else _COMBINATIONS) + (() if d.fixed_low is not None else ("mae_low",))
    return tuple(name for name in SCHEME_NAMES if name not in absent)


class Scheme(NamedTuple):
    """Masking schedule and curriculum of one row in the paper's tables.

    Attributes
    ----------
    mask_ratio
        Schedule of the masking ratio.
    curriculum
        ``"cl"``, ``"cl_k0"`` or None.
    """

    mask_ratio: RatioSchedule
    curriculum: str | None = None


def schemes(domain: str = "single_cell", *, seed: int = 0) -> dict[str, Scheme]:
    """Return the masking schemes compared in the paper, with the paper's ratios.

    Parameters
    ----------
    domain
        ``"single_cell"``, ``"dna"``, ``"vision"`` or ``"text"``. For images there are neither curricula nor
        R²MAE + Dynamic, whose ratios would exceed 1; for text there is no fixed ratio below the default.
    seed
        Random seed for the schedules.

    Returns
    -------
    Schemes by name, in the order of the paper's tables.

    Raises
    ------
    ValueError
        If the domain is unknown.

    Notes
    -----
    Dong et al. (2025), Tables 1 to 4 and 6. The definition of R²MAE + Dynamic is inferred. The paper has it and the
    curricula for cells and DNA only, so those of text are inferred too.

    Examples
    --------
    >>> import scr2mae
    >>> scr2mae.schemes("vision")["r2mae"].mask_ratio
    UniformRatio(low=0.6, high=0.9, seed=0)
    >>> ratio, curriculum = scr2mae.schemes()["r2mae_cl"]
    >>> curriculum
    'cl'
    """
    from scr2mae.masking import DecayRatio, FixedRatio, MDLMRatio, UniformDecayRatio, UniformRatio

    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {list(DOMAINS)}, got {domain!r}.")
    d = DOMAINS[domain]
    default, uniform = FixedRatio(d.default), UniformRatio(d.low, d.high, seed=seed)
    rows = {
        "mae": Scheme(default),
        "mae_high": Scheme(FixedRatio(d.fixed_high)),
        "mdlm": Scheme(MDLMRatio(seed=seed)),
        "dynamic": Scheme(DecayRatio(d.high, d.low)),
        "r2mae": Scheme(uniform),
    }
    if d.fixed_low is not None:
        rows["mae_low"] = Scheme(FixedRatio(d.fixed_low))
    if d.combinations:
        rows["r2mae_dynamic"] = Scheme(UniformDecayRatio(d.low, d.high, seed=seed))
        for name in ("cl", "cl_k0"):
            rows[name] = Scheme(default, name)
            rows[f"r2mae_{name}"] = Scheme(uniform, name)
    return {name: rows[name] for name in scheme_names(domain)}
