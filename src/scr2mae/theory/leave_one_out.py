"""Risk of regressing each covariate on all others, at the cost of a single eigen-decomposition.

The masked covariance without covariate j is a principal submatrix, and its resolvent is a rank-one correction of
the full one: with T = (Σ̃+μI)⁻¹, the padded resolvent without j is P = T - T e_j e_jᵀ T / T_jj. All traces and
vectors in `general_risk` follow from columns and traces of T, T² and T³, with a separate ridge μ_j per covariate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scr2mae.theory.risk import masked_spectrum, solve_ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scr2mae.theory.covariance import Covariance
    from scr2mae.theory.risk import MaskedSpectrum

_MAX_STEPS = 60


class _Traces(NamedTuple):
    """tr(P) and tr(P²) per left-out covariate, with the entries of T that they are computed from."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    own: NDArray[np.float64]  # T_jj
    own2: NDArray[np.float64]  # (T²)_jj


def leave_one_out_risk(
    p: float, *, gamma: float, covariance: Covariance, precision: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return `general_risk` of each covariate regressed on the others at ratio `p`, shape ``(n_features,)``.

    `gamma` counts the other covariates per row, (d-1)/n; `precision` is the inverse of the covariance.
    """
    spectrum = masked_spectrum(p, covariance)
    n_others = covariance.n_features - 1
    n_rows = n_others * p / gamma
    values, vectors, _ = spectrum
    masked_precision = (vectors / values) @ vectors.T
    best = _regressions(masked_precision) / (1 - p)
    truth = _regressions(precision)
    residual = covariance.diagonal - (1 - p) * np.sum(best * covariance.matrix, axis=0)
    if n_rows > n_others:
        own = covariance.diagonal @ (masked_precision**2) / np.diagonal(masked_precision)
        total = covariance.diagonal @ np.diagonal(masked_precision) - own  # tr(D Σ̃⁻¹) without j
        spread = (n_others - p * (1 - p) * total) / (1 - p) ** 2
        error = best - truth
        return np.sum(error * (covariance.matrix @ error), axis=0) + residual * spread / (n_rows - n_others)

    mu, traces = _solve_ridges(spectrum, n_rows=n_rows)
    weighted = _weighted_trace(spectrum, mu, traces, covariance.diagonal)
    squared = n_others - 2 * mu * traces.first + mu**2 * traces.second  # tr (Σ̃T)²
    inflation = (squared - p * (1 - p) * weighted) / (1 - p) ** 2 / (n_rows - squared)
    shrunk = mu * _apply_resolvent(spectrum, mu, traces, best)
    lost = np.sum((vectors.T @ shrunk) ** 2 * values[:, None], axis=0)
    error = best - shrunk - truth
    return np.sum(error * (covariance.matrix @ error), axis=0) + inflation * (lost + residual)


def _regressions(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the coefficients of each covariate on the others, as columns with a zero diagonal."""
    coefficients = -precision / np.diagonal(precision)
    np.fill_diagonal(coefficients, 0.0)
    return coefficients


def _traces(spectrum: MaskedSpectrum, mu: NDArray[np.float64]) -> _Traces:
    """Return traces of the resolvent without each covariate in turn."""
    resolvent = 1 / (spectrum.values[:, None] + mu)  # (d, n_targets)
    shares = (spectrum.vectors**2).T * resolvent
    own = shares.sum(axis=0)
    own2 = np.sum(shares * resolvent, axis=0)
    own3 = np.sum(shares * resolvent**2, axis=0)
    first = resolvent.sum(axis=0) - own2 / own
    second = np.sum(resolvent**2, axis=0) - 2 * own3 / own + (own2 / own) ** 2
    return _Traces(first, second, own, own2)


def _solve_ridges(spectrum: MaskedSpectrum, *, n_rows: float) -> tuple[NDArray[np.float64], _Traces]:
    """Solve tr[Σ̃(Σ̃+μI)⁻¹] = n_rows without each covariate in turn, by Newton's method from the root of the full matrix.

    The trace is convex and decreasing in μ, so Newton's method converges from the left; a step from the right that
    would overshoot zero is replaced by halving μ.
    """
    n_features = spectrum.values.size
    mu = np.full(n_features, solve_ridge(spectrum.values, n_rows))
    for _ in range(_MAX_STEPS):
        traces = _traces(spectrum, mu)
        excess = n_features - 1 - mu * traces.first - n_rows
        slope = mu * traces.second - traces.first
        updated = np.maximum(mu - excess / slope, mu / 2)
        moved = np.abs(updated / mu - 1).max()
        mu = updated
        if moved < 1e-12:
            return mu, _traces(spectrum, mu)
    raise RuntimeError(f"The ridges did not converge in {_MAX_STEPS} steps; move the ratio away from gamma.")


def _weighted_trace(
    spectrum: MaskedSpectrum, mu: NDArray[np.float64], traces: _Traces, diagonal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return tr(D P Σ̃ P) = tr(D P) - μ tr(D P²) per left-out covariate."""
    values, vectors, _ = spectrum
    resolvent = 1 / (values[:, None] + mu)
    spread = diagonal @ vectors**2
    column = vectors @ (vectors.T * resolvent)  # (d, n_targets): T e_j
    column2 = vectors @ (vectors.T * resolvent**2)
    squares = diagonal @ column**2
    first = spread @ resolvent - squares / traces.own
    second = (
        spread @ resolvent**2
        - 2 * (diagonal @ (column * column2)) / traces.own
        + traces.own2 * squares / traces.own**2
    )
    return first - mu * second


def _apply_resolvent(
    spectrum: MaskedSpectrum, mu: NDArray[np.float64], traces: _Traces, columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Apply the resolvent P of each left-out covariate to its own column."""
    values, vectors, _ = spectrum
    resolvent = 1 / (values[:, None] + mu)
    image = vectors @ (resolvent * (vectors.T @ columns))
    own_column = vectors @ (vectors.T * resolvent)
    return image - own_column * (np.diagonal(image) / traces.own)
