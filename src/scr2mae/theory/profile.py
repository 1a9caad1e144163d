"""Risk of predicting each gene from the others under masking, as a function of the masking ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scr2mae.theory.checks import check_positive, check_ratios, cholesky_inverse
from scr2mae.theory.covariance import Covariance
from scr2mae.theory.leave_one_out import leave_one_out_risk

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_DEFAULT_RATIOS = np.round(np.arange(0.05, 0.96, 0.05), 2)


@dataclass(frozen=True, eq=False)
class ShrunkCovariance:
    """Covariance shrunk toward a multiple of the identity.

    Parameters
    ----------
    matrix
        Covariance, shape ``(n_features, n_features)``.
    shrinkage
        Weight of the scaled identity, in [0, 1].
    """

    matrix: NDArray[np.float64]
    shrinkage: float


@dataclass(frozen=True, eq=False)
class MaskProfile:
    """Risk per gene and masking ratio in the linear model.

    Parameters
    ----------
    genes
        Gene names, length ``n_genes``.
    ratios
        Masking ratios, shape ``(n_ratios,)``.
    risk
        Risk without the noise of the gene itself, shape ``(n_genes, n_ratios)``, in squared units of the genes.
    null_risk
        Risk of predicting the mean, equal to the variance explained by the other genes; shape ``(n_genes,)``.
    noise_variance
        Variance of a gene given all others, shape ``(n_genes,)``.
    gamma
        Covariates per row.
    shrinkage
        Weight of the scaled identity in the covariance.
    """

    genes: tuple[str, ...]
    ratios: NDArray[np.float64]
    risk: NDArray[np.float64]
    null_risk: NDArray[np.float64]
    noise_variance: NDArray[np.float64]
    gamma: float
    shrinkage: float

    @property
    def regime(self) -> NDArray[np.str_]:
        """Regime per ratio, shape ``(n_ratios,)``: over-parametrized if fewer rows are kept than covariates."""
        return np.where(self.ratios < self.gamma, "over-parametrized", "under-parametrized")

    @property
    def pooled_risk(self) -> NDArray[np.float64]:
        """Total risk divided by total null risk of all genes, shape ``(n_ratios,)``."""
        return self.risk.sum(axis=0) / self.null_risk.sum()

    @property
    def optimal_ratio(self) -> NDArray[np.float64]:
        """Ratio of minimal risk per gene, among `ratios`, shape ``(n_genes,)``."""
        return self.ratios[self.risk.argmin(axis=1)]

    def favored_range(self, *, tolerance: float = 0.05) -> tuple[float, float]:
        """Return the interval of ratios around the minimum of the pooled risk in which it stays near the minimum.

        Parameters
        ----------
        tolerance
            Largest excess over the minimum, relative to the minimum; non-negative.
        """
        limit = self.pooled_risk.min() * (1 + check_positive("tolerance", tolerance, strict=False))
        best = int(self.pooled_risk.argmin())
        far = np.flatnonzero(self.pooled_risk > limit)
        low, high = far[far < best].max(initial=-1) + 1, far[far > best].min(initial=self.ratios.size) - 1
        return float(self.ratios[low]), float(self.ratios[high])

    def advice(self, *, tolerance: float = 0.05) -> str:
        """Describe the favored range, its regime and the assumptions, in a few sentences.

        Parameters
        ----------
        tolerance
            As in :meth:`favored_range`.

        Returns
        -------
        Text for users.
        """
        low, high = self.favored_range(tolerance=tolerance)
        best = int(self.pooled_risk.argmin())
        spread = np.quantile(self.optimal_ratio, [0.25, 0.75])
        return (
            f"Ratios {low:g} to {high:g} keep the pooled risk within {tolerance:.0%} of its minimum, "
            f"{self.pooled_risk[best]:.3g} of the null risk at {self.ratios[best]:g} ({self.regime[best]}, "
            f"gamma = {self.gamma:g}); half of the genes have their own minimum between {spread[0]:g} and "
            f"{spread[1]:g}. Assumes linear prediction of centered Gaussian genes by minimum-norm least squares, "
            f"the estimated covariance (shrinkage {self.shrinkage:.3g}) in place of the true one, and masks drawn "
            "independently per cell. gamma represents a network's capacity per cell and is your choice."
        )


def ledoit_wolf(matrix: NDArray[np.float64] | sparse.csr_array | sparse.csr_matrix) -> ShrunkCovariance:
    """Shrink a sample covariance toward a multiple of the identity by the Ledoit-Wolf weight.

    Parameters
    ----------
    matrix
        Observations as rows, shape ``(n_obs, n_features)``; dense or sparse. Sparse input is not densified.

    Returns
    -------
    Covariance of shape ``(n_features, n_features)``, with denominator ``n_obs``, and the weight in [0, 1].

    Notes
    -----
    Ledoit and Wolf (2004), as in ``sklearn.covariance.ledoit_wolf``.
    """
    sample, fourth = _moments(matrix)
    n_obs, n_features = matrix.shape
    scale = np.trace(sample) / n_features
    distance = np.sum(sample**2) / n_features - scale**2
    fluctuation = (fourth / n_obs - np.sum(sample**2)) / (n_obs * n_features)
    weight = 0.0 if distance <= 0 else float(np.clip(fluctuation / distance, 0, 1))
    return ShrunkCovariance(_shrink(sample, weight), weight)


def mask_profile(
    adata: Any,
    *,
    gamma: float,
    genes: Sequence[str] | None = None,
    shrinkage: str | float = "ledoit-wolf",
    ratios: ArrayLike | None = None,
) -> MaskProfile:
    """Predict how well each gene can be imputed from the others, as a function of the masking ratio.

    Parameters
    ----------
    adata
        Cells by genes, log-normalized in ``X``, dense or sparse.
    gamma
        Covariates per row in the linear model; below one, rows outnumber covariates. It represents the capacity of
        a network per cell and has no default; genes divided by cells is one candidate.
    genes
        Genes used as targets and as covariates; all genes by default. Time grows with the cube of their number:
        about one second per ratio for 1000 genes.
    shrinkage
        ``"ledoit-wolf"``, or the weight of the scaled identity in [0, 1].
    ratios
        Masking ratios in (0, 1); by default 0.05, 0.10, ..., 0.95 without `gamma`.

    Returns
    -------
    Risk curves of all genes, with the regime of each ratio and the favored range.

    Raises
    ------
    KeyError
        If a gene is not in ``adata.var_names``.
    ValueError
        If ``X`` looks like raw counts, fewer than three genes are given, or an argument is invalid.

    Notes
    -----
    Gene j is regressed on the others with β = Σ₋ⱼ⁻¹Σ₋ⱼⱼ and σ² = 1/(Σ⁻¹)ⱼⱼ, so only Σ is needed; the risks are
    those of `general_risk`, computed for all genes at once. Genes are centered, not scaled: the minimum-norm
    solution, and therefore the profile, depends on the units of the genes.
    """
    names, values = _panel(adata, genes)
    shrunk = _covariance(values, shrinkage)
    matrix, weight = shrunk.matrix, shrunk.shrinkage
    model = Covariance(matrix, name="genes")
    if ratios is None:
        ratios = _DEFAULT_RATIOS[np.abs(_DEFAULT_RATIOS / gamma - 1) > 1e-9]
    grid = np.atleast_1d(check_ratios(ratios, gamma=gamma))
    precision = cholesky_inverse(model.matrix)
    noise = 1 / np.diagonal(precision)
    risk = np.stack(
        [leave_one_out_risk(p, gamma=gamma, covariance=model, precision=precision) for p in grid], axis=1
    )
    return MaskProfile(names, grid, risk, model.diagonal - noise, noise, float(gamma), weight)


def _panel(adata: Any, genes: Sequence[str] | None) -> tuple[tuple[str, ...], Any]:
    """Return the names and the values of the chosen genes."""
    names = [str(name) for name in adata.var_names]
    known = set(names)
    if genes is not None:
        missing = [gene for gene in genes if gene not in known]
        if missing:
            raise KeyError(f"{len(missing)} genes are not in adata.var_names, for example {missing[0]!r}.")
        adata, names = adata[:, list(genes)], [str(gene) for gene in genes]
    if len(names) < 3:
        raise ValueError(f"A profile needs at least three genes, got {len(names)}.")
    values: Any = adata.X
    stored = np.asarray(values.data if sparse.issparse(values) else values)  # type: ignore[attr-defined]
    if stored.size and stored.max() > 1 and np.array_equal(stored, np.round(stored)):
        raise ValueError(
            "adata.X contains only integers and looks like raw counts; normalize and log-transform it first."
        )
    return tuple(names), values


def _covariance(values: Any, shrinkage: str | float) -> ShrunkCovariance:
    """Return the covariance of the values, shrunk toward a multiple of the identity."""
    if shrinkage == "ledoit-wolf":
        return ledoit_wolf(values)
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be 'ledoit-wolf' or a weight in [0, 1], got {shrinkage!r}.")
    return ShrunkCovariance(_shrink(_moments(values)[0], shrinkage), float(shrinkage))


def _shrink(sample: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    shrunk = (1 - weight) * sample
    shrunk[np.diag_indices_from(shrunk)] += weight * np.trace(sample) / sample.shape[0]
    return shrunk


def _moments(matrix: Any) -> tuple[NDArray[np.float64], float]:
    """Return the covariance and the sum over rows of the fourth power of the centered row's norm."""
    n_obs = matrix.shape[0]
    rows: Any = matrix.astype(np.float64)
    mean = np.asarray(rows.mean(axis=0)).ravel()
    if not sparse.issparse(matrix):
        centered = rows - mean
        return centered.T @ centered / n_obs, float(np.sum(np.sum(centered**2, axis=1) ** 2))
    second = (rows.T @ rows).toarray() / n_obs
    squares = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    norms = squares - 2 * (rows @ mean) + mean @ mean
    return second - np.outer(mean, mean), float(np.sum(norms**2))
