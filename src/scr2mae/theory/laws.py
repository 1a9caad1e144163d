"""Distributions of the masking ratio: fixed, uniform (R²MAE), discrete, or any density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Density: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_N_PANELS = 32  # a density may have kinks, so it is integrated piecewise
_N_PANEL_NODES = 4


@dataclass(frozen=True, eq=False)
class RatioLaw:
    """A distribution of the masking ratio, discretized for the formulas and sampled by inversion.

    Build one with `fixed`, `uniform`, `discrete` or `from_density`.

    Parameters
    ----------
    nodes
        Ratios in (0, 1), ascending, shape ``(n_nodes,)``.
    weights
        Their probabilities, shape ``(n_nodes,)``, summing to one.
    bounds
        End points of a uniform distribution, which is sampled exactly. Others are sampled from their nodes.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        nodes = np.atleast_1d(np.asarray(self.nodes, dtype=np.float64))
        weights = np.atleast_1d(np.asarray(self.weights, dtype=np.float64))
        if nodes.ndim != 1 or nodes.shape != weights.shape or nodes.size == 0:
            raise ValueError(
                f"nodes and weights must be vectors of equal length, got {nodes.shape}, {weights.shape}."
            )
        if not ((nodes > 0) & (nodes < 1)).all():
            raise ValueError(f"Masking ratios must lie strictly between 0 and 1, got {nodes}.")
        if not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
            raise ValueError(f"weights must be non-negative and sum to one, got the sum {weights.sum():g}.")
        order = np.argsort(nodes, kind="stable")
        object.__setattr__(self, "nodes", nodes[order])
        object.__setattr__(self, "weights", weights[order] / weights.sum())

    @classmethod
    def fixed(cls, ratio: float) -> RatioLaw:
        """Return the distribution of a fixed ratio.

        Parameters
        ----------
        ratio
            Masking ratio in (0, 1).
        """
        return cls.uniform(ratio, ratio)

    @classmethod
    def uniform(cls, low: float, high: float, *, n_nodes: int = 16) -> RatioLaw:
        """Return the uniform distribution on [low, high], with Gauss-Legendre nodes.

        Parameters
        ----------
        low, high
            Ends of the range.
        n_nodes
            Number of quadrature nodes, >= 1.

        Raises
        ------
        ValueError
            Unless ``0 <= low <= high < 1`` and `high` is positive. The risk of a range up to 1 is infinite, since
            the variance grows like 1/(1 - p).
        """
        if not (0 <= low <= high < 1 and high > 0):
            raise ValueError(
                f"A range of ratios needs 0 <= low <= high < 1 and high > 0, got ({low}, {high})."
            )
        bounds = (float(low), float(high))
        if low == high:
            return cls(np.array([low]), np.ones(1), bounds)
        nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
        return cls(low + (high - low) * (nodes + 1) / 2, weights / 2, bounds)

    @classmethod
    def discrete(cls, ratios: ArrayLike, weights: ArrayLike | None = None) -> RatioLaw:
        """Return a distribution on finitely many ratios, with equal probabilities by default.

        Parameters
        ----------
        ratios
            Masking ratios in (0, 1), shape ``(n_ratios,)``.
        weights
            Non-negative probabilities of the same shape, summing to one.
        """
        nodes = np.atleast_1d(np.asarray(ratios, dtype=np.float64))
        if weights is None:
            weights = np.full(nodes.shape, 1 / max(nodes.size, 1))
        return cls(nodes, np.asarray(weights, dtype=np.float64))

    @classmethod
    def from_density(cls, density: Density, *, low: float = 0.0, high: float = 1.0) -> RatioLaw:
        """Return the distribution with a given density on (low, high).

        Parameters
        ----------
        density
            Vectorized function, non-negative, with integral one over (low, high) within 1 %. It should vanish
            toward 1, since the variance of the estimate grows like 1/(1 - p).
        low, high
            Support, within [0, 1].

        Raises
        ------
        ValueError
            If the support is invalid or the density does not integrate to one.
        """
        if not 0 <= low < high <= 1:
            raise ValueError(f"The support must satisfy 0 <= low < high <= 1, got ({low}, {high}).")
        edges = np.linspace(low, high, _N_PANELS + 1)
        unit, unit_weights = np.polynomial.legendre.leggauss(_N_PANEL_NODES)
        half = np.diff(edges)[:, None] / 2
        nodes = (edges[:-1, None] + half * (unit + 1)).ravel()
        weights = (half * unit_weights).ravel() * np.asarray(density(nodes), dtype=np.float64)
        total = weights.sum()
        if not np.isfinite(total) or abs(total - 1) > 0.01 or (weights < 0).any():
            raise ValueError(
                f"The density must be non-negative and integrate to one, got the integral {total:g}."
            )
        kept = weights > 0
        return cls(nodes[kept], weights[kept] / total)

    @property
    def mean(self) -> float:
        """Mean ratio, equal to the expected fraction of rows kept."""
        return float(self.nodes @ self.weights)

    def sample(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert draws from U(0, 1) to ratios by inverting the distribution function.

        Parameters
        ----------
        uniforms
            Draws in [0, 1), any shape.

        Returns
        -------
        Ratios of the same shape.
        """
        if self.bounds is not None:
            low, high = self.bounds
            return low + (high - low) * uniforms
        index = np.searchsorted(np.cumsum(self.weights), uniforms, side="right")
        return self.nodes[np.minimum(index, self.nodes.size - 1)]


LawLike: TypeAlias = RatioLaw | Density | float | tuple[ArrayLike, ArrayLike]


def as_law(law: LawLike) -> RatioLaw:
    """Convert a ratio, a pair (low, high), a pair (nodes, weights), or a density on (0, 1) to a `RatioLaw`."""
    if isinstance(law, RatioLaw):
        return law
    if callable(law):
        return RatioLaw.from_density(law)
    if isinstance(law, int | float | np.number):
        return RatioLaw.fixed(float(law))
    if isinstance(law, tuple | list) and len(law) == 2:
        first, second = (np.asarray(part, dtype=np.float64) for part in law)
        if first.ndim == second.ndim == 0:
            return RatioLaw.uniform(float(first), float(second))
        return RatioLaw.discrete(first, second)
    raise TypeError(
        "The masking ratio must be given as a number, a pair (low, high), a pair (nodes, weights), a density or a "
        f"RatioLaw, got {type(law).__name__}."
    )
