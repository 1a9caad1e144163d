"""Masking ratio of minimal risk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class OptimalRatio(NamedTuple):
    """Minimum of the risk over the masking ratio.

    Attributes
    ----------
    ratio
        Masking ratio, in (0, 1).
    risk
        Test risk at this ratio, in squared units of the target.
    """

    ratio: float
    risk: float


def optimal_ratio(
    risk: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    gamma: float,
    bounds: tuple[float, float] = (0.01, 0.99),
    n_grid: int = 60,
) -> OptimalRatio:
    """Find the masking ratio of minimal risk, on either side of the pole at `gamma`.

    Parameters
    ----------
    risk
        Function of an array of ratios, for example ``functools.partial(general_risk, gamma=gamma, ...)``.
    gamma
        Covariates per row. Ratios within 2 % of it are excluded, since the risk diverges there.
    bounds
        Search range, within (0, 1).
    n_grid
        Number of ratios evaluated before Brent's method refines the best one between its neighbors.

    Returns
    -------
    Ratio and risk. A ratio at an end of `bounds` means that the risk has no minimum inside.

    Raises
    ------
    ValueError
        If the bounds do not satisfy ``0 < low < high < 1``.

    Examples
    --------
    >>> from functools import partial
    >>> from scr2mae.theory import optimal_ratio, spiked_risk
    >>> risk = partial(spiked_risk, gamma=2.0, spike=20.0, alignment=0.9, noise_variance=0.1)
    >>> best = optimal_ratio(risk, gamma=2.0)
    >>> bool(best.risk <= risk(0.5)) and 0 < best.ratio < 1
    True
    """
    low, high = bounds
    if not 0 < low < high < 1:
        raise ValueError(f"bounds must satisfy 0 < low < high < 1, got {bounds}.")
    grid = np.linspace(low, high, n_grid)
    grid = grid[np.abs(grid / gamma - 1) > 0.02]
    values = np.asarray(risk(grid))
    best = int(values.argmin())
    side = grid[(grid < gamma) == (grid[best] < gamma)]  # neighbors must not lie beyond the pole
    center = int(np.searchsorted(side, grid[best]))
    left, right = side[max(center - 1, 0)], side[min(center + 1, side.size - 1)]
    refined = optimize.minimize_scalar(
        lambda ratio: float(risk(np.array([ratio]))[0]),
        bounds=(left, right),
        method="bounded",
        options={"xatol": 1e-5},
    )
    if refined.fun < values[best]:
        return OptimalRatio(float(refined.x), float(refined.fun))
    return OptimalRatio(float(grid[best]), float(values[best]))
