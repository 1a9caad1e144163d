"""What differs from domain to domain: ranges of the masking ratio, and which of the paper's schemes there are.

Loads nothing, so that the command line can offer names without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DOMAINS", "SCHEME_NAMES", "Domain", "scheme_names"]

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
    """Settings of the schemes in a domain.

    Attributes
    ----------
    low, high
        Range of R²MAE.
    default, fixed_low, fixed_high
        Ratios of the rows with a fixed one; ``fixed_low`` is None where the paper has no such row.
    combinations
        Whether R²MAE + Dynamic and the curricula exist.
    """

    low: float
    high: float
    default: float
    fixed_low: float | None
    fixed_high: float
    combinations: bool


DOMAINS = {
    "single_cell": Domain(0.1, 0.5, 0.25, 0.10, 0.50, True),
    "dna": Domain(0.05, 0.30, 0.15, 0.05, 0.30, True),
    "vision": Domain(0.6, 0.9, 0.75, 0.5, 0.9, False),
    "text": Domain(0.15, 0.40, 0.15, None, 0.40, True),
}


def scheme_names(domain: str) -> tuple[str, ...]:
    """Names of a domain's schemes, in the order of ``SCHEME_NAMES``."""
    d = DOMAINS[domain]
    absent = (() if d.combinations else _COMBINATIONS) + (() if d.fixed_low is not None else ("mae_low",))
    return tuple(name for name in SCHEME_NAMES if name not in absent)
