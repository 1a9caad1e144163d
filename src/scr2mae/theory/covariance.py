"""Covariance models of the linear theory: isotropic, spiked, spectral, latent-space and low-rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_SYMMETRY = 1e-10  # largest asymmetry, relative to the largest entry


@dataclass(frozen=True, eq=False)
class Covariance:
    """A symmetric positive-definite covariance with its root and eigenvectors, each computed once.

    Parameters
    ----------
    matrix
        Shape ``(n_features, n_features)``; stored as a read-only float64 copy.
    name
        Label for tables and legends.

    Raises
    ------
    ValueError
        If `matrix` is not square, finite, symmetric and positive definite.
    """

    matrix: NDArray[np.float64]
    name: str = "custom"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
            raise ValueError(f"A covariance must be a non-empty square matrix, got shape {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise ValueError("The covariance contains values that are not finite.")
        if np.abs(matrix - matrix.T).max() > _SYMMETRY * np.abs(matrix).max():
            raise ValueError("The covariance must be symmetric; average it with its transpose.")
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            raise ValueError(
                "The covariance must be positive definite; shrink it or add a small multiple of the identity."
            ) from None
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def n_features(self) -> int:
        """Number of covariates, d."""
        return self.matrix.shape[0]

    @cached_property
    def diagonal(self) -> NDArray[np.float64]:
        """Variances of the covariates, shape ``(n_features,)``."""
        return np.diagonal(self.matrix).copy()

    @cached_property
    def has_constant_diagonal(self) -> bool:
        """Whether all variances are equal; masking then does not change the eigenvectors."""
        return bool(np.ptp(self.diagonal) <= 1e-12 * self.diagonal.max())

    @cached_property
    def _eigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.linalg.eigh(self.matrix)

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """Eigenvalues in ascending order, shape ``(n_features,)``."""
        return self._eigh[0]

    @property
    def eigenvectors(self) -> NDArray[np.float64]:
        """Eigenvectors as columns, in the order of `eigenvalues`, shape ``(n_features, n_features)``."""
        return self._eigh[1]

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """Symmetric square root: ``root @ root`` equals `matrix`."""
        values, vectors = self._eigh
        return (vectors * np.sqrt(values)) @ vectors.T

    def eigenvector(self, quantile: float) -> NDArray[np.float64]:
        """Return the unit eigenvector at a quantile of the spectrum.

        Parameters
        ----------
        quantile
            Position in the spectrum, in [0, 1]; 1 is the top eigenvector. The sign makes the sum of entries non-negative.

        Returns
        -------
        Vector of shape ``(n_features,)``.

        Raises
        ------
        ValueError
            If `quantile` lies outside [0, 1].
        """
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must lie in [0, 1], got {quantile}.")
        vector = self.eigenvectors[:, round(quantile * (self.n_features - 1))]
        return vector if vector.sum() >= 0 else -vector


def isotropic_covariance(n_features: int) -> Covariance:
    """Return the identity (figure 1A).

    Parameters
    ----------
    n_features
        Number of covariates.
    """
    return Covariance(np.eye(n_features), name="isotropic")


def spiked_covariance(
    n_features: int,
    *,
    spike: float,
    direction: Literal["uniform", "ones"] | ArrayLike = "uniform",
    seed: int | np.random.Generator = 0,
) -> Covariance:
    """Return I + spike v vᵀ (figures 1B to 1D and 3).

    Parameters
    ----------
    n_features
        Number of covariates.
    spike
        Strength δ >= 0 of the spike; the top eigenvalue is 1 + δ.
    direction
        ``"uniform"`` draws the entries of v from U(0, 1), our reading of the paper's "uniformly sampled vector";
        ``"ones"`` sets all entries equal; an array of shape ``(n_features,)`` is used directly. v has norm one.
    seed
        Random seed for the direction.

    Raises
    ------
    ValueError
        If the spike is negative or the direction cannot be normalized.
    """
    if not spike >= 0:
        raise ValueError(f"spike must be non-negative, got {spike}.")
    if isinstance(direction, str) and direction not in ("ones", "uniform"):
        raise ValueError(f"direction must be 'ones', 'uniform' or a vector, got {direction!r}.")
    if isinstance(direction, str):
        rng = np.random.default_rng(seed)
        vector = np.ones(n_features) if direction == "ones" else rng.uniform(size=n_features)
    else:
        vector = np.asarray(direction, dtype=np.float64)
    norm = np.linalg.norm(vector)
    if vector.shape != (n_features,) or not np.isfinite(norm) or norm == 0:
        raise ValueError(
            f"direction must be a non-zero vector of {n_features} entries, got shape {vector.shape}."
        )
    vector = vector / norm
    # The squared entries of a "ones" vector round alike, so the diagonal is constant.
    return Covariance(np.eye(n_features) + spike * np.outer(vector, vector), name=f"spike {spike:g}")


def haar_orthogonal(n_features: int, *, seed: int | np.random.Generator = 0) -> NDArray[np.float64]:
    """Draw an orthogonal matrix from the Haar measure.

    Parameters
    ----------
    n_features
        Number of rows and columns.
    seed
        Random seed for the matrix, or a generator.

    Returns
    -------
    Shape ``(n_features, n_features)``, float64.

    Notes
    -----
    QR of a Gaussian matrix, with the signs of R's diagonal moved into Q; otherwise LAPACK's Q is not uniform.
    """
    gaussian = np.random.default_rng(seed).standard_normal((n_features, n_features))
    orthogonal, triangular = np.linalg.qr(gaussian)
    return orthogonal * np.sign(np.diagonal(triangular))


def spectral_covariance(
    eigenvalues: ArrayLike, *, seed: int | np.random.Generator = 0, name: str = "spectral"
) -> Covariance:
    """Return O diag(eigenvalues) Oᵀ with a Haar orthogonal O.

    Parameters
    ----------
    eigenvalues
        Positive, shape ``(n_features,)``.
    seed
        Random seed for the eigenvectors.
    name
        Label for tables and legends.

    Raises
    ------
    ValueError
        If the eigenvalues are not a vector of positive finite numbers.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or not (values > 0).all():
        raise ValueError("eigenvalues must be a vector of positive finite numbers.")
    basis = haar_orthogonal(values.size, seed=seed)
    matrix = (basis * values) @ basis.T
    return Covariance((matrix + matrix.T) / 2, name=name)


