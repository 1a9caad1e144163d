"""Test risk when every row draws its own masking ratio (R²MAE), for any covariance, signal and law."""

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
    from scr2mae.theory.laws import RatioLaw

_POLE = 1e-9
_MAX_STEPS = 50
_LONGEST_STEP = 2.0  # in the logarithm
_CONVERGED = 1e-13
_ACCEPTED = 1e-10  # where rounding stops the iteration short of convergence


class _Groups(NamedTuple):
    """Rows by masking ratio: group j has covariance A_j Σ + B_j D."""

    kept: NDArray[np.float64]  # rows of each group that are kept
    shared: NDArray[np.float64]  # A = (1-p)²
    own: NDArray[np.float64]  # B = p(1-p)


class _Resolvent(NamedTuple):
    """T = (α Σ + β D + ridge I)⁻¹ through the numbers that the formulas need."""

    matrix: NDArray[np.float64]
    first: NDArray[np.float64]  # tr(ΣT), tr(DT)
    second: NDArray[np.float64]  # [[tr ΣTΣT, tr ΣTDT], [., tr DTDT]]


def _resolvent(loads: NDArray[np.float64], ridge: float, covariance: Covariance) -> _Resolvent:
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
    weights: NDArray[np.float64]  # of a row of each group
    resolvent: _Resolvent

    @property
    def size(self) -> float:
        return float(np.abs(self.residual).max())


def _evaluate(log_loads: NDArray[np.float64], groups: _Groups, ridge: float, covariance: Covariance) -> _Step:
    mix = np.stack([groups.shared, groups.own])  # (2, n_groups)
    offset = 1.0 - ridge  # with more rows than covariates a left-out row still counts itself
    loads = np.exp(log_loads)
    resolvent = _resolvent(loads, ridge, covariance)
    weights = 1 / (offset + mix.T @ resolvent.first)
    updated = mix @ (groups.kept * weights)
    slope = (mix * (groups.kept * weights**2)) @ mix.T @ resolvent.second  # d updated / d loads
    jacobian = slope * loads / updated[:, None] - np.eye(2)
    return _Step(log_loads, np.log(updated) - log_loads, jacobian, weights, resolvent)


def _solve_loads(groups: _Groups, ridge: float, covariance: Covariance) -> _Step:
    """Solve the fixed point a_j = 1 / (offset + tr(Σ_j T)) for the weight a_j of a row of each group.

    T depends on the groups only through Σ_j n_j a_j A_j and Σ_j n_j a_j B_j, so the unknowns are two. Newton in
    their logarithms, halving a step that does not reduce the residual.
    """
    mix = np.stack([groups.shared, groups.own])
    share = groups.kept.sum() / covariance.n_features
    if ridge:
        start = 1 / ((1 - share) * covariance.diagonal.sum() * mix.sum(axis=0))
    else:
        start = np.full(groups.kept.shape, 1 - 1 / share)
    here = _evaluate(np.log(mix @ (groups.kept * start)), groups, ridge, covariance)
    for _ in range(_MAX_STEPS):
        if here.size < _CONVERGED:
            return here
        try:
            step = -np.linalg.solve(here.jacobian, here.residual)
        except np.linalg.LinAlgError:  # at the pole the two loads are no longer apart
            break
        step *= min(1.0, _LONGEST_STEP / np.abs(step).max())
        there = _evaluate(here.log_loads + step, groups, ridge, covariance)
        while there.size > here.size and np.abs(step).max() > _CONVERGED:
            step /= 2
            there = _evaluate(here.log_loads + step, groups, ridge, covariance)
        if there.size >= here.size:  # rounding is all that is left
            break
        here = there
    if here.size < _ACCEPTED:
        return here
    raise RuntimeError(
        f"The fixed point of the row weights did not converge (residual {here.size:.1e}): the expected number of kept "
        "rows is too close to the number of covariates. Move the range of ratios or gamma."
    )


def r2mae_risk(
    law: LawLike,
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
) -> float:
    """Test risk of masked regression whose ratio is drawn row by row.

    Parameters
    ----------
    law
        Of the ratio: a pair ``(low, high)`` for the uniform law, a pair ``(nodes, weights)`` of vectors for a
        discrete one, a vectorized density on (0, 1), or a `RatioLaw`.
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
    The risk.

    Raises
    ------
    ValueError
        If as many rows are kept on average as there are covariates (mean ratio equal to `gamma`), or an argument
        does not fit.
    RuntimeError
        If the fixed point does not converge.

    Notes
    -----
    Not in the paper, which leaves it as its first open question. A row of ratio p_j is kept with probability p_j
    and has covariance Σ_j = (1-p_j)² Σ + p_j(1-p_j) diag(Σ); n_j = n w_j p_j rows of each kind remain. With
    T = (Σ_j n_j a_j Σ_j + λI)⁻¹ and a_j = 1/(1 - λ + tr(Σ_j T)), where λ = 1 if Σ_j n_j < d and 0 otherwise:

    - b̄ = T Σβ Σ_j n_j a_j (1-p_j) is the mean of the coefficients;
    - a row of kind j left out is predicted with squared error ρ_j, where ρ = (I - K diag(v))⁻¹ base,
      K_jl = tr(Σ_jTΣ_lT), v_j = n_j a_j² and base_j = E(y - x̃ᵀb̄)²;
    - the risk is (b̄-β)ᵀΣ(b̄-β) + Σ_j v_j ρ_j tr(Σ_jTΣT).

    With one node it is `general_risk` exactly. A step of the fixed point costs one inverse.
    """
    ratios = as_law(law)
    model = check_covariance(covariance)
    coefficients = check_signal(beta, n_features=model.n_features)
    gamma = check_positive("gamma", gamma)
    noise = check_positive("noise_variance", noise_variance, strict=False)
    if abs(ratios.mean / gamma - 1) < _POLE:
        raise ValueError(f"The risk diverges where the mean ratio equals gamma = {gamma}; move the range.")
    ridge = float(ratios.mean < gamma)
    groups = _groups(ratios, n_obs=model.n_features / gamma)
    solution = _solve_loads(groups, ridge, model)
    weights, resolvent = solution.weights, solution.resolvent

    cross = model.matrix @ coefficients
    seen = 1 - ratios.nodes
    mean = (resolvent.matrix @ cross) * (groups.kept * weights * seen).sum()
    power, own_power = mean @ model.matrix @ mean, mean**2 @ model.diagonal
    base = (
        noise
        + coefficients @ cross
        - 2 * seen * (cross @ mean)
        + groups.shared * power
        + groups.own * own_power
    )
    mix = np.stack([groups.shared, groups.own])
    leverage = groups.kept * weights**2
    left_out = np.linalg.solve(np.eye(base.size) - mix.T @ resolvent.second @ mix * leverage, base)
    spread = mix.T @ resolvent.second[:, 0]  # tr(Σ_jTΣT)
    error = mean - coefficients
    return float(error @ model.matrix @ error + (leverage * left_out) @ spread)


def _groups(law: RatioLaw, *, n_obs: float) -> _Groups:
    seen = 1 - law.nodes
    return _Groups(n_obs * law.weights * law.nodes, seen**2, law.nodes * seen)
