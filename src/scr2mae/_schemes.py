"""The paper's eleven masking schemes by name, for each domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scr2mae._domains import DOMAINS, SCHEME_NAMES, scheme_names
from scr2mae.masking import DecayRatio, FixedRatio, MDLMRatio, UniformDecayRatio, UniformRatio

if TYPE_CHECKING:
    from scr2mae.masking import RatioSchedule

__all__ = ["SCHEME_NAMES", "Scheme", "schemes"]


class Scheme(NamedTuple):
    """A row of the paper's tables.

    Attributes
    ----------
    mask_ratio
        Schedule of the ratio.
    curriculum
        ``"cl"``, ``"cl_k0"`` or None.
    """

    mask_ratio: RatioSchedule
    curriculum: str | None = None


def schemes(domain: str = "single_cell", *, seed: int = 0) -> dict[str, Scheme]:
    """Return the masking schemes that the paper compares, with its ratios.

    Parameters
    ----------
    domain
        ``"single_cell"``, ``"dna"``, ``"vision"`` or ``"text"``. Images have neither curricula nor R²MAE + Dynamic,
        whose ratios would pass 1; text has no row below its default ratio.
    seed
        Seed of the schedules that draw.

    Returns
    -------
    Name to scheme, in the order of ``SCHEME_NAMES``.

    Raises
    ------
    ValueError
        If the domain is unknown.

    Notes
    -----
    Dong et al. (2025), Tables 1 to 4 and 6; the reading of R²MAE + Dynamic is inferred, and so are the curricula and
    R²MAE + Dynamic for text, which the paper has for cells and DNA only.

    Examples
    --------
    >>> import scr2mae
    >>> scr2mae.schemes("vision")["r2mae"].mask_ratio
    UniformRatio(low=0.6, high=0.9, seed=0)
    >>> ratio, curriculum = scr2mae.schemes()["r2mae_cl"]
    >>> curriculum
    'cl'
    """
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