def uniform_covariance(
    n_features: int, *, low: float = 1.0, high: float = 10.0, seed: int | np.random.Generator = 0
) -> Covariance:
    """Return a covariance with evenly spaced eigenvalues and random eigenvectors (figure 1E).

    Parameters
    ----------
    n_features
        Number of covariates.
    low, high
        Smallest and largest eigenvalue.
    seed
        Random seed for the eigenvectors.
    """
    return spectral_covariance(np.linspace(low, high, n_features), seed=seed, name="uniform")


def beta_covariance(
    n_features: int,
    *,
    a: float = 1.0,
    b: float = 3.0,
    low: float = 1.0,
    high: float = 10.0,
    seed: int | np.random.Generator = 0,
) -> Covariance:
    """Return a covariance with Beta-distributed eigenvalues and random eigenvectors (figure 1E, tables 5 and 9).

    Parameters
    ----------
    n_features
        Number of covariates.
    a, b
        Shape of the Beta distribution. Its values are not in our copy of the paper; ours yield few strong and many weak directions.
    low, high
        Smallest and largest eigenvalue after rescaling.
    seed
        Random seed for eigenvalues and eigenvectors.
    """
    rng = np.random.default_rng(seed)
    draws = np.sort(rng.beta(a, b, size=n_features))
    values = low + (high - low) * (draws - draws[0]) / max(draws[-1] - draws[0], np.finfo(float).tiny)
    return spectral_covariance(values, seed=rng, name="beta")


def latent_covariance(
    n_features: int, *, n_factors: int, top: float = 10.0, seed: int | np.random.Generator = 0
) -> Covariance:
    """Return I + F Fᵀ with a Gaussian F (the latent-space model of figure 1E, tables 5 and 9).

    Parameters
    ----------
    n_features
        Number of covariates d.
    n_factors
        Number of columns k of F.
    top
        Largest eigenvalue expected as d grows: the entries of F have variance
        ``(top - 1) / (sqrt(d) + sqrt(k))**2``.
    seed
        Random seed for F.

    Raises
    ------
    ValueError
        If `n_factors` is not positive or `top` does not exceed one.
    """
    if n_factors < 1 or top <= 1:
        raise ValueError(f"n_factors must be at least 1 and top above 1, got {n_factors} and {top}.")
    scale = np.sqrt(top - 1) / (np.sqrt(n_features) + np.sqrt(n_factors))
    loadings = scale * np.random.default_rng(seed).standard_normal((n_features, n_factors))
    return Covariance(np.eye(n_features) + loadings @ loadings.T, name="latent")


def low_rank_covariance(
    n_features: int, *, rank: int, strength: ArrayLike, seed: int | np.random.Generator = 0
) -> Covariance:
    """Return I + U Λ Uᵀ with `rank` random orthonormal columns U (figures 1G and 4).

    Parameters
    ----------
    n_features
        Number of covariates.
    rank
        Number of columns of U, between 1 and `n_features`.
    strength
        Diagonal of Λ: one positive number, or a vector of shape ``(rank,)``.
    seed
        Random seed for U.

    Raises
    ------
    ValueError
        If the rank is out of range or a strength is not positive.
    """
    if not 1 <= rank <= n_features:
        raise ValueError(f"rank must lie between 1 and n_features = {n_features}, got {rank}.")
    strengths = np.asarray(strength, dtype=np.float64)
    if strengths.shape not in ((), (rank,)) or not (strengths > 0).all():
        raise ValueError(
            f"strength must be one positive number or {rank} of them, got shape {strengths.shape}."
        )
    basis = haar_orthogonal(n_features, seed=seed)[:, :rank]  # (n_features, rank)
    matrix = (basis * strengths) @ basis.T
    return Covariance(np.eye(n_features) + (matrix + matrix.T) / 2, name="low rank")


def aligned_signal(
    direction: ArrayLike, *, alignment: float, signal: float = 1.0, seed: int | np.random.Generator = 0
) -> NDArray[np.float64]:
    """Return coefficients with a given component along a direction and a random remainder.

    Parameters
    ----------
    direction
        Direction v, shape ``(n_features,)``; scaled to norm one.
    alignment
        Feature strength c = vᵀβ; its square must not exceed `signal`.
    signal
        Squared norm of the coefficients.
    seed
        Random seed for the remainder, drawn from U(0, 1) per entry before the direction is projected out.

    Returns
    -------
    β = c v + sqrt(signal - c²) u with u orthogonal to v, shape ``(n_features,)``.

    Raises
    ------
    ValueError
        If the alignment is larger than the signal allows.
    """
    if alignment**2 > signal:
        raise ValueError(f"alignment**2 = {alignment**2:g} exceeds the signal {signal:g}.")
    vector = np.asarray(direction, dtype=np.float64)
    vector = vector / np.linalg.norm(vector)
    rest = np.random.default_rng(seed).uniform(size=vector.size)
    rest -= vector * (vector @ rest)
    rest /= np.linalg.norm(rest)
    return alignment * vector + np.sqrt(signal - alignment**2) * rest
