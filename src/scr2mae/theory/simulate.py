"""Simulation of masked minimum-norm regression, with fixed ratios or a ratio drawn per row (R²MAE)."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import linalg

from scr2mae.theory.checks import check_covariance, check_positive
from scr2mae.theory.laws import LawLike, RatioLaw, as_law

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from scr2mae.theory.covariance import Covariance

_RCOND = 1e-9  # below this reciprocal condition of the Gram matrix, the normal equations are too inaccurate


@dataclass(frozen=True, eq=False)
class SimulatedRisk:
    """Risks of independent draws.

    Parameters
    ----------
    risks
        Shape ``(n_draws, n_laws, n_signals)``, without the last axis if `beta` is a vector.
    powers
        Mean squared predictions ``β̂ᵀΣβ̂``, same shape.
    """

    risks: NDArray[np.float64]
    powers: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean risk over draws."""
        return self.risks.mean(axis=0)

    @property
    def sd(self) -> NDArray[np.float64]:
        """Standard deviation over draws."""
        return self.risks.std(axis=0, ddof=1)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Standard error of `mean`."""
        return self.sd / np.sqrt(self.risks.shape[0])


class _Problem(NamedTuple):
    """Settings of a simulation, as plain arrays that can be pickled."""

    laws: tuple[RatioLaw, ...]
    root: NDArray[np.float64]  # (d, d)
    matrix: NDArray[np.float64]  # (d, d)
    beta: NDArray[np.float64]  # (d, n_signals)
    noise_sd: float
    n_obs: int
    seed: int
    exact_rows: bool


def minimum_norm(rows: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve least squares with minimum norm, as the pseudo-inverse does.

    Parameters
    ----------
    rows
        Covariates, shape ``(n_rows, n_features)``.
    targets
        Targets, shape ``(n_rows, n_signals)``.

    Returns
    -------
    Coefficients, shape ``(n_features, n_signals)``.

    Notes
    -----
    Uses a Cholesky factor of the smaller Gram matrix: at 500 x 1000 it took 7 ms on one core, the pseudo-inverse
    120 ms, eigenvectors of the Gram matrix 28 ms and QR 23 ms. This squares the condition number, so LAPACK's SVD
    solver is used if the reciprocal condition is below 1e-9 or the matrix is singular (a fully masked row).
    """
    n_rows, n_features = rows.shape
    if n_rows == 0:
        return np.zeros((n_features, targets.shape[1]))
    wide = n_rows <= n_features
    gram = rows @ rows.T if wide else rows.T @ rows
    factor, info = linalg.lapack.dpotrf(gram, lower=1)
    if info == 0:
        norm = np.abs(gram).sum(axis=0).max()
        rcond, _ = linalg.lapack.dpocon(factor, norm, uplo="L")
        if rcond > _RCOND:
            if wide:
                return rows.T @ linalg.cho_solve((factor, True), targets)
            return linalg.cho_solve((factor, True), rows.T @ targets)
    return linalg.lstsq(rows, targets, lapack_driver="gelsd")[0]


def _draw(problem: _Problem, draw: int) -> NDArray[np.float64]:
    """Return risk and prediction power per law on one data set, shape ``(2, n_laws, n_signals)``.

    Each kind of randomness has its own stream and is drawn for all rows, kept or not. All laws therefore use the
    same rows and noise, and the result for one law does not depend on the others.
    """
    streams = np.random.SeedSequence(problem.seed, spawn_key=(draw,)).spawn(5)
    data, noise, ratio, keep, mask = (np.random.default_rng(stream) for stream in streams)
    n_obs, n_features = problem.n_obs, problem.root.shape[0]
    rows = data.standard_normal((n_obs, n_features)) @ problem.root
    targets = rows @ problem.beta + problem.noise_sd * noise.standard_normal((n_obs, 1))
    row_uniforms = ratio.random(n_obs)
    keep_uniforms = keep.random(n_obs)
    mask_uniforms = mask.random((n_obs, n_features))

    out = np.empty((2, len(problem.laws), problem.beta.shape[1]))
    for index, law in enumerate(problem.laws):
        ratios = law.sample(row_uniforms)
        kept = _kept_rows(keep_uniforms, ratios, exact=problem.exact_rows)
        masked = np.where(mask_uniforms[kept] < ratios[kept, None], 0.0, rows[kept])
        estimate = minimum_norm(masked, targets[kept])
        error = estimate - problem.beta
        out[0, index] = np.sum(error * (problem.matrix @ error), axis=0)
        out[1, index] = np.sum(estimate * (problem.matrix @ estimate), axis=0)
    return out


