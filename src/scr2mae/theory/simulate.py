"""Simulation of masked minimum-norm regression, at fixed ratios and with a ratio drawn row by row (R²MAE)."""

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

_RCOND = 1e-9  # of the Gram matrix; below it the normal equations lose too many digits


@dataclass(frozen=True, eq=False)
class SimulatedRisk:
    """Risks of repeated draws.

    Parameters
    ----------
    risks
        Shape ``(n_draws, n_laws, n_signals)``; the last axis is absent if the signal was a vector.
    powers
        Mean squared predictions ``β̂ᵀΣβ̂`` of the same shape.
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
    """All that a worker needs; plain arrays, so that it pickles."""

    laws: tuple[RatioLaw, ...]
    root: NDArray[np.float64]  # (d, d)
    matrix: NDArray[np.float64]  # (d, d)
    beta: NDArray[np.float64]  # (d, n_signals)
    noise_sd: float
    n_obs: int
    seed: int
    exact_rows: bool


def minimum_norm(rows: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minimum-norm least squares, as by the pseudo-inverse.

    Parameters
    ----------
    rows
        Shape ``(n_rows, n_features)``.
    targets
        Shape ``(n_rows, n_signals)``.

    Returns
    -------
    Coefficients, shape ``(n_features, n_signals)``.

    Notes
    -----
    Cholesky of the smaller Gram matrix: at 500 x 1000 it took 7 ms on one core against 120 ms for the
    pseudo-inverse, 28 ms for the Gram matrix's eigenvectors and 23 ms for QR. It squares the condition number, so
    a Gram matrix with reciprocal condition below 1e-9, or a singular one (a row whose covariates are all masked),
    goes to LAPACK's SVD solver instead.
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
    """Risk and prediction power of every law on one data set, shape ``(2, n_laws, n_signals)``.

    Each kind of randomness has its own stream and is drawn for all rows, kept or not. Laws therefore see the same
    rows and noise, and the outcome of one law does not depend on which others are asked for.
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
    """Choose the rows whose target was masked: each with its ratio as probability, or exactly that share of them."""
    if not exact:
        return uniforms < ratios
    kept = np.zeros(uniforms.shape, dtype=bool)
    kept[np.argsort(uniforms)[: round(ratios.sum())]] = True
    return kept


_worker_problem: _Problem | None = None


def _start_worker(problem: _Problem) -> None:
    global _worker_problem
    _worker_problem = problem


def _draw_in_worker(draw: int) -> NDArray[np.float64]:
    if _worker_problem is None:
        raise RuntimeError("The worker was not given its problem; start it through simulate_risk.")
    return _draw(_worker_problem, draw)


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
    """Simulate the masked regression exactly as it is defined.

    Parameters
    ----------
    laws
        One law of the ratio or a list or vector of them: a number is a fixed ratio, a tuple ``(low, high)`` the
        uniform law of R²MAE, a tuple ``(nodes, weights)`` of vectors a discrete law; see `RatioLaw`. All laws of a
        draw share rows, noise and uniforms, so that their differences have a small standard error; a range with
        ``low == high`` gives the fixed ratio's numbers to the bit.
    gamma
        Covariates per row; the data have ``round(n_features / gamma)`` rows, of which those masked at ratio p are
        kept with probability p.
    covariance
        Σ, shape ``(n_features, n_features)``, or a `Covariance`.
    beta
        Coefficients, shape ``(n_features,)``, or ``(n_features, n_signals)`` to share the draws between signals.
    noise_variance
        σ² >= 0 of the target.
    n_draws
        Independent data sets.
    seed
        Reproduces everything, whatever `n_jobs` is.
    n_jobs
        Worker processes. They are spawned, so a script needs the usual ``if __name__ == "__main__":`` guard, and
        inherit the environment: set ``OMP_NUM_THREADS=1`` before starting Python, or every worker starts as many
        threads as there are cores.
    exact_rows
        Keep exactly ``round(n_obs * p)`` rows in place of a binomial number, as the paper does outside its tables 5
        and 9. The binomial number raises the mean risk near p = gamma, by about 30 (1 - p)/d of itself at
        p = 1.2 gamma; the limit is the same. For fixed ratios only.

    Returns
    -------
    Risks ``(β̂-β)ᵀΣ(β̂-β)``, the expectation over test rows taken exactly.

    Raises
    ------
    ValueError
        If `gamma` leaves no row, the shapes disagree, `n_draws` or `n_jobs` is not positive, or exact rows are asked
        for a ratio that varies.
    """
    model = check_covariance(covariance)
    several = list(laws) if isinstance(laws, list | np.ndarray) else [laws]
    parsed = tuple(as_law(law) for law in several)
    if exact_rows and any(law.nodes.size > 1 for law in parsed):
        raise ValueError("exact_rows needs fixed ratios: a row that draws its own ratio is kept at random.")
    signals = np.asarray(beta, dtype=np.float64)
    if signals.ndim not in (1, 2) or signals.shape[0] != model.n_features:
        raise ValueError(
            f"beta must have {model.n_features} rows to go with the covariance, got {signals.shape}."
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
    draws = np.stack(_run(problem, n_draws=n_draws, n_jobs=n_jobs))  # (n_draws, 2, n_laws, n_signals)
    if signals.ndim == 1:
        draws = draws[..., 0]
    return SimulatedRisk(draws[:, 0], draws[:, 1])


def _run(problem: _Problem, *, n_draws: int, n_jobs: int) -> list[NDArray[np.float64]]:
    if n_jobs == 1:
        return list(map(partial(_draw, problem), range(n_draws)))
    with ProcessPoolExecutor(
        min(n_jobs, n_draws),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(problem,),
    ) as pool:
        return list(pool.map(_draw_in_worker, range(n_draws), chunksize=max(1, n_draws // (4 * n_jobs))))
