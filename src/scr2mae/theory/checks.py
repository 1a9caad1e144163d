"""Validation of arguments, shared by all formulas of the linear theory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import linalg

from scr2mae.theory.covariance import Covariance

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_POLE = 1e-9  # relative distance from p = gamma below which the risk has no meaning


def check_positive(name: str, value: float, *, strict: bool = True) -> float:
    """Return a finite scalar that is positive, or non-negative if not `strict`."""
    if not np.isfinite(value) or value < 0 or (strict and value == 0):
        kind = "positive" if strict else "non-negative"
        raise ValueError(f"{name} must be a {kind} finite number, got {value!r}.")
    return float(value)


def check_ratios(p: ArrayLike, *, gamma: float) -> NDArray[np.float64]:
    """Return masking ratios as an array; raise if one lies outside (0, 1) or equals `gamma`."""
    check_positive("gamma", gamma)
    ratios = np.asarray(p, dtype=np.float64)
    outside = ~((ratios > 0) & (ratios < 1))
    if outside.any():
        raise ValueError(f"Masking ratios must lie strictly between 0 and 1, got {ratios[outside].flat[0]}.")
    if np.any(np.abs(ratios / gamma - 1) < _POLE):
        raise ValueError(
            f"The risk diverges at p = gamma = {gamma}: as many rows are kept as there are covariates. "
            "Leave that ratio out."
        )
    return ratios


def check_overparametrized(ratios: NDArray[np.float64], *, gamma: float, formula: str) -> None:
    """Raise if a ratio exceeds `gamma`, so that more rows are kept than there are covariates."""
    if np.any(ratios > gamma):
        raise ValueError(
            f"{formula} holds for fewer kept rows than covariates (p < gamma = {gamma}), got p = {ratios.max()}: "
            "too many rows. Use general_risk, which covers both regimes."
        )


def check_covariance(covariance: Covariance | ArrayLike) -> Covariance:
    """Return a validated covariance, wrapping a plain matrix."""
    return covariance if isinstance(covariance, Covariance) else Covariance(np.asarray(covariance))


def check_signal(beta: ArrayLike, *, n_features: int) -> NDArray[np.float64]:
    """Return coefficients as a finite float vector, shape ``(n_features,)``."""
    values = np.asarray(beta, dtype=np.float64)
    if values.shape != (n_features,):
        raise ValueError(
            f"beta must have shape ({n_features},) to go with the covariance, got {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError("beta contains values that are not finite; remove or impute them first.")
    return values


def as_output(values: NDArray[np.float64], like: NDArray[np.float64]) -> Any:
    """Return a scalar for a scalar ratio, and an array of the ratios' shape otherwise."""
    return values.reshape(like.shape)[()]


def cholesky_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert a symmetric positive-definite matrix by its Cholesky factor, three times faster than by LU."""
    factor, info = linalg.lapack.dpotrf(matrix, lower=1)
    if info:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    inverse, _ = linalg.lapack.dpotri(factor, lower=1)
    lower = np.tril(inverse)
    return lower + np.tril(inverse, -1).T
