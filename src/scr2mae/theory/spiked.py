"""Risk for the spiked covariance I + δ v vᵀ: Corollary 1, Theorem 2 and the sweet spot (over-parametrized, p < γ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize

from scr2mae.theory.checks import (
    as_output,
    check_overparametrized,
    check_positive,
    check_ratios,
    check_signal,
)
from scr2mae.theory.covariance import spiked_covariance
from scr2mae.theory.risk import RiskTerms, masked_spectrum, risk_from_spectrum

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class SpikedTerms:
    """Terms of Corollary 1, in the order of its formula.

    Parameters
    ----------
    bulk
        Bias from the part of the signal orthogonal to the spike.
    quadratic
        Squared bias along the spike; zero at the sweet spot.
    projection
        Variance of the estimate along the spike, caused by the signal.
    variance
        Variance caused by the noise of the target and the masked part of the signal.
    """

    bulk: NDArray[np.float64]
    quadratic: NDArray[np.float64]
    projection: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def bias(self) -> NDArray[np.float64]:
        """Sum of all terms but the variance."""
        return self.bulk + self.quadratic + self.projection

    @property
    def risk(self) -> NDArray[np.float64]:
        """Sum of the terms."""
        return self.bias + self.variance


def _overshoot(ratios: Any, spike: float) -> Any:
    """Return a, by which the best masked predictor exceeds the signal along the spike."""
    return ratios * spike / (1 + (1 - ratios) * spike)


def _effective_noise(ratios: Any, *, spike: float, alignment: float, signal: float, noise: float) -> Any:
    """Return τ², the noise of the target plus the variance of the masked part of the signal."""
    along = ratios**2 * spike * alignment**2 / (1 + (1 - ratios) * spike)
    return noise + ratios * signal + along


def spiked_terms(
    p: ArrayLike,
    *,
    gamma: float,
    spike: float,
    alignment: float,
    signal: float = 1.0,
    noise_variance: float,
) -> SpikedTerms:
    """Limiting risk of the spiked model, term by term (Corollary 1).

    Parameters
    ----------
    p
        Masking ratios in (0, 1) below `gamma`; any shape.
    gamma
        Covariates per row, d/n.
    spike
        Strength δ >= 0; the top eigenvalue of the covariance is 1 + δ.
    alignment
        Feature strength c = vᵀβ; its square must not exceed `signal`.
    signal
        Squared norm r² of the coefficients.
    noise_variance
        σ² of the target.

    Returns
    -------
    Terms with the shape of `p`.

    Raises
    ------
    ValueError
        If a ratio lies outside (0, 1) or is not below `gamma`, or a parameter is out of range.

    Notes
    -----
    Assumes a delocalized spike (all entries of v small), so that masked covariates have equal variances; the
    difference at finite d decreases like 1/d.
    """
    ratios = check_ratios(p, gamma=gamma)
    check_overparametrized(ratios, gamma=gamma, formula="Corollary 1")
    spike = check_positive("spike", spike, strict=False)
    signal = check_positive("signal", signal, strict=False)
    noise = check_positive("noise_variance", noise_variance, strict=False)
    strength = alignment**2
    if strength > signal * (1 + 1e-12):
        raise ValueError(f"alignment**2 = {strength:g} must not exceed the signal {signal:g}.")

    overshoot = _overshoot(ratios, spike)
    bulk = 1 - ratios / gamma
    along = bulk / (1 + ratios / gamma * (1 - ratios) * spike)
    top = (1 - ratios) * (1 + (1 - ratios) * spike)
    inflation = ratios / ((1 - ratios) * (gamma - ratios))
    effective = _effective_noise(ratios, spike=spike, alignment=alignment, signal=signal, noise=noise)
    terms = (
        (signal - strength) * bulk,
        (1 + spike) * strength * (along * (1 + overshoot) - overshoot) ** 2,
        inflation * top * strength * (along * (1 + overshoot)) ** 2,
        inflation * effective,
    )
    return SpikedTerms(*(as_output(term, ratios) for term in terms))


def spiked_risk(
    p: ArrayLike,
    *,
    gamma: float,
    spike: float,
    alignment: float,
    signal: float = 1.0,
    noise_variance: float,
) -> NDArray[np.float64]:
    """Limiting test risk of the spiked model (Corollary 1); see `spiked_terms`.

    Parameters
    ----------
    p, gamma, spike, alignment, signal, noise_variance
        As in `spiked_terms`.

    Returns
    -------
    Risks with the shape of `p`.
    """
    return spiked_terms(
        p, gamma=gamma, spike=spike, alignment=alignment, signal=signal, noise_variance=noise_variance
    ).risk


def spiked_spectral_terms(
    p: ArrayLike,
    *,
    gamma: float,
    spike: float,
    direction: ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
) -> RiskTerms:
    """Bias and variance of the spiked model at finite d, from the spectrum of the masked covariance (Theorem 2).

    Parameters
    ----------
    p, gamma, spike, noise_variance
        As in `spiked_terms`.
    direction
        Direction v of the spike, shape ``(n_features,)``; scaled to norm one.
    beta
        Coefficients, shape ``(n_features,)``.

    Returns
    -------
    Terms with the shape of `p`; they tend to `spiked_terms` as d grows.

    Raises
    ------
    ValueError
        As in `spiked_terms`, or if the shapes disagree.

    Notes
    -----
    Delocalization is assumed only for the best masked predictor β + a c v and the effective noise; the shrinkage
    uses the exact eigenvalues and eigenvectors of (1-p)² Σ + p(1-p) diag(Σ). The split into two terms is inferred
    from the theorem's proof.
    """
    ratios = check_ratios(p, gamma=gamma)
    check_overparametrized(ratios, gamma=gamma, formula="Theorem 2")
    noise = check_positive("noise_variance", noise_variance, strict=False)
    vector = np.asarray(direction, dtype=np.float64)
    model = spiked_covariance(vector.size, spike=spike, direction=vector)
    vector = vector / np.linalg.norm(vector)
    coefficients = check_signal(beta, n_features=vector.size)
    alignment = float(vector @ coefficients)

    terms = np.empty((ratios.size, 3))
    for row, ratio in zip(terms, ratios.flat, strict=True):
        overshoot = float(_overshoot(ratio, spike))
        effective = _effective_noise(
            ratio, spike=spike, alignment=alignment, signal=float(coefficients @ coefficients), noise=noise
        )
        row[:] = risk_from_spectrum(
            masked_spectrum(ratio, model),
            n_rows=vector.size * ratio / gamma,
            best=coefficients + overshoot * alignment * vector,
            residual=float(effective),
            covariance=model,
            beta=coefficients,
        )
    return RiskTerms(*(as_output(column, ratios) for column in terms.T))


def sweet_spot(*, gamma: float, spike: float) -> float:
    """Masking ratio at which the quadratic term of Corollary 1 vanishes.

    Parameters
    ----------
    gamma
        Covariates per row, d/n.
    spike
        Strength δ > 0.

    Returns
    -------
    Ratio p* in (0, min(γ, 1)) at which the shrinkage along the spike cancels the overshoot of the best masked
    predictor. It depends on neither the signal nor the noise.

    Raises
    ------
    ValueError
        If γ >= 1 + δ: the spike is too weak for the number of rows, and the term has no zero.
    """
    gamma = check_positive("gamma", gamma)
    spike = check_positive("spike", spike)
    if gamma >= 1 + spike:
        raise ValueError(
            f"There is no sweet spot for gamma = {gamma} >= 1 + spike = {1 + spike}; use a stronger spike or more rows."
        )

    def bias(ratio: float) -> float:
        share = ratio / gamma
        return (1 - share) * (1 + spike) - ratio * spike * (1 + share * (1 - ratio) * spike)

    return float(optimize.brentq(bias, 0.0, min(gamma, 1.0), xtol=1e-14))
