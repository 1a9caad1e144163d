r"""Test risk of masked minimum-norm regression at a fixed masking ratio.

Model: rows :math:`x \sim N(0, \Sigma)` in :math:`R^d`, `n` of them, :math:`\gamma = d/n`; targets
:math:`y = x^T\beta + \varepsilon`. A row is kept with probability `p`, then each of its covariates is zeroed with
probability `p`. The estimator is the minimum-norm least-squares fit of the kept targets on the masked rows; its risk
:math:`(\hat\beta-\beta)^T\Sigma(\hat\beta-\beta)` is that on unmasked rows, without the noise of their targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import optimize

from scr2mae.theory.checks import (
    as_output,
    check_covariance,
    check_positive,
    check_ratios,
    check_signal,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scr2mae.theory.covariance import Covariance


@dataclass(frozen=True, eq=False)
class RiskTerms:
    """Bias and variance of the masked estimator.

    Parameters
    ----------
    bias
        Squared error of the mean coefficients, plus the variance of the coefficients caused by the signal itself.
    variance
        Variance caused by the effective noise: the noise of the target and the masked part of the signal.
    power
        Mean squared prediction, ``E (xᵀβ̂)²``.
    """

    bias: NDArray[np.float64]
    variance: NDArray[np.float64]
    power: NDArray[np.float64]

    @property
    def risk(self) -> NDArray[np.float64]:
        """Sum of bias and variance."""
        return self.bias + self.variance


class MaskedSpectrum(NamedTuple):
    """Eigen-decomposition of the covariance of masked rows, and the diagonal of Σ in that basis."""

    values: NDArray[np.float64]  # (d,) eigenvalues of the masked covariance
    vectors: NDArray[np.float64]  # (d, d)
    original: NDArray[np.float64]  # (d,) diagonal of Σ in this basis


def masked_spectrum(p: float, covariance: Covariance) -> MaskedSpectrum:
    """Decompose (1-p)² Σ + p(1-p) diag(Σ), the covariance of rows masked at ratio `p`."""
    diagonal = covariance.diagonal
    if covariance.has_constant_diagonal:
        values = (1 - p) ** 2 * covariance.eigenvalues + p * (1 - p) * diagonal[0]
        return MaskedSpectrum(values, covariance.eigenvectors, covariance.eigenvalues)
    masked = (1 - p) ** 2 * covariance.matrix
    masked[np.diag_indices_from(masked)] += p * (1 - p) * diagonal
    values, vectors = np.linalg.eigh(masked)
    original = (values - p * (1 - p) * (diagonal @ vectors**2)) / (1 - p) ** 2
    return MaskedSpectrum(values, vectors, original)


def solve_ridge(values: NDArray[np.float64], n_rows: float) -> float:
    """Solve ``sum(s / (s + mu)) = n_rows`` for the ridge `mu` equivalent to fitting `n_rows` < d rows."""
    ratio = values.size / n_rows - 1
    low, high = values.min() * ratio, values.max() * ratio
    if high - low <= 1e-14 * high:
        return float(high)
    excess = lambda mu: np.sum(values / (values + mu)) - n_rows  # noqa: E731
    # The bracket is exact, so rounding can put its ends slightly on the wrong side.
    return float(optimize.brentq(excess, low * (1 - 1e-9), high * (1 + 1e-9), xtol=1e-300, rtol=1e-15))


def risk_from_spectrum(
    spectrum: MaskedSpectrum,
    *,
    n_rows: float,
    best: NDArray[np.float64],
    residual: float,
    covariance: Covariance,
    beta: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Return bias, variance and prediction power from the spectrum of the masked covariance.

    `n_rows` is the mean number of rows kept, `best` the coefficients of the best linear predictor from masked rows,
    shape ``(n_features,)``, and `residual` its mean squared error.
    """
    values, vectors, original = spectrum
    n_features = values.size
    if n_rows > n_features:
        mean = best
        inflation = np.sum(original / values) / (n_rows - n_features)
        lost = np.zeros(())
    else:
        mu = solve_ridge(values, n_rows)
        resolvent = 1 / (values + mu)
        inflation = np.sum(resolvent**2 * original * values) / (n_rows - np.sum((values * resolvent) ** 2))
        shrunk = mu * resolvent * (vectors.T @ best)  # part removed by the ridge, in the eigenbasis
        mean = best - vectors @ shrunk
        lost = shrunk**2 @ values
    error = mean - beta
    variance = inflation * residual
    bias = error @ covariance.matrix @ error + inflation * lost
    power = mean @ covariance.matrix @ mean + inflation * lost + variance
    return float(bias), float(variance), float(power)