def _kept_rows(
    uniforms: NDArray[np.float64], ratios: NDArray[np.float64], *, exact: bool
) -> NDArray[np.bool_]:
    """Select the rows whose target is masked: each with its ratio as probability, or exactly that fraction of them."""
    if not exact:
        return uniforms < ratios
    kept = np.zeros(uniforms.shape, dtype=bool)
    kept[np.argsort(uniforms)[: round(ratios.sum())]] = True
    return kept


def simulate_risk(
    laws: LawLike | list[LawLike] | NDArray[np.float64],
    *,
    gamma: float,
    covariance: Covariance | ArrayLike,
    beta: ArrayLike,
    noise_variance: float,
    n_draws: int = 50,
    seed: int = 0,
    n_jobs: int = 1,
    exact_rows: bool = False,
) -> SimulatedRisk:
    """Simulate masked regression and return its risks.

    Parameters
    ----------
    laws
        Distribution of the ratio, or a list or vector of them: a number is a fixed ratio, a tuple ``(low, high)``
        the uniform distribution of R²MAE, a tuple ``(nodes, weights)`` of vectors a discrete one; see `RatioLaw`.
        All of them share the rows, noise and uniforms of a draw, so their differences have a small standard error;
        a range with ``low == high`` reproduces the fixed ratio bitwise.
    gamma
        Covariates per row; the data have ``round(n_features / gamma)`` rows, and a row of ratio p is kept with
        probability p.
    covariance
        Σ, shape ``(n_features, n_features)``, or a `Covariance`.
    beta
        Coefficients, shape ``(n_features,)``, or ``(n_features, n_signals)`` to share draws between signals.
    noise_variance
        σ² >= 0 of the target.
    n_draws
        Number of independent data sets.
    seed
        Random seed for all draws; the result does not depend on `n_jobs`.
    n_jobs
        Number of worker processes. They are spawned, so a script needs an ``if __name__ == "__main__":`` guard.
        Set ``OMP_NUM_THREADS=1`` before starting Python; otherwise each worker uses one thread per core.
    exact_rows
        Keep exactly ``round(n_obs * p)`` rows instead of a binomial number, as the paper does outside its tables 5
        and 9. The binomial number increases the mean risk near p = gamma, by a fraction of about 30 (1 - p)/d at
        p = 1.2 gamma; the limit is the same. Only for fixed ratios.

    Returns
    -------
    Risks ``(β̂-β)ᵀΣ(β̂-β)``, with the exact expectation over test rows.

    Raises
    ------
    ValueError
        If `gamma` leaves no row, the shapes disagree, `n_draws` or `n_jobs` is not positive, or `exact_rows` is used
        with a varying ratio.
    """
    model = check_covariance(covariance)
    several = list(laws) if isinstance(laws, list | np.ndarray) else [laws]
    parsed = tuple(as_law(law) for law in several)
    if exact_rows and any(law.nodes.size > 1 for law in parsed):
        raise ValueError("exact_rows needs fixed ratios: rows with ratios of their own are kept at random.")
    signals = np.asarray(beta, dtype=np.float64)
    if signals.ndim not in (1, 2) or signals.shape[0] != model.n_features:
        raise ValueError(
            f"beta must have {model.n_features} rows to match the covariance, got shape {signals.shape}."
        )
    n_obs = round(model.n_features / check_positive("gamma", gamma))
    if n_obs < 1 or n_draws < 1 or n_jobs < 1:
        raise ValueError(
            f"At least one row, draw and job are needed, got {n_obs}, {n_draws} and {n_jobs}; lower gamma or raise the rest."
        )
    noise_sd = np.sqrt(check_positive("noise_variance", noise_variance, strict=False))
    columns = signals.reshape(model.n_features, -1)
    problem = _Problem(
        parsed, model.root, model.matrix, columns, float(noise_sd), n_obs, int(seed), exact_rows
    )
    draw = partial(_draw, problem)
    if n_jobs == 1:
        results = list(map(draw, range(n_draws)))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(n_jobs, n_draws), mp_context=spawn) as pool:
            results = list(pool.map(draw, range(n_draws), chunksize=max(1, n_draws // (4 * n_jobs))))
    draws = np.stack(results)  # (n_draws, 2, n_laws, n_signals)
    if signals.ndim == 1:
        draws = draws[..., 0]
    return SimulatedRisk(draws[:, 0], draws[:, 1])
