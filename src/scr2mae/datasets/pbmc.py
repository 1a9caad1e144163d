"""Integer counts of the 700 PBMCs that are part of the Scanpy package."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData


def recover_counts(X: Any, *, tolerance: float = 0.2, max_smallest: int = 10) -> sp.csr_matrix:
    """Invert ``log1p(counts * scale)`` with an unknown scale per cell.

    After ``expm1``, the values of a cell are integer multiples of one unit. The smallest positive value of the cell is
    tried first, then halves, thirds and so on of it, because its count may exceed one; the largest unit that makes every
    value an integer is used.

    Parameters
    ----------
    X
        Natural-log values, shape ``(n_obs, n_vars)``, dense or sparse, finite and not negative. Genes may be
        missing from the matrix: the scale is estimated from the values, not from their sum.
    tolerance
        Largest rounding error, in counts, in (0, 0.5).
    max_smallest
        Largest count to try for the smallest positive value of a cell, >= 1.

    Returns
    -------
    Counts as integers in float32, shape ``(n_obs, n_vars)``, without stored zeros. Empty cells stay empty.

    Raises
    ------
    ValueError
        If a value is negative or not finite, or if no unit makes the values of a cell integers.

    Notes
    -----
    Values that share a divisor (2, 4, 4) cannot be distinguished from their quotient (1, 2, 2), and a cell
    with only a few genes always fits some unit. A value stored to within ``d`` determines a count
    ``c`` to within about ``d * c``, so log-values rounded to three decimals determine counts up to a few hundred.
    """
    if not 0 < tolerance < 0.5:
        raise ValueError(
            f"tolerance must lie in (0, 0.5), got {tolerance}; at 0.5 a value may be rounded to either count."
        )
    if max_smallest < 1:
        raise ValueError(f"max_smallest must be at least 1, got {max_smallest}.")
    counts = sp.csr_matrix(X, dtype=np.float64, copy=True)
    counts.sum_duplicates()
    if not (np.isfinite(counts.data).all() and (counts.data >= 0).all()):
        raise ValueError(
            "Log-values must be finite and not negative; pass log1p values, not scaled (z-scored) ones."
        )
    counts.eliminate_zeros()
    counts.data = np.expm1(counts.data)
    for cell, (start, stop) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        if start < stop:
            row = counts.data[start:stop]
            row[:] = _whole_counts(row, tolerance=tolerance, max_smallest=max_smallest, cell=cell)
    return counts.astype(np.float32)


def pbmc68k() -> AnnData:
    """Load 700 peripheral blood mononuclear cells as integer counts, without a download.

    Returns
    -------
    AnnData of 700 cells by 765 highly variable genes: counts in ``X`` (CSR, float32), gene symbols as
    ``var_names``, and the ``obs`` of the Scanpy data set. ``obs["bulk_labels"]`` holds the ten cell types, also
    copied to ``obs["cell_type"]``, the name in all data sets of this package. ``obs["n_counts"]`` is the library size
    of the cell over all genes of the experiment, not over the 765 kept here.

    Raises
    ------
    ValueError
        If the file in the installed Scanpy does not hold log1p counts, see `recover_counts`.

    Notes
    -----
    From the fresh 68k PBMCs of Zheng et al. (2017, doi:10.1038/ncomms14049), as in `scanpy.datasets.pbmc68k_reduced`:
    scaled to 10,000 counts per cell, log1p, rounded to three decimals, all genes but the 765 dropped.
    """
    from scanpy.datasets import pbmc68k_reduced

    source = pbmc68k_reduced()
    obs = source.obs.copy()
    obs["cell_type"] = obs["bulk_labels"].copy()
    var = source.raw.var[[]].copy()
    return AnnData(X=recover_counts(source.raw.X), obs=obs, var=var)


def _whole_counts(values: np.ndarray, *, tolerance: float, max_smallest: int, cell: int) -> np.ndarray:
    """Divide one cell by the largest unit that makes all of its values integers."""
    remainders = []
    for smallest in range(1, max_smallest + 1):
        multiples = values / _count_unit(values, smallest)
        whole = np.round(multiples)
        remainders.append(np.abs(multiples - whole).max())
        if remainders[-1] <= tolerance and whole.min() >= 1:
            return whole
    raise ValueError(
        f"Cell {cell} does not hold log1p of scaled counts: with the best scale a value lies {min(remainders):.3f} "
        f"from a whole number (tolerance {tolerance}). Pass natural-log log1p values with one scale per cell."
    )


def _count_unit(values: np.ndarray, smallest: int) -> float:
    """Fit the unit of one cell, given the count of its smallest value."""
    unit = float(values.min()) / smallest
    # an error in log1p(v) moves v in proportion to 1 + v
    weights = (1.0 + values) ** -2
    reach = 2 * smallest
    # Small counts fix the unit well enough to round the larger ones, which then sharpen it.
    while True:
        near = values < (reach + 0.5) * unit
        whole = np.round(values[near] / unit)
        unit = float((weights[near] * whole) @ values[near] / ((weights[near] * whole) @ whole))
        if near.all():
            return unit
        reach *= 2
