"""Test risk if each row draws its own masking ratio (R²MAE), for any covariance, signal and distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scr2mae.theory.checks import (
    check_covariance,
    check_positive,
    check_signal,
    cholesky_inverse,
)
from scr2mae.theory.laws import LawLike, as_law

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scr2mae.theory.covariance import Covariance

_POLE = 1e-9
_MAX_STEPS = 50
_LONGEST_STEP = 2.0  # in the logarithms of the loads
_CONVERGED = 1e-13
_ACCEPTED = 1e-10  # accepted residual if rounding prevents convergence


class _Groups(NamedTuple):
    """Rows grouped by masking ratio; group j has covariance A_j Σ + B_j D."""

    kept: NDArray[np.float64]  # number of rows kept per group
    mix: NDArray[np.float64]  # (2, n_groups): A = (1-p)² and B = p(1-p)


class _Resolvent(NamedTuple):
    """T = (α Σ + β D + ridge I)⁻¹ and its traces."""

    matrix: NDArray[np.float64]
    first: NDArray[np.float64]  # tr(ΣT), tr(DT)
    second: NDArray[np.float64]  # [[tr ΣTΣT, tr ΣTDT], [., tr DTDT]]


def _resolvent(loads: NDArray[np.float64], ridge: float, covariance: Covariance) -> _Resolvent:
    """Return the inverse of ``loads[0] Σ + loads[1] D + ridge I`` and its traces."""
    diagonal = covariance.diagonal
    matrix = loads[0] * covariance.matrix
    matrix[np.diag_indices_from(matrix)] += loads[1] * diagonal + ridge
    inverse = cholesky_inverse(matrix)
    product = covariance.matrix @ inverse  # ΣT
    own = diagonal[:, None] * inverse  # DT
    first = np.array([np.trace(product), np.trace(own)])
    cross = np.sum(product * own.T)
    second = np.array([[np.sum(product * product.T), cross], [cross, np.sum(own * own.T)]])
    return _Resolvent(inverse, first, second)


class _Step(NamedTuple):
    """One evaluation of the fixed-point map in the logarithms of the two loads."""

    log_loads: NDArray[np.float64]
    residual: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    weights: NDArray[np.float64]  # weight of a row per group
    resolvent: _Resolvent

    @property
    def size(self) -> float:
        return float(np.abs(self.residual).max())


def _evaluate(log_loads: NDArray[np.float64], groups: _Groups, ridge: float, covariance: Covariance) -> _Step:
    """Evaluate the fixed-point map and its Jacobian."""
    kept, mix = groups
    offset = 1.0 - ridge  # with more rows than covariates, a left-out row still contributes
    loads = np.exp(log_loads)
    resolvent = _resolvent(loads, ridge, covariance)
    weights = 1 / (offset + mix.T @ resolvent.first)
    updated = mix @ (kept * weights)
    slope = (mix * (kept * weights**2)) @ mix.T @ resolvent.second  # d updated / d loads
    jacobian = slope * loads / updated[:, None] - np.eye(2)
    return _Step(log_loads, np.log(updated) - log_loads, jacobian, weights, resolvent)


def _solve_loads(groups: _Groups, ridge: float, covariance: Covariance) -> _Step:
    """Solve the fixed point a_j = 1 / (offset + tr(Σ_j T)) for the row weight a_j of each group.

    T depends on the groups only through the two loads Σ_j n_j a_j A_j and Σ_j n_j a_j B_j. Newton's method solves
    for their logarithms, halving steps that do not reduce the residual.
    """
    kept, mix = groups
    share = kept.sum() / covariance.n_features
    if ridge:
        start = 1 / ((1 - share) * covariance.diagonal.sum() * mix.sum(axis=0))
    else:
        start = np.full(kept.shape, 1 - 1 / share)
    current = _evaluate(np.log(mix @ (kept * start)), groups, ridge, covariance)
    for _ in range(_MAX_STEPS):
        if current.size < _CONVERGED:
            return current
        try:
            step = -np.linalg.solve(current.jacobian, current.residual)
        except np.linalg.LinAlgError:  # at the pole the two loads cannot be separated
            break
        step *= min(1.0, _LONGEST_STEP / np.abs(step).max())
        proposal = _evaluate(current.log_loads + step, groups, ridge, covariance)
        while proposal.size > current.size and np.abs(step).max() > _CONVERGED:
            step /= 2
            proposal = _evaluate(current.log_loads + step, groups, ridge, covariance)
        if proposal.size >= current.size:  # only rounding error is left
            break
        current = proposal
    if current.size < _ACCEPTED:
        return current
    raise RuntimeError(
        f"The fixed point of the row weights did not converge (residual {current.size:.1e}): the expected number of kept "
        "rows is too close to the number of covariates. Change the range of ratios or gamma."
    )


def r2mae_risk(
    law: LawLike,
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
) -> float:
    """Test risk of masked regression with a ratio drawn per row.

    Parameters
    ----------
    law
        Distribution of the ratio: a pair ``(low, high)`` for a uniform one, a pair ``(nodes, weights)`` of vectors
        for a discrete one, a vectorized density on (0, 1), or a `RatioLaw`.
    gamma
        Covariates per row, d/n.
    covariance
        Σ, shape ``(n_features, n_features)``, or a `Covariance`.
    beta
        Coefficients, shape ``(n_features,)``.
    noise_variance
        σ² >= 0 of the target.

    Returns
    -------
    Risk, in squared units of the target.

    Raises
    ------
    ValueError
        If as many rows are kept on average as there are covariates (mean ratio equal to `gamma`), or an argument
        is invalid.
    RuntimeError
        If the fixed point does not converge.

    Notes
    -----
    The paper leaves this as its first open question. A row of ratio p_j is kept with probability p_j and has
    covariance Σ_j = (1-p_j)² Σ + p_j(1-p_j) diag(Σ); n_j = n w_j p_j rows with this ratio remain. With
    T = (Σ_j n_j a_j Σ_j + λI)⁻¹ and a_j = 1/(1 - λ + tr(Σ_j T)), where λ = 1 if Σ_j n_j < d and 0 otherwise:

    - b̄ = T Σβ Σ_j n_j a_j (1-p_j) is the mean of the coefficients;
    - a left-out row of ratio p_j is predicted with squared error ρ_j, where ρ = (I - K diag(v))⁻¹ base,
      K_jl = tr(Σ_jTΣ_lT), v_j = n_j a_j² and base_j = E(y - x̃ᵀb̄)²;
    - the risk is (b̄-β)ᵀΣ(b̄-β) + Σ_j v_j ρ_j tr(Σ_jTΣT).

    With one node it equals `general_risk`. Each step of the fixed-point iteration needs one inverse.
    """
    ratios = as_law(law)
    model = check_covariance(covariance)
    coefficients = check_signal(beta, n_features=model.n_features)
    gamma = check_positive("gamma", gamma)
    noise = check_positive("noise_variance", noise_variance, strict=False)
    if abs(ratios.mean / gamma - 1) < _POLE:
        raise ValueError(f"The risk diverges if the mean ratio equals gamma = {gamma}; change the range.")
    ridge = float(ratios.mean < gamma)
    visible = 1 - ratios.nodes
    kept = model.n_features / gamma * ratios.weights * ratios.nodes
    mix = np.stack([visible**2, ratios.nodes * visible])
    solution = _solve_loads(_Groups(kept, mix), ridge, model)
    weights, resolvent = solution.weights, solution.resolvent

    cross = model.matrix @ coefficients
    mean = (resolvent.matrix @ cross) * (kept * weights * visible).sum()
    power, own_power = mean @ model.matrix @ mean, mean**2 @ model.diagonal
    base = noise + coefficients @ cross - 2 * visible * (cross @ mean) + mix[0] * power + mix[1] * own_power
    leverage = kept * weights**2
    left_out = np.linalg.solve(np.eye(base.size) - mix.T @ resolvent.second @ mix * leverage, base)
    spread = mix.T @ resolvent.second[:, 0]  # tr(Σ_jTΣT)
    error = mean - coefficients
    return float(error @ model.matrix @ error + (leverage * left_out) @ spread)