def general_terms(
    p: ArrayLike,
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
) -> RiskTerms:
    """Bias, variance and prediction power for any covariance and signal, at fixed masking ratios.

    Parameters
    ----------
    p
        Masking ratios in (0, 1), none equal to `gamma`; any shape.
    gamma
        Covariates per row, d/n.
    covariance
        Σ, shape ``(n_features, n_features)``, or a `Covariance`, which caches its decomposition between calls.
    beta
        Coefficients, shape ``(n_features,)``.
    noise_variance
        σ² >= 0 of the target.

    Returns
    -------
    Terms with the shape of `p`.

    Raises
    ------
    ValueError
        If a ratio lies outside (0, 1) or equals `gamma`, the covariance is not symmetric positive definite, or
        the shapes disagree.

    Notes
    -----
    A deterministic formula by Gaussian equivalence. It is not in the paper, which calls this case infeasible. With
    D = diag(Σ), Σ̃ = (1-p)² Σ + p(1-p) D, β* = (1-p) Σ̃⁻¹Σβ, e = β* - β, τ² = σ² + βᵀΣβ - β*ᵀΣ̃β*, m = d p/γ:

    - m < d: with tr[Σ̃(Σ̃+μI)⁻¹] = m, T = (Σ̃+μI)⁻¹, q = μTβ* and k = tr(TΣTΣ̃)/(m - tr(Σ̃TΣ̃T)), the bias is
      (e-q)ᵀΣ(e-q) + k qᵀΣ̃q and the variance k τ²;
    - m > d: the bias is eᵀΣe and the variance τ² tr(Σ̃⁻¹Σ)/(m-d).

    Needs one eigen-decomposition per ratio, or a single one if diag(Σ) is constant.
    """
    ratios = check_ratios(p, gamma=gamma)
    model = check_covariance(covariance)
    coefficients = check_signal(beta, n_features=model.n_features)
    noise = check_positive("noise_variance", noise_variance, strict=False)

    cross = model.matrix @ coefficients  # covariance of the covariates with the target
    total = noise + coefficients @ cross
    terms = np.empty((ratios.size, 3))
    for row, ratio in zip(terms, ratios.flat, strict=True):
        spectrum = masked_spectrum(ratio, model)
        projected = spectrum.vectors.T @ cross
        row[:] = risk_from_spectrum(
            spectrum,
            n_rows=model.n_features * ratio / gamma,
            best=(1 - ratio) * (spectrum.vectors @ (projected / spectrum.values)),
            residual=float(total - (1 - ratio) ** 2 * (projected**2 @ (1 / spectrum.values))),
            covariance=model,
            beta=coefficients,
        )
    return RiskTerms(*(as_output(column, ratios) for column in terms.T))


def general_risk(
    p: ArrayLike,
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
) -> NDArray[np.float64]:
    """Test risk for any covariance and signal, at fixed masking ratios; see `general_terms`.

    Parameters
    ----------
    p, gamma, covariance, beta, noise_variance
        As in `general_terms`.

    Returns
    -------
    Risks with the shape of `p`.
    """
    return general_terms(p, gamma=gamma, covariance=covariance, beta=beta, noise_variance=noise_variance).risk


def eigenvector_risk(
    p: ArrayLike,
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    quantile: float,
    signal: float = 1.0,
    noise_variance: float,
) -> NDArray[np.float64]:
    """Test risk when the signal is an eigenvector of the covariance (the setting of Theorem 3).

    Parameters
    ----------
    p, gamma, covariance, noise_variance
        As in `general_terms`.
    quantile
        Position of the eigenvector in the spectrum: 0 is the weakest, 1 the strongest.
    signal
        Squared norm of the coefficients.

    Returns
    -------
    Risks with the shape of `p`.

    Notes
    -----
    The paper's formula contains random matrices; this is its deterministic counterpart.
    """
    model = check_covariance(covariance)
    beta = np.sqrt(check_positive("signal", signal)) * model.eigenvector(quantile)
    return general_risk(p, gamma=gamma, covariance=model, beta=beta, noise_variance=noise_variance)


def isotropic_risk(
    p: ArrayLike, *, gamma: float, signal: float, noise_variance: float
) -> NDArray[np.float64]:
    """Test risk for the identity covariance (Theorem 1).

    Parameters
    ----------
    p
        Masking ratios in (0, 1), none equal to `gamma`; any shape.
    gamma
        Covariates per row, d/n.
    signal
        Squared norm r² of the coefficients.
    noise_variance
        σ² of the target.

    Returns
    -------
    Risks with the shape of `p`.

    Raises
    ------
    ValueError
        If a ratio lies outside (0, 1) or equals `gamma`, or a variance is negative.
    """
    ratios = check_ratios(p, gamma=gamma)
    signal = check_positive("signal", signal, strict=False)
    noise = check_positive("noise_variance", noise_variance, strict=False)
    effective_noise = (noise + ratios * signal) / (1 - ratios)
    over = signal * (1 - ratios / gamma) + effective_noise * ratios / np.abs(gamma - ratios)
    under = effective_noise * gamma / np.abs(ratios - gamma)
    return as_output(np.where(ratios < gamma, over, under), ratios)
